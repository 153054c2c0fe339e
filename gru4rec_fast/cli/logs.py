"""Sessions from what is named on the command line: a log file or the folder of a prepared store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gru4rec_fast.cli.options import LogFormat
from gru4rec_fast.cli.output import note, row_counter

if TYPE_CHECKING:
    from gru4rec_fast.data import SessionStore, Vocabulary


def open_sessions(path: Path, log: LogFormat, vocabulary: Vocabulary | None = None) -> SessionStore:
    """A prepared store, or a log file read into memory (with `vocabulary`: of a log held out from that one).

    Raises:
        FileNotFoundError, ValueError, ImportError: see `SessionStore.open` and `SessionStore.from_events`.
    """
    from gru4rec_fast.data import SessionStore

    if path.is_dir():
        store = SessionStore.open(path)
    else:
        with row_counter(path.name) as progress:
            store = SessionStore.from_events(path, vocabulary=vocabulary, progress=progress, **log.arguments())
    note(f"{path}: {store.summary()}")
    return store
