"""Session-based ranking losses over in-batch and sampled negatives.

The scores are Y_ij = hidden_i . rows_j + bias_j - log_q_j. `gru4rec_fast.ops.row_losses` turns a row of them into its
loss; the losses are summed over live rows and divided by `batch_size`.

Where hidden and rows are bfloat16, bias, log_q and count are float32. Products are of bfloat16 numbers, summed in
float32; scores, their sums and the loss are float32, and so are the scores' gradients as they are made. These are then
rounded to bfloat16 once (to nearest, ties to even), and all else is made of the rounded ones G: grad_hidden = G rows
and grad_rows = G^T hidden as products like the first, grad_bias as G's column sums, all three in float32. Only the
gradients that the reference writes out have that one rounding; autograd, through its loss, leaves it out.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load, register_composite
from gru4rec_fast.ops.row_losses import ROW_GRADIENTS, ROW_LOSSES

LOSSES = tuple(ROW_LOSSES)


def sampled_loss(
    hidden: Tensor,
    rows: Tensor,
    bias: Tensor | None = None,
    *,
    loss: str = "cross-entropy",
    batch_size: float | None = None,
    in_batch: bool = True,
    live: Tensor | None = None,
    log_q: Tensor | None = None,
    ids: Tensor | None = None,
    count: Tensor | None = None,
    elu_param: float = 0.5,
    bpreg: float = 1.0,
    label_smoothing: float = 0.0,
    impl: str = "auto",
) -> Tensor:
    """Return the loss of M rows, each scored against its target and N sampled negatives.

    Args:
        hidden: [M, H] floating. With bfloat16 hidden and rows, bias, log_q and count are float32, sums are float32, and
            so is the loss.
        rows: [M + N, H], output-table rows: row i's target at i, the N shared negatives behind.
        bias: [M + N] or None, their output biases.
        loss: "cross-entropy", "bpr-max", "top1", "top1-max" or "bpr" (formulas: `gru4rec_fast.ops.row_losses`).
        batch_size: what the sum over rows is divided by, GRU4Rec's nominal batch size B; None: M.
        in_batch: True: every row's target is a negative of every other row (GRU4Rec). False: a row sees its own target
            and the N negatives only (padded trainers).
        live: bool [M]; a row that is not live has no loss and is nobody's negative.
        log_q: [M + N], subtracted from the scores (the logQ correction, already times its strength).
        ids: int64 [M + N], the items behind `rows`. Given, a negative that equals a row's target is masked in that row.
        count: [N], positive: how often each negative occurs. Negatives drawn with replacement repeat; each distinct one
            computed once, with its count, is the same loss.
        elu_param: alpha of the elu on the scores, 0: none; bpr-max only.
        bpreg: weight of the score regularization of bpr-max.
        label_smoothing: share of the target's mass spread over the other columns; cross-entropy only.
        impl: "auto", "native" or "reference".

    Under torch.autocast to bfloat16, hidden and rows are converted to bfloat16, and the rest to float32; to float16,
    all is converted to float32. float64 is left alone, as autocast leaves it.

    Returns:
        scalar; differentiable in hidden, rows and bias.

    Raises:
        ValueError: an argument that does not fit, named.
    """
    autocast = _autocast_dtype(hidden)
    if autocast is not None:
        hidden, rows = (_converted(t, autocast) for t in (hidden, rows))
        bias, log_q, count = (None if t is None else _converted(t, torch.float32) for t in (bias, log_q, count))
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}: choose one of {', '.join(LOSSES)}")
    if hidden.dim() != 2 or rows.dim() != 2 or rows.shape[1] != hidden.shape[1] or rows.shape[0] < hidden.shape[0]:
        raise ValueError(f"hidden must be [M, H] and rows [M + N, H], not {[*hidden.shape]} and {[*rows.shape]}")
    columns = rows.shape[0]
    lengths = {
        "bias": (bias, columns),
        "live": (live, hidden.shape[0]),
        "log_q": (log_q, columns),
        "ids": (ids, columns),
        "count": (count, columns - hidden.shape[0]),
    }
    for name, (tensor, length) in lengths.items():
        if tensor is not None and tensor.shape != (length,):
            raise ValueError(f"{name} must be [{length}], not {[*tensor.shape]}")
    if rows.dtype != hidden.dtype:
        raise ValueError(f"rows is {rows.dtype} but hidden is {hidden.dtype}: use one dtype")
    sums = _sum_dtype(hidden)
    for name, tensor in {"bias": bias, "log_q": log_q, "count": count}.items():
        if tensor is not None and tensor.dtype != sums:
            raise ValueError(f"{name} is {tensor.dtype} but hidden is {hidden.dtype}: it has to be {sums}")
    if live is not None and live.dtype != torch.bool:
        raise ValueError(f"live must be bool, not {live.dtype}")
    divisor = float(hidden.shape[0] if batch_size is None else batch_size)
    if divisor <= 0:
        raise ValueError(f"batch_size={batch_size}: must be positive")
    if elu_param < 0:
        raise ValueError(f"elu_param={elu_param}: must not be negative")
    run = implementation("sampled_loss", impl, hidden.device, partial(sampled_loss_reference, gradients=False))
    with nullcontext() if autocast is None else torch.autocast(hidden.device.type, enabled=False):
        return run(
            hidden, rows, bias, live, log_q, ids, count, loss, in_batch, divisor, elu_param, bpreg, label_smoothing
        )[0]


def _autocast_dtype(hidden: Tensor) -> torch.dtype | None:
    """What autocast makes of hidden and rows, None where it is off: float16 has no room for the scores' gradients."""
    device = hidden.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.bfloat16 if torch.get_autocast_dtype(device) == torch.bfloat16 else torch.float32


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def _sum_dtype(hidden: Tensor) -> torch.dtype:
    """Of all floating numbers but hidden and rows."""
    return torch.float32 if hidden.dtype == torch.bfloat16 else hidden.dtype


