"""Losses of rows of scores, and their gradients with respect to the scores.

A row of scores belongs to one lane (a session processed in parallel) at one step, a column to one item. The own column
of a row is the column of the row's target; the other columns are negatives. A row does not use the negatives that are
masked for it, nor those with a score of -inf. Y_ij is the score of column j in row i, and y_i the score of the own
column of row i. n is the number of columns that a row uses, with the own column. s_ij is the softmax over these columns
without the own column. A column with count c represents c equal negatives: it counts as c columns in every sum, in the
softmax and in n.

cross-entropy  -log softmax(Y)_i,own; label smoothing e puts (1 - e) on the target and e / (n - 1) on each other column
bpr-max        -log(sum_j s_ij sigmoid(y_i - Y_ij) + 1e-24) + bpreg sum_j s_ij Y_ij^2, on elu(Y, elu_param)
top1           mean_j [sigmoid(Y_ij - y_i) + sigmoid(Y_ij^2)] - sigmoid(y_i^2) / n
top1-max       sum_j s_ij [sigmoid(Y_ij - y_i) + sigmoid(Y_ij^2)]
bpr            sum_j -log sigmoid(y_i - Y_ij), including the own column

Sources: Hidasi et al. 2016 (arXiv 1511.06939; BPR, TOP1), Hidasi & Karatzoglou 2018 (1706.03847, eqs. 4-9; the -max
losses), Hidasi & Czapp 2023 (2307.14956; in-batch cross-entropy). The logQ correction of `sampled_loss`: Bengio &
Senecal 2008; Yi et al. 2019.

The gradients are computed from the scores in one pass, as in the kernels; masked columns get 0. Let x be the scores
(after the elu, if any), d the derivative of the sigmoid, s the softmax without the own column, o the own column:

cross-entropy  softmax(x) * (sum of the target distribution) - target distribution
               (the sum is 1, or 1 - e for a row that uses no other column)
bpr-max        p_j = sigmoid(x_o - x_j), d_j = d(x_o - x_j), P = sum s_j p_j, R = sum s_j x_j^2, eps = 1e-24:
               dx_j = s_j [(P - p_j + d_j) / (P + eps) + bpreg (x_j^2 - R + 2 x_j)],  dx_o = -sum s_j d_j / (P + eps)
top1           dx_j = [d(x_j - x_o) + 2 x_j d(x_j^2)] / n,  dx_o = -sum_{j != o} d(x_j - x_o) / n
top1-max       f_j = sigmoid(x_j - x_o) + sigmoid(x_j^2), L = sum s_j f_j:
               dx_j = s_j [f_j - L + d(x_j - x_o) + 2 x_j d(x_j^2)],  dx_o = -sum s_j d(x_j - x_o)
bpr            dx_j = sigmoid(x_j - x_o),  dx_o = -sum_{j != o} sigmoid(x_j - x_o)

The gradient of a column with count c is multiplied by c; s_j already contains this factor.

Arguments of the functions below:

    y       [M, columns], the scores of M rows
    own     int64 [M], the own column of each row
    used    bool [M, columns], True where the row uses the column
    counts  [columns], the count of each column; None: all 1
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BPR_MAX_EPS = 1e-24


def own_column(y: Tensor, own: Tensor) -> Tensor:
    """Return the entry of y in the own column of each row, [M, 1]."""
    return y.gather(1, own.unsqueeze(1))


def negatives_of(y: Tensor, own: Tensor, used: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scores of the own columns [M, 1], y with 0 in them, and a mask of the negatives that each row uses.

    The score of an own column may be -inf. With 0 in its place, no difference or product of scores is NaN.
    """
    index = own.unsqueeze(1)
    return own_column(y, own), y.scatter(1, index, 0.0), used.scatter(1, index, False)


def count_used(y: Tensor, used: Tensor, counts: Tensor | None) -> Tensor:
    """Return the number of columns that each row uses, [M, 1]."""
    return sum_used(torch.ones_like(y), used, counts)


