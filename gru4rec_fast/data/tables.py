"""Tables of events or interactions: every file and frame format, read as frames of clean ids and times."""

from __future__ import annotations

import csv
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from gru4rec_fast.data.vocabulary import STRING

try:
    import polars as pl
except ModuleNotFoundError as error:
    raise ImportError("reading a log needs polars: pip install polars (a prepared store opens without)") from error

# `pl`: who works on the frames takes polars from here, so that its absence is explained once.
__all__ = ["Table", "TableReader", "Widened", "numpy_ids", "open_table", "pl", "read_adjacency_lists"]

BATCH_ROWS = 1_000_000
# What each column is called by default, and in RecBole's files.
_NAMES = {
    "session": ("SessionId", "session_id"),
    "user": ("UserId", "user_id"),
    "item": ("ItemId", "item_id"),
    "time": ("Time", "timestamp"),
}
_SEPARATORS = "\t,;| "
_NO_SEPARATOR = "\x1f"  # ASCII "unit separator": in no text file
_SHOWN_NAMES, _SHOWN_CHARACTERS = 10, 80  # of the columns, in an error


@dataclass(frozen=True)
class Table:
    """Columns of a file or frame that can be read more than once.

    Attributes:
        name: what error messages call it.
        columns: the names of its columns by role: "session", "item" and "time", or "user" and "item".
        frames: yields frames of these columns, named by role, in input order, at most the given number of rows each.
        is_text: blanks around values mean nothing, and a row without values is an empty line.
    """

    name: str
    columns: dict[str, str]
    frames: Callable[[int], Iterator[pl.DataFrame]]
    is_text: bool = False


def open_table(
    source: Any, keys: Mapping[str, str], *, separator: str | None = None, allow_pickle: bool = False
) -> Table:
    """Open a path or a table and find its columns.

    Args:
        source, separator, allow_pickle: as for `SessionStore.from_events`.
        keys: the wanted columns' names, by role.

    Raises:
        FileNotFoundError, ValueError: no such file; empty; a column is missing (the message lists those there are), or
            there are two of its name.
        TypeError: not something events can be read from.
    """
    if not isinstance(source, (str, Path)):
        return _from_object(source, keys, f"the {type(source).__name__} given")
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a log; open a prepared store with SessionStore.open")
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = next((suffix for suffix in reversed(suffixes) if suffix not in (".gz", ".zst")), "")
    if kind in (".parquet", ".pq"):
        return _from_lazy(pl.scan_parquet(path, glob=False), keys, str(path))
    if kind in (".pickle", ".pkl"):
        return _from_pickle(path, keys, allow_pickle)
    return _from_text(path, keys, "\t" if kind == ".inter" and separator is None else separator, kind == ".inter")


def _from_text(path: Path, keys: Mapping[str, str], separator: str | None, recbole: bool) -> Table:
    # Split at nothing, the header is one column: polars opens whatever is compressed.
    unsplit = pl.scan_csv(path, separator=_NO_SEPARATOR, infer_schema=False, quote_char=None, glob=False)
    header = _column_names(unsplit, str(path))[0]
    if separator is None:
        separator = _sniff(header, keys)
    if len(separator.encode()) != 1:
        raise ValueError(f"separator={separator!r}: it must be a single ASCII character")
    quote = None if recbole else '"'
    frame = pl.scan_csv(path, separator=separator, infer_schema=False, quote_char=quote, glob=False)
    hint = f" (split at {separator!r}; give separator=... if that is wrong)"
    table = _from_lazy(frame, keys, str(path), "recbole" if recbole else "text", hint)
    # polars gives the second column of a name another one, and would read the first.
    names = header.split(separator) if recbole else next(csv.reader([header], delimiter=separator))
    for column in table.columns.values():
        _require_one(column, names, table.name)
    return table


def _sniff(header: str, keys: Mapping[str, str]) -> str:
    """The separator under which the most of the wanted columns appear in the header; next, the most columns."""

    def score(separator: str) -> tuple[int, int]:
        columns = [column.strip(" ").strip('"') for column in header.split(separator)]
        return sum(key in columns for key in keys.values()), len(columns)

    return max(_SEPARATORS, key=score)


