"""Ranks of several relevant items in lists of recommended items, with a rule for items of the same score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor

from gru4rec_fast.evaluation.metrics import TIE_WEIGHT, Hits, Ties

# Maximum number of elements of the lists of one block, if a list has to be long.
_LIST_ELEMENTS = 1 << 20

Block = tuple[np.ndarray, np.ndarray, np.ndarray]


def complete_lists(
    search: Callable[[np.ndarray, int], tuple[Tensor, Tensor]],
    rankings: np.ndarray,
    k: int,
    n_items: int,
    length: int | None = None,
) -> Iterator[Block]:
    """Yield lists of the best items that have all items with the score at rank k, in blocks of lists of equal length.

    The order of items with the same score is arbitrary, so the rank of an item depends on all items with its score. A
    list of k + 1 items has all of them, unless its last item has the score at rank k; then a longer list is searched.

    Args:
        search: returns the scores and items [R, length] of some rankings, as `ops.top_k` does.
        rankings: int64 [R], what `search` receives.
        k: the largest cut-off, at least 1.
        n_items: the number of items; no list is longer.
        length: length of the first lists; by default k + 1.

    Yields:
        rankings: a part of the rankings, int64 [n]; each one is in exactly one block.
        scores: [n, length], highest first. items: int64 [n, length].
    """
    k = min(k, n_items)
    length = min(k + 1 if length is None else length, n_items)
    scores, items = (tensor.cpu().numpy() for tensor in search(rankings, length))
    is_cut = (scores[:, -1] == scores[:, k - 1]) & (items[:, -1] >= 0) & (length < n_items)
    if not is_cut.all():
        yield rankings[~is_cut], scores[~is_cut], items[~is_cut]
    longer = min(4 * length, n_items)
    rest, n = rankings[is_cut], max(_LIST_ELEMENTS // longer, 1)
    for start in range(0, len(rest), n):
        yield from complete_lists(search, rest[start : start + n], k, n_items, longer)


def find_hits(
    scores: np.ndarray, items: np.ndarray, relevant: Sequence[np.ndarray], n_items: int, ties: Ties | None
) -> Hits:
    """Return the relevant items that are in the lists, with their ranks.

    Let g and e be the numbers of irrelevant items with a higher score than a relevant item, and with the same score. If
    it is the j-th relevant item by score, its rank is j + g with ties="standard", j + g + e with "conservative" and
    j + g + e / 2 with "median": the best and the worst rank of the j-th relevant item in all orders of the tied items,
    and their mean. With ties=None, it is its position in the list.

    Args:
        scores: [R, length], highest first.
        items: int64 [R, length]; -1: no item is left.
        relevant: the relevant items of each list, in ascending order; at least one.
        n_items: the number of items.
        ties: the rule for items of the same score.
    """
    n_relevant = np.array([len(row) for row in relevant], np.int64)
    # One key per (list, relevant item), in ascending order. The item -1 gets a key that no relevant item has.
    first_key = np.arange(len(relevant)) * (n_items + 1)
    keys = np.concatenate(relevant) + np.repeat(first_key, n_relevant)
    listed = np.where(items < 0, n_items, items) + first_key[:, None]
    is_hit = keys[np.minimum(np.searchsorted(keys, listed), len(keys) - 1)] == listed
    order = is_hit.cumsum(axis=1)
    column = np.arange(items.shape[1])
    rank = np.broadcast_to(column + 1.0, items.shape)
    if ties is not None:
        starts_group = np.ones(items.shape, bool)  # whether a column begins a group of items with the same score
        starts_group[:, 1:] = scores[:, 1:] != scores[:, :-1]
        ends_group = np.ones(items.shape, bool)
        ends_group[:, :-1] = starts_group[:, 1:]
        first = np.maximum.accumulate(np.where(starts_group, column, 0), axis=1)
        last = np.minimum.accumulate(np.where(ends_group, column, len(column))[:, ::-1], axis=1)[:, ::-1]
        n_relevant_before = np.take_along_axis(order - is_hit, first, axis=1)
        n_relevant_tied = np.take_along_axis(order, last, axis=1) - n_relevant_before
        n_others_tied = last - first + 1 - n_relevant_tied
        rank = order + (first - n_relevant_before) + TIE_WEIGHT[ties] * n_others_tied
    ranking, _ = np.nonzero(is_hit)
    return Hits(ranking, order[is_hit], rank[is_hit], n_relevant)