def count_others(y: Tensor, used: Tensor, counts: Tensor | None) -> Tensor:
    """Return the number of columns that each row uses besides the own column; 1 instead of 0 (it is a divisor)."""
    return (count_used(y, used, counts) - 1).clamp_min(1)


def sum_used(x: Tensor, used: Tensor, counts: Tensor | None) -> Tensor:
    """Return the sum of x [M, columns] over the columns in the mask `used`, weighted by `counts`, [M, 1]."""
    x = x.masked_fill(~used, 0)
    return (x if counts is None else x * counts).sum(1, keepdim=True)


def log_total(y: Tensor, used: Tensor, counts: Tensor | None) -> Tensor:
    """Return log sum e^y over the columns that each row uses, weighted by `counts`, [M, 1]."""
    weighted = y if counts is None else y + counts.log()
    return torch.logsumexp(weighted.masked_fill(~used, -torch.inf), dim=1, keepdim=True)


def negative_softmax(x: Tensor, negatives: Tensor, counts: Tensor | None) -> Tensor:
    """Return s [M, columns], the softmax over the columns in the mask `negatives`; the other columns get 0.

    A column with count c gets the sum of c equal probabilities. A row without negatives gets zeros.
    """
    logits = x.masked_fill(~negatives, -torch.inf)
    highest = logits.detach().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).min)
    exps = torch.exp(logits - highest) if counts is None else counts * torch.exp(logits - highest)
    total = exps.sum(1, keepdim=True)
    return exps / total.masked_fill(total == 0, 1)


def _cross_entropy(
    y: Tensor, own: Tensor, used: Tensor, counts: Tensor | None, *, label_smoothing: float, **_: float
) -> Tensor:
    log_p = y - log_total(y, used, counts)
    target, others, negatives = negatives_of(log_p, own, used)
    if not label_smoothing:
        return -target.squeeze(1)
    share = label_smoothing / count_others(y, used, counts)
    return -((1 - label_smoothing) * target + share * sum_used(others, negatives, counts)).squeeze(1)


def _bpr_max(
    y: Tensor, own: Tensor, used: Tensor, counts: Tensor | None, *, elu_param: float, bpreg: float, **_: float
) -> Tensor:
    target, x, negatives = negatives_of(F.elu(y, elu_param) if elu_param else y, own, used)
    s = negative_softmax(x, negatives, counts)
    target_wins = (s * torch.sigmoid(target - x)).sum(1)
    return -torch.log(target_wins + BPR_MAX_EPS) + bpreg * (s * x * x).sum(1)


def _top1(y: Tensor, own: Tensor, used: Tensor, counts: Tensor | None, **_: float) -> Tensor:
    target, x, negatives = negatives_of(y, own, used)
    terms = torch.sigmoid(x - target) + torch.sigmoid(x * x)
    own_term = 0.5  # sigmoid(y_i - y_i); the formula subtracts the other term, sigmoid(y_i^2)
    return ((sum_used(terms, negatives, counts) + own_term) / count_used(y, used, counts)).squeeze(1)


def _top1_max(y: Tensor, own: Tensor, used: Tensor, counts: Tensor | None, **_: float) -> Tensor:
    target, x, negatives = negatives_of(y, own, used)
    s = negative_softmax(x, negatives, counts)
    return (s * (torch.sigmoid(x - target) + torch.sigmoid(x * x))).sum(1)


def _bpr(y: Tensor, own: Tensor, used: Tensor, counts: Tensor | None, **_: float) -> Tensor:
    target, x, negatives = negatives_of(y, own, used)
    return (sum_used(-F.logsigmoid(target - x), negatives, counts) + math.log(2)).squeeze(1)


