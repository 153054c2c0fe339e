"""Read the sessions or interactions in a log file or prepared folder that the command line names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru4rec_fast.cli.options import LogFormat
from gru4rec_fast.cli.output import print_note, row_counter

if TYPE_CHECKING:
    from gru4rec_fast.data import InteractionGraph, SessionStore, Vocabulary


def refuse_unused_options(
    log_format: LogFormat,
    is_graph_model: bool,
    *paths: Path | None,
    with_times: bool = False,
    with_ratings: bool = False,
) -> None:
    """Raise ValueError for an option of the log format that has no effect on reading `paths`; None is no path.

    with_times: whether the times of interactions are read.
    with_ratings: whether ratings are read, of items or from a log file.
    """
    from gru4rec_fast.data.part_files import is_prepared

    kind = "interactions" if is_graph_model else "sessions"
    ratings = ["rating_key"] if with_ratings else []
    if all(is_prepared(path) for path in paths if path is not None):
        log_format.refuse_unused(ratings, f"prepared {kind}, only on log files")
    used = log_format.graph_arguments(with_times=with_times) if is_graph_model else log_format.session_arguments()
    cut = "" if is_graph_model or log_format.session_gap is None else " that --session-gap cuts"
    log_format.refuse_unused([*used, *ratings], f"log files of {kind}{cut}")


def open_sessions(path: Path, log_format: LogFormat, vocabulary: Vocabulary | None = None) -> SessionStore:
    """Return the sessions in a prepared folder, or in a log file, which is read into memory.

    Args:
        path: the folder or file.
        log_format: columns and separator of a log file.
        vocabulary: the vocabulary of the training sessions, for a log file of held-out sessions; else None.

    Raises:
        FileNotFoundError, ValueError, ImportError: see `SessionStore.open` and `SessionStore.from_events`.
    """
    from gru4rec_fast.data import SessionStore
    from gru4rec_fast.data.part_files import is_prepared

    if prepared := is_prepared(path):
        store = SessionStore.open(path)
    else:
        with row_counter(path.name) as progress:
            arguments = log_format.session_arguments()
            store = SessionStore.from_events(path, vocabulary=vocabulary, progress=progress, **arguments)
    print_note(f"{path}: {store.summary(notes=not prepared)}")
    return store


def open_interactions(
    path: Path, log_format: LogFormat, like: InteractionGraph | None = None, *, with_times: bool = False
) -> InteractionGraph:
    """Return the interactions in a prepared folder, in `user item item ...` lines (.txt) or in a log file.

    Args:
        path: the folder or file.
        log_format: columns and separator of a log file.
        like: the training graph, whose ids and indices held-out interactions get; None for training interactions.
        with_times: read the times of the interactions, which only a log file has.

    Raises:
        FileNotFoundError, ValueError, ImportError: see `InteractionGraph`.
    """
    from gru4rec_fast.data import InteractionGraph
    from gru4rec_fast.data.part_files import is_prepared

    if prepared := is_prepared(path):
        graph = InteractionGraph.open(path)
    else:
        from gru4rec_fast.data.adjacency_lists import holds_adjacency_lists  # loads polars

        arguments = log_format.graph_arguments(with_times=with_times)
        keys = {"user": log_format.user_key, "item": log_format.item_key}
        text_options = {name: arguments[name] for name in ("separator", "quote", "encoding", "columns")}
        has_more_columns = with_times or log_format.min_rating is not None
        if not has_more_columns and holds_adjacency_lists(path, keys, **text_options):
            graph = InteractionGraph.from_text(path, encoding=arguments["encoding"], like=like)
        else:
            graph = InteractionGraph.from_table(path, like=like, **arguments)
    print_note(f"{path}: {graph.summary(notes=not prepared)}")
    return graph


def read_ratings(path: Path, log_format: LogFormat) -> dict[str, Any]:
    """Return the ratings in a log file as arguments of `HighestRated.fit`.

    Raises:
        ValueError: a prepared folder, which has no ratings; or the file has no such columns or wrong values.
    """
    from gru4rec_fast.data.part_files import is_prepared
    from gru4rec_fast.data.table_reader import TableReader
    from gru4rec_fast.data.tables import open_table

    if is_prepared(path):
        raise ValueError(f"{path} is prepared and has no ratings: give --ratings, a table of items and ratings")
    wanted = {"item": log_format.item_key, "rating": log_format.rating_key}
    rows = TableReader(open_table(path, wanted, **log_format.text_arguments())).read()
    if log_format.min_rating is not None:
        rows = rows.filter(rows["rating"] >= log_format.min_rating)
    return {"ratings": rows, "item_key": "item", "rating_key": "rating"}
