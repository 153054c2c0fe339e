"""Evaluation of graph models: ranks the items that a user does not have in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gru4rec_fast.data import InteractionGraph
from gru4rec_fast.distributed import Ranks, digest
from gru4rec_fast.evaluation.beyond_accuracy import RecommendationCounts
from gru4rec_fast.evaluation.groups import By, check_by, group_label, groups_of, hits_by_popularity
from gru4rec_fast.evaluation.lists import Block, complete_lists, find_hits
from gru4rec_fast.evaluation.metrics import METRICS, Ties, as_cutoffs, check_ties, metrics_per_ranking
from gru4rec_fast.evaluation.negatives import NegativeSampler, NegativesBy, sampled_lists
from gru4rec_fast.evaluation.report import Report
from gru4rec_fast.evaluation.scores import HistoryScorer, ProductScores, Scores
from gru4rec_fast.profiling import map_parts

GRAPH_METRICS = METRICS
_ALL = -1  # the number of the group of all users


@torch.no_grad()
def evaluate_graph(
    embeddings: Tensor | HistoryScorer,
    train: InteractionGraph,
    test: InteractionGraph,
    *,
    cutoffs: int | Iterable[int] = (20,),
    ties: Ties | None = None,
    batch_size: int = 1024,
    by: By | None = None,
    beyond_accuracy: bool = False,
    negatives: int | None = None,
    negatives_by: NegativesBy = "uniform",
    seed: int = 0,
    per_user: bool = False,
    impl: str = "auto",
    ranks: Ranks | None = None,
) -> Report:
    """Rank, for each test user, all items that the user does not have in training, by dot product.

    Metrics are means over users; `metrics_per_ranking` has the definitions. The relevant items of a user are the test
    items that are not training items. Some older code divides DCG by the DCG of the hits moved to the first ranks,
    which gives larger values of NDCG.

    Args:
        embeddings: final embeddings, float32 or float64 [n_nodes, D], users before items; or, instead of dot products,
            a scorer of histories.
        train: the training graph.
        test: the test graph, with the same user and item indices; read it with `like=train`.
        cutoffs: the values of k, or a single one; if fewer than k items can be ranked for a user, the missing ranks
            count as irrelevant items.
        ties: the rank of a relevant item among items of the same score: "standard", "conservative" or "median", see
            `lists.find_hits`. None: items with the same score are ranked by item index.
        batch_size: number of users whose items are ranked together.
        by: add a table of the metrics by group to the report. "popularity": by the number of training users of the
            relevant items, of which only those of the group count as relevant in it. "length": by the number of the
            user's training items.
        beyond_accuracy: add coverage, popularity, Gini, entropy and tail of the first k items of all users to the
            report, see `beyond_accuracy`. The lists are of all unseen items, also with `negatives`.
        negatives: rank the relevant items of a user among this number of random items only, which the user has neither
            in training nor in test. None: among all unseen items. Metrics of samples must not be compared with others,
            and may order models differently (Krichene & Rendle, KDD 2020).
        negatives_by: "uniform" or "popularity" (in proportion to the number of training users).
        seed: seed of the negatives.
        per_user: add the metrics of each user to the report, as a polars.DataFrame with the columns "user" (id, as
            text), "n_rankings" (1) and the metrics.
        impl: "auto", "native" or "reference", for the ranking.
        ranks: share out the users among these processes. Each one must call this function with the same arguments, and
            returns the same report as one process.

    Raises:
        ValueError: an argument is out of range, graphs or embeddings do not fit each other, no user has a test item to
            rank, or a score is NaN.
    """
    cutoffs = as_cutoffs(cutoffs)
    if ties is not None:
        check_ties(ties)
    check_by(by, ("popularity", "length"))
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    if test.users != train.users or test.items != train.items:
        raise ValueError("the test graph has other users or items than the training graph: read it with like=train")
    score, scores_digest = _scorer_of_users(embeddings, train, impl)
    targets = _unseen_test_items(train, test)
    users = [user for user, items in enumerate(targets) if len(items)]
    if not users:
        raise ValueError("no user has a test item that is not among their training items: there is nothing to rank")
    support = np.diff(train.offsets[train.n_users :])
    sampler = None if negatives is None else NegativeSampler(negatives, negatives_by, support, seed)
    recommended = RecommendationCounts(cutoffs, train.n_items) if beyond_accuracy else None
    ranked_users: list[int] = []
    values: dict[int, dict[str, list[float]]] = {}  # values of each metric by group; _ALL: in the order of ranked_users

    def search(users: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
        """Return scores and items of the best unseen items of some users."""
        return score(users).top_k(min(length, train.n_items), [train.items_of(user) for user in users])

    def find_lists(users: np.ndarray) -> Iterable[Block]:
        """Return blocks of users with the scores and items of their lists."""
        if sampler is not None:
            relevant = [targets[user] for user in users]
            excluded = [np.union1d(train.items_of(user), targets[user]) for user in users]
            return [(users, *sampled_lists(score(users), relevant, sampler.draw(users, excluded)))]
        if ties is not None:
            return complete_lists(search, users, cutoffs[-1], train.n_items)
        scores, items = search(users, cutoffs[-1])
        return [(users, scores.cpu().numpy(), items.cpu().numpy())]

    def measure(users: np.ndarray) -> list[tuple[np.ndarray, dict[int, dict[str, np.ndarray]], np.ndarray]]:
        """Return blocks of n users with their metrics [n], by group, and the items recommended to them, [n, length]."""
        measured = []
        for own, scores, items in find_lists(users):
            relevant = [targets[user] for user in own]
            groups = {_ALL: find_hits(scores, items, relevant, train.n_items, ties)}
            if by == "popularity":
                groups |= dict(hits_by_popularity(scores, items, relevant, support, train.n_items, ties))
            if recommended is not None and sampler is not None:
                items = search(own, cutoffs[-1])[1].cpu().numpy()
            metrics = {group: metrics_per_ranking(hits, cutoffs) for group, hits in groups.items()}
            measured.append((own, metrics, items))
        return measured

    if ranks is not None:
        settings: dict[str, Any] = {"cutoffs": cutoffs, "users with test items": len(users)}
        settings |= {"ties": ties, "by": by, "beyond_accuracy": beyond_accuracy, "per_user": per_user}
        settings |= {"negatives": sampler and (sampler.description, seed), "embeddings": scores_digest()}
        ranks.check_equal(settings)
    first, end = (0, len(users)) if ranks is None else ranks.part(len(users))
    for start in range(first, end, batch_size):
        batch = np.array(users[start : min(start + batch_size, end)])
        for own, metrics_by_group, items in chain.from_iterable(map_parts("the evaluation", batch, measure)):
            ranked_users += own.tolist()
            for group, metrics in metrics_by_group.items():
                of_group = values.setdefault(group, {})
                for name, value in metrics.items():
                    of_group.setdefault(name, []).extend(value.tolist())
            if recommended is not None:
                recommended.add(items)
    if ranks is not None:
        parts = ranks.gather((ranked_users, values))
        ranked_users = [user for users, _ in parts for user in users]
        names = [*parts[-1][1][_ALL]]  # the part of the last rank has at least one user
        values = {
            group: {
                name: [value for _, part in parts if group in part for value in part[group][name]] for name in names
            }
            for group in {group for _, part in parts for group in part}
        }
    fields: dict[str, Any] = {}
    if by == "length":
        own_group = groups_of(np.diff(train.offsets)[ranked_users], by)
        for group in np.unique(own_group).tolist():
            members = np.flatnonzero(own_group == group).tolist()
            values[group] = {name: [of_all[i] for i in members] for name, of_all in values[_ALL].items()}
    if by is not None:
        fields["groups"] = {
            group_label(group, by): _means(values[group]) | {"n": len(values[group][f"recall@{cutoffs[0]}"])}
            for group in sorted(values)
            if group != _ALL
        }
    if recommended is not None:
        recommended.sum_over(ranks)
        fields["beyond_accuracy"] = recommended.metrics(support)
    if per_user:
        import polars

        ids = [str(user) for user in train.users.ids[ranked_users].tolist()]
        fields["per_session"] = polars.DataFrame({"user": ids, "n_rankings": [1] * len(ids)} | values[_ALL])
    n_targets = sum(map(len, targets))
    dropped = {reason: n for reason, n in test.meta.get("dropped", {}).items() if n}
    if n_targets < test.n_edges:
        dropped["interactions_already_in_training"] = test.n_edges - n_targets
    return Report(
        _means(values[_ALL]),
        n_targets,
        train.n_items,
        n_users=len(users),
        ties=ties,
        dropped=dropped,
        sampled=None if sampler is None else sampler.description,
        by=by,
        **fields,
    )


def _scorer_of_users(
    embeddings: Tensor | HistoryScorer, train: InteractionGraph, impl: str
) -> tuple[Callable[[np.ndarray], Scores], Callable[[], str]]:
    """Return a function that returns the scores for some users, and one that returns a digest of the model.

    Raises ValueError if the embeddings do not fit the training graph.
    """
    if isinstance(embeddings, HistoryScorer):
        return partial(embeddings.score_users, train), embeddings.digest
    if embeddings.dim() != 2 or len(embeddings) != train.n_nodes:
        raise ValueError(f"embeddings must be [{train.n_nodes}, D], one row per node, not {[*embeddings.shape]}")
    scores = ProductScores(embeddings[: train.n_users], embeddings[train.n_users :].contiguous(), None, impl)
    return scores.select, partial(digest, embeddings)


def _means(values: dict[str, list[float]]) -> dict[str, float]:
    """Return the mean of each metric. The sums are exact, so that no bit depends on the batch size."""
    return {name: math.fsum(of_users) / len(of_users) for name, of_users in values.items()}


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
