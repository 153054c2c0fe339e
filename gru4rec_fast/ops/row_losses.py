"""The losses of `sampled_loss` with their gradients written out, as the kernels form them: from the scores, in one
pass.

Each rule returns a row's loss [M] and its gradient with respect to the scores, [M, n]; columns a row does not see get
0. With x the (activated) scores, d = sigmoid', s the softmax without the own column, o the own column:

cross-entropy  softmax(x) - target distribution (its sum times the softmax, where a row has nothing to smooth over)
bpr-max        P = sum s sigmoid(x_o - x), R = sum s x^2:
               dx_j = s_j [(P - p_j + d_j) / (P + eps) + bpreg (x_j^2 - R + 2 x_j)],  dx_o = -sum s_j d_j / (P + eps)
top1           dx_j = [d(x_j - x_o) + 2 x_j d(x_j^2)] / n,  dx_o = -sum_{j != o} d(x_j - x_o) / n
top1-max       dx_j = s_j [f_j - L + d(x_j - x_o) + 2 x_j d(x_j^2)],  dx_o = -sum s_j d(x_j - x_o)
bpr            dx_j = sigmoid(x_j - x_o),  dx_o = -sum_{j != o} sigmoid(x_j - x_o)

A column that stands for c equal ones has c times the gradient of one; in s_j that factor is contained.

With bfloat16 hidden and rows these gradients are rounded to bfloat16 before anything is made of them
(`reference.sampled_loss` has the whole of it).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gru4rec_fast.reference.sampled_loss import (
    BPR_MAX_EPS,
    column_counts,
    count_others,
    count_seen,
    log_total,
    negative_softmax,
    own_column,
    score_matrix,
    sum_seen,
    widened,
)


def sampled_loss_and_gradients(
    hidden: Tensor,
    rows: Tensor,
    bias: Tensor | None,
    live: Tensor | None,
    log_q: Tensor | None,
    ids: Tensor | None,
    count: Tensor | None,
    loss: str,
    in_batch: bool,
    batch_size: float,
    elu_param: float,
    bpreg: float,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss (scalar) and the gradients of hidden [M, H], rows [C, H] and bias [C] (as of zeros without a bias).

    All in the dtype of hidden, or in float32 where that is bfloat16.
    """
    y, own, seen = score_matrix(hidden, rows, bias, in_batch=in_batch, live=live, log_q=log_q, ids=ids)
    counts = column_counts(hidden.shape[0], count, in_batch=in_batch)
    options = {"elu_param": elu_param, "bpreg": bpreg, "label_smoothing": label_smoothing}
    losses, grad = _RULES[loss](y, own, seen, counts, **options)
    if live is not None:
        losses, grad = torch.where(live, losses, 0), torch.where(live.unsqueeze(1), grad, 0)
    grad = grad / batch_size
    if hidden.dtype == torch.bfloat16:
        grad = grad.bfloat16().float()
    hidden, rows = widened(hidden), widened(rows)
    if in_batch:
        grad_hidden, grad_rows, grad_bias = grad @ rows, grad.T @ hidden, grad.sum(0)
    else:
        m = hidden.shape[0]
        target, negatives = grad[:, :1], grad[:, 1:]
        grad_hidden = target * rows[:m] + negatives @ rows[m:]
        grad_rows = torch.cat([target * hidden, negatives.T @ hidden])
        grad_bias = torch.cat([target.squeeze(1), negatives.sum(0)])
    return losses.sum() / batch_size, grad_hidden, grad_rows, grad_bias


