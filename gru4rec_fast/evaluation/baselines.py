"""Metrics of baselines: ranking by popularity, and in random order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike

from gru4rec_fast.evaluation.metrics import RankMetrics, Ties, ranks_from_counts

if TYPE_CHECKING:
    from gru4rec_fast.data import SessionStore

_CHUNK_EVENTS = 1 << 22  # events counted at a time, since np.bincount copies them to int64


def count_targets(store: SessionStore, *, only_last: bool = False) -> np.ndarray:
    """Return how often each item is a target, int64 [n_items].

    Every event except a session's first is a target or, with `only_last`, the last event of a session of two or more.
    """
    if only_last:
        ends = store.offsets[1:][np.diff(store.offsets) > 1]
        return np.bincount(store.items[ends - 1], minlength=store.n_items)
    counts = np.zeros(store.n_items, np.int64)
    for start in range(0, store.n_events, _CHUNK_EVENTS):
        counts += np.bincount(store.items[start : start + _CHUNK_EVENTS], minlength=store.n_items)
    starts = store.offsets[:-1][np.diff(store.offsets) > 0]
    return counts - np.bincount(store.items[starts], minlength=store.n_items)


def popularity_metrics(
    store: SessionStore,
    support: ArrayLike,
    cutoffs: int | Iterable[int] = (20,),
    ties: Ties = "conservative",
    *,
    only_last: bool = False,
) -> dict[str, float]:
    """Return the metrics of ranking items by their support, the number of their occurrences in the training log.

    Args:
        store: the test sessions.
        support: int [n_items], `SessionStore.support` of the training store.
        cutoffs, ties: see `evaluate_sessions`.
        only_last: whether only the last event of each session is a target, as with targets="last".

    Raises:
        ValueError: support does not have one value per item of the store, or the store has no target.
    """
    popularity = np.asarray(support)
    if popularity.shape != (store.n_items,):
        raise ValueError(f"support must have one number per item, [{store.n_items}], not shape {popularity.shape}")
    ascending = np.sort(popularity)
    n_lower = np.searchsorted(ascending, popularity, side="left")
    n_lower_or_equal = np.searchsorted(ascending, popularity, side="right")
    greater = torch.from_numpy(store.n_items - n_lower_or_equal)
    equal = torch.from_numpy(n_lower_or_equal - n_lower - 1)
    metrics = RankMetrics(cutoffs)
    metrics.update(ranks_from_counts(greater, equal, ties), torch.from_numpy(count_targets(store, only_last=only_last)))
    return metrics.compute()


def random_metrics(n_items: int, cutoffs: int | Iterable[int] = (20,)) -> dict[str, float]:
    """Return the expected metrics of a random order of the catalogue, in which all ranks are equally likely."""
    metrics = RankMetrics(cutoffs)
    metrics.update(torch.arange(1, min(n_items, metrics.cutoffs[-1]) + 1))
    metrics.n_targets = n_items  # ranks beyond the largest cut-off need not be added: they add 0 to every metric
    return metrics.compute()
