"""Losses of rows of scores, and their gradients with respect to the scores.

A row of scores belongs to one lane (a session processed in parallel) at one step, a column to one item. The own column
of a row is the column of the row's target; the other columns are negatives. A row does not use the columns that are
masked for it. Y_ij is the score of column j in row i, and y_i the score of the own column of row i. n is the number of
columns that a row uses, with the own column. s_ij is the softmax over these columns without the own column. A column
with count c represents c equal negatives: it counts as c columns in every sum, in the softmax and in n.

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
    used    bool [M, columns], True where the row uses the column; None: all True
    counts  [columns], the count of each column; None: all 1
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BPR_MAX_EPS = 1e-24


def own_column(y: Tensor, own: Tensor) -> Tensor:
    """Return the entry of y in the own column of each row, [M, 1]."""
    return y.gather(1, own.unsqueeze(1))


def count_used(y: Tensor, used: Tensor | None, counts: Tensor | None) -> Tensor | int:
    """Return the number of columns that each row uses: an int if it is the same for all rows, else [M, 1]."""
    if used is None and counts is None:
        return y.shape[1]
    return sum_used(torch.ones_like(y), used, counts)


def count_others(y: Tensor, used: Tensor | None, counts: Tensor | None) -> Tensor | int:
    """Return the number of columns that each row uses besides the own column; 1 instead of 0 (it is a divisor)."""
    n = count_used(y, used, counts)
    return max(n - 1, 1) if isinstance(n, int) else (n - 1).clamp_min(1)


def sum_used(x: Tensor, used: Tensor | None, counts: Tensor | None) -> Tensor:
    """Return the sum of x [M, columns] over the columns that each row uses, weighted by `counts`, [M, 1]."""
    x = x if used is None else x.masked_fill(~used, 0)
    return (x if counts is None else x * counts).sum(1, keepdim=True)


def mask_unused(y: Tensor, used: Tensor | None) -> Tensor:
    """Return the scores with -inf in the masked columns."""
    return y if used is None else y.masked_fill(~used, -torch.inf)


def log_total(y: Tensor, used: Tensor | None, counts: Tensor | None) -> Tensor:
    """Return log sum e^y over the columns that each row uses, weighted by `counts`, [M, 1]."""
    return torch.logsumexp(mask_unused(y if counts is None else y + counts.log(), used), dim=1, keepdim=True)


def negative_softmax(y: Tensor, own: Tensor, used: Tensor | None, counts: Tensor | None) -> Tensor:
    """Return s [M, columns], the softmax over the columns that each row uses, without the own column, which gets 0.

    A column with count c gets the sum of c equal probabilities. A row that uses no other column gets zeros.
    """
    logits = mask_unused(y, used).scatter(1, own.unsqueeze(1), -torch.inf)
    highest = logits.detach().amax(1, keepdim=True).clamp_min(torch.finfo(y.dtype).min)
    exps = torch.exp(logits - highest) if counts is None else counts * torch.exp(logits - highest)
    total = exps.sum(1, keepdim=True)
    return exps / total.masked_fill(total == 0, 1)


def _cross_entropy(
    y: Tensor, own: Tensor, used: Tensor | None, counts: Tensor | None, *, label_smoothing: float, **_: float
) -> Tensor:
    log_p = y - log_total(y, used, counts)
    target = own_column(log_p, own)
    if not label_smoothing:
        return -target.squeeze(1)
    others = sum_used(log_p, used, counts) - target
    share = label_smoothing / count_others(y, used, counts)
    return -((1 - label_smoothing) * target + share * others).squeeze(1)


def _bpr_max(
    y: Tensor, own: Tensor, used: Tensor | None, counts: Tensor | None, *, elu_param: float, bpreg: float, **_: float
) -> Tensor:
    x = F.elu(y, elu_param) if elu_param else y
    s = negative_softmax(x, own, used, counts)
    target_wins = (s * torch.sigmoid(own_column(x, own) - x)).sum(1)
    return -torch.log(target_wins + BPR_MAX_EPS) + bpreg * (s * x * x).sum(1)


def _top1(y: Tensor, own: Tensor, used: Tensor | None, counts: Tensor | None, **_: float) -> Tensor:
    target = own_column(y, own)
    terms = torch.sigmoid(y - target) + torch.sigmoid(y * y)
    n = count_used(y, used, counts)
    return ((sum_used(terms, used, counts) - torch.sigmoid(target * target)) / n).squeeze(1)


def _top1_max(y: Tensor, own: Tensor, used: Tensor | None, counts: Tensor | None, **_: float) -> Tensor:
    s = negative_softmax(y, own, used, counts)
    return (s * (torch.sigmoid(y - own_column(y, own)) + torch.sigmoid(y * y))).sum(1)


def _bpr(y: Tensor, own: Tensor, used: Tensor | None, counts: Tensor | None, **_: float) -> Tensor:
    return sum_used(-F.logsigmoid(own_column(y, own) - y), used, counts).squeeze(1)


def _sigmoid_derivative(x: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    return p * (1 - p)


def _times_counts(grad: Tensor, counts: Tensor | None) -> Tensor:
    """Return the gradient of each column multiplied by the column's count."""
    return grad if counts is None else counts * grad


