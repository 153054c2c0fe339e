"""Baselines that a model has to beat: popularity and chance, under the model's own protocol and tie rules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike

from gru4rec_fast.evaluation.metrics import RankMetrics, Ties, ranks_from_counts

if TYPE_CHECKING:
    from gru4rec_fast.data import SessionStore

_EVENTS_AT_A_TIME = 1 << 22


def count_targets(store: SessionStore) -> np.ndarray:
    """How often each item is a next-item target, int64 [n_items]: every event of a session but the first."""
    counts = np.zeros(store.n_items, np.int64)
    for begin in range(0, store.n_events, _EVENTS_AT_A_TIME):
        counts += np.bincount(store.items[begin : begin + _EVENTS_AT_A_TIME], minlength=store.n_items)
    starts = store.offsets[:-1][np.diff(store.offsets) > 0]
    return counts - np.bincount(store.items[starts], minlength=store.n_items)


def popularity_metrics(
    store: SessionStore, support: ArrayLike, cutoffs: Iterable[int] = (20,), ties: Ties = "conservative"
) -> dict[str, float]:
    """Metrics of ranking items by their support in the training log.

    Args:
        store: the test sessions.
        support: int [n_items], how often each item occurs in training (`SessionStore.support` of the training store).
        cutoffs, ties: as in `evaluate_sessions`.

    Raises:
        ValueError: support does not fit the catalogue, or the store has no target.
    """
    popularity = np.asarray(support)
    if popularity.shape != (store.n_items,):
        raise ValueError(f"support must have one number per item, [{store.n_items}], got shape {popularity.shape}")
    ascending = np.sort(popularity)
    lower = np.searchsorted(ascending, popularity, side="left")
    up_to = np.searchsorted(ascending, popularity, side="right")
    greater, equal = torch.from_numpy(store.n_items - up_to), torch.from_numpy(up_to - lower - 1)
    metrics = RankMetrics(cutoffs)
    metrics.update(ranks_from_counts(greater, equal, ties), torch.from_numpy(count_targets(store)))
    return metrics.compute()


def random_metrics(n_items: int, cutoffs: Iterable[int] = (20,)) -> dict[str, float]:
    """Expected metrics of a random order of the catalogue, exactly: every rank from 1 to n_items is equally likely."""
    metrics = RankMetrics(cutoffs)
    metrics.update(torch.arange(1, min(n_items, metrics.cutoffs[-1]) + 1))
    metrics.n_targets = n_items  # lower ranks add nothing but themselves
    return metrics.compute()
