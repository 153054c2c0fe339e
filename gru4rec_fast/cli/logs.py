"""Sessions and interactions from what is named on the command line: a log file or a prepared folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gru4rec_fast.cli.options import LogFormat
from gru4rec_fast.cli.output import note, row_counter

if TYPE_CHECKING:
    from gru4rec_fast.data import InteractionGraph, SessionStore, Vocabulary


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


def open_interactions(path: Path, log: LogFormat, like: InteractionGraph | None = None) -> InteractionGraph:
    """A prepared graph; or interactions from `user item item ...` lines (.txt) or two columns of a log file.

    like: the training graph, for interactions held out from it.

    Raises:
        FileNotFoundError, ValueError, ImportError: see `InteractionGraph`.
    """
    from gru4rec_fast.data import InteractionGraph

    kinds = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".zst")]
    if path.is_dir():
        graph = InteractionGraph.open(path)
    elif kinds[-1:] == [".txt"]:
        graph = InteractionGraph.from_text(path, like=like)
    else:
        graph = InteractionGraph.from_table(path, like=like, **log.graph_arguments())
    note(f"{path}: {graph.summary()}")
    return graph
