"""Scores of all items for some queries: ranks of targets, best items, scores of given items.

A query is what the items are ranked for: the events of a session so far, or a user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gru4rec_fast import ops
from gru4rec_fast.evaluation.batches import top_k_excluding
from gru4rec_fast.ops.ranking import NanScoreError

if TYPE_CHECKING:
    from gru4rec_fast.data import InteractionGraph, SessionStore

_GATHERED_ELEMENTS = 1 << 22  # elements of the rows of the output table that are gathered at a time
_DENSE_ELEMENTS = 1 << 22  # elements of the dense scores that are searched at a time; 32 MiB
_QUERIES_PER_CALL = 512
_ITEMS_PER_CALL = 1 << 12  # items of all histories of one call


class Scores(Protocol):
    """The scores of all items for Q queries."""

    def select(self, rows: np.ndarray) -> Scores:
        """Return the scores for some of the queries."""

    def target_rank(self, targets: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return how many other items have a higher score than the target, and how many the same score, [Q] each."""

    def top_k(self, k: int, excluded: Sequence[np.ndarray] | None = None) -> tuple[Tensor, Tensor]:
        """Return scores and items [Q, k], best first, items of the same score by index.

        excluded: the items to leave out for each query. If fewer than k are left, the row ends with items of -1 and
            scores of -inf.
        """

    def of_items(self, items: np.ndarray) -> Tensor:
        """Return the scores of given items, [Q, L]; `items` is int64 [Q, L], and -1 gives any score."""


