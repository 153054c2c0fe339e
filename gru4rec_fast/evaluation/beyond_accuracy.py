"""Metrics of what is recommended, whether it is relevant or not: coverage, popularity, Gini, entropy and long tail."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from gru4rec_fast.distributed import Ranks

_HEAD_SHARE = 0.8  # share of the training events of the items that are not in the long tail


def beyond_accuracy(recommended: ArrayLike, support: ArrayLike) -> dict[str, float]:
    """Return coverage, popularity, Gini, entropy and tail of recommended items.

    Args:
        recommended: int [n, k], the indices of the items of n lists; -1 where a list is shorter.
        support: int [n_items], the number of occurrences of each item in the training data.

    Returns:
        {"coverage": ..., "popularity": ..., "gini": ..., "entropy": ..., "tail": ...}; see `metrics_of_counts`.

    Raises:
        ValueError: an item is not in the catalogue, or nothing is recommended.
    """
    support = np.asarray(support)
    items = np.asarray(recommended)
    if support.ndim != 1 or (items.size and (items.min() < -1 or items.max() >= len(support))):
        raise ValueError(
            f"recommended has items from {items.min()} to {items.max()}, and support is of shape {support.shape}: give "
            "support [n_items], and items from 0 to n_items - 1, or -1 where a list is shorter"
        )
    return metrics_of_counts(np.bincount(items[items >= 0], minlength=len(support)), support)


def metrics_of_counts(counts: np.ndarray, support: np.ndarray) -> dict[str, float]:
    """Return the metrics, given how often each item was recommended.

    Let p_i be the share of item i in all recommendations, and n the number of items in the catalogue:

        coverage: share of the catalogue that was recommended at all
        popularity: mean support of the recommended items (ARP; Yin et al., VLDB 2012)
        gini: sum_i (2 i - n - 1) p_i / n, with p in ascending order and i from 1 (Gini coefficient; 0: all items are
            recommended equally often, 1 - 1/n: only one item is recommended)
        entropy: -sum_i p_i log2 p_i (Shannon entropy, in bits; at most log2 n)
        tail: share of the recommendations that are in the long tail: all items but the most popular ones that together
            have 80 % of the training events

    Args:
        counts: int [n_items], number of recommendations of each item.
        support: int [n_items], number of its occurrences in the training data.

    Raises:
        ValueError: nothing was recommended.
    """
    if not counts.any():
        raise ValueError("nothing was recommended, so there is nothing to measure")
    share, n = counts / counts.sum(), len(counts)
    by_popularity = np.argsort(-support, kind="stable")
    events_of_more_popular = np.cumsum(support[by_popularity]) - support[by_popularity]
    tail = by_popularity[events_of_more_popular >= _HEAD_SHARE * support.sum()]
    ascending, recommended = np.sort(share), share[share > 0]
    return {
        "coverage": len(recommended) / n,
        "popularity": float(share @ support),
        "gini": float((2 * np.arange(1, n + 1) - n - 1) @ ascending / n),
        "entropy": float(-(recommended * np.log2(recommended)).sum()) + 0.0,  # + 0.0: no negative zero
        "tail": float(share[tail].sum()),
    }


class RecommendationCounts:
    """Counts how often each item is among the first k recommended items, for several k."""

    def __init__(self, cutoffs: tuple[int, ...], n_items: int) -> None:
        self.cutoffs = cutoffs
        self.counts = np.zeros((len(cutoffs), n_items), np.int64)

    def add(self, items: np.ndarray) -> None:
        """Add lists of items [n, k], with -1 where a list is shorter."""
        for counts, k in zip(self.counts, self.cutoffs, strict=True):
            listed = items[:, :k]
            counts += np.bincount(listed[listed >= 0], minlength=len(counts))

    def sum_over(self, ranks: Ranks | None) -> None:
        """Add the counts of the other ranks."""
        if ranks is not None:
            total = torch.from_numpy(self.counts).to(ranks.device)
            ranks.sum_(total)
            self.counts = total.cpu().numpy()

    def metrics(self, support: np.ndarray) -> dict[str, float]:
        """Return {"coverage@20": ..., ...}; see `metrics_of_counts`."""
        return {
            f"{name}@{k}": value
            for counts, k in zip(self.counts, self.cutoffs, strict=True)
            for name, value in metrics_of_counts(counts, support).items()
        }
