"""Metrics of rankings. Next-item prediction has one relevant item in each ranking, the target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gru4rec_fast._untrusted import brief
from gru4rec_fast.distributed import Ranks

Ties = Literal["standard", "conservative", "median"]

# What each other item with the score of the target adds to the rank of the target.
TIE_WEIGHT = {"standard": 0.0, "conservative": 1.0, "median": 0.5}

# The gain of a target at a rank up to k; other ranks gain 0. With one relevant item, average precision is the
# reciprocal rank, hit rate is recall, and the ideal DCG is 1.
_GAIN: dict[str, Callable[[float, int], float]] = {
    "recall": lambda rank, k: 1.0,
    "mrr": lambda rank, k: 1.0 / rank,
    "ndcg": lambda rank, k: 1.0 / math.log2(1.0 + rank),
    "map": lambda rank, k: 1.0 / rank,
    "precision": lambda rank, k: 1.0 / k,
    "hitrate": lambda rank, k: 1.0,
}

METRICS = tuple(_GAIN)


def check_ties(ties: str) -> None:
    """Raise ValueError for an unknown rule for ties."""
    if ties not in TIE_WEIGHT:
        raise ValueError(f"ties={ties!r}: choose one of {', '.join(TIE_WEIGHT)}")


def as_cutoffs(cutoffs: int | Iterable[int]) -> tuple[int, ...]:
    """Return the distinct cut-offs in ascending order. Raises ValueError unless all are whole numbers above 0."""
    try:
        listed: list[Any] = list(cutoffs)  # type: ignore[arg-type]
    except TypeError:  # one number
        listed = [cutoffs]
    if not listed or not all(isinstance(k, int | np.integer) and k is not True and k >= 1 for k in listed):
        raise ValueError(f"cutoffs={brief(cutoffs)}: give at least one whole number, each at least 1, as in (5, 20)")
    return tuple(sorted({int(k) for k in listed}))


def ranks_from_counts(greater: Tensor, equal: Tensor, ties: Ties = "conservative") -> Tensor:
    """Return ranks, float64, given the numbers of other items with a higher score and with the same score.

    The rank is 1 + greater with ties="standard", 1 + greater + equal with "conservative", and 1 + greater + equal / 2
    with "median".
    """
    check_ties(ties)
    return 1.0 + greater.double() + TIE_WEIGHT[ties] * equal.double()


class Hits(NamedTuple):
    """The relevant items that were found in R rankings: P items, ordered by ranking, then by rank.

    Attributes:
        ranking: int64 [P], the number of the ranking, from 0.
        order: int64 [P], 1 for the first relevant item of a ranking, 2 for the second, and so on.
        rank: float64 [P], the rank of the item, a multiple of 1/2.
        n_relevant: int64 [R], the number of relevant items of each ranking, found or not; at least 1.
    """

    ranking: np.ndarray
    order: np.ndarray
    rank: np.ndarray
    n_relevant: np.ndarray

    @classmethod
    def of_one_target(cls, ranks: Tensor) -> Hits:
        """Return the hits of rankings with one relevant item each, given its ranks [R]."""
        n = len(ranks)
        return cls(np.arange(n), np.ones(n, np.int64), ranks.double().cpu().numpy(), np.ones(n, np.int64))


def metrics_per_ranking(hits: Hits, cutoffs: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return the metrics of each ranking, {"recall@20": float64 [R], ...}.

    Let n be the number of relevant items, and r_1 <= r_2 <= ... the ranks of those found up to rank k, m of them:

        recall@k = m / n      precision@k = m / k      hitrate@k = 1 if m > 0      mrr@k = 1 / r_1
        ndcg@k = sum_j 1 / log2(1 + r_j), divided by its largest value, sum of 1 / log2(1 + r) over r <= min(n, k)
        map@k = sum_j (j / r_j) / min(n, k)

    NDCG is the DCG of Jaervelin & Kekaelaeinen (2002) divided by the DCG of a ranking that starts with all relevant
    items. With one relevant item, these are the gains of `RankMetrics`.
    """
    n_rankings = len(hits.n_relevant)
    ideal_dcg = np.cumsum(1 / np.log2(np.arange(2.0, cutoffs[-1] + 2)))
    values: dict[str, np.ndarray] = {}
    for k in cutoffs:
        within = hits.rank <= k
        ranking, order, rank = hits.ranking[within], hits.order[within], hits.rank[within]
        n_hits = np.bincount(ranking, minlength=n_rankings)
        max_hits = np.minimum(hits.n_relevant, k)

        def total(gains: np.ndarray, ranking: np.ndarray = ranking) -> np.ndarray:
            return np.bincount(ranking, gains, n_rankings).astype(float)  # without hits it would be of integers

        values[f"recall@{k}"] = n_hits / hits.n_relevant
        values[f"mrr@{k}"] = total(np.where(order == 1, 1 / rank, 0.0))
        values[f"ndcg@{k}"] = total(1 / np.log2(1 + rank)) / ideal_dcg[max_hits - 1]
        values[f"map@{k}"] = total(order / rank) / max_hits
        values[f"precision@{k}"] = n_hits / k
        values[f"hitrate@{k}"] = (n_hits > 0).astype(float)
    return values