def _from_pickle(path: Path, keys: Mapping[str, str], allow_pickle: bool) -> Table:
    if not allow_pickle:
        raise ValueError(
            f"{path} is a pickle, and loading one runs whatever code is in it: pass allow_pickle=True if you trust it, "
            "or save the table as Parquet"
        )
    try:
        with open(path, "rb") as file:
            table = pickle.load(file)
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} is not a pickle, or is damaged: {error}") from error
    return _from_object(table, keys, str(path))


def _from_object(table: Any, keys: Mapping[str, str], name: str) -> Table:
    if isinstance(table, pl.LazyFrame):
        return _from_lazy(table, keys, name)
    # Arrow has column_names, polars and pandas have columns.
    names = table if isinstance(table, Mapping) else getattr(table, "column_names", getattr(table, "columns", None))
    if names is None:
        raise TypeError(
            f"events cannot be read from {name}: give a path, a pandas, polars or Arrow table, or a dict of columns"
        )
    columns = _find_columns(keys, [column for column in names if isinstance(column, str)], name)
    try:
        frame = pl.DataFrame({role: _series(column, table[column]) for role, column in columns.items()})
    except (pl.exceptions.PolarsError, TypeError, OverflowError) as error:
        raise ValueError(f"{name}: its columns cannot be read as ids and times: {error}") from error
    return Table(name, columns, lambda batch_rows: frame.iter_slices(batch_rows))


def _series(name: str, values: Any) -> pl.Series:
    """A table's column, without pyarrow, through which polars would convert pandas' strings and objects."""
    if hasattr(values, "iloc"):
        missing = values.isna()
        values = values.to_numpy("datetime64[us]") if values.dtype.kind == "M" else values.to_numpy()
        if values.dtype == object:
            values = [None if gone else value for value, gone in zip(values, missing, strict=True)]
    return pl.Series(name, values)


def _from_lazy(frame: pl.LazyFrame, keys: Mapping[str, str], name: str, form: str = "table", hint: str = "") -> Table:
    """A table of the form "table", "text", or "recbole", which is text with headers `name:type`."""
    columns = _find_columns(keys, _column_names(frame, name), name, form, hint)
    chosen = frame.select(pl.col(column).alias(role) for role, column in columns.items())

    def frames(batch_rows: int) -> Iterator[pl.DataFrame]:
        try:
            for batch in chosen.collect_batches(chunk_size=batch_rows, maintain_order=True, engine="streaming"):
                yield from batch.iter_slices(batch_rows)
        except (OSError, pl.exceptions.PolarsError) as error:
            reason = str(error).split("\n\n")[0]
            raise ValueError(f"{name} is damaged or not what it seems{hint}: {reason}") from error

    return Table(name, columns, frames, is_text=form != "table")


def _column_names(frame: pl.LazyFrame, name: str) -> list[str]:
    try:
        return frame.collect_schema().names()
    except pl.exceptions.NoDataError:
        raise ValueError(f"{name} is empty") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error


def _find_columns(
    keys: Mapping[str, str], names: list[str], source: str, form: str = "table", hint: str = ""
) -> dict[str, str]:
    """The column of each role: that of the given name or, in a RecBole file, `name:type`."""
    recbole = form == "recbole"
    labels = names if form == "table" else [name.strip() for name in names]
    bare = [label.split(":")[0] for label in labels] if recbole else labels
    found = {}
    for role, key in keys.items():
        default, recbole_name = _NAMES[role]
        among = labels if key in labels else bare
        label = recbole_name if recbole and key == default and key not in among else key
        if label not in among:
            raise ValueError(f"{source} has no column {key!r}; its columns are {_shown(names)}{hint}")
        _require_one(label, among, source)
        found[role] = names[among.index(label)]
    if len(set(found.values())) < len(keys):
        what = "session, item and time must be three" if len(keys) == 3 else "user and item must be two"
        raise ValueError(f"{source}: {what} different columns, not {list(found.values())}")
    return found


def _require_one(column: str, names: list[str], source: str) -> None:
    if names.count(column) > 1:
        raise ValueError(f"{source} has {names.count(column)} columns named {column!r}; keep one, or rename the others")


