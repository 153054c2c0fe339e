"""The command gru4rec-fast recommend: write the best items of sessions or users to a file."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from gru4rec_fast.cli.evaluate import ModelPath
from gru4rec_fast.cli.inputs import refuse_unused_options
from gru4rec_fast.cli.options import LogFormat, RuntimeOptions, with_option_groups
from gru4rec_fast.cli.output import make_parent_folders, open_atomically, print_note
from gru4rec_fast.cli.queries import JSON_LINES_SUFFIXES, Sessions, Users, read_ids, read_sessions, read_users
from gru4rec_fast.cli.registry import item_ids, load_model, ranks_users

if TYPE_CHECKING:
    from gru4rec_fast.cli.registry import AnyModel
    from gru4rec_fast.models import CandidatePool

_QUERIES_PER_CALL = 8192  # sessions or users per call of `model.recommend`; limits the memory of the results


class RankedItems(NamedTuple):
    """The recommendations for one session or user, best first."""

    query_id: Any
    """Id of the session or user."""
    items: list[Any]
    scores: list[float]


@with_option_groups
def recommend(
    model: ModelPath,
    sessions: Annotated[
        Path,
        typer.Argument(
            metavar="SESSIONS",
            help='A log file, a prepared folder, or JSON lines (.jsonl) such as {"session": "a", "items": [1, 2]}. '
            "For a model of interactions: a file with one user id per line.",
        ),
    ],
    *,
    k: Annotated[int, typer.Option("--k", "-k", help="Number of items to recommend to each session or user.")] = 20,
    exclude_seen: Annotated[
        bool | None,
        typer.Option(
            "--exclude-seen/--no-exclude-seen",
            help="Leave out the items that the session already has, or that the user has in training; fewer than K "
            "items may be left. Default: no for sessions, yes for users.",
        ),
    ] = None,
    candidates: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Recommend only the items in this file, which has one item id per line."),
    ] = None,
    skip_unknown: Annotated[
        bool,
        typer.Option(
            "--skip-unknown",
            help="Skip users and items that the model was not trained on, and sessions that have no other items. By "
            "default the first such user or item is an error.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File to write instead of standard output: a .jsonl of JSON lines, else a TSV."
        ),
    ] = None,
    runtime: RuntimeOptions,
    log_format: LogFormat,
) -> None:
    """Recommend the next items of every session in a file, or items to every user, best first.

    The TSV has one row per recommended item: session (user), rank, item, score. Sessions of a log are ordered by
    their first event; users and sessions of JSON lines are ordered as in their file.

    Example: gru4rec-fast recommend run live_sessions.tsv --k 10 --exclude-seen --out recommended.tsv
    """
    make_parent_folders(out)
    loaded = load_model(model, runtime)
    as_json = out is not None and out.suffix.lower() in JSON_LINES_SUFFIXES
    queries = _read_queries(loaded, sessions, log_format, skip_unknown, as_json)
    with nullcontext(sys.stdout) if out is None else open_atomically(out) as file:
        write = _json_line_writer(file, queries.kind) if as_json else _tsv_writer(file, queries.kind, log_format)
        n_short = 0
        options: dict[str, Any] = {} if exclude_seen is None else {"exclude_seen": exclude_seen}
        if candidates is not None:
            options["candidates"] = _read_candidates(loaded, candidates, skip_unknown)
        for ranked in _recommend_all(loaded, queries, k, options):
            write(ranked)
            n_short += len(ranked.items) < k
    if n_short:
        print_note(f"{queries.kind}s with fewer than {k} items left to recommend: {n_short:,}")


def _read_queries(
    model: AnyModel, path: Path, log_format: LogFormat, skip_unknown: bool, as_json: bool
) -> Sessions | Users:
    """Return the sessions in a file, or the users if the model is one of interactions.

    Raises ValueError for an option of the log format that has no effect. Names of columns have an effect on the header
    of a TSV, even if no log is read.
    """
    from gru4rec_fast._atomic_writes import is_folder

    kind = "user" if ranks_users(model) else "session"
    if kind == "session" and path.suffix.lower() not in JSON_LINES_SUFFIXES and not is_folder(path):
        refuse_unused_options(log_format, False, path)
    else:
        header = () if as_json else (f"{kind}_key", "item_key")
        log_format.refuse_unused(header, f"{kind}s that are not read from a log file")
    if kind == "user":
        return read_users(path, model.graph.users, skip_unknown)  # type: ignore[union-attr]
    return read_sessions(path, log_format, item_ids(model), skip_unknown)


def _read_candidates(model: AnyModel, path: Path, skip_unknown: bool) -> CandidatePool:
    """Return the items in a file of one id per line."""
    from gru4rec_fast.models import CandidatePool

    vocabulary = item_ids(model)
    return CandidatePool(vocabulary, read_ids(path, vocabulary, skip_unknown, "item"))


def _recommend_all(model: Any, queries: Sessions | Users, k: int, options: dict[str, Any]) -> Iterator[RankedItems]:
    """Yield the recommendations for each session or user; `options` are further arguments of `model.recommend`."""
    for start in range(0, len(queries.ids), _QUERIES_PER_CALL):
        stop = start + _QUERIES_PER_CALL
        best = model.recommend(queries.batch(start, stop), k, **options)
        rows = zip(
            queries.ids[start:stop].tolist(), best.items.tolist(), best.scores.tolist(), best.counts, strict=True
        )
        for query_id, items, scores, count in rows:
            yield RankedItems(query_id, items[:count], scores[:count])


def _tsv_writer(file: IO[str], kind: str, log_format: LogFormat) -> Callable[[RankedItems], None]:
    """Return a function that writes one TSV row per item. `kind` is "session" or "user".

    Ids that hold tabs, line breaks or quotes are quoted (RFC 4180), so that the file can be read again.
    """
    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
    header = [(getattr(log_format, f"{kind}_key"), "Rank", log_format.item_key, "Score")]

    def write(ranked: RankedItems) -> None:
        writer.writerows(header)  # with the first row, so that nothing is printed if the first batch fails
        header.clear()
        for rank, (item, score) in enumerate(zip(ranked.items, ranked.scores, strict=True), 1):
            writer.writerow((ranked.query_id, rank, item, f"{score:.6g}"))

    return write


def _json_line_writer(file: IO[str], kind: str) -> Callable[[RankedItems], None]:
    """Return a function that writes one JSON object per session or user. `kind` is "session" or "user"."""

    def write(ranked: RankedItems) -> None:
        file.write(json.dumps({kind: ranked.query_id, "items": ranked.items, "scores": ranked.scores}) + "\n")

    return write
