"""Evaluation of graph models: ranks the unseen items of each test user, with metrics at several cut-offs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from gru4rec_fast import ops
from gru4rec_fast.data import InteractionGraph
from gru4rec_fast.evaluation.padding import pad_rows
from gru4rec_fast.evaluation.report import Report

GRAPH_METRICS = ("recall", "ndcg", "precision", "hitrate", "map")


@torch.no_grad()
def evaluate_graph(
    embeddings: Tensor,
    train: InteractionGraph,
    test: InteractionGraph,
    *,
    cutoffs: Iterable[int] = (20,),
    batch_size: int = 1024,
    impl: str = "auto",
) -> Report:
    """Rank for each test user, by dot product, all items that the user does not have in training.

    With h_r = 1 if the item at rank r is one of the user's n test items, else 0, and with means over users:

        recall@k = (h_1 + ... + h_k) / n      precision@k = (h_1 + ... + h_k) / k      hitrate@k = any of h_1 ... h_k
        ndcg@k = sum_r h_r / log2(r + 1), divided by its largest value, sum of 1 / log2(r + 1) over r <= min(n, k)
        map@k = sum_r h_r precision@r / min(n, k)

    The ideal DCG of NDCG is that of a ranking with all test items first. Some older code uses the DCG of the hits in
    sorted order instead, which gives larger values. Equal scores are ranked by item index.

    Args:
        embeddings: final embeddings, float32 or float64 [n_nodes, D], users before items.
        train: the training graph.
        test: a graph with the same indices, read with `like=train`.
        cutoffs: the values of k; if a user has fewer than k unseen items, the missing ranks count as misses.
        batch_size: users ranked at a time.
        impl: "auto", "native" or "reference", for the ranking.

    Raises:
        ValueError: an argument is out of range, graphs or embeddings do not fit each other, no user has a test item to
            rank, or a score is NaN.
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
    targets = _unseen_test_items(train, test)
    users = [user for user, items in enumerate(targets) if len(items)]
    if not users:
        raise ValueError("no user has a test item that is not among their training items: there is nothing to rank")
    user_table, item_table = embeddings[: train.n_users], embeddings[train.n_users :].contiguous()
    depth = min(cutoffs[-1], train.n_items)
    values: dict[str, list[Tensor]] = {}
    for start in range(0, len(users), batch_size):
        batch = users[start : start + batch_size]
        seen = pad_rows([train.items_of(user) for user in batch]).to(embeddings.device)
        queries = user_table[torch.tensor(batch, device=embeddings.device)]
        _, ranked = ops.top_k(queries, item_table, None, depth, seen, impl=impl)
        for name, value in _metrics(ranked.cpu(), [targets[user] for user in batch], cutoffs, train.n_items):
            values.setdefault(name, []).append(value)
    # An exact sum over all users, so that no bit depends on the batch size.
    metrics = {name: math.fsum(torch.cat(batches).tolist()) / len(users) for name, batches in values.items()}
    n_targets = sum(map(len, targets))
    dropped = {reason: n for reason, n in test.meta.get("dropped", {}).items() if n}
    if n_targets < test.n_edges:
        dropped["interactions_already_in_training"] = test.n_edges - n_targets
    return Report(metrics, n_targets, train.n_items, n_users=len(users), dropped=dropped)


def _unseen_test_items(train: InteractionGraph, test: InteractionGraph) -> list[np.ndarray]:
    """Return each user's test items that are not among the user's training items."""
    users, items = test.interactions()
    trained_users, trained_items = train.interactions()
    # Both graphs are ordered by user, then item, and so are these keys.
    pairs, trained = users * train.n_items + items, trained_users * train.n_items + trained_items
    index = np.minimum(np.searchsorted(trained, pairs), len(trained) - 1)
    new = trained[index] != pairs
    bounds = np.searchsorted(users[new], np.arange(1, train.n_users))
    return np.split(items[new], bounds)


def _metrics(
    ranked: Tensor, targets: list[np.ndarray], cutoffs: tuple[int, ...], n_items: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and values, float64 [Q], of every metric, from the best items [Q, depth]; -1: no item is left."""
    n = torch.tensor([len(items) for items in targets])
    # A key per (query, target), in ascending order; the ranked items are searched in it. The item of -1 is n_items.
    keys = torch.from_numpy(np.concatenate(targets)) + torch.repeat_interleave(n) * (n_items + 1)
    ranked_keys = torch.where(ranked < 0, n_items, ranked) + torch.arange(len(n))[:, None] * (n_items + 1)
    hits = (keys[torch.searchsorted(keys, ranked_keys).clamp(max=len(keys) - 1)] == ranked_keys).double()
    rank = torch.arange(1, ranked.shape[1] + 1, dtype=torch.float64)
    discount = 1 / torch.log2(rank + 1)
    n_hits, dcg = hits.cumsum(1), (hits * discount).cumsum(1)
    precision_sum = (hits * hits.cumsum(1) / rank).cumsum(1)
    for k in cutoffs:
        column = min(k, ranked.shape[1]) - 1
        max_hits = n.clamp(max=k)  # at most n_items, so that the sum of discounts has this many terms
        yield f"recall@{k}", n_hits[:, column] / n
        yield f"ndcg@{k}", dcg[:, column] / discount.cumsum(0)[max_hits - 1]
        yield f"precision@{k}", n_hits[:, column] / k
        yield f"hitrate@{k}", (n_hits[:, column] > 0).double()
        yield f"map@{k}", precision_sum[:, column] / max_hits