def _shown(names: list[str]) -> str:
    """Column names for an error, which has to stay one that can be read."""
    first = [name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..." for name in names]
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"{first[:_SHOWN_NAMES]}{more}"


class Widened(Exception):
    """A row does not fit the kinds that a `TableReader` assumed: it has widened them, read again from the beginning."""


class TableReader:
    """Reads a table as frames of clean columns.

    Blanks around the values of text are removed and empty lines passed over. Ids become Int64, or String where one of
    the column is no plain integer ("007" is another id than "7"); times become Int64 or Float64. A value that is
    missing, or neither, is an error that names column, row and value.

    Args:
        table: what is read.
        kinds: kinds to begin with, by role: "str" makes strings of ids whatever they are.

    Attributes:
        rows: how many rows were read.
        kinds: what the columns hold, as far as has been seen: "int" or "str" for ids; "int", "float" or "date" for
            times.
    """

    def __init__(self, table: Table, **kinds: str) -> None:
        self.table = table
        self.kinds = {**dict.fromkeys(table.columns, "int"), **kinds}
        self.rows = 0
        self._ids = [role for role in table.columns if role != "time"]
        self._reasons: dict[str, str] = {}
        self._stripped: dict[str, int] = {}

    def facts(self) -> dict[str, dict[str, Any]]:
        """How the ids of each role were read: {"kind": "int" or "str", "because": the value that made strings of them,
        "stripped": how many had blanks around them}."""
        return {
            role: {"kind": self.kinds[role], "because": self._reasons.get(role), "stripped": self._stripped[role]}
            for role in self._ids
        }

    def frames(self) -> Iterator[pl.DataFrame]:
        """Yield the table's columns by role and the number of each `row`, counted from 0, `BATCH_ROWS` rows at a time.

        Raises:
            Widened: call it again, and drop what it has yielded.
            ValueError: a missing or unreadable value.
        """
        self.rows, self._stripped = 0, dict.fromkeys(self._ids, 0)
        for frame in self.table.frames(BATCH_ROWS):
            yield self._clean(frame)

    def read(self) -> pl.DataFrame:
        """Return all frames as one. Raises ValueError where there is no row."""
        while True:
            try:
                frames = list(self.frames())
            except Widened:
                continue
            if not frames:
                raise ValueError(f"{self.table.name} holds no rows")
            return pl.concat(frames)

    def _clean(self, frame: pl.DataFrame) -> pl.DataFrame:
        values = pl.col(list(self.table.columns))
        numbered = frame.with_columns(row=pl.int_range(self.rows, self.rows + frame.height, dtype=pl.Int64))
        frame = numbered
        if self.table.is_text:
            frame = frame.with_columns(values.str.strip_chars().replace("", None))
            for role in self._ids:
                self._stripped[role] += int((frame[role] != numbered[role]).sum())
            frame = frame.filter(~pl.all_horizontal(values.is_null()))
        typed = [self._typed_ids(frame, role) for role in self._ids]
        if "time" in self.table.columns:
            typed.append(self._times(frame))
        self.rows += numbered.height
        return frame.with_columns(typed)

    def _typed_ids(self, frame: pl.DataFrame, role: str) -> pl.Series:
        ids = frame[role]
        if ids.dtype in (pl.Categorical, pl.Enum):
            ids = ids.cast(pl.String)
        if ids.dtype.is_float():
            ids = ids.fill_nan(None)
        self._refuse(frame, role, ids.is_null(), "an id is missing")
        if ids.dtype.is_float():  # pandas makes floats of an integer column that once had gaps
            whole = ids.cast(pl.Int64, strict=False)
            fits = (whole.cast(pl.Float64) == ids).fill_null(False)
            self._refuse(frame, role, ~fits, "ids must be integers or strings")
            ids = whole
        if not (ids.dtype.is_integer() or ids.dtype == pl.String):
            raise ValueError(f"{self._where(role)}: ids must be integers or strings, not {ids.dtype}")
        if self.kinds[role] == "str":
            return ids.cast(pl.String)
        numbers, as_text = _integers(ids)
        if as_text.any():
            first = frame.filter(as_text).row(0, named=True)
            self._reasons[role] = f"{first[role]!r} in row {first['row'] + 1}"
            self._widen(role, "str")
        return numbers

    def _times(self, frame: pl.DataFrame) -> pl.Series:
        times = frame["time"]
        self._refuse(frame, "time", times.is_null(), "a time is missing")
        if times.dtype == pl.String:
            return self._parsed_times(frame)
        if times.dtype in (pl.Date, pl.Datetime):
            return times.cast(pl.Datetime("us")).dt.epoch("us") / 1e6
        if times.dtype.is_integer():
            numbers = times.cast(pl.Int64, strict=False)
            self._refuse(frame, "time", numbers.is_null(), "the number does not fit int64")
            return numbers
        if times.dtype.is_float() or times.dtype.is_decimal():
            numbers = times.cast(pl.Float64)
            self._refuse(frame, "time", ~numbers.is_finite(), "a time must be finite")
            return numbers
        raise ValueError(f"{self._where('time')}: times must be numbers, dates or ISO 8601 strings, not {times.dtype}")

    def _parsed_times(self, frame: pl.DataFrame) -> pl.Series:
        times, kind = frame["time"], self.kinds["time"]
        if kind == "date":
            seconds = pl.Series("time", [_seconds(text) for text in times], dtype=pl.Float64)
            self._refuse(frame, "time", seconds.is_null(), "this is no ISO 8601 date or time, as the first row has")
            return seconds
        numbers = times.cast(pl.Int64 if kind == "int" else pl.Float64, strict=False)
        if kind == "int" and numbers.null_count():
            if _seconds(times[0]) is not None and self.rows == 0 and numbers[0] is None:
                self._widen("time", "date")
            floats = times.cast(pl.Float64, strict=False)
            self._refuse(frame, "time", ~floats.is_finite().fill_null(False), "neither a number nor an ISO 8601 time")
            self._widen("time", "float")
        self._refuse(frame, "time", ~numbers.is_finite().fill_null(False), "this is no finite number")
        return numbers

    def _widen(self, role: str, kind: str) -> None:
        self.kinds[role] = kind
        raise Widened

    def _refuse(self, frame: pl.DataFrame, role: str, bad: pl.Series, why: str) -> None:
        if bad.any():
            first = frame.filter(bad).row(0, named=True)
            raise ValueError(
                f"{self._where(role)}, row {first['row'] + 1} (the first after the header is 1), "
                f"value {first[role]!r}: {why}"
            )

    def _where(self, role: str) -> str:
        return f"{self.table.name}: column {self.table.columns[role]!r}"


def _integers(ids: pl.Series) -> tuple[pl.Series, pl.Series]:
    """The ids as Int64, and a mask of those that are no integers, or not written as integers are: "007", "+7"."""
    numbers = ids.cast(pl.Int64, strict=False)
    as_text = numbers.is_null()
    if ids.dtype == pl.String:
        padded = ids.str.starts_with("0") & (ids.str.len_bytes() > 1)
        as_text |= padded | ids.str.starts_with("+") | ids.str.starts_with("-0")
    return numbers, as_text


def _seconds(text: Any) -> float | None:
    """Seconds since 1970 of an ISO 8601 date or time, taken as UTC where it names no zone; None where it is none."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def numpy_ids(ids: pl.Series) -> np.ndarray:
    """Int64 or String ids as int64 or str (NumPy StringDType)."""
    return ids.to_numpy() if ids.dtype == pl.Int64 else np.array(ids.to_list(), STRING)


def read_adjacency_lists(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read lines of `user item item ...`, separated by blanks or tabs; plain, .gz or .zst. Empty lines are passed over.

    Returns:
        The user of each line, how many items it has, and the items of all lines; ids as `TableReader` reads them.

    Raises:
        FileNotFoundError, ValueError: there is no such file; it is empty, or cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        lines = pl.read_csv(
            path, has_header=False, separator=_NO_SEPARATOR, quote_char=None, infer_schema=False, new_columns=["line"]
        )
    except pl.exceptions.NoDataError:
        raise ValueError(f"{path} is empty") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{path} is damaged or not text: {error}") from error
    # Lines may end with a carriage return alone.
    words = lines["line"].drop_nulls().str.split("\r").explode().str.extract_all(r"\S+")
    words = words.filter(words.list.len() > 0)
    listed = words.list.slice(1)
    columns = []
    for ids in (words.list.first(), listed.explode().drop_nulls()):  # an empty list may explode to a null
        numbers, as_text = _integers(ids)
        columns.append(numpy_ids(ids if as_text.any() else numbers))
    return columns[0], listed.list.len().to_numpy(), columns[1]
