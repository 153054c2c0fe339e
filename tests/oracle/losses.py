"""The five losses on sampled scores, with gradients written by hand.

All variants (in-batch negatives, padding, masked accidental hits, the whole catalogue) have the same input: a score
matrix [M, C], the column of each row's target, and a mask of the columns that count for each row.

In formulas, Y_j are the scores of a row, y_i is the score of its target, and s_j a softmax.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class SampledScores(NamedTuple):
    """Scores [M, C] in float64, the target's column `own` [M], and the mask `visible` [M, C], True for targets."""

    scores: np.ndarray
    own: np.ndarray
    visible: np.ndarray

    @property
    def target(self) -> np.ndarray:
        """Mask of the targets, bool [M, C]."""
        return np.arange(self.scores.shape[1]) == self.own[:, None]


LossAndGradient = tuple[np.ndarray, np.ndarray]  # loss per row [M], gradient with respect to the scores [M, C]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))


def _softmax(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the softmax of each row over the columns in `mask`; 0 in other columns, and in rows without any column."""
    highest = np.where(mask, scores, -np.inf).max(axis=1, keepdims=True)
    e = np.exp(np.where(mask, scores - highest, -np.inf))
    return e / np.maximum(e.sum(axis=1, keepdims=True), 1.0)  # at least 1 unless the mask is empty


def cross_entropy(y: SampledScores, *, label_smoothing: float = 0.0, **_: float) -> LossAndGradient:
    """-sum_j q_j log softmax(Y)_j, where q_j is 1 - e at the target and e / (n - 1) in the other n - 1 columns."""
    masked = np.where(y.visible, y.scores, -np.inf)
    log_softmax = np.where(y.visible, y.scores - np.logaddexp.reduce(masked, axis=1, keepdims=True), 0.0)
    others = np.maximum(y.visible.sum(axis=1, keepdims=True) - 1, 1)
    q = np.where(y.target, 1.0 - label_smoothing, label_smoothing / others) * y.visible
    loss = -(q * log_softmax).sum(axis=1)
    return loss, q.sum(axis=1, keepdims=True) * np.exp(log_softmax) * y.visible - q


def bpr_max(y: SampledScores, *, elu_param: float = 0.0, bpreg: float = 1.0, **_: float) -> LossAndGradient:
    """-log(sum_j s_j sigmoid(y_i - Y_j) + 1e-24) + bpreg sum_j s_j Y_j^2, with elu(Y) in place of Y."""
    negative_side = (y.scores < 0) & (elu_param != 0)
    decay = elu_param * np.exp(np.minimum(y.scores, 0.0))
    scores = np.where(negative_side, decay - elu_param, y.scores)
    slope = np.where(negative_side, decay, 1.0)

    share = _softmax(scores, y.visible & ~y.target)
    ahead = _sigmoid(_own(scores, y.own) - scores)
    won = (share * ahead).sum(axis=1, keepdims=True)
    size = (share * scores**2).sum(axis=1, keepdims=True)
    loss = -np.log(won + 1e-24) + bpreg * size

    # Derivative through the sigmoids by Y_j; that by y_i has the opposite sign.
    grad_j = share * ahead * (1 - ahead) / (won + 1e-24)
    gradient = -share * (ahead - won) / (won + 1e-24) + grad_j
    gradient += bpreg * share * (scores**2 - size + 2 * scores)
    gradient -= y.target * grad_j.sum(axis=1, keepdims=True)
    return loss[:, 0], gradient * slope


def top1(y: SampledScores, **_: float) -> LossAndGradient:
    """mean_j [sigmoid(Y_j - y_i) + sigmoid(Y_j^2)] - sigmoid(y_i^2) / n over the n visible columns, target included."""
    n = y.visible.sum(axis=1, keepdims=True)
    loss, gradient = _top1_terms(y, y.visible / n)
    own = _own(y.scores, y.own)
    square = _sigmoid(own**2)
    return loss - (square / n)[:, 0], gradient - y.target * (2 * own * square * (1 - square) / n)


def top1_max(y: SampledScores, **_: float) -> LossAndGradient:
    """sum_j s_j [sigmoid(Y_j - y_i) + sigmoid(Y_j^2)], s is the softmax over the row without its target."""
    share = _softmax(y.scores, y.visible & ~y.target)
    loss, gradient = _top1_terms(y, share)
    terms = _sigmoid(y.scores - _own(y.scores, y.own)) + _sigmoid(y.scores**2)
    return loss, gradient + share * (terms - loss[:, None])


def _top1_terms(y: SampledScores, weight: np.ndarray) -> LossAndGradient:
    """sum_j weight_j [sigmoid(Y_j - y_i) + sigmoid(Y_j^2)] and its gradient, with constant weights."""
    behind, square = _sigmoid(y.scores - _own(y.scores, y.own)), _sigmoid(y.scores**2)
    grad_j = weight * behind * (1 - behind)
    gradient = grad_j + weight * 2 * y.scores * square * (1 - square) - y.target * grad_j.sum(axis=1, keepdims=True)
    return (weight * (behind + square)).sum(axis=1), gradient


def bpr(y: SampledScores, **_: float) -> LossAndGradient:
    """sum_j -log sigmoid(y_i - Y_j), including the target, which adds log 2."""
    gap = _own(y.scores, y.own) - y.scores
    loss = (y.visible * np.logaddexp(0.0, -gap)).sum(axis=1)
    grad_j = y.visible * _sigmoid(-gap)
    return loss, grad_j - y.target * grad_j.sum(axis=1, keepdims=True)


def _own(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    return np.take_along_axis(scores, own[:, None], axis=1)


LOSSES: dict[str, Callable[..., LossAndGradient]] = {
    "cross-entropy": cross_entropy,
    "bpr-max": bpr_max,
    "top1": top1,
    "top1-max": top1_max,
    "bpr": bpr,
}


def sampled_loss(
    hidden: np.ndarray,
    rows: np.ndarray,
    bias: np.ndarray,
    *,
    loss: str,
    batch_size: float,
    in_batch: bool = True,
    live: np.ndarray | None = None,
    log_q: np.ndarray | None = None,
    ids: np.ndarray | None = None,
    **parameters: float,
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Return the loss and its gradients with respect to hidden [M, H], rows [C, H] and bias [C].

    The C columns are the M targets, then the shared negatives. live [M]: a dead lane has no loss, and its target is not
    a negative of other lanes. ids [C]: columns with the id of a row's target are hidden from that row. log_q [C] is
    subtracted from the scores. The sum is divided by batch_size, not by the number of live lanes.
    """
    lanes, columns = len(hidden), len(rows)
    alive = np.ones(lanes, dtype=bool) if live is None else np.asarray(live, dtype=bool)
    own = np.arange(lanes)
    target = own[:, None] == np.arange(columns)
    visible = np.ones((lanes, columns), dtype=bool)
    visible[:, :lanes] &= alive
    if not in_batch:
        visible[:, :lanes] = False
    if ids is not None:
        visible &= ids != ids[:lanes, None]
    visible |= target
    scores = hidden @ rows.T + bias - (0.0 if log_q is None else log_q)

    y = SampledScores(scores[alive], own[alive], visible[alive])
    losses, gradient = LOSSES[loss](y, **parameters)
    by_scores = np.zeros_like(scores)
    by_scores[alive] = gradient / batch_size
    return losses.sum() / batch_size, by_scores @ rows, by_scores.T @ hidden, by_scores.sum(axis=0)
