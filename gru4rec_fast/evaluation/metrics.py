"""Metrics of next-item prediction: each ranking has one relevant item, the target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gru4rec_fast._untrusted import brief
from gru4rec_fast.distributed import Ranks

Ties = Literal["standard", "conservative", "median"]

# What each other item with the score of the target adds to the rank of the target.
_TIE_WEIGHT = {"standard": 0.0, "conservative": 1.0, "median": 0.5}

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
    if ties not in _TIE_WEIGHT:
        raise ValueError(f"ties={ties!r}: choose one of {', '.join(_TIE_WEIGHT)}")


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
    return 1.0 + greater.double() + _TIE_WEIGHT[ties] * equal.double()


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