@dataclass(frozen=True)
class ProductScores:
    """Scores that are dot products: `queries @ weight.T + bias`.

    Attributes:
        queries, weight, bias, impl: see `ops.top_k`.
    """

    queries: Tensor
    weight: Tensor
    bias: Tensor | None
    impl: str

    def select(self, rows: np.ndarray) -> ProductScores:
        """See `Scores`."""
        chosen = self.queries[torch.from_numpy(rows).to(self.queries.device)]
        return ProductScores(chosen, self.weight, self.bias, self.impl)

    def target_rank(self, targets: np.ndarray) -> tuple[Tensor, Tensor]:
        """See `Scores`."""
        index = torch.from_numpy(targets.astype(np.int64)).to(self.weight.device)
        return ops.target_rank(self.queries, self.weight, self.bias, index, impl=self.impl)

    def top_k(self, k: int, excluded: Sequence[np.ndarray] | None = None) -> tuple[Tensor, Tensor]:
        """See `Scores`."""
        return top_k_excluding(self.queries, self.weight, self.bias, k, excluded, impl=self.impl)

    def of_items(self, items: np.ndarray) -> Tensor:
        """See `Scores`. Raises NanScoreError for a NaN score."""
        index = torch.from_numpy(items).to(self.weight.device)
        scores = torch.empty(index.shape, dtype=self.weight.dtype, device=self.weight.device)
        n = max(_GATHERED_ELEMENTS // (index.shape[1] * self.weight.shape[1]), 1)
        for start in range(0, len(index), n):
            rows = slice(start, start + n)
            scores[rows] = (self.weight[index[rows]] * self.queries[rows, None]).sum(dim=2)
            if self.bias is not None:
                scores[rows] += self.bias[index[rows]]
        if scores.isnan().any():
            raise NanScoreError("a score is NaN, so the items cannot be ranked")
        return scores


@dataclass(frozen=True)
class SparseScores:
    """Scores that are the same for all queries, except for a few items of each.

    Attributes:
        matrix: scipy CSR array of float64 [Q, n_items], which is added to `item_scores`; without duplicates.
        item_scores: finite float64 [n_items]. ascending: the same, sorted.
    """

    matrix: Any
    item_scores: np.ndarray
    ascending: np.ndarray

    def select(self, rows: np.ndarray) -> SparseScores:
        """See `Scores`."""
        return SparseScores(self.matrix[rows], self.item_scores, self.ascending)

    def target_rank(self, targets: np.ndarray) -> tuple[Tensor, Tensor]:
        """See `Scores`."""
        n_queries, n_items = self.matrix.shape
        target = self.of_items(targets[:, None]).numpy()[:, 0]
        n_lower = np.searchsorted(self.ascending, target, side="left")
        n_lower_or_equal = np.searchsorted(self.ascending, target, side="right")
        # These counts are for `item_scores`; now correct them for the entries of the matrix.
        row = np.repeat(np.arange(n_queries), np.diff(self.matrix.indptr))
        without = self.item_scores[self.matrix.indices]
        score, own_target = without + self.matrix.data, target[row]

        def count(mask: np.ndarray) -> np.ndarray:
            return np.bincount(row[mask], minlength=n_queries)

        greater = n_items - n_lower_or_equal + count(score > own_target) - count(without > own_target)
        equal = n_lower_or_equal - n_lower + count(score == own_target) - count(without == own_target)
        return torch.from_numpy(greater), torch.from_numpy(equal - 1)

    def top_k(self, k: int, excluded: Sequence[np.ndarray] | None = None) -> tuple[Tensor, Tensor]:
        """See `Scores`."""
        n_queries, n_items = self.matrix.shape
        scores, items = np.empty((n_queries, k)), np.empty((n_queries, k), np.int64)
        n = max(_DENSE_ELEMENTS // n_items, 1)
        for start in range(0, n_queries, n):
            rows = slice(start, min(start + n, n_queries))
            dense = self.matrix[rows].toarray() + self.item_scores
            for row, left_out in zip(dense, () if excluded is None else excluded[rows], strict=False):
                row[left_out] = -np.inf
            scores[rows], items[rows] = _top_k(dense, k)
        return torch.from_numpy(scores), torch.from_numpy(items)

    def of_items(self, items: np.ndarray) -> Tensor:
        """See `Scores`."""
        n_queries, n_items = self.matrix.shape
        self.matrix.sort_indices()  # here, because `top_k` does not need it
        # One key per entry, in ascending order.
        keys = np.repeat(np.arange(n_queries) * n_items, np.diff(self.matrix.indptr)) + self.matrix.indices
        wanted = np.arange(n_queries)[:, None] * n_items + items
        index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        added = np.where(keys[index] == wanted, self.matrix.data[index], 0.0) if len(keys) else 0.0
        return torch.from_numpy(self.item_scores[items] + added)


def _top_k(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k highest scores of each row of [n, n_items] and their columns; -1 where the score is -inf.

    Equal scores are in the order of columns.
    """
    kth = torch.from_numpy(scores).topk(k, dim=1).values[:, -1:].numpy()  # takes less time than np.partition
    is_above, is_tied = scores > kth, scores == kth
    n_tied = k - is_above.sum(axis=1, keepdims=True)
    is_best = is_above | (is_tied & (is_tied.cumsum(axis=1) <= n_tied))
    columns = np.nonzero(is_best)[1].reshape(len(scores), k)
    best = np.take_along_axis(scores, columns, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    best, columns = np.take_along_axis(best, order, axis=1), np.take_along_axis(columns, order, axis=1)
    return best, np.where(best == -np.inf, -1, columns)


@dataclass(frozen=True)
class HistoryScorer:
    """Scores all items by the items that a session has so far, or that a user has, with a sparse matrix.

    Attributes:
        score: returns the matrix of `SparseScores` for Q histories. Its arguments are the items of all histories, int64
            [n], and the offsets of histories, int64 [Q + 1].
        item_scores: see `SparseScores`.
        n_last: number of the last items of a session that `score` needs; None: all.
        digest: returns a digest of the model, which is compared between processes.
    """

    score: Callable[[np.ndarray, np.ndarray], Any]
    item_scores: np.ndarray
    n_last: int | None
    digest: Callable[[], str]

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.item_scores)

    @cached_property
    def _ascending(self) -> np.ndarray:
        return np.sort(self.item_scores)

    def score_histories(self, items: np.ndarray, offsets: np.ndarray) -> SparseScores:
        """Return the scores for Q histories; the arguments are those of the attribute `score`."""
        matrix = self.score(items.astype(np.int64, copy=False), offsets)
        return SparseScores(matrix, self.item_scores, self._ascending)

    def score_prefixes(
        self, items: np.ndarray, starts: np.ndarray, ends: np.ndarray
    ) -> Iterator[tuple[SparseScores, np.ndarray]]:
        """Yield the scores for Q parts of sessions, and the numbers of these parts, int64 [n], in several calls.

        A part has the items from `starts` to `ends` (int64 [Q] each).
        """
        if self.n_last is not None:
            starts = np.maximum(starts, ends - self.n_last)
        calls = np.cumsum(ends - starts) // _ITEMS_PER_CALL
        for group in np.split(np.arange(len(starts)), np.flatnonzero(np.diff(calls)) + 1):
            for first in range(0, len(group), _QUERIES_PER_CALL):
                rows = group[first : first + _QUERIES_PER_CALL]
                lengths = ends[rows] - starts[rows]
                offsets = np.concatenate([[0], np.cumsum(lengths)])
                index = np.arange(offsets[-1]) + np.repeat(starts[rows] - offsets[:-1], lengths)
                yield self.score_histories(items[index], offsets), rows

    def score_sessions(
        self, store: SessionStore, sessions: np.ndarray, *, only_last: bool
    ) -> Iterator[tuple[SparseScores, np.ndarray]]:
        """Yield the scores after events of sessions that have a next event, and the indices of these events, int64 [n].

        only_last: only after the last event of each session that has a next one.
        """
        starts, n_queries = store.offsets[sessions], np.diff(store.offsets)[sessions] - 1
        if only_last:
            events = starts + n_queries - 1
        else:
            starts = np.repeat(starts, n_queries)
            events = np.arange(len(starts)) - np.repeat(np.cumsum(n_queries) - n_queries, n_queries) + starts
        for scores, rows in self.score_prefixes(store.items, starts, events + 1):
            yield scores, events[rows]

    def score_users(self, graph: InteractionGraph, users: np.ndarray) -> SparseScores:
        """Return the scores for users by all items of each."""
        histories = [graph.items_of(user) for user in users]
        offsets = np.concatenate([[0], np.cumsum([len(items) for items in histories])])
        return self.score_histories(np.concatenate(histories), offsets)