class RankMetrics:
    """Computes recall, MRR, NDCG, MAP, precision and hit rate at several cut-offs from batches of ranks.

    Ranks up to the largest cut-off are counted in a histogram. Memory does not grow with the number of targets, and the
    result has the same bits for every division into batches.

    Args:
        cutoffs: the values of k in "recall@k" and the other metrics, each at least 1; or a single one.

    Raises:
        ValueError: there is no cut-off, or a cut-off is not a whole number of at least 1.
    """

    def __init__(self, cutoffs: int | Iterable[int] = (20,)) -> None:
        self.cutoffs = as_cutoffs(cutoffs)
        self.n_targets = 0
        # Number of targets by twice the rank, since ranks are multiples of 1/2.
        self._histogram = torch.zeros(2 * self.cutoffs[-1] + 1, dtype=torch.int64)

    def update(self, ranks: Tensor, counts: Tensor | None = None) -> None:
        """Add the ranks of targets.

        Args:
            ranks: [n], each at least 1 and a multiple of 1/2.
            counts: int64 [n], number of targets with each rank; None: one target per rank.

        Raises:
            ValueError: a rank is below 1, or not a multiple of 1/2 (NaN included).
        """
        doubled = 2 * ranks.detach().to("cpu", torch.float64)
        if not bool(((doubled >= 2) & (doubled == doubled.round())).all()):
            raise ValueError("ranks must be at least 1 and multiples of 1/2")
        counts = torch.ones(doubled.shape, dtype=torch.int64) if counts is None else counts.to("cpu", torch.int64)
        in_histogram = doubled < len(self._histogram)
        self._histogram.index_add_(0, doubled[in_histogram].long(), counts[in_histogram])
        self.n_targets += int(counts.sum())

    def sum_over(self, ranks: Ranks) -> None:
        """Add the targets of the other ranks, exactly."""
        counts = torch.cat([self._histogram, torch.tensor([self.n_targets])]).to(ranks.device)
        ranks.sum_(counts)
        self._histogram, self.n_targets = counts[:-1].cpu(), int(counts[-1])

    def compute(self) -> dict[str, float]:
        """Return means over all targets, {"recall@20": ..., "mrr@20": ..., ...}. ValueError if there are no targets."""
        if self.n_targets == 0:
            raise ValueError("no target was ranked, so there is nothing to average")
        histogram = [(doubled / 2, count) for doubled, count in enumerate(self._histogram.tolist()) if count]
        return {
            f"{name}@{k}": math.fsum(count * gain(rank, k) for rank, count in histogram if rank <= k) / self.n_targets
            for k in self.cutoffs
            for name, gain in _GAIN.items()
        }


def metrics_from_ranks(ranks: Tensor, cutoffs: int | Iterable[int] = (20,)) -> dict[str, float]:
    """Return the metrics of one tensor of ranks [n]; see `RankMetrics`."""
    metrics = RankMetrics(cutoffs)
    metrics.update(ranks)
    return metrics.compute()
