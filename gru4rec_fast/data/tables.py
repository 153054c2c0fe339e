"""Where events come from: every readable format as one stream of three-column frames."""

from __future__ import annotations

import csv
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

BATCH_ROWS = 1_000_000
# What the columns are called by default, and in RecBole's files: of events, and of a graph's interactions.
_DEFAULT_KEYS = {3: ("SessionId", "ItemId", "Time"), 2: ("UserId", "ItemId")}
_RECBOLE_KEYS = {3: ("session_id", "item_id", "timestamp"), 2: ("user_id", "item_id")}
_SEPARATORS = "\t,;| "
_NO_SEPARATOR = "\x1f"  # ASCII "unit separator": in no text file
_SHOWN_NAMES, _SHOWN_CHARACTERS = 10, 80  # of the columns, in an error


@dataclass(frozen=True)
class Source:
    """A log that can be streamed, more than once.

    Attributes:
        name: what error messages call it.
        columns: the names of the session, item and time columns, or of the user and item columns.
        frames: yields frames of these columns, in input order, at most `batch_rows` rows each.
        is_text: an all-missing row is an empty line, to be passed over.
    """

    name: str
    columns: tuple[str, ...]
    frames: Callable[[int], Iterator[pl.DataFrame]]
    is_text: bool = False


def open_source(
    source: Any, keys: tuple[str, ...], *, separator: str | None = None, allow_pickle: bool = False
) -> Source:
    """Open a path or a table and find its columns: session, item and time, or user and item.

    Raises:
        FileNotFoundError, ValueError: no such file; empty; a column is missing (the message lists those there are), or
            there are two of its name.
        TypeError: not something events can be read from.
    """
    if not isinstance(source, (str, Path)):
        return _from_table(source, keys, f"the {type(source).__name__} given")
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


def _from_text(path: Path, keys: tuple[str, ...], separator: str | None, recbole: bool) -> Source:
    name = str(path)
    # Split at nothing, the header is one column: polars opens whatever is compressed.
    unsplit = pl.scan_csv(path, separator=_NO_SEPARATOR, infer_schema=False, quote_char=None, glob=False)
    header = _column_names(unsplit, name)[0]
    if separator is None:
        separator = _sniff(header, keys)
    if len(separator.encode()) != 1:
        raise ValueError(f"separator={separator!r}: it must be a single ASCII character")
    quote = None if recbole else '"'
    frame = pl.scan_csv(path, separator=separator, infer_schema=False, quote_char=quote, glob=False)
    hint = f" (split at {separator!r}; give separator=... if that is wrong)"
    source = replace(_from_lazy(frame, keys, name, hint, recbole), is_text=True)
    # polars gives the second column of a name another one, and would read the first.
    names = header.split(separator) if recbole else next(csv.reader([header], delimiter=separator))
    for column in source.columns:
        _require_one(column, names, name)
    return source


def _sniff(header: str, keys: tuple[str, ...]) -> str:
    """The separator under which the most of the wanted columns appear in the header; next, the most columns."""

    def score(separator: str) -> tuple[int, int]:
        columns = [column.strip().strip('"') for column in header.split(separator)]
        return sum(key in columns for key in keys), len(columns)

    return max(_SEPARATORS, key=score)


def _from_pickle(path: Path, keys: tuple[str, ...], allow_pickle: bool) -> Source:
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
    return _from_table(table, keys, str(path))


def _from_table(table: Any, keys: tuple[str, ...], name: str) -> Source:
    if isinstance(table, pl.LazyFrame):
        return _from_lazy(table, keys, name)
    if isinstance(table, pl.DataFrame):
        names = table.columns
    elif isinstance(table, Mapping):
        names = [key for key in table if isinstance(key, str)]
    elif hasattr(table, "column_names"):  # Arrow table
        names = list(table.column_names)
    elif hasattr(table, "columns") and hasattr(table, "iloc"):  # pandas
        names = [column for column in table.columns if isinstance(column, str)]
    else:
        raise TypeError(
            f"events cannot be read from {name}: give a path, a pandas, polars or Arrow table, or a dict of columns"
        )
    columns = _resolve(keys, names, name)
    try:
        frame = pl.DataFrame({column: _series(column, table[column]) for column in columns})
    except (pl.exceptions.PolarsError, TypeError, OverflowError) as error:
        raise ValueError(f"{name}: its columns cannot be read as ids and times: {error}") from error
    return Source(name, columns, lambda batch_rows: frame.iter_slices(batch_rows))


def _series(name: str, values: Any) -> pl.Series:
    """A table's column, without pyarrow, through which polars would convert pandas' strings and objects."""
    if hasattr(values, "iloc"):
        missing = values.isna()
        values = values.to_numpy("datetime64[us]") if values.dtype.kind == "M" else values.to_numpy()
        if values.dtype == object:
            values = [None if gone else value for value, gone in zip(values, missing, strict=True)]
    return pl.Series(name, values)


def _from_lazy(frame: pl.LazyFrame, keys: tuple[str, ...], name: str, hint: str = "", recbole: bool = False) -> Source:
    columns = _resolve(keys, _column_names(frame, name), name, hint, recbole)
    chosen = frame.select(columns)

    def frames(batch_rows: int) -> Iterator[pl.DataFrame]:
        try:
            for batch in chosen.collect_batches(chunk_size=batch_rows, maintain_order=True, engine="streaming"):
                yield from batch.iter_slices(batch_rows)
        except (OSError, pl.exceptions.PolarsError) as error:
            reason = str(error).split("\n\n")[0]
            raise ValueError(f"{name} is damaged or not what it seems{hint}: {reason}") from error

    return Source(name, columns, frames)


def _column_names(frame: pl.LazyFrame, name: str) -> list[str]:
    try:
        return frame.collect_schema().names()
    except pl.exceptions.NoDataError:
        raise ValueError(f"{name} is empty") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error


def _resolve(
    keys: tuple[str, ...], names: list[str], source: str, hint: str = "", recbole: bool = False
) -> tuple[str, ...]:
    """The column of each key: that name itself or, in a RecBole file, `name:type`."""
    bare = [column.split(":")[0] for column in names] if recbole else []
    found = []
    for key, default, guess in zip(keys, _DEFAULT_KEYS[len(keys)], _RECBOLE_KEYS[len(keys)], strict=True):
        if key in names:
            _require_one(key, names, source)
            found.append(key)
            continue
        stem = guess if key == default and key not in bare else key
        if stem not in bare:
            raise ValueError(f"{source} has no column {key!r}; its columns are {_shown(names)}{hint}")
        _require_one(stem, bare, source)
        found.append(names[bare.index(stem)])
    if len(set(found)) < len(keys):
        what = "session, item and time must be three" if len(keys) == 3 else "user and item must be two"
        raise ValueError(f"{source}: {what} different columns, not {found}")
    return tuple(found)


def _require_one(column: str, names: list[str], source: str) -> None:
    if names.count(column) > 1:
        raise ValueError(f"{source} has {names.count(column)} columns named {column!r}; keep one, or rename the others")


def _shown(names: list[str]) -> str:
    """Column names for an error, which has to stay one that can be read."""
    first = [name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..." for name in names]
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"{first[:_SHOWN_NAMES]}{more}"
