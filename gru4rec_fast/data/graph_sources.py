"""Interactions from text and tables: two aligned columns of ids, every one an int64 or every one a string."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from gru4rec_fast.data.ids import STRING
from gru4rec_fast.data.sources import _NO_SEPARATOR, BATCH_ROWS, open_source


@dataclass(frozen=True)
class Interactions:
    """What was read: aligned ids of users and items, and the users that stood there without any item.

    Ids are int64 arrays, or arrays of str (NumPy StringDType).
    """

    name: str
    users: np.ndarray
    items: np.ndarray
    lonely_users: np.ndarray


def read_adjacency_lists(path: str | Path) -> Interactions:
    """Lines of `user item item ...`, separated by blanks or tabs; plain, .gz or .zst. Empty lines are passed over.

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
    words = lines["line"].drop_nulls().str.extract_all(r"\S+")
    words = words.filter(words.list.len() > 0)
    items = words.list.slice(1)
    counts = items.list.len().to_numpy()
    columns = [words.list.first(), items.explode().drop_nulls()]  # an empty list may explode to a null
    users, listed = (_to_numpy(column, kind) for column, kind in zip(columns, _kind(columns), strict=True))
    return Interactions(str(path), np.repeat(users, counts), listed, users[counts == 0])


def read_columns(
    source: Any, keys: tuple[str, str], *, separator: str | None = None, allow_pickle: bool = False
) -> Interactions:
    """Two columns of a log file or a table; one interaction per row.

    Raises:
        FileNotFoundError, ValueError, TypeError: see `sources.open_source`; an id that is missing or none, by its row.
    """
    opened = open_source(source, keys, separator=separator, allow_pickle=allow_pickle)
    frames = list(opened.frames(BATCH_ROWS))
    if not frames:
        raise ValueError(f"{opened.name} holds no rows")
    frame = pl.concat(frames)
    if opened.is_text:
        frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))
    columns = [_ids(frame[name], f"{opened.name}: column {name!r}") for name in opened.columns]
    kinds = _kind(columns)
    users, items = (_to_numpy(column, kind) for column, kind in zip(columns, kinds, strict=True))
    return Interactions(opened.name, users, items, users[:0])


def _ids(values: pl.Series, where: str) -> pl.Series:
    """The column as integers or strings, none missing."""
    if values.dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    if values.dtype.is_float():  # pandas makes floats of an integer column that once had gaps
        values = values.fill_nan(None)
        _refuse(values, values != values.round(), where, "ids must be integers or strings")
    _refuse(values, values.is_null(), where, "an id is missing")
    if values.dtype.is_float():
        values = values.cast(pl.Int64)
    if not (values.dtype.is_integer() or values.dtype == pl.String):
        raise ValueError(f"{where}: ids must be integers or strings, not {values.dtype}")
    return values


def _refuse(values: pl.Series, bad: pl.Series, where: str, why: str) -> None:
    if bad.any():
        row = int(bad.fill_null(False).arg_true()[0])
        raise ValueError(f"{where}, row {row + 1} (the first after the header is 1), value {values[row]!r}: {why}")


def _kind(columns: list[pl.Series]) -> list[str]:
    """For each column "int" where every id is an integer, written as integers are ("007" is another id than "7")."""
    return ["str" if column.dtype == pl.String and not _all_integers(column) else "int" for column in columns]


def _all_integers(texts: pl.Series) -> bool:
    numbers = texts.cast(pl.Int64, strict=False)
    return numbers.null_count() == 0 and bool((numbers.cast(pl.String) == texts).all())


def _to_numpy(values: pl.Series, kind: str) -> np.ndarray:
    if kind == "int":
        return values.cast(pl.Int64).to_numpy()
    return np.array(values.cast(pl.String).to_list(), dtype=STRING)
