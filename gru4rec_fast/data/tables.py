"""Open tables of events or interactions, in files or data frames, and find their columns."""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gru4rec_fast.data.part_files import part_paths
from gru4rec_fast.data.text_files import TextFile, pl

if TYPE_CHECKING:
    from gru4rec_fast.distributed import Ranks

# A role says what a column holds. For each role: its default column name, and its column name in RecBole files.
NAMES = {
    "session": ("SessionId", "session_id"),
    "user": ("UserId", "user_id"),
    "item": ("ItemId", "item_id"),
    "group": ("GroupId", "group_id"),  # what an item belongs to, such as the channel of a post
    "time": ("Time", "timestamp"),
    "rating": ("Rating", "rating"),
    "time_of_day": ("", ""),  # if the column of times has only dates
    "text": ("Text", "text"),
}
QUOTE, ENCODING = '"', "utf-8"  # defaults of text files
_SHOWN_NAMES, _SHOWN_CHARACTERS = 10, 80  # limits in an error message: column names, and characters of each name


@dataclass(frozen=True)
class Table:
    """The wanted columns of a file or data frame, which can be read more than once.

    Attributes:
        name: name of the source in error messages.
        columns: column names by role, see `NAMES`.
        frames: function that takes a maximum number of rows and yields the columns, named by role, in frames of at
            most this many rows, in input order. Frames of text files also have the column "row", see `TextFile.frames`.
        is_text: True for text files, in which blanks around values are removed and plain integers are integer ids.
        parts: the tables of the files, if the source has several; with several ranks, only this rank's files.
        has_header: False for text files without a header.
    """

    name: str
    columns: dict[str, str]
    frames: Callable[[int], Iterator[pl.DataFrame]]
    is_text: bool = False
    parts: tuple[Table, ...] = ()
    has_header: bool = True


def open_table(
    source: Any,
    wanted: Mapping[str, str],
    *,
    separator: str | None = None,
    quote: str | None = QUOTE,
    encoding: str = ENCODING,
    columns: Sequence[str] | None = None,
    allow_pickle: bool = False,
    ranks: Ranks | None = None,
) -> Table:
    """Open a file, several part files or a data frame, and find its columns.

    Args:
        source, separator, quote, encoding, columns, allow_pickle: as for `SessionStore.from_events`.
        wanted: names of the wanted columns by role.
        ranks: with several processes, each opens consecutive part files of its own, in the order of ranks.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is empty; a wanted column is missing, or two columns have its name; an option of
            text files is given for a source that is no text file; some parts are text files and others are not;
            with `ranks`, the source has no part files.
        TypeError: `source` is neither a path nor a table; `columns` is no sequence of strings.
    """
    if columns is not None and (isinstance(columns, str) or not all(isinstance(name, str) for name in columns)):
        raise TypeError(f"columns={columns!r:.80}: give a list of the names of all columns, in order")
    text_options = {"separator": separator, "quote": quote, "encoding": encoding, "columns": columns}
    options: dict[str, Any] = {"text_options": text_options, "allow_pickle": allow_pickle}
    if ranks is not None:
        return _open_own_parts(source, wanted, ranks, **options)
    if (paths := part_paths(source)) is None:
        return _open_single(source, wanted, **options)
    return _join(tuple(_open_single(path, wanted, **options) for path in paths), source)


def _open_own_parts(source: Any, wanted: Mapping[str, str], ranks: Ranks, **options: Any) -> Table:
    """Open the part files of this rank; see `open_table`. All ranks raise an error if one does."""
    with ranks.shared_errors():
        paths = part_paths(source)
        if paths is None:
            raise ValueError("a single file or table is read by one process: start one, or give several part files")
    paths = ranks.gather(paths)[0]  # rank 0's list for all, because files may appear meanwhile
    with ranks.shared_errors():
        parts = tuple(_open_single(path, wanted, **options) for path in paths[slice(*ranks.part(len(paths)))])
    # The functions `frames` cannot be pickled.
    without_frames = ranks.gather([replace(part, frames=_no_frames) for part in parts])
    with ranks.shared_errors():
        log = _join(tuple(chain.from_iterable(without_frames)), source)
    return replace(log, frames=_frames_of(parts), parts=parts)


def _join(parts: tuple[Table, ...], source: Any) -> Table:
    """Return the parts as one table. Raises ValueError if some are text files and others are not."""
    first = parts[0]
    if different := [part for part in parts if part.is_text != first.is_text]:
        raise ValueError(f"{first.name} and {different[0].name}: one is a text file, the other is not")
    name = f"{first.name} and further files" if isinstance(source, list | tuple) else source
    return replace(first, name=f"{name} ({len(parts)} in all)", frames=_frames_of(parts), parts=parts)


def _frames_of(parts: tuple[Table, ...]) -> Callable[[int], Iterator[pl.DataFrame]]:
    return lambda batch_rows: chain.from_iterable(part.frames(batch_rows) for part in parts)


def _no_frames(batch_rows: int) -> Iterator[pl.DataFrame]:
    return iter(())