def sampled_loss_reference(
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
    *,
    gradients: bool = True,
) -> tuple[Tensor, ...]:
    """Return the loss, differentiable by autograd, and the gradients of hidden, rows and bias (as of zeros without it).

    All are in the dtype of hidden, or in float32 where that is bfloat16. Without `gradients`: (loss,).
    """
    m = hidden.shape[0]
    y, own, seen = score_matrix(hidden, rows, bias, in_batch=in_batch, live=live, log_q=log_q, ids=ids)
    counts = None if count is None else torch.cat([count.new_ones(m if in_batch else 1), count])  # [n]
    options = {"elu_param": elu_param, "bpreg": bpreg, "label_smoothing": label_smoothing}
    losses = ROW_LOSSES[loss](y, own, seen, counts, **options)
    if live is not None:
        losses = torch.where(live, losses, 0)
    mean = losses.sum() / batch_size
    if not gradients:
        return (mean,)
    grad = ROW_GRADIENTS[loss](y, own, seen, counts, **options)
    if live is not None:
        grad = torch.where(live.unsqueeze(1), grad, 0)
    grad = grad / batch_size
    if hidden.dtype == torch.bfloat16:
        grad = grad.bfloat16().float()
    hidden, rows = widened(hidden), widened(rows)
    if in_batch:
        return mean, grad @ rows, grad.T @ hidden, grad.sum(0)
    target, negatives = grad[:, :1], grad[:, 1:]
    grad_hidden = target * rows[:m] + negatives @ rows[m:]
    grad_rows = torch.cat([target * hidden, negatives.T @ hidden])
    return mean, grad_hidden, grad_rows, torch.cat([target.squeeze(1), negatives.sum(0)])


def widened(x: Tensor) -> Tensor:
    """Return x in the dtype that products of it are summed in."""
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
    """Return scores [M, n], each row's own column [M], and which columns each row sees (bool [M, n]; None: all)."""
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


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no zeros in the shape of the gradients
    ctx.save_for_backward(*output[1:])
    ctx.has_bias = inputs[2] is not None
    ctx.dtype = inputs[0].dtype


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 13
    grads = ctx.saved_tensors
    if not _is_one(grad_loss):
        grads = tuple(grad_loss * g for g in grads)
    grad_hidden, grad_rows, grad_bias = grads
    return grad_hidden.to(ctx.dtype), grad_rows.to(ctx.dtype), grad_bias if ctx.has_bias else None, *([None] * 10)


def _is_one(grad_loss: Tensor) -> bool:
    """Whether there is nothing to scale, as far as looking is free: on the CPU, outside of a compiler's tracing."""
    return type(grad_loss) is Tensor and grad_loss.device.type == "cpu" and grad_loss.item() == 1.0


def _fake(hidden: Tensor, rows: Tensor, *_: Any) -> tuple[Tensor, ...]:
    shapes = ((), hidden.shape, rows.shape, rows.shape[:1])
    return tuple(hidden.new_empty(shape, dtype=_sum_dtype(hidden)) for shape in shapes)


@on_load
def _register(library: str) -> None:
    register_composite(library, "sampled_loss", sampled_loss_reference)
    torch.library.register_fake(f"{library}::sampled_loss", _fake)
    torch.library.register_autograd(f"{library}::sampled_loss", _backward, setup_context=_setup_context)
