"""Output of the commands: tables and notes on a terminal or in a pipe, and files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from gru4rec_fast.cli.processes import is_first_rank


def print_note(message: str) -> None:
    """Print one line on stderr, in the first of several processes."""
    if is_first_rank():
        print(message, file=sys.stderr, flush=True)


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and values on stdout: a table on a terminal, aligned lines in a pipe."""
    pairs = list(pairs)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(show_header=False)
        for name, value in pairs:
            table.add_row(Text(name, style="bold"), Text(value))
        Console().print(table)
        return
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"{name:<{width}}  {value}")


@contextmanager
def row_counter(name: str) -> Iterator[Callable[[int], None] | None]:
    """Yield a function that shows the number of rows read so far; None if stderr is no terminal or on other ranks."""
    if not (is_first_rank() and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(f"reading {escape(name)}") as status:
        yield lambda rows: status.update(f"reading {escape(name)}: {rows:,} rows")


def make_parent_folders(*paths: Path | None) -> None:
    """Make the folders of output files and test that they can be written to, before the long computation begins.

    Raises:
        IsADirectoryError: a path is a folder. OSError: the folder of a path cannot be made or written to.
    """
    for path in paths:
        if path is not None:
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder; give the name of a file")
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with TemporaryFile(dir=path.parent):
                    pass
            except OSError as error:
                raise OSError(f"{path} cannot be written: {error.strerror}") from error


@contextmanager
def open_atomically(path: Path) -> Iterator[IO[str]]:
    """Open a text file for writing under a temporary name, and rename it to `path` when it is complete."""
    from gru4rec_fast._atomic_writes import replace_file

    with replace_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yield file


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dict of JSON values to a file."""
    with open_atomically(path) as file:
        file.write(json.dumps(content, indent=2) + "\n")
