"""Read graphs from text files of `user item item ...` lines, and tell these files from tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gru4rec_fast.data.table_reader import numpy_ids, plain_integers
from gru4rec_fast.data.tables import ENCODING, NAMES, QUOTE, suffix_without_compression
from gru4rec_fast.data.text_files import first_line, guess_separator, line_batches, pl

_INTEGER, _DECIMAL = r"^[+-]?\d+$", r"^[+-]?\d+\.\d*$"


def holds_adjacency_lists(
    path: str | Path,
    wanted: Mapping[str, str],
    *,
    separator: str | None = None,
    quote: str | None = QUOTE,
    encoding: str = ENCODING,
    columns: Sequence[str] | None = None,
) -> bool:
    """Return True if a file holds `user item item ...` lines, False if it is a table.

    Only .txt files (also .txt.gz, .txt.zst) hold such lines. A .txt file is a table if its first line has the columns
    `wanted` (names by role), or if `separator` or `columns` is given, or if `quote` or a name differs from the default.
    Otherwise, a missing or empty file gives True, so that `read_adjacency_lists` raises the error.

    Raises ValueError if the file cannot be read.
    """
    path = Path(path)
    if suffix_without_compression(path) != ".txt":
        return False
    if separator is not None or columns is not None or quote != QUOTE:
        return False
    if any(name != NAMES[role][0] for role, name in wanted.items()):
        return False
    if not path.is_file() or path.stat().st_size == 0:
        return True
    header = first_line(path, encoding)[1]
    names = [name.strip(' "') for name in header.split(guess_separator(header, wanted.values()))]
    return not set(wanted.values()) <= set(names)


def read_adjacency_lists(path: str | Path, encoding: str = ENCODING) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read lines of `user item item ...`, separated by blanks or tabs; plain, .gz or .zst. Empty lines are skipped.

    Returns:
        The user of each line, the number of items of each line, and the items of all lines one after another. Ids are
        int64 if all are plain integers, else strings, as in a text table.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is empty, cannot be read, or is a table: it has a header, or its lines seem to be
            `user item weight`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    lines = pl.concat(list(line_batches(path, encoding=encoding)))
    # polars does not split lines that end with a carriage return alone.
    words = lines.drop_nulls().str.split("\r").explode().str.extract_all(r"\S+")
    words = words.filter(words.list.len() > 0)
    if words.is_empty():
        raise ValueError(f"{path} is empty")
    users, items = words.list.first(), words.list.slice(1)
    _refuse_tables(path, words, users)
    columns = []
    for ids in (users, items.explode().drop_nulls()):  # explode may turn an empty list into a null
        integers, is_text = plain_integers(ids)
        columns.append(numpy_ids(ids if is_text.any() else integers))
    return columns[0], items.list.len().to_numpy(), columns[1]


def _refuse_tables(path: Path, words: pl.Series, users: pl.Series) -> None:
    """Raise ValueError if the words of the lines seem to be a header, or lines of `user item weight`."""
    n_words = words.list.len()
    header = words[0].to_list()
    is_integer = words.list.eval(pl.element().str.contains(_INTEGER))
    if len(words) > 1 and not is_integer[0].any() and is_integer.slice(1).list.all().all():
        raise ValueError(
            f"{path}, line 1: {' '.join(header)[:80]!r} seems to be a header, but the file is read as lines of `user "
            "item item ...`: remove the header, or give the names of its columns to read a table"
        )
    if n_words[0] > 2 and (n_words == n_words[0]).all():
        decimals = words.list.slice(2).list.eval(pl.element().str.contains(_DECIMAL)).list.any()
        suspicious = decimals | users.is_duplicated()
        if suspicious.any():
            line = " ".join(words.filter(suspicious)[0].to_list())
            raise ValueError(
                f"{path}: every line has {n_words[0]} words, and {line[:80]!r} seems to be a user, an item and a "
                "weight, but the file is read as lines of `user item item ...`: add a header and give the names of its "
                "columns to read a table, or write all items of a user on one line"
            )
