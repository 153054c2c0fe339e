"""Ranking metrics of next-item prediction, with one relevant item per ranking, at several cut-offs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

Ties = Literal["standard", "conservative", "median"]

_TIE_WEIGHT = {"standard": 0.0, "conservative": 1.0, "median": 0.5}

# The gain of a target of rank r <= k; a rank beyond k gains 0. With a single relevant item, average precision is the
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
    if ties not in _TIE_WEIGHT:
        raise ValueError(f"ties={ties!r}: choose one of {', '.join(_TIE_WEIGHT)}")


def ranks_from_counts(greater: Tensor, equal: Tensor, ties: Ties = "conservative") -> Tensor:
    """Return ranks, float64, from the numbers of other items with a higher and with the same score.

    The rank is 1 + greater with ties="standard", 1 + greater + equal with "conservative", and 1 + greater + equal / 2
    with "median".
    """
    check_ties(ties)
    return 1.0 + greater.double() + _TIE_WEIGHT[ties] * equal.double()


class RankMetrics:
    """Accumulates recall, MRR, NDCG, MAP, precision and hit rate at several cut-offs from batches of ranks.

    Ranks up to the largest cut-off are counted in a histogram. Memory does not grow with the number of targets, and no
    bit of the result depends on the batches.

    Args:
        cutoffs: the values of k in "recall@k" and the others, each at least 1.

    Raises:
        ValueError: there is no cut-off, or one is below 1.
    """

    def __init__(self, cutoffs: Iterable[int] = (20,)) -> None:
        self.cutoffs = tuple(sorted(set(cutoffs)))
        if not self.cutoffs or self.cutoffs[0] < 1:
            raise ValueError(f"cutoffs={self.cutoffs}: give at least one, each at least 1")
        self.n_targets = 0
        self._by_half_rank = torch.zeros(2 * self.cutoffs[-1] + 1, dtype=torch.int64)

    def update(self, ranks: Tensor, counts: Tensor | None = None) -> None:
        """Add targets.

        Args:
            ranks: multiples of 1/2 [n], at least 1.
            counts: int64 [n], number of targets with each rank; by default 1.

        Raises:
            ValueError: a rank is below 1, or not a multiple of 1/2 (NaN included).
        """
        halves = 2 * ranks.detach().to("cpu", torch.float64)
        if not bool(((halves >= 2) & (halves == halves.round())).all()):
            raise ValueError("ranks must be whole or half numbers from 1 up")
        counts = torch.ones(halves.shape, dtype=torch.int64) if counts is None else counts.to("cpu", torch.int64)
        in_histogram = halves < len(self._by_half_rank)
        self._by_half_rank.index_add_(0, halves[in_histogram].long(), counts[in_histogram])
        self.n_targets += int(counts.sum())

    def compute(self) -> dict[str, float]:
        """Return means over all targets, {"recall@20": ..., "mrr@20": ..., ...}. Raises ValueError without a target."""
        if self.n_targets == 0:
            raise ValueError("no target was ranked, so there is nothing to average")
        histogram = [(half / 2, count) for half, count in enumerate(self._by_half_rank.tolist()) if count]
        return {
            f"{name}@{k}": math.fsum(count * gain(rank, k) for rank, count in histogram if rank <= k) / self.n_targets
            for k in self.cutoffs
            for name, gain in _GAIN.items()
        }


def metrics_from_ranks(ranks: Tensor, cutoffs: Iterable[int] = (20,)) -> dict[str, float]:
    """Return the metrics of ranks [n], see `RankMetrics`."""
    metrics = RankMetrics(cutoffs)
    metrics.update(ranks)
    return metrics.compute()