def _open_single(
    source: Any, wanted: Mapping[str, str], *, text_options: Mapping[str, Any], allow_pickle: bool
) -> Table:
    """Open one file or a data frame; see `open_table`. `text_options` are arguments of `TextFile.check`."""
    if not isinstance(source, (str, Path)):
        name = f"the {type(source).__name__} given"
        _refuse_text_options(name, text_options)
        return _from_object(source, wanted, name)
    path = Path(source)
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder, not a log, and does not hold part files only: give a pattern such as "
            f"'{path}/*.parquet', or open a prepared store with SessionStore.open"
        )
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    file_type = suffix_without_compression(path)
    if file_type in (".parquet", ".pq", ".pickle", ".pkl"):
        _refuse_text_options(str(path), text_options)
    if file_type in (".parquet", ".pq"):
        return _from_lazy(pl.scan_parquet(path, glob=False), wanted, str(path))
    if file_type in (".pickle", ".pkl"):
        return _from_pickle(path, wanted, allow_pickle)
    if file_type == ".inter":
        separator, quote = text_options["separator"] or "\t", text_options["quote"]
        if quote not in (QUOTE, None):
            raise ValueError(f"quote={quote!r}: fields of .inter files are never quoted, as in {path}; leave it out")
        if text_options["columns"] is not None:
            raise ValueError(f"columns=...: .inter files have a header, as in {path}; leave it out")
        return _from_text(path, wanted, {**text_options, "separator": separator, "quote": None}, is_recbole=True)
    return _from_text(path, wanted, text_options)


def _refuse_text_options(name: str, text_options: Mapping[str, Any]) -> None:
    """Raise ValueError if an option for text files is given for another source, the name of which is `name`."""
    for option, value in text_options.items():
        if value != {"quote": QUOTE, "encoding": ENCODING}.get(option):
            raise ValueError(f"{option}={value!r} has no effect on {name}, which is no text file: leave it out")


def suffix_without_compression(path: Path) -> str:
    """Return the suffix of a file name in lower case, such as ".csv" for "Log.CSV.gz"; "" if there is none."""
    suffixes = (suffix.lower() for suffix in reversed(path.suffixes))
    return next((suffix for suffix in suffixes if suffix not in (".gz", ".zst")), "")


def _from_text(
    path: Path, wanted: Mapping[str, str], text_options: Mapping[str, Any], is_recbole: bool = False
) -> Table:
    file = TextFile.check(path, wanted.values(), **text_options)
    hint = ""
    if len(file.names) == 1:
        hint = f" (split at {file.separator!r}; give separator=... (--separator ...) if that is wrong)"
    columns = _find_columns(wanted, file.names, str(path), "recbole" if is_recbole else "text", hint)
    indices = {role: file.names.index(column) for role, column in columns.items()}
    return Table(str(path), columns, partial(file.frames, indices), is_text=True, has_header=file.has_header)


def _from_pickle(path: Path, wanted: Mapping[str, str], allow_pickle: bool) -> Table:
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
    return _from_object(table, wanted, str(path))


def _from_object(table: Any, wanted: Mapping[str, str], name: str) -> Table:
    """Return a data frame, an Arrow stream, a record array or a dict of columns as a Table."""
    if isinstance(table, pl.LazyFrame):
        return _from_lazy(table, wanted, name)
    if isinstance(table, np.ndarray) and table.dtype.names and table.ndim == 1:
        table = {field: table[field] for field in table.dtype.names}
    # Columns of pandas, polars and pyarrow are read without this interface, for which pandas would need pyarrow.
    elif hasattr(table, "__arrow_c_stream__") and not hasattr(table, "iloc") and not hasattr(table, "column_names"):
        table = _from_arrow_stream(table, name)
    # Arrow has column_names, polars and pandas have columns.
    names = table if isinstance(table, Mapping) else getattr(table, "column_names", getattr(table, "columns", None))
    if names is None:
        raise TypeError(
            f"events cannot be read from {name}; give a path, a pandas or polars table, an object with "
            "__arrow_c_stream__ (pyarrow, duckdb, ibis), a record array of one dimension, or a dict of columns"
        )
    columns = _find_columns(wanted, [column for column in names if isinstance(column, str)], name)
    series = {role: _series(column, table[column], name) for role, column in columns.items()}
    lengths = {column: len(series[role]) for role, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name}: its columns cannot be read: they must have equal lengths, not {lengths}")
    frame = pl.DataFrame(series)
    return Table(name, columns, lambda batch_rows: frame.iter_slices(batch_rows))


def _from_arrow_stream(table: Any, name: str) -> pl.DataFrame:
    """Read a table with the method `__arrow_c_stream__` into memory."""
    try:
        return pl.DataFrame(table)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: its Arrow stream cannot be read: {str(error).splitlines()[0]}") from error


