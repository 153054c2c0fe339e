"""Ranking metrics of next-item prediction: one relevant item per target, several cut-offs in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

Ties = Literal["standard", "conservative", "median"]

_TIED_SHARE = {"standard": 0.0, "conservative": 1.0, "median": 0.5}

# What a target of rank r <= k adds; a rank beyond k adds nothing. With a single relevant item average precision is the
# reciprocal rank, the hit rate is the recall, and the ideal DCG is 1.
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
    """Raise ValueError for an unknown tie mode."""
    if ties not in _TIED_SHARE:
        raise ValueError(f"ties={ties!r}: choose one of {', '.join(_TIED_SHARE)}")


def ranks_from_counts(greater: Tensor, equal: Tensor, ties: Ties = "conservative") -> Tensor:
    """Ranks, float64, from how many other items score strictly higher (`greater`) and exactly as high (`equal`).

    "standard": 1 + greater; "conservative": + equal; "median": + equal / 2.
    """
    check_ties(ties)
    return 1.0 + greater.double() + _TIED_SHARE[ties] * equal.double()


class RankMetrics:
    """Recall, MRR, NDCG, MAP, precision and hit rate at several cut-offs, from a stream of ranks.

    Ranks are counted in a histogram up to the largest cut-off, so memory does not grow with the number of targets and
    the result does not depend, not even in its last bit, on how the stream is cut into batches.

    Args:
        cutoffs: the k of "@k", each at least 1.

    Raises:
        ValueError: no cut-off, or one below 1.
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
            ranks: whole or half numbers [n] from 1 up.
            counts: int64 [n], how many targets have each rank; one each by default.

        Raises:
            ValueError: a rank below 1, or not a multiple of 1/2 (NaN is none).
        """
        halves = 2 * ranks.detach().to("cpu", torch.float64)
        if not bool(((halves >= 2) & (halves == halves.round())).all()):
            raise ValueError("ranks must be whole or half numbers from 1 up")
        counts = torch.ones(halves.shape, dtype=torch.int64) if counts is None else counts.to("cpu", torch.int64)
        near = halves < len(self._by_half_rank)
        self._by_half_rank.index_add_(0, halves[near].long(), counts[near])
        self.n_targets += int(counts.sum())

    def compute(self) -> dict[str, float]:
        """Means over all targets so far: {"recall@20": ..., "mrr@20": ..., ...}. ValueError where there were none."""
        if self.n_targets == 0:
            raise ValueError("no target was ranked, so there is nothing to average")
        counted = [(half / 2, count) for half, count in enumerate(self._by_half_rank.tolist()) if count]
        return {
            f"{name}@{k}": math.fsum(count * gain(rank, k) for rank, count in counted if rank <= k) / self.n_targets
            for k in self.cutoffs
            for name, gain in _GAIN.items()
        }


def metrics_from_ranks(ranks: Tensor, cutoffs: Iterable[int] = (20,)) -> dict[str, float]:
    """`RankMetrics` of ranks [n] that are all at hand."""
    metrics = RankMetrics(cutoffs)
    metrics.update(ranks)
    return metrics.compute()
