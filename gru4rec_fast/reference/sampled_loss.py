"""Session-based ranking losses over in-batch and sampled negatives: specification, fallback and oracle.

Scores: Y_ij = hidden_i . rows_j + bias_j - log_q_j, y_i the score of row i's own target, s_ij the softmax of a row
without its own target, n the number of columns a row sees. Each loss is summed over live rows and divided by
`batch_size`. A negative that stands for c equal ones counts as c columns in every sum, in the softmax and in n.

cross-entropy  -log softmax(Y)_i,own; label smoothing e puts (1 - e) on the target and e / (n - 1) on each other column
bpr-max        -log(sum_j s_ij sigmoid(y_i - Y_ij) + 1e-24) + bpreg sum_j s_ij Y_ij^2, on elu(Y, elu_param)
top1           mean_j [sigmoid(Y_ij - y_i) + sigmoid(Y_ij^2)] - sigmoid(y_i^2) / n
top1-max       sum_j s_ij [sigmoid(Y_ij - y_i) + sigmoid(Y_ij^2)]
bpr            sum_j -log sigmoid(y_i - Y_ij), own column included

Sources: Hidasi et al. 2016 (arXiv 1511.06939; BPR, TOP1), Hidasi & Karatzoglou 2018 (1706.03847, eqs. 4-9; the -max
losses), Hidasi & Czapp 2023 (2307.14956; in-batch cross-entropy). logQ: Bengio & Senecal 2008; Yi et al. 2019.

Where hidden and rows are bfloat16, bias, log_q and count are float32. Products are of bfloat16 numbers, summed in
float32; scores, their sums and the loss are float32, and so are the scores' gradients as they are made. These are then
rounded to bfloat16 once (to nearest, ties to even), and all else is made of the rounded ones G: grad_hidden = G rows
and grad_rows = G^T hidden as products like the first, grad_bias as G's column sums, all three in float32. The function
below leaves that one rounding out, since autograd goes through it; `sampled_loss_gradients` has it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES = ("cross-entropy", "bpr-max", "top1", "top1-max", "bpr")
BPR_MAX_EPS = 1e-24


def sampled_loss(
    hidden: Tensor,
    rows: Tensor,
    bias: Tensor | None = None,
    *,
    loss: str,
    batch_size: float,
    in_batch: bool = True,
    live: Tensor | None = None,
    log_q: Tensor | None = None,
    ids: Tensor | None = None,
    count: Tensor | None = None,
    elu_param: float = 0.5,
    bpreg: float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss, a scalar differentiable by autograd; arguments as `gru4rec_fast.ops.sampled_loss`."""
    y, own, seen = score_matrix(hidden, rows, bias, in_batch=in_batch, live=live, log_q=log_q, ids=ids)
    counts = column_counts(hidden.shape[0], count, in_batch=in_batch)
    options = {"elu_param": elu_param, "bpreg": bpreg, "label_smoothing": label_smoothing}
    losses = _ROW_LOSSES[loss](y, own, seen, counts, **options)
    if live is not None:
        losses = torch.where(live, losses, 0)
    return losses.sum() / batch_size


def widened(x: Tensor) -> Tensor:
    """x in the dtype that products of it are summed in."""
    return x.float() if x.dtype == torch.bfloat16 else x


def score_matrix(
    hidden: Tensor,
    rows: Tensor,
    bias: Tensor | None,
    *,
    in_batch: bool,
    live: Tensor | None,
    log_q: Tensor | None,
    ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores [M, n], each row's own column [M], and which columns each row sees (bool [M, n]; None: all)."""
    m = hidden.shape[0]
    hidden, rows = widened(hidden), widened(rows)
    if in_batch:
        y = F.linear(hidden, rows, bias)
        own = torch.arange(m, device=hidden.device)
        columns = ids
        if log_q is not None:
            y = y - log_q
    else:
        target = (hidden * rows[:m]).sum(1) if bias is None else (hidden * rows[:m]).sum(1) + bias[:m]
        negatives = F.linear(hidden, rows[m:], None if bias is None else bias[m:])
        if log_q is not None:
            target, negatives = target - log_q[:m], negatives - log_q[m:]
        y = torch.cat([target.unsqueeze(1), negatives], dim=1)
        own = torch.zeros(m, dtype=torch.int64, device=hidden.device)
        columns = None if ids is None else ids[m:]
    seen = None
    if columns is not None and ids is not None:
        hit = columns.unsqueeze(0) == ids[:m].unsqueeze(1)
        if not in_batch:
            hit = F.pad(hit, (1, 0))
        seen = ~hit.scatter(1, own.unsqueeze(1), False)
    if live is not None and in_batch:
        alive = F.pad(live, (0, y.shape[1] - m), value=True).unsqueeze(0).expand_as(y)
        # A dead row keeps its own column, so that nothing in it turns into 0/0; its loss is discarded later.
        alive = alive.scatter(1, own.unsqueeze(1), True)
        seen = alive if seen is None else seen & alive
    return y, own, seen


def column_counts(m: int, count: Tensor | None, *, in_batch: bool) -> Tensor | None:
    """How often each column of the score matrix counts, [n]; None: once."""
    return None if count is None else torch.cat([count.new_ones(m if in_batch else 1), count])


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


_ROW_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross-entropy": _cross_entropy,
    "bpr-max": _bpr_max,
    "top1": _top1,
    "top1-max": _top1_max,
    "bpr": _bpr,
}