def _d_sigmoid(x: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    return p * (1 - p)


def _counted(grad: Tensor, counts: Tensor | None) -> Tensor:
    return grad if counts is None else counts * grad


def _with_own(grad: Tensor, own: Tensor, seen: Tensor | None, grad_own: Tensor) -> Tensor:
    grad = grad if seen is None else grad.masked_fill(~seen, 0)
    return grad.scatter(1, own.unsqueeze(1), grad_own)


def _cross_entropy(
    y: Tensor, own: Tensor, seen: Tensor | None, counts: Tensor | None, *, label_smoothing: float, **_: float
) -> tuple[Tensor, Tensor]:
    log_p = y - log_total(y, seen, counts)
    target = own_column(log_p, own)
    rest = label_smoothing / count_others(y, seen, counts) if label_smoothing else 0.0
    others = sum_seen(log_p, seen, counts) - target if label_smoothing else torch.zeros_like(target)
    losses = -((1 - label_smoothing) * target + rest * others)
    # What the target distribution sums to: 1, but for a row that sees nothing to smooth over.
    mass = (1 - label_smoothing) + rest * (count_seen(y, seen, counts) - 1)
    grad_others = _counted(mass * log_p.exp() - rest, counts)
    grad = _with_own(grad_others, own, seen, mass * target.exp() - (1 - label_smoothing))
    return losses.squeeze(1), grad


def _bpr_max(
    y: Tensor, own: Tensor, seen: Tensor | None, counts: Tensor | None, *, elu_param: float, bpreg: float, **_: float
) -> tuple[Tensor, Tensor]:
    x = F.elu(y, elu_param) if elu_param else y
    s = negative_softmax(x, own, seen, counts)
    p = torch.sigmoid(own_column(x, own) - x)
    d = p * (1 - p)
    total = (s * p).sum(1, keepdim=True)
    square = (s * x * x).sum(1, keepdim=True)
    inverse = 1 / (total + BPR_MAX_EPS)
    grad = s * ((total - p + d) * inverse + bpreg * (x * x - square + 2 * x))
    grad = _with_own(grad, own, seen, -(s * d).sum(1, keepdim=True) * inverse)
    if elu_param:
        grad = torch.where(y > 0, grad, grad * (x + elu_param))
    return (-torch.log(total + BPR_MAX_EPS) + bpreg * square).squeeze(1), grad


def _top1(y: Tensor, own: Tensor, seen: Tensor | None, counts: Tensor | None, **_: float) -> tuple[Tensor, Tensor]:
    n = count_seen(y, seen, counts)
    target = own_column(y, own)
    pull = _d_sigmoid(y - target)
    terms = torch.sigmoid(y - target) + torch.sigmoid(y * y)
    losses = (sum_seen(terms, seen, counts) - torch.sigmoid(target * target)) / n
    grad_own = -(sum_seen(pull, seen, counts) - own_column(pull, own)) / n
    grad = _counted((pull + 2 * y * _d_sigmoid(y * y)) / n, counts)
    return losses.squeeze(1), _with_own(grad, own, seen, grad_own)


def _top1_max(y: Tensor, own: Tensor, seen: Tensor | None, counts: Tensor | None, **_: float) -> tuple[Tensor, Tensor]:
    s = negative_softmax(y, own, seen, counts)
    target = own_column(y, own)
    pull = _d_sigmoid(y - target)
    terms = torch.sigmoid(y - target) + torch.sigmoid(y * y)
    losses = (s * terms).sum(1, keepdim=True)
    grad = s * (terms - losses + pull + 2 * y * _d_sigmoid(y * y))
    return losses.squeeze(1), _with_own(grad, own, seen, -(s * pull).sum(1, keepdim=True))


def _bpr(y: Tensor, own: Tensor, seen: Tensor | None, counts: Tensor | None, **_: float) -> tuple[Tensor, Tensor]:
    target = own_column(y, own)
    grad = torch.sigmoid(y - target)
    grad_own = -(sum_seen(grad, seen, counts) - own_column(grad, own))
    losses = sum_seen(-F.logsigmoid(target - y), seen, counts).squeeze(1)
    return losses, _with_own(_counted(grad, counts), own, seen, grad_own)


_RULES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "cross-entropy": _cross_entropy,
    "bpr-max": _bpr_max,
    "top1": _top1,
    "top1-max": _top1_max,
    "bpr": _bpr,
}
