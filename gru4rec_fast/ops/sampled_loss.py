"""Ranking losses of session-based models over in-batch and sampled negatives.

The scores are Y_ij = hidden_i . rows_j + bias_j - log_q_j, where `rows` are rows of the output table, one for each
column of the scores. The loss of each row of scores, which belongs to one hidden state, is defined in
`gru4rec_fast.ops.row_losses`. The result is the sum over the live hidden states (those with a target), divided by
`batch_size`.

If hidden and rows are bfloat16, then bias, log_q and count are float32. The matrix products multiply bfloat16 numbers
and sum in float32. The scores, the loss and the gradients of the scores are float32. Let G be the gradients of the
scores, rounded to bfloat16 (to nearest, ties to even). Then grad_hidden = G rows and grad_rows = G^T hidden are also
products of bfloat16 numbers that are summed in float32, and grad_bias is the column sum of G in float32. The reference
returns gradients with rounded G, but autograd through the loss of the reference does not round G.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gru4rec_fast.ops._checks import check_choice, check_constant, check_tensor
from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load, register, register_gradient
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
    """Return the loss of M hidden states, each with a target item, against in-batch and N sampled negatives.

    Args:
        hidden: floating [M, H], the hidden states: one for each lane (session processed in parallel) of a step. With
            bfloat16 hidden and rows, bias, log_q and count are float32, and so is the loss.
        rows: [M + N, H], rows of the output table: first the target of each hidden state, then the N sampled negatives,
            which all hidden states share.
        bias: [M + N] or None, the output biases of these rows. A negative whose score is -inf is masked, so a bias of
            -inf excludes an item from the negatives.
        loss: "cross-entropy", "bpr-max", "top1", "top1-max" or "bpr" (formulas: `gru4rec_fast.ops.row_losses`).
        batch_size: divisor of the sum of losses, in GRU4Rec the nominal batch size B; None: M.
        in_batch: True: every target is a negative of every other hidden state (GRU4Rec). False: the negatives are only
            the N sampled ones (for padded sequences).
        live: bool [M]; a hidden state that is not live has no loss, and the others do not use its target as a negative.
        log_q: [M + N], subtracted from the scores: the logQ correction, already multiplied by its strength.
        ids: int64 [M + N], the item of each of the `rows`. If given, a negative that equals the target is masked.
        count: [N], positive, the number of times that each negative was drawn. A negative with count c gives the same
            loss as c equal negatives.
        elu_param: alpha of the elu on the scores; 0: no elu. bpr-max only.
        bpreg: weight of the score regularization; bpr-max only.
        label_smoothing: probability that is moved from the target to the other columns; cross-entropy only.
        impl: "auto", "native" or "reference".

    Under torch.autocast to bfloat16, hidden and rows are converted to bfloat16 and the other tensors to float32. Under
    autocast to float16, all tensors are converted to float32. float64 tensors are not converted.

    Returns:
        A scalar, differentiable in hidden, rows and bias, but not in log_q and count. The native kernels have no second
        derivative: backward with create_graph=True raises RuntimeError.

    Raises:
        ValueError: an argument is out of range or does not fit the others, or log_q or count requires a gradient.
    """
    autocast = _autocast_dtype(hidden)
    if autocast is not None:
        hidden, rows = (_converted(t, autocast) for t in (hidden, rows))
        bias, log_q, count = (None if t is None else _converted(t, torch.float32) for t in (bias, log_q, count))
    check_choice("loss", loss, LOSSES)
    if hidden.dim() != 2 or rows.dim() != 2 or not hidden.shape[0] <= rows.shape[0] < 1 << 31:
        raise ValueError(
            f"hidden must be [M, H] and rows [M + N, H] with M + N < 2**31, not {[*hidden.shape]} and {[*rows.shape]}"
        )
    m, n_columns, device, sum_dtype = hidden.shape[0], rows.shape[0], hidden.device, _sum_dtype(hidden)
    check_tensor("rows", rows, hidden.dtype, ("M + N", hidden.shape[1]), device)
    check_tensor("bias", bias, sum_dtype, (n_columns,), device)
    check_tensor("live", live, torch.bool, (m,), device)
    check_tensor("log_q", log_q, sum_dtype, (n_columns,), device)
    check_tensor("ids", ids, torch.int64, (n_columns,), device)
    check_tensor("count", count, sum_dtype, (n_columns - m,), device)
    check_constant(log_q=log_q, count=count)
    divisor = float(m if batch_size is None else batch_size)
    if divisor <= 0:
        raise ValueError(f"batch_size={batch_size}: must be positive")
    if elu_param < 0:
        raise ValueError(f"elu_param={elu_param}: must not be negative")
    run = implementation("sampled_loss", impl, device, partial(sampled_loss_reference, gradients=False))
    with nullcontext() if autocast is None else torch.autocast(device.type, enabled=False):
        return run(
            hidden, rows, bias, live, log_q, ids, count, loss, in_batch, divisor, elu_param, bpreg, label_smoothing
        )[0]


def _autocast_dtype(hidden: Tensor) -> torch.dtype | None:
    """Return the dtype to which autocast converts hidden and rows, or None without autocast.

    Autocast to float16 gives float32, because the gradients of the scores would underflow in float16.
    """
    device = hidden.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.bfloat16 if torch.get_autocast_dtype(device) == torch.bfloat16 else torch.float32


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in `dtype`; a float64 tensor is not converted."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def _sum_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype of all floating tensors other than hidden and rows."""
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
    """Return the loss, differentiable by autograd, and the gradients of hidden, rows and bias.

    If `bias` is None, the gradient of a bias of zeros is returned. All results have the dtype of hidden, or float32 if
    hidden is bfloat16. With gradients=False, return (loss,).
    """
    m = hidden.shape[0]
    y, target_column, unmasked = score_matrix(hidden, rows, bias, in_batch=in_batch, live=live, log_q=log_q, ids=ids)
    counts = None if count is None else torch.cat([count.new_ones(m if in_batch else 1), count])  # of each column
    options = {"elu_param": elu_param, "bpreg": bpreg, "label_smoothing": label_smoothing}
    losses = ROW_LOSSES[loss](y, target_column, unmasked, counts, **options)
    if live is not None:
        losses = torch.where(live, losses, 0)
    result = losses.sum() / batch_size
    if not gradients:
        return (result,)
    grad = ROW_GRADIENTS[loss](y, target_column, unmasked, counts, **options)
    if live is not None:
        grad = torch.where(live.unsqueeze(1), grad, 0)
    grad = grad / batch_size
    if hidden.dtype == torch.bfloat16:
        grad = grad.bfloat16().float()
    hidden, rows = widened(hidden), widened(rows)
    if in_batch:
        return result, grad @ rows, grad.T @ hidden, grad.sum(0)
    grad_target, grad_negatives = grad[:, :1], grad[:, 1:]
    grad_hidden = grad_target * rows[:m] + grad_negatives @ rows[m:]
    grad_rows = torch.cat([grad_target * hidden, grad_negatives.T @ hidden])
    return result, grad_hidden, grad_rows, torch.cat([grad_target.squeeze(1), grad_negatives.sum(0)])


