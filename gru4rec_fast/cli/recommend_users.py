"""gru4rec-fast recommend, for graph models: items for the users in a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gru4rec_fast.cli.output import note

if TYPE_CHECKING:
    import numpy as np

    from gru4rec_fast.data import Vocabulary
    from gru4rec_fast.models import GraphRecommender

_USERS_AT_ONCE = 1024


class Answer(NamedTuple):
    """What is recommended in one session, or to one user, best first."""

    owner: Any
    items: list[Any]
    scores: list[float]


def to_users(model: GraphRecommender, path: Path, k: int, exclude_seen: bool, skip_unknown: bool) -> Iterator[Answer]:
    """What is recommended to each user named in a file, one id per line; empty lines are passed over.

    Raises:
        OSError, ValueError: no such file; no user in it; a user that was not trained on, unless these are skipped; k
            out of range. All at once, before the first answer.
    """
    import numpy as np

    from gru4rec_fast.models.graph_parts import best_items

    graph = model.graph
    assert graph is not None  # a loaded model has one
    index = _read_users(path, graph.users, skip_unknown)
    if not 1 <= k <= graph.n_items:
        raise ValueError(f"k={k}: choose 1 to {graph.n_items}, the number of items")
    users, table = model.embeddings()

    def answers() -> Iterator[Answer]:
        for begin in range(0, len(index), _USERS_AT_ONCE):
            chosen = index[begin : begin + _USERS_AT_ONCE]
            hidden = [graph.items_of(user) if exclude_seen else np.empty(0, np.int64) for user in chosen.tolist()]
            queries = users[chosen.tolist()]
            scores, items = best_items(queries, table, hidden, k, _USERS_AT_ONCE, model.parameters.impl)
            for user, best, its_scores in zip(graph.users.ids[chosen].tolist(), items, scores, strict=True):
                there = best >= 0
                yield Answer(user, graph.items.ids[best[there]].tolist(), its_scores[there].tolist())

    return answers()


def _read_users(path: Path, vocabulary: Vocabulary, skip_unknown: bool) -> np.ndarray:
    """Indices of the users in a file."""
    import numpy as np

    with open(path, encoding="utf-8-sig") as file:
        lines = [(number, line.strip()) for number, line in enumerate(file, 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} names no user: give one id per line")
    ids: list[Any] = [text for _, text in lines]
    if not vocabulary.holds_strings:
        ids = [_integer(path, number, text) for number, text in lines]
    index = vocabulary.index_of(np.array(ids, dtype=vocabulary.ids.dtype))
    known = index >= 0
    if not known.all() and not skip_unknown:
        number, text = lines[int(known.argmin())]
        raise ValueError(
            f"{path}, line {number}: the model was not trained on user {text}; --skip-unknown passes over such users"
        )
    if not known.any():
        raise ValueError(f"{path}: the model was trained on none of these users")
    if not known.all():
        note(f"skipped: unknown users {int((~known).sum()):,}")
    return index[known]


def _integer(path: Path, number: int, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{path}, line {number}: {text!r} is no user id; the model's are integers") from None