def _series(name: str, values: Any, source: str) -> pl.Series:
    """Convert a column to polars. A pandas column is first converted to NumPy: polars would need pyarrow for it."""
    if hasattr(values, "iloc"):
        is_missing = values.isna()
        values = values.to_numpy("datetime64[us]") if values.dtype.kind == "M" else values.to_numpy()
        if values.dtype == object:
            values = [None if missing else value for value, missing in zip(values, is_missing, strict=True)]
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        values = values.astype("datetime64[us]")
    if isinstance(values, np.ndarray) and values.dtype.kind == "O":
        values = values.tolist()
    try:
        return pl.Series(name, values)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        problem = str(error).splitlines()[0]
        types = {type(value): (row, value) for row, value in reversed(list(enumerate(values, 1))) if value is not None}
        if len(types) > 1:  # the first row of each type
            (_, other), (row, value) = sorted(types.values(), key=lambda first: first[0])[:2]
            problem = f"row {row}, value {value!r:.80}: values before it have another type, such as {other!r:.80}"
        raise ValueError(f"{source}: its columns cannot be read: column {name!r}, {problem}") from error


def _from_lazy(lazy: pl.LazyFrame, wanted: Mapping[str, str], name: str) -> Table:
    """Return a lazy frame as a Table."""
    columns = _find_columns(wanted, _column_names(lazy, name), name)
    selected = lazy.select(pl.col(column).alias(role) for role, column in columns.items())

    def frames(batch_rows: int) -> Iterator[pl.DataFrame]:
        try:
            for batch in selected.collect_batches(chunk_size=batch_rows, maintain_order=True, engine="streaming"):
                yield from batch.iter_slices(batch_rows)
        except (OSError, pl.exceptions.PolarsError) as error:
            reason = str(error).split("\n\n")[0]
            raise ValueError(f"{name} is damaged, or its format is not what its name says: {reason}") from error

    return Table(name, columns, frames)


def _column_names(frame: pl.LazyFrame, name: str) -> list[str]:
    try:
        return frame.collect_schema().names()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error


def _find_columns(
    wanted: Mapping[str, str], names: list[str], source: str, style: str = "table", hint: str = ""
) -> dict[str, str]:
    """Return the name in the source of each wanted column, by role.

    `style` is "table", "text" (blanks around names are removed), or "recbole" (also, columns are found with and without
    the ":type" of their header). `hint` is appended to the error for a missing column.
    """
    is_recbole = style == "recbole"
    stripped_names = names if style == "table" else [name.strip() for name in names]
    names_without_type = [name.split(":")[0] for name in stripped_names] if is_recbole else stripped_names
    columns = {}
    for role, column in wanted.items():
        default, recbole_name = NAMES[role]
        searched_names = stripped_names if column in stripped_names else names_without_type
        # In a RecBole file, the default name means RecBole's own name, unless there is a column with the default name.
        name = recbole_name if is_recbole and column == default and column not in searched_names else column
        if name not in searched_names:
            nearest = _nearest(column, names)
            values = "times of day" if role == "time_of_day" else f"{role}s"
            option = f"--{role.replace('_', '-')}-key ..." if role != "group" else "without groups: group_dim=0"
            raise ValueError(
                f"{source} has no column {column!r}; its columns are {_abbreviated(names)}{hint}: give the name of the "
                f"column of {values} by {role}_key=... ({option})"
                + (f"; the nearest is {' or '.join(map(repr, nearest))}" if nearest else "")
            )
        _require_unique(name, searched_names, source)
        columns[role] = names[searched_names.index(name)]
        if is_recbole:
            _refuse_sequences(source, columns[role], names)
    if len(set(columns.values())) < len(wanted):
        raise ValueError(f"{source}: {', '.join(wanted)} must be different columns, not {list(columns.values())}")
    return columns


def _refuse_sequences(source: str, column: str, names: list[str]) -> None:
    """Raise ValueError for a column of RecBole's augmented data, in which a row holds several events.

    In such a file, `item_id_list:token_seq` holds the items before the item of the row.
    """
    item_list = f"{column.split(':')[0].strip()}_list"
    for name in names:
        if name.strip().endswith("_seq") and (name == column or name.split(":")[0].strip() == item_list):
            raise ValueError(
                f"{source}: column {name!r} holds several values in each row (RecBole's augmented data), and its items "
                "would be lost: give the .inter file with one event per row, from before the augmentation"
            )


def _require_unique(column: str, names: list[str], source: str) -> None:
    if names.count(column) > 1:
        raise ValueError(f"{source} has {names.count(column)} columns named {column!r}; keep one, or rename the others")


def _nearest(column: str, names: list[str]) -> list[str]:
    """Return up to three of the names that are similar to `column`, ignoring case."""
    by_lower_case = {name.lower(): name for name in names if len(name) <= _SHOWN_CHARACTERS}
    return [by_lower_case[name] for name in difflib.get_close_matches(column.lower(), by_lower_case)]


def _abbreviated(names: list[str]) -> str:
    """Return the column names as text that is short enough for an error message."""
    shortened = [name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..." for name in names]
    rest = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"{shortened[:_SHOWN_NAMES]}{rest}"
