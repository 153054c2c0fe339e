"""The five losses on sampled scores, with gradients written by hand.

All variants (in-batch negatives, padding, masked accidental hits, the whole catalogue) have the same input: a score
matrix [M, C], the column of each row's target, and a mask of the columns that are visible to each row.

In formulas, Y_j are the scores of a row in the n visible columns, y_i is the score of the row's target, and s is the
softmax over the visible columns without the target. A loss function ignores the parameters of other losses (`**_`).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class SampledScores(NamedTuple):
    """Scores float64 [M, C], the column of each row's target [M], and the mask of visible columns bool [M, C].

    The target of a row is always visible.
    """

    scores: np.ndarray
    target_column: np.ndarray
    visible: np.ndarray

    @property
    def is_target(self) -> np.ndarray:
        """Mask of the targets, bool [M, C]."""
        return np.arange(self.scores.shape[1]) == self.target_column[:, None]

    @property
    def target_scores(self) -> np.ndarray:
        """Score of each row's target, [M, 1]."""
        return np.take_along_axis(self.scores, self.target_column[:, None], axis=1)


LossAndGradient = tuple[np.ndarray, np.ndarray]  # loss per row [M], gradient with respect to the scores [M, C]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))


def _softmax(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the softmax of each row over the columns in `mask`; 0 in other columns, and in rows without any column."""
    highest = np.where(mask, scores, -np.inf).max(axis=1, keepdims=True)
    exponentials = np.exp(np.where(mask, scores - highest, -np.inf))
    # The sum is at least 1, except in rows without any column, where the maximum avoids a division by 0.
    return exponentials / np.maximum(exponentials.sum(axis=1, keepdims=True), 1.0)


def cross_entropy(y: SampledScores, *, label_smoothing: float = 0.0, **_: float) -> LossAndGradient:
    """Compute -sum_j q_j log softmax(Y)_j. With e = label_smoothing, q_j is 1 - e at the target, else e / (n - 1)."""
    masked = np.where(y.visible, y.scores, -np.inf)
    log_softmax = np.where(y.visible, y.scores - np.logaddexp.reduce(masked, axis=1, keepdims=True), 0.0)
    n_others = np.maximum(y.visible.sum(axis=1, keepdims=True) - 1, 1)
    q = np.where(y.is_target, 1.0 - label_smoothing, label_smoothing / n_others) * y.visible
    loss = -(q * log_softmax).sum(axis=1)
    return loss, q.sum(axis=1, keepdims=True) * np.exp(log_softmax) * y.visible - q


def bpr_max(y: SampledScores, *, elu_param: float = 0.0, bpreg: float = 1.0, **_: float) -> LossAndGradient:
    """Compute -log(sum_j s_j sigmoid(y_i - Y_j) + 1e-24) + bpreg sum_j s_j Y_j^2.

    Unless elu_param is 0, elu(Y) takes the place of Y.
    """
    is_negative = (y.scores < 0) & (elu_param != 0)
    scaled_exp = elu_param * np.exp(np.minimum(y.scores, 0.0))
    elu_slope = np.where(is_negative, scaled_exp, 1.0)
    y = y._replace(scores=np.where(is_negative, scaled_exp - elu_param, y.scores))

    s = _softmax(y.scores, y.visible & ~y.is_target)
    sigmoids = _sigmoid(y.target_scores - y.scores)
    mean_sigmoid = (s * sigmoids).sum(axis=1, keepdims=True)
    mean_square = (s * y.scores**2).sum(axis=1, keepdims=True)
    loss = -np.log(mean_sigmoid + 1e-24) + bpreg * mean_square

    # Derivative through the sigmoids with respect to Y_j; the one with respect to y_i has the opposite sign.
    grad_j = s * sigmoids * (1 - sigmoids) / (mean_sigmoid + 1e-24)
    gradient = -s * (sigmoids - mean_sigmoid) / (mean_sigmoid + 1e-24) + grad_j
    gradient += bpreg * s * (y.scores**2 - mean_square + 2 * y.scores)
    gradient -= y.is_target * grad_j.sum(axis=1, keepdims=True)
    return loss[:, 0], gradient * elu_slope


def top1(y: SampledScores, **_: float) -> LossAndGradient:
    """Compute mean_j [sigmoid(Y_j - y_i) + sigmoid(Y_j^2)] - sigmoid(y_i^2) / n, where j may be the target."""
    n = y.visible.sum(axis=1, keepdims=True)
    loss, gradient = _top1_terms(y, y.visible / n)
    target_square = _sigmoid(y.target_scores**2)
    grad_target = 2 * y.target_scores * target_square * (1 - target_square) / n
    return loss - (target_square / n)[:, 0], gradient - y.is_target * grad_target


def top1_max(y: SampledScores, **_: float) -> LossAndGradient:
    """Compute sum_j s_j [sigmoid(Y_j - y_i) + sigmoid(Y_j^2)]."""
    s = _softmax(y.scores, y.visible & ~y.is_target)
    loss, gradient = _top1_terms(y, s)
    terms = _sigmoid(y.scores - y.target_scores) + _sigmoid(y.scores**2)
    return loss, gradient + s * (terms - loss[:, None])


def _top1_terms(y: SampledScores, weight: np.ndarray) -> LossAndGradient:
    """Return sum_j weight_j [sigmoid(Y_j - y_i) + sigmoid(Y_j^2)] and its gradient, with constant weights."""
    difference, square = _sigmoid(y.scores - y.target_scores), _sigmoid(y.scores**2)
    grad_j = weight * difference * (1 - difference)
    gradient = grad_j + weight * 2 * y.scores * square * (1 - square)
    gradient = gradient - y.is_target * grad_j.sum(axis=1, keepdims=True)
    return (weight * (difference + square)).sum(axis=1), gradient


def bpr(y: SampledScores, **_: float) -> LossAndGradient:
    """Compute sum_j -log sigmoid(y_i - Y_j) over all visible columns. The target adds log 2."""
    difference = y.target_scores - y.scores
    loss = (y.visible * np.logaddexp(0.0, -difference)).sum(axis=1)
    grad_j = y.visible * _sigmoid(-difference)
    return loss, grad_j - y.is_target * grad_j.sum(axis=1, keepdims=True)


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

    The M rows of `hidden` are lanes (sessions processed in parallel). The C columns are the M targets, then the shared
    negatives. The sum over lanes is divided by batch_size, not by the number of live lanes.

    Args:
        live: bool [M]; a lane that is not live has no loss, and its target is not a negative of other lanes.
        log_q: [C], subtracted from the scores.
        ids: [C]; columns with the id of a row's target are not visible to that row, except the target.
    """
    lanes, columns = len(hidden), len(rows)
    live = np.ones(lanes, dtype=bool) if live is None else np.asarray(live, dtype=bool)
    target_column = np.arange(lanes)
    visible = np.ones((lanes, columns), dtype=bool)
    visible[:, :lanes] &= live
    if not in_batch:
        visible[:, :lanes] = False
    if ids is not None:
        visible &= ids != ids[:lanes, None]
    visible[target_column, target_column] = True
    scores = hidden @ rows.T + bias - (0.0 if log_q is None else log_q)

    y = SampledScores(scores[live], target_column[live], visible[live])
    losses, gradient = LOSSES[loss](y, **parameters)
    grad_scores = np.zeros_like(scores)
    grad_scores[live] = gradient / batch_size
    return losses.sum() / batch_size, grad_scores @ rows, grad_scores.T @ hidden, grad_scores.sum(axis=0)
