"""The losses of rows of scores, and their gradients with respect to the scores.

Y_ij is the score of column j in row i, y_i that of row i's own target, s_ij the softmax of a row without its own
target, n the number of columns a row sees. A negative that stands for c equal ones counts as c columns in every sum, in
the softmax and in n.

cross-entropy  -log softmax(Y)_i,own; label smoothing e puts (1 - e) on the target and e / (n - 1) on each other column
bpr-max        -log(sum_j s_ij sigmoid(y_i - Y_ij) + 1e-24) + bpreg sum_j s_ij Y_ij^2, on elu(Y, elu_param)
top1           mean_j [sigmoid(Y_ij - y_i) + sigmoid(Y_ij^2)] - sigmoid(y_i^2) / n
top1-max       sum_j s_ij [sigmoid(Y_ij - y_i) + sigmoid(Y_ij^2)]
bpr            sum_j -log sigmoid(y_i - Y_ij), own column included

Sources: Hidasi et al. 2016 (arXiv 1511.06939; BPR, TOP1), Hidasi & Karatzoglou 2018 (1706.03847, eqs. 4-9; the -max
losses), Hidasi & Czapp 2023 (2307.14956; in-batch cross-entropy). logQ: Bengio & Senecal 2008; Yi et al. 2019.

The gradients are written out as the kernels form them, from the scores in one pass; columns a row does not see get 0.
With x the (activated) scores, d = sigmoid', s the softmax without the own column, o the own column:

cross-entropy  softmax(x) - target distribution (its sum times the softmax, where a row has nothing to smooth over)
bpr-max        P = sum s sigmoid(x_o - x), R = sum s x^2:
               dx_j = s_j [(P - p_j + d_j) / (P + eps) + bpreg (x_j^2 - R + 2 x_j)],  dx_o = -sum s_j d_j / (P + eps)
top1           dx_j = [d(x_j - x_o) + 2 x_j d(x_j^2)] / n,  dx_o = -sum_{j != o} d(x_j - x_o) / n
top1-max       dx_j = s_j [f_j - L + d(x_j - x_o) + 2 x_j d(x_j^2)],  dx_o = -sum s_j d(x_j - x_o)
bpr            dx_j = sigmoid(x_j - x_o),  dx_o = -sum_{j != o} sigmoid(x_j - x_o)

A column that stands for c equal ones has c times the gradient of one; in s_j that factor is contained.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BPR_MAX_EPS = 1e-24


def own_column(y: Tensor, own: Tensor) -> Tensor:
    """Each row's entry in its own column, [M, 1]."""
    return y.gather(1, own.unsqueeze(1))


def count_seen(y: Tensor, seen: Tensor | None, counts: Tensor | None) -> Tensor | int:
    """How many columns a row sees: a number, or [M, 1]."""
    if seen is None and counts is None:
        return y.shape[1]
    return sum_seen(torch.ones_like(y), seen, counts)


def count_others(y: Tensor, seen: Tensor | None, counts: Tensor | None) -> Tensor | int:
    """Columns a row sees besides its own, at least 1 (where there are none, what is shared out among them is 0)."""
    n = count_seen(y, seen, counts)
    return max(n - 1, 1) if isinstance(n, int) else (n - 1).clamp_min(1)


def sum_seen(x: Tensor, seen: Tensor | None, counts: Tensor | None) -> Tensor:
    """Sum over the columns a row sees, each as often as it counts, [M, 1]."""
    x = x if seen is None else x.masked_fill(~seen, 0)
    return (x if counts is None else x * counts).sum(1, keepdim=True)


def hide_unseen(y: Tensor, seen: Tensor | None) -> Tensor:
    """Scores with -inf in the columns a row does not see."""
    return y if seen is None else y.masked_fill(~seen, -torch.inf)


def log_total(y: Tensor, seen: Tensor | None, counts: Tensor | None) -> Tensor:
    """log sum e^y over the columns a row sees, each as often as it counts, [M, 1]."""
    return torch.logsumexp(hide_unseen(y if counts is None else y + counts.log(), seen), dim=1, keepdim=True)


def negative_softmax(y: Tensor, own: Tensor, seen: Tensor | None, counts: Tensor | None) -> Tensor:
    """Softmax over the columns a row sees but its own target's, which gets 0; zeros where nothing else is seen.

    A column that counts c times gets the sum of the c equal shares.
    """
    logits = hide_unseen(y, seen).scatter(1, own.unsqueeze(1), -torch.inf)
    highest = logits.detach().amax(1, keepdim=True).clamp_min(torch.finfo(y.dtype).min)
    e = torch.exp(logits - highest) if counts is None else counts * torch.exp(logits - highest)
    total = e.sum(1, keepdim=True)
    return e / total.masked_fill(total == 0, 1)


def _cross_entropy(
    y: Tensor, own: Tensor, seen: Tensor | None, counts: Tensor | None, *, label_smoothing: float, **_: float
) -> Tensor:
    log_p = y - log_total(y, seen, counts)
    target = own_column(log_p, own)
    if not label_smoothing:
        return -target.squeeze(1)
    others = sum_seen(log_p, seen, counts) - target
    rest = label_smoothing / count_others(y, seen, counts)
    return -((1 - label_smoothing) * target + rest * others).squeeze(1)