def _sigmoid_derivative(x: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    return p * (1 - p)


def _times_counts(grad: Tensor, counts: Tensor | None) -> Tensor:
    """Return the gradient of each column multiplied by the column's count."""
    return grad if counts is None else counts * grad


def _with_own(grad: Tensor, own: Tensor, used: Tensor, grad_own: Tensor) -> Tensor:
    """Return `grad` with zeros in the columns that are not used, and with `grad_own` [M, 1] in the own columns."""
    return grad.masked_fill(~used, 0).scatter(1, own.unsqueeze(1), grad_own)


def _cross_entropy_gradient(
    y: Tensor, own: Tensor, used: Tensor, counts: Tensor | None, *, label_smoothing: float, **_: float
) -> Tensor:
    log_p = y - log_total(y, used, counts)
    share = label_smoothing / count_others(y, used, counts) if label_smoothing else 0.0
    # The sum of the target distribution: 1, or 1 - label_smoothing for a row that uses no other column.
    mass = (1 - label_smoothing) + share * (count_used(y, used, counts) - 1)
    grad_others = _times_counts(mass * log_p.exp() - share, counts)
    return _with_own(grad_others, own, used, mass * own_column(log_p, own).exp() - (1 - label_smoothing))


def _bpr_max_gradient(
    y: Tensor, own: Tensor, used: Tensor, counts: Tensor | None, *, elu_param: float, bpreg: float, **_: float
) -> Tensor:
    activated = F.elu(y, elu_param) if elu_param else y
    target, x, negatives = negatives_of(activated, own, used)
    s = negative_softmax(x, negatives, counts)
    p = torch.sigmoid(target - x)
    d = p * (1 - p)
    total = (s * p).sum(1, keepdim=True)
    square = (s * x * x).sum(1, keepdim=True)
    inverse = 1 / (total + BPR_MAX_EPS)
    grad = s * ((total - p + d) * inverse + bpreg * (x * x - square + 2 * x))
    grad = _with_own(grad, own, used, -(s * d).sum(1, keepdim=True) * inverse)
    # The derivative of the elu is 1 where y > 0, else activated + elu_param.
    return torch.where(y > 0, grad, grad * (activated + elu_param)) if elu_param else grad


def _top1_gradient(y: Tensor, own: Tensor, used: Tensor, counts: Tensor | None, **_: float) -> Tensor:
    target, x, negatives = negatives_of(y, own, used)
    n = count_used(y, used, counts)
    d = _sigmoid_derivative(x - target)
    grad = _times_counts((d + 2 * x * _sigmoid_derivative(x * x)) / n, counts)
    return _with_own(grad, own, used, -sum_used(d, negatives, counts) / n)


def _top1_max_gradient(y: Tensor, own: Tensor, used: Tensor, counts: Tensor | None, **_: float) -> Tensor:
    target, x, negatives = negatives_of(y, own, used)
    s = negative_softmax(x, negatives, counts)
    d = _sigmoid_derivative(x - target)
    terms = torch.sigmoid(x - target) + torch.sigmoid(x * x)
    loss = (s * terms).sum(1, keepdim=True)
    grad = s * (terms - loss + d + 2 * x * _sigmoid_derivative(x * x))
    return _with_own(grad, own, used, -(s * d).sum(1, keepdim=True))


def _bpr_gradient(y: Tensor, own: Tensor, used: Tensor, counts: Tensor | None, **_: float) -> Tensor:
    target, x, negatives = negatives_of(y, own, used)
    grad = torch.sigmoid(x - target)
    return _with_own(_times_counts(grad, counts), own, used, -sum_used(grad, negatives, counts))


ROW_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross-entropy": _cross_entropy,
    "bpr-max": _bpr_max,
    "top1": _top1,
    "top1-max": _top1_max,
    "bpr": _bpr,
}
ROW_GRADIENTS: dict[str, Callable[..., Tensor]] = {
    "cross-entropy": _cross_entropy_gradient,
    "bpr-max": _bpr_max_gradient,
    "top1": _top1_gradient,
    "top1-max": _top1_max_gradient,
    "bpr": _bpr_gradient,
}
