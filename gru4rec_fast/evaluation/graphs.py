"""Evaluation of graph models: ranks the items that a user does not have in training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from gru4rec_fast.data import InteractionGraph
from gru4rec_fast.distributed import Ranks, digest
from gru4rec_fast.evaluation.batches import top_k_excluding
from gru4rec_fast.evaluation.metrics import as_cutoffs
from gru4rec_fast.evaluation.report import Report
from gru4rec_fast.profiling import map_parts

GRAPH_METRICS = ("recall", "ndcg", "precision", "hitrate", "map")


@torch.no_grad()
def evaluate_graph(
    embeddings: Tensor,
    train: InteractionGraph,
    test: InteractionGraph,
    *,
    cutoffs: int | Iterable[int] = (20,),
    batch_size: int = 1024,
    impl: str = "auto",
    ranks: Ranks | None = None,
) -> Report:
    """Rank, for each test user, all items that the user does not have in training, by dot product.

    Metrics are means over users. Let n be the number of the user's test items that are not training items, and h_r = 1
    if the item at rank r is one of these n items, else 0:

        recall@k = (h_1 + ... + h_k) / n      precision@k = (h_1 + ... + h_k) / k      hitrate@k = max(h_1, ..., h_k)
        ndcg@k = sum_r h_r / log2(r + 1), divided by its largest value, sum of 1 / log2(r + 1) over r <= min(n, k)
        map@k = sum_r h_r precision@r / min(n, k)

    NDCG is the DCG divided by the DCG of a ranking that starts with all test items. Some older code divides by the DCG
    of the hits moved to the first ranks instead, which gives larger values. Items with the same score are ranked by
    item index.

    Args:
        embeddings: final embeddings, float32 or float64 [n_nodes, D], users before items.
        train: the training graph.
        test: the test graph, with the same user and item indices; read it with `like=train`.
        cutoffs: the values of k, or a single one; if fewer than k items can be ranked for a user, h_r is 0 at the
            missing ranks.
        batch_size: number of users whose items are ranked together.
        impl: "auto", "native" or "reference", for the ranking.
        ranks: share out the users among these processes. Each one must call this function with the same arguments, and
            returns the same report as one process.

    Raises:
        ValueError: an argument is out of range, graphs or embeddings do not fit each other, no user has a test item to
            rank, or a score is NaN.
    """
    cutoffs = as_cutoffs(cutoffs)
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
    n_ranks = min(cutoffs[-1], train.n_items)
    values: dict[str, list[float]] = {}

    def measure(users: np.ndarray) -> list[tuple[str, Tensor]]:
        queries = user_table[torch.tensor(users, device=embeddings.device)]
        seen = [train.items_of(user) for user in users]
        _, ranked = top_k_excluding(queries, item_table, None, n_ranks, seen, impl=impl)
        return list(_metrics_per_user(ranked.cpu(), [targets[user] for user in users], cutoffs, train.n_items))

    if ranks is not None:
        settings = {"cutoffs": cutoffs, "users with test items": len(users), "embeddings": digest(embeddings)}
        ranks.check_equal(settings)
    first, end = (0, len(users)) if ranks is None else ranks.part(len(users))
    for start in range(first, end, batch_size):
        batch = np.array(users[start : min(start + batch_size, end)])
        for name, value in chain.from_iterable(map_parts("the evaluation", batch, measure)):
            values.setdefault(name, []).extend(value.tolist())
    if ranks is not None:
        parts = ranks.gather(values)
        # The part of the last rank has at least one user, so it has all names.
        values = {name: [value for part in parts for value in part.get(name, ())] for name in parts[-1]}
    # An exact sum over all users, so that no bit depends on the batch size.
    metrics = {name: math.fsum(user_values) / len(users) for name, user_values in values.items()}
    n_targets = sum(map(len, targets))
    dropped = {reason: n for reason, n in test.meta.get("dropped", {}).items() if n}
    if n_targets < test.n_edges:
        dropped["interactions_already_in_training"] = test.n_edges - n_targets
    return Report(metrics, n_targets, train.n_items, n_users=len(users), dropped=dropped)


def _unseen_test_items(train: InteractionGraph, test: InteractionGraph) -> list[np.ndarray]:
    """Return each user's test items that are not among the user's training items."""
    users, items = test.interactions()
    trained_users, trained_items = train.interactions()
    # One key per interaction. Interactions are ordered by user, then item, so that keys are in ascending order.
    keys, trained_keys = users * train.n_items + items, trained_users * train.n_items + trained_items
    index = np.minimum(np.searchsorted(trained_keys, keys), len(trained_keys) - 1)
    is_unseen = trained_keys[index] != keys
    bounds = np.searchsorted(users[is_unseen], np.arange(1, train.n_users))
    return np.split(items[is_unseen], bounds)


def _metrics_per_user(
    ranked: Tensor, targets: list[np.ndarray], cutoffs: tuple[int, ...], n_items: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each metric and its values for U users, float64 [U].

    Args:
        ranked: int64 [U, n_ranks], the items of each user from the highest score down; -1: no item is left.
        targets: the test items of each user, in ascending order.
    """
    n_targets = torch.tensor([len(items) for items in targets])
    # One key per (user, target), in ascending order. A ranked item is a hit if its key is among these keys. The
    # item -1 gets a key that no target has.
    keys = torch.from_numpy(np.concatenate(targets)) + torch.repeat_interleave(n_targets) * (n_items + 1)
    ranked_keys = torch.where(ranked < 0, n_items, ranked) + torch.arange(len(targets))[:, None] * (n_items + 1)
    hits = (keys[torch.searchsorted(keys, ranked_keys).clamp(max=len(keys) - 1)] == ranked_keys).double()
    rank = torch.arange(1, ranked.shape[1] + 1, dtype=torch.float64)
    discount = 1 / torch.log2(rank + 1)
    n_hits, dcg = hits.cumsum(1), (hits * discount).cumsum(1)
    sum_of_precisions = (hits * n_hits / rank).cumsum(1)
    for k in cutoffs:
        column = min(k, ranked.shape[1]) - 1
        max_hits = n_targets.clamp(max=k)
        yield f"recall@{k}", n_hits[:, column] / n_targets
        yield f"ndcg@{k}", dcg[:, column] / discount.cumsum(0)[max_hits - 1]
        yield f"precision@{k}", n_hits[:, column] / k
        yield f"hitrate@{k}", (n_hits[:, column] > 0).double()
        yield f"map@{k}", sum_of_precisions[:, column] / max_hits