def _bpr_max(
    y: Tensor, own: Tensor, seen: Tensor | None, counts: Tensor | None, *, elu_param: float, bpreg: float, **_: float
) -> Tensor:
    x = F.elu(y, elu_param) if elu_param else y
    s = negative_softmax(x, own, seen, counts)
    better = (s * torch.sigmoid(own_column(x, own) - x)).sum(1)
    return -torch.log(better + BPR_MAX_EPS) + bpreg * (s * x * x).sum(1)


def _top1(y: Tensor, own: Tensor, seen: Tensor | None, counts: Tensor | None, **_: float) -> Tensor:
    target = own_column(y, own)
    terms = torch.sigmoid(y - target) + torch.sigmoid(y * y)
    n = count_seen(y, seen, counts)
    return ((sum_seen(terms, seen, counts) - torch.sigmoid(target * target)) / n).squeeze(1)


def _top1_max(y: Tensor, own: Tensor, seen: Tensor | None, counts: Tensor | None, **_: float) -> Tensor:
    s = negative_softmax(y, own, seen, counts)
    return (s * (torch.sigmoid(y - own_column(y, own)) + torch.sigmoid(y * y))).sum(1)


def _bpr(y: Tensor, own: Tensor, seen: Tensor | None, counts: Tensor | None, **_: float) -> Tensor:
    return sum_seen(-F.logsigmoid(own_column(y, own) - y), seen, counts).squeeze(1)


def _d_sigmoid(x: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    return p * (1 - p)


def _counted(grad: Tensor, counts: Tensor | None) -> Tensor:
    return grad if counts is None else counts * grad


def _with_own(grad: Tensor, own: Tensor, seen: Tensor | None, grad_own: Tensor) -> Tensor:
    grad = grad if seen is None else grad.masked_fill(~seen, 0)
    return grad.scatter(1, own.unsqueeze(1), grad_own)


def _cross_entropy_gradient(
    y: Tensor, own: Tensor, seen: Tensor | None, counts: Tensor | None, *, label_smoothing: float, **_: float
) -> Tensor:
    log_p = y - log_total(y, seen, counts)
    rest = label_smoothing / count_others(y, seen, counts) if label_smoothing else 0.0
    # What the target distribution sums to: 1, but for a row that sees nothing to smooth over.
    mass = (1 - label_smoothing) + rest * (count_seen(y, seen, counts) - 1)
    grad_others = _counted(mass * log_p.exp() - rest, counts)
    return _with_own(grad_others, own, seen, mass * own_column(log_p, own).exp() - (1 - label_smoothing))


def _bpr_max_gradient(
    y: Tensor, own: Tensor, seen: Tensor | None, counts: Tensor | None, *, elu_param: float, bpreg: float, **_: float
) -> Tensor:
    x = F.elu(y, elu_param) if elu_param else y
    s = negative_softmax(x, own, seen, counts)
    p = torch.sigmoid(own_column(x, own) - x)
    d = p * (1 - p)
    total = (s * p).sum(1, keepdim=True)
    square = (s * x * x).sum(1, keepdim=True)
    inverse = 1 / (total + BPR_MAX_EPS)
    grad = s * ((total - p + d) * inverse + bpreg * (x * x - square + 2 * x))
    grad = _with_own(grad, own, seen, -(s * d).sum(1, keepdim=True) * inverse)
    return torch.where(y > 0, grad, grad * (x + elu_param)) if elu_param else grad


def _top1_gradient(y: Tensor, own: Tensor, seen: Tensor | None, counts: Tensor | None, **_: float) -> Tensor:
    n = count_seen(y, seen, counts)
    pull = _d_sigmoid(y - own_column(y, own))
    grad_own = -(sum_seen(pull, seen, counts) - own_column(pull, own)) / n
    grad = _counted((pull + 2 * y * _d_sigmoid(y * y)) / n, counts)
    return _with_own(grad, own, seen, grad_own)


def _top1_max_gradient(y: Tensor, own: Tensor, seen: Tensor | None, counts: Tensor | None, **_: float) -> Tensor:
    s = negative_softmax(y, own, seen, counts)
    target = own_column(y, own)
    pull = _d_sigmoid(y - target)
    terms = torch.sigmoid(y - target) + torch.sigmoid(y * y)
    loss = (s * terms).sum(1, keepdim=True)
    grad = s * (terms - loss + pull + 2 * y * _d_sigmoid(y * y))
    return _with_own(grad, own, seen, -(s * pull).sum(1, keepdim=True))


def _bpr_gradient(y: Tensor, own: Tensor, seen: Tensor | None, counts: Tensor | None, **_: float) -> Tensor:
    grad = torch.sigmoid(y - own_column(y, own))
    grad_own = -(sum_seen(grad, seen, counts) - own_column(grad, own))
    return _with_own(_counted(grad, counts), own, seen, grad_own)


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
