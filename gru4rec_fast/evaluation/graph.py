"""Full ranking of items for users of a graph: the unseen items of each test user, metrics at several cut-offs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from gru4rec_fast import ops
from gru4rec_fast.data import InteractionGraph
from gru4rec_fast.evaluation.report import _plain_table, _rich_table

GRAPH_METRICS = ("recall", "ndcg", "precision", "hitrate", "map")


@dataclass(frozen=True)
class GraphReport:
    """What a full ranking found.

    Attributes:
        metrics: means over the evaluated users, {"recall@20": ..., "ndcg@20": ..., ...}.
        n_users: users evaluated: those with a test item that is not among their training items.
        n_interactions: their test interactions.
        n_items: size of the catalogue; each user's training items are left out of the ranking.
        dropped: test interactions that were not evaluated, {reason: count}.
    """

    metrics: dict[str, float]
    n_users: int
    n_interactions: int
    n_items: int
    dropped: dict[str, int] = field(default_factory=dict)

    def summary(self) -> str:
        """What was evaluated and what was not, in one line."""
        line = (
            f"{self.n_interactions:,} interactions of {self.n_users:,} users, "
            f"ranked among the unseen of {self.n_items:,} items"
        )
        dropped = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in self.dropped.items() if count]
        return f"{line}; dropped: {', '.join(dropped)}" if dropped else line

    def table(self, *, terminal: bool | None = None) -> str:
        """One row per metric, and the summary; with rich or as plain text, by default whichever suits sys.stdout."""
        cells = [[name, f"{value:.4f}"] for name, value in self.metrics.items()]
        draw = _rich_table if (sys.stdout.isatty() if terminal is None else terminal) else _plain_table
        return draw(["metric", "model"], cells, self.summary())

    def to_json(self) -> str:
        """All fields as a JSON object."""
        return json.dumps(asdict(self), indent=2)


@torch.no_grad()
def evaluate_graph(
    embeddings: Tensor,
    train: InteractionGraph,
    test: InteractionGraph,
    *,
    cutoffs: Iterable[int] = (20,),
    batch_size: int = 1024,
    impl: str = "auto",
) -> GraphReport:
    """Rank for each test user all items that the user does not have in training, by dot product.

    With h_r = 1 where the item at rank r is one of the user's n test items, and means over users:

        recall@k = (h_1 + ... + h_k) / n      precision@k = (h_1 + ... + h_k) / k      hitrate@k = any of h_1 ... h_k
        ndcg@k = sum_r h_r / log2(r + 1), divided by its largest value, sum of 1 / log2(r + 1) over r <= min(n, k)
        map@k = sum_r h_r precision@r / min(n, k)

    That is the NDCG with the standard ideal DCG; some older code takes the DCG of the hits that were made as ideal.
    Equal scores are ranked by item index.

    Args:
        embeddings: final embeddings, float32 or float64 [n_nodes, D], users before items.
        train: the graph trained on. test: one with the same indices: read with `like=train`.
        cutoffs: the k of "@k"; a k beyond the unseen items counts the missing ranks as misses.
        batch_size: users ranked at a time.
        impl: "auto", "native" or "reference", for the ranking.

    Raises:
        ValueError: arguments that do not fit each other, no user to evaluate, a NaN score.
    """
    cutoffs = tuple(sorted(set(cutoffs)))
    if not cutoffs or cutoffs[0] < 1:
        raise ValueError(f"cutoffs={cutoffs}: give at least one, each at least 1")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    if test.users != train.users or test.items != train.items:
        raise ValueError("the test graph has other users or items than the training graph: read it with like=train")
    if embeddings.dim() != 2 or len(embeddings) != train.n_nodes:
        raise ValueError(f"embeddings must be [{train.n_nodes}, D], one row per node, not {[*embeddings.shape]}")
    wanted = _unseen(train, test)
    users = [user for user, items in enumerate(wanted) if len(items)]
    if not users:
        raise ValueError("no user has a test item that is not among their training items: there is nothing to rank")
    user_table, item_table = embeddings[: train.n_users], embeddings[train.n_users :].contiguous()
    depth = min(cutoffs[-1], train.n_items)
    values: dict[str, list[Tensor]] = {}
    for begin in range(0, len(users), batch_size):
        chosen = users[begin : begin + batch_size]
        seen = _padded([train.items_of(user) for user in chosen]).to(embeddings.device)
        queries = user_table[torch.tensor(chosen, device=embeddings.device)]
        _, ranked = ops.top_k(queries, item_table, None, depth, seen, impl=impl)
        for name, value in _metrics(ranked.cpu(), [wanted[user] for user in chosen], cutoffs, train.n_items):
            values.setdefault(name, []).append(value)
    # Summed over all users at once, so that no bit depends on the batch size.
    metrics = {name: math.fsum(torch.cat(parts).tolist()) / len(users) for name, parts in values.items()}
    n_wanted = sum(map(len, wanted))
    dropped = {key: n for key, n in test.meta.get("dropped", {}).items() if n}
    if n_wanted < test.n_edges:
        dropped["interactions_already_in_training"] = test.n_edges - n_wanted
    return GraphReport(metrics, len(users), n_wanted, train.n_items, dropped)


def _unseen(train: InteractionGraph, test: InteractionGraph) -> list[np.ndarray]:
    """Each user's test items that are not among the user's training items."""
    users, items = test.interactions()
    trained_users, trained_items = train.interactions()
    # Both are ordered by user, then item, and so is one number made of the two.
    pairs, trained = users * train.n_items + items, trained_users * train.n_items + trained_items
    slot = np.minimum(np.searchsorted(trained, pairs), len(trained) - 1)
    new = trained[slot] != pairs
    bounds = np.searchsorted(users[new], np.arange(1, train.n_users))
    return np.split(items[new], bounds)


def _padded(rows: list[np.ndarray]) -> Tensor:
    padded = np.full((len(rows), max(map(len, rows))), -1, np.int64)
    for to, row in zip(padded, rows, strict=True):
        to[: len(row)] = row
    return torch.from_numpy(padded)


def _metrics(
    ranked: Tensor, wanted: list[np.ndarray], cutoffs: tuple[int, ...], n_items: int
) -> Iterator[tuple[str, Tensor]]:
    """(name, float64 [Q]) of every metric, from the items at the first ranks [Q, depth] (-1: no item is left)."""
    n = torch.tensor([len(items) for items in wanted])
    # One rising number per (row, item), in which the ranked ones are looked up; n_items stands for -1.
    keys = torch.from_numpy(np.concatenate(wanted)) + torch.repeat_interleave(n) * (n_items + 1)
    asked = torch.where(ranked < 0, n_items, ranked) + torch.arange(len(n))[:, None] * (n_items + 1)
    hits = (keys[torch.searchsorted(keys, asked).clamp(max=len(keys) - 1)] == asked).double()
    rank = torch.arange(1, ranked.shape[1] + 1, dtype=torch.float64)
    discount = 1 / torch.log2(rank + 1)
    found, gained = hits.cumsum(1), (hits * discount).cumsum(1)
    precise = (hits * hits.cumsum(1) / rank).cumsum(1)
    for k in cutoffs:
        at = min(k, ranked.shape[1]) - 1
        most = n.clamp(max=k)  # never more than there are items, so ideal reaches it
        yield f"recall@{k}", found[:, at] / n
        yield f"ndcg@{k}", gained[:, at] / discount.cumsum(0)[most - 1]
        yield f"precision@{k}", found[:, at] / k
        yield f"hitrate@{k}", (found[:, at] > 0).double()
        yield f"map@{k}", precise[:, at] / most
