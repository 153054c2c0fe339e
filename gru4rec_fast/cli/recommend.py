"""gru4rec-fast recommend."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from gru4rec_fast.cli.evaluate import ModelPath
from gru4rec_fast.cli.kinds import load_model
from gru4rec_fast.cli.logs import open_sessions
from gru4rec_fast.cli.options import LogFormat, Running, Threads, use_threads, with_option_groups
from gru4rec_fast.cli.output import make_room, note, whole_file
from gru4rec_fast.cli.recommend_users import Answer, to_users

if TYPE_CHECKING:
    import numpy as np

    from gru4rec_fast.data import Vocabulary
    from gru4rec_fast.models import GraphRecommender, GRU4Rec

_SESSIONS_AT_ONCE = 8192
JSON_LINES = (".jsonl", ".ndjson")


class Sessions(NamedTuple):
    """Sessions as they were given: ids [n], item ids [n_events] of all of them, offsets [n + 1]."""

    ids: np.ndarray
    items: np.ndarray
    offsets: np.ndarray


@with_option_groups
def recommend(
    model: ModelPath,
    sessions: Annotated[
        Path,
        typer.Argument(
            metavar="SESSIONS",
            help='A log file, a prepared folder, or JSON lines (.jsonl): {"session": "a", "items": (item ids)} each. '
            "For a graph model: a file with one user id per line.",
        ),
    ],
    *,
    k: Annotated[int, typer.Option("--k", "-k", help="Items to recommend in each session, to each user.")] = 20,
    exclude_seen: Annotated[
        bool,
        typer.Option(
            "--exclude-seen",
            help="Not the items that the session already holds, or that the user has in training. Where fewer than K "
            "are left, there are fewer.",
        ),
    ] = False,
    skip_unknown: Annotated[
        bool,
        typer.Option(
            "--skip-unknown",
            help="Pass over items that the model was not trained on, and sessions of nothing else, or over such users; "
            "otherwise the first such item or user is an error.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write there instead of to standard output: JSON lines to .jsonl, else a TSV."
        ),
    ] = None,
    running: Running,
    threads: Threads = None,
    log: LogFormat,
) -> None:
    """Recommend the next items of every session in a file, or items to every user, best first.

    The TSV has one row per recommended item: session (user), rank, item, score. Sessions come in order of their first
    event, users as they were given.

    Example: gru4rec-fast recommend run live_sessions.tsv --k 10 --exclude-seen --out recommended.tsv
    """
    make_room(out)
    use_threads(threads)
    loaded = load_model(model, running)
    owner, answers = _answers(loaded, sessions, log, k, exclude_seen, skip_unknown)
    with nullcontext(sys.stdout) if out is None else whole_file(out) as file:
        as_lines = out is not None and out.suffix.lower() in JSON_LINES
        write = _json_line_writer(file, owner) if as_lines else _tsv_writer(file, owner, log)
        short = 0
        for answer in answers:
            write(answer)
            short += len(answer.items) < k
    if short:
        note(f"{owner}s with fewer than {k} items left to recommend: {short:,}")


def _answers(
    model: GRU4Rec | GraphRecommender, path: Path, log: LogFormat, k: int, exclude_seen: bool, skip_unknown: bool
) -> tuple[str, Iterator[Answer]]:
    """Whom the recommendations are for, "session" or "user", and what is recommended to each."""
    from gru4rec_fast.models import GRU4Rec

    if not isinstance(model, GRU4Rec):
        return "user", to_users(model, path, k, exclude_seen, skip_unknown)
    given = _read_json_lines(path) if path.suffix.lower() in JSON_LINES else _read_log(path, log)
    return "session", _recommended(model, _keep_known(given, _vocabulary_of(model), skip_unknown), k, exclude_seen)


def _vocabulary_of(model: GRU4Rec) -> Vocabulary:
    assert model.vocabulary is not None  # a loaded model has one
    return model.vocabulary


def _read_log(path: Path, log: LogFormat) -> Sessions:
    # Without the model's vocabulary, with which sessions of one event would be dropped.
    store = open_sessions(path, log)
    return Sessions(store.session_ids, store.vocabulary.ids[store.items], store.offsets)


def _read_json_lines(path: Path) -> Sessions:
    """Raises ValueError, with the line's number, for a line that is no session."""
    import numpy as np

    from gru4rec_fast.data.vocabulary import as_ids

    ids: list[Any] = []
    items: list[Any] = []
    offsets = [0]
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                session = json.loads(line)
                ids.append(session["session"])
                items += as_ids(session["items"], f"{path}, line {number}: items").tolist()
            except (ValueError, TypeError, KeyError) as error:
                form = '{"session": "a", "items": [1, 2]}'
                raise ValueError(f"{path}, line {number}: not a session such as {form} ({error})") from None
            offsets.append(len(items))
    if not ids:
        raise ValueError(f"{path} is empty")
    try:
        return Sessions(as_ids(ids, "session"), as_ids(items, "items"), np.array(offsets))
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from None