def widened(x: Tensor) -> Tensor:
    """Return x in the dtype in which its products are summed: float32 for bfloat16."""
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scores [M, columns], the column of each target [M], and a mask (bool [M, columns], True: unmasked).

    The loss does not use masked scores. A score of -inf is masked and returned as 0, unless it is a target's: a factor
    of 0 in the backward pass would turn -inf into NaN.
    """
    m = hidden.shape[0]
    hidden, rows = widened(hidden), widened(rows)
    if in_batch:
        y = F.linear(hidden, rows, bias)
        target_column = torch.arange(m, device=hidden.device)
        column_ids = ids
        if log_q is not None:
            y = y - log_q
    else:
        target = (hidden * rows[:m]).sum(1) if bias is None else (hidden * rows[:m]).sum(1) + bias[:m]
        negatives = F.linear(hidden, rows[m:], None if bias is None else bias[m:])
        if log_q is not None:
            target, negatives = target - log_q[:m], negatives - log_q[m:]
        y = torch.cat([target.unsqueeze(1), negatives], dim=1)
        target_column = torch.zeros(m, dtype=torch.int64, device=hidden.device)
        column_ids = None if ids is None else ids[m:]
    is_excluded = (y == -torch.inf).scatter(1, target_column.unsqueeze(1), False)
    y, unmasked = y.masked_fill(is_excluded, 0), ~is_excluded
    if column_ids is not None and ids is not None:
        equals_target = column_ids.unsqueeze(0) == ids[:m].unsqueeze(1)
        if not in_batch:  # column 0 is the target
            equals_target = F.pad(equals_target, (1, 0))
        unmasked = unmasked & ~equals_target.scatter(1, target_column.unsqueeze(1), False)
    if live is not None and in_batch:
        live_columns = F.pad(live, (0, y.shape[1] - m), value=True).unsqueeze(0).expand_as(y)
        # The target's column is unmasked also if the hidden state is not live: with all columns masked, the loss would
        # be 0/0. Losses of such hidden states are replaced by 0 later.
        live_columns = live_columns.scatter(1, target_column.unsqueeze(1), True)
        unmasked = unmasked & live_columns
    return y, target_column, unmasked


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else zero gradients would be allocated for outputs 1 to 3, never differentiated
    ctx.save_for_backward(*output[1:])
    ctx.has_bias = inputs[2] is not None
    ctx.dtype = inputs[0].dtype


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 13  # one for each input of the operator
    grads = ctx.saved_tensors
    if not _is_one(grad_loss):
        grads = tuple(grad_loss * g for g in grads)
    grad_hidden, grad_rows, grad_bias = grads
    return grad_hidden.to(ctx.dtype), grad_rows.to(ctx.dtype), grad_bias if ctx.has_bias else None, *([None] * 10)


def _is_one(grad_loss: Tensor) -> bool:
    """Return whether a CPU tensor is 1.0; False on a GPU, where reading it would synchronize, and while tracing."""
    return type(grad_loss) is Tensor and grad_loss.device.type == "cpu" and grad_loss.item() == 1.0


def _fake(hidden: Tensor, rows: Tensor, *_: Any) -> tuple[Tensor, ...]:
    shapes = ((), hidden.shape, rows.shape, rows.shape[:1])
    return tuple(hidden.new_empty(shape, dtype=_sum_dtype(hidden)) for shape in shapes)


@on_load
def _register(library: str) -> None:
    register(library, "sampled_loss", sampled_loss_reference, _fake)
    register_gradient(library, "sampled_loss", _backward, _setup_context)
