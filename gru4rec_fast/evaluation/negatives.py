"""Sampled negatives: rank the relevant items among a few random items, to compare with papers that did so.

Such metrics are not estimates of the metrics over all items, and may order models differently (Krichene & Rendle, "On
sampled metrics for item recommendation", KDD 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike

from gru4rec_fast.evaluation.scores import Scores
from gru4rec_fast.ops.philox import STREAM_EVALUATION, WORD_MASK, philox4x32

NegativesBy = Literal["uniform", "popularity"]


class NegativeSampler:
    """Draws negatives, with replacement, from the items that are not excluded.

    A draw depends on the seed and the number of the ranking only, not on the batches.

    Args:
        n: number of negatives of a ranking, at least 1.
        by: "uniform": all items are equally likely. "popularity": in proportion to their support.
        support: int [n_items], the support of the items in the training data.
        seed: an integer of at least 0.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, n: int, by: NegativesBy, support: ArrayLike, seed: int = 0) -> None:
        if n < 1:
            raise ValueError(f"negatives={n}: must be at least 1; None ranks among all items")
        if by not in get_args(NegativesBy):
            raise ValueError(f"negatives_by={by!r}: choose one of {', '.join(get_args(NegativesBy))}")
        if not 0 <= seed < 1 << 63:
            raise ValueError(f"seed={seed}: must be at least 0 and below 2**63")
        self.n, self.seed = n, seed
        self._weights = np.asarray(support, np.int64) if by == "popularity" else np.ones(np.shape(support), np.int64)
        self._cumulative = np.cumsum(self._weights)
        self.description = f"{n:,} negatives" + (" by popularity" if by == "popularity" else "")

    def draw(self, rankings: np.ndarray, excluded: Sequence[np.ndarray]) -> np.ndarray:
        """Return negatives for each ranking, int64 [R, n].

        Args:
            rankings: int64 [R], a number of each ranking, which its draw depends on.
            excluded: the items that are not drawn for each ranking, in ascending order; at least one.

        Raises:
            ValueError: all items that could be drawn are excluded.
        """
        lengths = np.array([len(row) for row in excluded])
        items, total = np.concatenate(excluded), int(self._cumulative[-1])
        weights = self._weights[items]
        # Weight of the excluded items before each one, in all rankings; and of those of earlier rankings.
        sums = np.concatenate([[0], np.cumsum(weights)])
        ends = np.cumsum(lengths)
        earlier = sums[ends - lengths]
        allowed = total - (sums[ends] - earlier)
        if not allowed.all():
            raise ValueError("no item is left to draw negatives from: all items with support are relevant or excluded")
        index = torch.from_numpy(rankings.astype(np.int64))[:, None]
        stream = torch.tensor(STREAM_EVALUATION)
        words = philox4x32((stream, index & WORD_MASK, index >> 32, torch.arange(self.n)), self.seed)
        uniform = ((words[0] >> 5) * 2.0**26 + (words[1] >> 6)).numpy() * 2.0**-53
        # A position on the line of the weights of all allowed items; the rounded product may reach `allowed`.
        position = np.minimum((uniform * allowed[:, None]).astype(np.int64), allowed[:, None] - 1)
        # An excluded item is skipped if it lies before the position. Each ranking has a part of one line of its own.
        own_part = np.arange(len(rankings)) * (total + 1)
        before = self._cumulative[items] - weights - (sums[:-1] - np.repeat(earlier, lengths))
        n_skipped = np.searchsorted(before + np.repeat(own_part, lengths), position + own_part[:, None], side="right")
        position += sums[n_skipped] - earlier[:, None]
        return np.searchsorted(self._cumulative, position, side="right")


def sampled_lists(
    scores: Scores, relevant: Sequence[np.ndarray], negatives: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores and items [R, L] of the relevant items and the negatives of each query, highest score first.

    Items with the same score are ordered by index. The lists are padded with item -1 and score -inf.

    Args:
        scores: the scores for R queries.
        relevant: the relevant items of each query.
        negatives: int64 [R, n], of `NegativeSampler.draw`.

    Raises:
        NanScoreError: a score is NaN; a subclass of ValueError.
    """
    longest = max(map(len, relevant))
    candidates = np.full((len(negatives), longest + negatives.shape[1]), -1, np.int64)
    for row, items in zip(candidates, relevant, strict=True):
        row[: len(items)] = items
    candidates[:, longest:] = negatives
    candidates.sort(axis=1)
    unsorted = scores.of_items(candidates)
    index = torch.from_numpy(candidates).to(unsorted.device)
    listed, order = unsorted.masked_fill_(index < 0, -torch.inf).sort(dim=1, descending=True, stable=True)
    return listed.cpu().numpy(), index.gather(1, order).cpu().numpy()
