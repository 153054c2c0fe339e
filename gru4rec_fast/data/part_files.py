"""Logs in several files, as Spark, Ray Data and Dask write them: a folder, a pattern or a list of part files."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Any

from gru4rec_fast._atomic_writes import is_folder

# Suffixes of part files, perhaps followed by .gz or .zst.
SUFFIXES = (".parquet", ".pq", ".csv", ".tsv", ".txt", ".dat", ".inter")


def part_paths(source: Any) -> list[Path] | None:
    """Return the part files of a source in the order in which they are read; None if it is a single file or a table.

    Raises:
        FileNotFoundError: no file matches a pattern.
        ValueError: a folder has files of different logs; a list is empty, or has a file twice.
    """
    if isinstance(source, list | tuple) and all(isinstance(path, str | os.PathLike) for path in source):
        paths = [Path(path) for path in source]
        if not paths:
            raise ValueError("the list of log files is empty")
        if len({*paths}) < len(paths):
            twice = next(path for number, path in enumerate(paths) if path in paths[:number])
            raise ValueError(f"{twice} is in the list of log files twice")
        return paths
    if not isinstance(source, str | Path):
        return None
    if holds_log_files(Path(source)):
        return _paths_in_folder(Path(source))
    if Path(source).exists() or not glob.has_magic(str(source)):
        return None
    paths = sorted(Path(path) for path in glob.glob(str(source)) if not _is_hidden(Path(path)))
    if not paths:
        raise FileNotFoundError(f"{source}: no file matches this pattern")
    return paths


def holds_log_files(path: Path) -> bool:
    """Return whether a path is a folder that has log files only, apart from hidden ones."""
    return path.is_dir() and bool(visible := _visible_paths(path)) and all(map(_is_log_file, visible))


def is_prepared(source: Any) -> bool:
    """Return whether a source is a folder to open as a saved store or graph: any folder but one of log files."""
    return isinstance(source, str | os.PathLike) and is_folder(Path(source)) and not holds_log_files(Path(source))


def _paths_in_folder(folder: Path) -> list[Path]:
    """Return the files of a folder, sorted by name. Raises ValueError if they look like several logs."""
    paths = _visible_paths(folder)
    # Parts differ in their numbers only: part-00017-<id>.parquet, <id>_000017_000000.parquet, part.17.parquet.
    by_name = {re.sub("[0-9]+", "0", path.name): path.name for path in paths}
    if len(by_name) > 1:
        first, second, *_ = by_name.values()
        raise ValueError(
            f"{folder} has {first} and {second}, which look like different logs: give the list of files that form one "
            "log"
        )
    return paths


def _visible_paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not _is_hidden(path))  # Spark writes _SUCCESS and .crc files


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(("_", "."))


def _is_log_file(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return path.is_file() and name.endswith(SUFFIXES)
