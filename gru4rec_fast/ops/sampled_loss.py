"""Loss over in-batch and sampled negatives. Specification: `gru4rec_fast.reference.sampled_loss`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast._backend import resolve
from gru4rec_fast.ops._registry import on_load, operators, register_composite
from gru4rec_fast.reference.sampled_loss import LOSSES
from gru4rec_fast.reference.sampled_loss import sampled_loss as reference_loss
from gru4rec_fast.reference.sampled_loss_gradients import sampled_loss_and_gradients


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
    """Scores of M rows against their targets and N sampled negatives, turned into one of five losses.

    Args:
        hidden: [M, H] floating. With bfloat16 hidden and rows, bias, log_q and count are float32, sums are float32, and
            so is the loss.
        rows: [M + N, H], output-table rows: row i's target at i, the N shared negatives behind.
        bias: [M + N] or None, their output biases.
        loss: "cross-entropy", "bpr-max", "top1", "top1-max" or "bpr" (formulas and sources in the reference).
        batch_size: what the sum over rows is divided by, GRU4Rec's nominal batch size B; None: M.
        in_batch: True: every row's target is a negative of every other row (GRU4Rec). False: a row sees its own target
            and the N negatives only (padded trainers).
        live: bool [M]; a row that is not live has no loss and is nobody's negative.
        log_q: [M + N], subtracted from the scores (the logQ correction, already times its strength).
        ids: int64 [M + N], the items behind `rows`. Given, a negative that equals a row's target is masked in that row.
        count: [N], positive: how often each negative occurs. Negatives drawn with replacement repeat; each distinct one
            computed once, with its count, is the same loss.
        elu_param: alpha of the elu on the scores, 0: none; bpr-max only.
        bpreg: weight of the score regularisation of bpr-max.
        label_smoothing: share of the target's mass spread over the other columns; cross-entropy only.
        impl: "auto", "native", "reference" or "emulated".

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
    _check(hidden, rows, bias, live, log_q, ids, count, loss)
    divisor = float(hidden.shape[0] if batch_size is None else batch_size)
    if divisor <= 0:
        raise ValueError(f"batch_size={batch_size}: must be positive")
    if elu_param < 0:
        raise ValueError(f"elu_param={elu_param}: must not be negative")
    chosen = resolve(impl, "sampled_loss", hidden.device.type)
    if chosen != "reference":
        return operators(chosen).sampled_loss(
            hidden, rows, bias, live, log_q, ids, count, loss, in_batch, divisor, elu_param, bpreg, label_smoothing
        )[0]
    with nullcontext() if autocast is None else torch.autocast(hidden.device.type, enabled=False):
        return reference_loss(
            hidden,
            rows,
            bias,
            loss=loss,
            batch_size=divisor,
            in_batch=in_batch,
            live=live,
            log_q=log_q,
            ids=ids,
            count=count,
            elu_param=elu_param,
            bpreg=bpreg,
            label_smoothing=label_smoothing,
        )


def _autocast_dtype(hidden: Tensor) -> torch.dtype | None:
    """What autocast makes of hidden and rows, None where it is off: float16 has no room for the scores' gradients."""
    device = hidden.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.bfloat16 if torch.get_autocast_dtype(device) == torch.bfloat16 else torch.float32


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def _check(
    hidden: Tensor,
    rows: Tensor,
    bias: Tensor | None,
    live: Tensor | None,
    log_q: Tensor | None,
    ids: Tensor | None,
    count: Tensor | None,
    loss: str,
) -> None:
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


def _sum_dtype(hidden: Tensor) -> torch.dtype:
    """Of all floating numbers but hidden and rows."""
    return torch.float32 if hidden.dtype == torch.bfloat16 else hidden.dtype


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
    register_composite(library, "sampled_loss", sampled_loss_and_gradients)
    torch.library.register_fake(f"{library}::sampled_loss", _fake)
    torch.library.register_autograd(f"{library}::sampled_loss", _backward, setup_context=_setup_context)