def _keep_known(sessions: Sessions, vocabulary: Vocabulary, skip_unknown: bool) -> Sessions:
    """The sessions with item indices in place of ids.

    Raises ValueError for an item that the model does not know, unless these are skipped; what is skipped is noted.
    """
    import numpy as np

    try:
        items = vocabulary.index_of(sessions.items)
    except TypeError as error:
        raise ValueError(f"{error}: is this a log of the same catalogue?") from None
    known = items >= 0
    owner = np.repeat(np.arange(len(sessions.ids)), np.diff(sessions.offsets))
    if not known.all() and not skip_unknown:
        at = int(known.argmin())
        session, item = sessions.ids[owner[at]], sessions.items[at]
        raise ValueError(
            f"session {session}: the model was not trained on item {item}; --skip-unknown passes over such items"
        )
    lengths = np.bincount(owner[known], minlength=len(sessions.ids))
    kept = lengths > 0
    if not kept.any():
        raise ValueError("no session holds an item that the model was trained on")
    if not known.all() or not kept.all():
        note(f"skipped: unknown items {int((~known).sum()):,}, sessions without a known one {int((~kept).sum()):,}")
    return Sessions(sessions.ids[kept], items[known], np.concatenate([[0], np.cumsum(lengths[kept])]))


def _recommended(model: GRU4Rec, sessions: Sessions, k: int, exclude_seen: bool) -> Iterator[Answer]:
    """What is recommended in each session, some thousand sessions at a time."""
    from gru4rec_fast.data import SessionStore
    from gru4rec_fast.models.recommending import best_items

    network, vocabulary, exclude = model.network, _vocabulary_of(model), "session" if exclude_seen else None
    assert network is not None  # a loaded model has one
    for begin in range(0, len(sessions.ids), _SESSIONS_AT_ONCE):
        offsets = sessions.offsets[begin : begin + _SESSIONS_AT_ONCE + 1]
        store = SessionStore.from_arrays(
            sessions.items[offsets[0] : offsets[-1]], offsets - offsets[0], vocabulary=vocabulary
        )
        scores, items = best_items(network, vocabulary, store, k, exclude=exclude, impl=model.parameters.impl)
        ids = sessions.ids[begin : begin + _SESSIONS_AT_ONCE].tolist()
        for session, best, its_scores in zip(ids, items, scores, strict=True):
            there = best >= 0
            yield Answer(session, vocabulary.ids[best[there]].tolist(), its_scores[there].tolist())


def _tsv_writer(file: IO[str], owner: str, log: LogFormat) -> Callable[[Answer], None]:
    header = f"{log.session_key if owner == 'session' else log.user_key}\tRank\t{log.item_key}\tScore\n"

    def write(answer: Answer) -> None:
        nonlocal header
        file.write(header)  # with the first rows: where nothing can be recommended nothing is written
        header = ""
        for rank, (item, score) in enumerate(zip(answer.items, answer.scores, strict=True), 1):
            file.write(f"{answer.owner}\t{rank}\t{item}\t{score:.6g}\n")

    return write


def _json_line_writer(file: IO[str], owner: str) -> Callable[[Answer], None]:
    def write(answer: Answer) -> None:
        file.write(json.dumps({owner: answer.owner, "items": answer.items, "scores": answer.scores}) + "\n")

    return write