def _with_own(grad: Tensor, own: Tensor, used: Tensor | None, grad_own: Tensor) -> Tensor:
    """Return `grad` with zeros in masked columns and with `grad_own` [M, 1] in the own columns."""
    grad = grad if used is None else grad.masked_fill(~used, 0)
    return grad.scatter(1, own.unsqueeze(1), grad_own)


def _cross_entropy_gradient(
    y: Tensor, own: Tensor, used: Tensor | None, counts: Tensor | None, *, label_smoothing: float, **_: float
) -> Tensor:
    log_p = y - log_total(y, used, counts)
    share = label_smoothing / count_others(y, used, counts) if label_smoothing else 0.0
    # The sum of the target distribution: 1, or 1 - label_smoothing for a row that uses no other column.
    mass = (1 - label_smoothing) + share * (count_used(y, used, counts) - 1)
    grad_others = _times_counts(mass * log_p.exp() - share, counts)
    return _with_own(grad_others, own, used, mass * own_column(log_p, own).exp() - (1 - label_smoothing))


def _bpr_max_gradient(
    y: Tensor, own: Tensor, used: Tensor | None, counts: Tensor | None, *, elu_param: float, bpreg: float, **_: float
) -> Tensor:
    x = F.elu(y, elu_param) if elu_param else y
    s = negative_softmax(x, own, used, counts)
    p = torch.sigmoid(own_column(x, own) - x)
    d = p * (1 - p)
    total = (s * p).sum(1, keepdim=True)
    square = (s * x * x).sum(1, keepdim=True)
    inverse = 1 / (total + BPR_MAX_EPS)
    grad = s * ((total - p + d) * inverse + bpreg * (x * x - square + 2 * x))
    grad = _with_own(grad, own, used, -(s * d).sum(1, keepdim=True) * inverse)
    # The derivative of the elu is 1 where y > 0, else x + elu_param.
    return torch.where(y > 0, grad, grad * (x + elu_param)) if elu_param else grad


def _top1_gradient(y: Tensor, own: Tensor, used: Tensor | None, counts: Tensor | None, **_: float) -> Tensor:
    n = count_used(y, used, counts)
    d = _sigmoid_derivative(y - own_column(y, own))
    grad_own = -(sum_used(d, used, counts) - own_column(d, own)) / n
    grad = _times_counts((d + 2 * y * _sigmoid_derivative(y * y)) / n, counts)
    return _with_own(grad, own, used, grad_own)


def _top1_max_gradient(y: Tensor, own: Tensor, used: Tensor | None, counts: Tensor | None, **_: float) -> Tensor:
    s = negative_softmax(y, own, used, counts)
    target = own_column(y, own)
    d = _sigmoid_derivative(y - target)
    terms = torch.sigmoid(y - target) + torch.sigmoid(y * y)
    loss = (s * terms).sum(1, keepdim=True)
    grad = s * (terms - loss + d + 2 * y * _sigmoid_derivative(y * y))
    return _with_own(grad, own, used, -(s * d).sum(1, keepdim=True))


def _bpr_gradient(y: Tensor, own: Tensor, used: Tensor | None, counts: Tensor | None, **_: float) -> Tensor:
    grad = torch.sigmoid(y - own_column(y, own))
    grad_own = -(sum_used(grad, used, counts) - own_column(grad, own))
    return _with_own(_times_counts(grad, counts), own, used, grad_own)


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
