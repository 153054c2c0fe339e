"""Operators of a GRU4Rec training step in a CUDA graph, in addition to the GRU, the loss and the matrix products.

An update of the weights accumulates the gradients of blocks. A block has T steps of B lanes (sessions processed in
parallel). A captured step has fixed shapes, so padding and steps after the end of the epoch are masked: they have the
item -1, which selects no row. Two things can change without a new capture, because they are tensors on the device:
whether the weights are updated at all (`enabled`), and the hyperparameters of the optimizer.

    step_gather   gathers the rows of the tables for the inputs, targets and negatives of a block
    step_gru      runs one step of a GRU layer, T = 1, from its input to its output; step_gru_backward: its gradients
    step_loss     computes the losses of a step, and the gradients of hidden states, rows and biases
    step_products_  updates whole weights by gradients that are products, and stores the new hidden states
    step_store_losses_  sums the losses of a block, and stops all further updates if a loss is not finite
    step_apply_   updates whole weights by Adagrad with momentum, and stores the new hidden states
    step_rows_    updates the rows of a table and of its bias that have a gradient, by Adagrad with momentum

Formulas: `gru4rec_fast.ops.sparse_update` (adagrad), `gru4rec_fast.nn.SampledLoss` (logQ correction).
`training/captured_step.py` captures these operators. The CPU has a fused training step instead
(`csrc/training_step/fused_training_step.cpp`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gru4rec_fast.ops._checks import check_memory
from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load, register
from gru4rec_fast.ops.gru import gru_backward_reference, gru_reference
from gru4rec_fast.ops.row_losses import ROW_GRADIENTS, ROW_LOSSES
from gru4rec_fast.ops.sampled_loss import score_matrix, widened
from gru4rec_fast.ops.sparse_update import adagrad_reference, adagrad_rule, update_all


def step_operator(name: str, impl: str, device: torch.device) -> Callable[..., Any]:
    """Return the function that runs one of `OPERATORS` on a device; it takes the arguments of the reference."""
    return implementation(name, impl, device, OPERATORS[name])


def gather_rows(table: Tensor, index: Tensor) -> Tensor:
    """Return the rows `index` (int64 [...]) of a table [R, width], as [..., width]; zeros where the index is -1."""
    return torch.where((index >= 0).unsqueeze(-1), table[index.clamp(min=0)], 0)


def step_gather_reference(
    embedding: Tensor,
    inputs: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    log_support: Tensor | None,
    items: Tensor,
    lanes: int,
    logq: float,
    sample_alpha: float,
    bf16: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows of the tables that a block of T steps uses in its matrix products.

    Args:
        embedding: [R, I], the input table.
        inputs: int64 [T, B], rows of the input table.
        mask: [T, B, I], dropout mask of the input embedding, or None.
        weight, bias, log_support: output table [R, H], output bias [R], and log support of each item [R] or None.
        items: int64 [T, lanes + N], rows of the output table: targets, then negatives.
        lanes: B, the number of targets of a step.
        logq: strength of the logQ correction; multiplied by `sample_alpha` for the negatives.
        bf16: whether to round the rows of the output table to bfloat16.

    Returns:
        x [T, B, I] and rows [T, lanes + N, H], zero where an index is -1, and offsets [T, lanes + N], which are added
        to the scores: the bias minus the logQ correction, or -inf where an index is -1.
    """
    x = gather_rows(embedding, inputs)
    x = x if mask is None else x * mask
    rows = gather_rows(weight, items)
    rows = rows.bfloat16() if bf16 else rows
    offsets = bias[items.clamp(min=0)]
    if log_support is not None:
        log_q = logq * log_support[items.clamp(min=0)]
        log_q[:, lanes:] *= sample_alpha
        offsets = offsets - log_q
    return x, rows, offsets.masked_fill(items < 0, -torch.inf)


def step_gru_reference(
    x: Tensor,
    weight_ih: Tensor,
    bias_ih: Tensor,
    state: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    reset: Tensor,
    output_mask: Tensor | None,
    scored_width: int,
    bf16: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return output [B, H], saved [B, 4H] and the scored states of one step of a layer in the reset_after form.

    Args:
        x, weight_ih, bias_ih: [B, I], [3H, I] and [3H]; the gate inputs are weight_ih x + bias_ih.
        state, weight_hh, bias_hh, reset, output_mask: as for `gru`, without the dimension of the steps.
        scored_width: columns of the scored states (see `scored_states`); 0: they are empty.
        bf16: whether to round the scored states to bfloat16.
    """
    gate_inputs = F.linear(x, weight_ih, bias_ih).unsqueeze(0)
    mask = None if output_mask is None else output_mask.unsqueeze(0)
    output, saved = gru_reference(gate_inputs, state, weight_hh, bias_hh, reset.unsqueeze(0), mask, "reset_after")
    scored = scored_states(output[0], scored_width) if scored_width else x.new_empty(0)
    return output[0], saved[0], scored.bfloat16() if bf16 and scored_width else scored


def scored_states(hidden: Tensor, width: int) -> Tensor:
    """Return hidden states [..., H] with a column of ones, and zeros up to `width` columns.

    The product of gradients of scores and the column of ones is the gradient of the output bias.
    """
    return F.pad(F.pad(hidden, (0, 1), value=1.0), (0, width - hidden.shape[-1] - 1))


def step_gru_backward_reference(
    grad_output: Tensor, saved: Tensor, state: Tensor, reset: Tensor, output_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the gate inputs and of W s + b, both [B, 3H], and s [B, H], the state after the reset.

    The arguments are those of `step_gru_reference`, and its result `saved`.
    """
    hidden = state.shape[1]
    mask = None if output_mask is None else output_mask.unsqueeze(0)
    # The output and the weights are only used for gradients that are not needed.
    output, weight = torch.empty_like(saved[:, :hidden]), state.new_zeros(3 * hidden, hidden)
    (grad_gates,), *_ = gru_backward_reference(
        grad_output.unsqueeze(0), output, saved.unsqueeze(0), state, weight, None, reset.unsqueeze(0), mask,
        "reset_after", state_grad=False,
    )  # fmt: skip
    grad_recurrent = torch.cat([grad_gates[:, : 2 * hidden], grad_gates[:, 2 * hidden :] * saved[:, :hidden]], 1)
    return grad_gates, grad_recurrent, state.masked_fill(reset.unsqueeze(1), 0)


def step_loss_reference(
    hidden: Tensor,
    rows: Tensor,
    offsets: Tensor,
    live: Tensor,
    ids: Tensor | None,
    loss: str,
    batch_size: float,
    elu_param: float,
    bpreg: float,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses [B] of one step, divided by batch_size, and the gradients of hidden [B, H] and rows [C, H'].

    hidden [B, H'] are `scored_states` with H' > H columns; column H of the gradient of rows is that of the bias. The
    other arguments are those of `sampled_loss`, with in_batch=True and `offsets` in place of bias and log_q.
    """
    width = rows.shape[1]
    y, target, unmasked = score_matrix(hidden[:, :width], rows, offsets, in_batch=True, live=live, log_q=None, ids=ids)
    options = {"elu_param": elu_param, "bpreg": bpreg, "label_smoothing": label_smoothing}
    losses = torch.where(live, ROW_LOSSES[loss](y, target, unmasked, None, **options), 0) / batch_size
    grad = torch.where(live.unsqueeze(1), ROW_GRADIENTS[loss](y, target, unmasked, None, **options), 0) / batch_size
    if hidden.dtype == torch.bfloat16:
        grad = grad.bfloat16().float()
    return losses, grad @ widened(rows), grad.T @ widened(hidden)


def step_store_losses_reference(
    losses: Tensor, active: Tensor, stopped: Tensor, step_losses: Tensor, enabled: Tensor
) -> None:
    """Sum the losses [T, B] of a block by step, and decide whether the weights are updated; results are in place.

    Args:
        active: bool [T], False for masked steps, which are the last steps of the block.
        stopped: bool [], set to True if a loss is not finite; never set to False.
        step_losses: [T], set to the losses; 0 for masked steps.
        enabled: bool [], set to True if the block has an active step and `stopped` is False, else to False.
    """
    check_memory(
        {"stopped": stopped, "step_losses": step_losses, "enabled": enabled}, {"losses": losses, "active": active}
    )
    step_losses.copy_(torch.where(active, losses.sum(1), 0))
    stopped.logical_or_(~step_losses.isfinite().all())
    enabled.copy_(active[0] & ~stopped)


def step_apply_reference(
    weights: list[Tensor],
    accumulators: list[Tensor],
    velocities: list[Tensor],
    grads: list[Tensor],
    states: list[Tensor],
    outputs: list[Tensor],
    enabled: Tensor,
    hyperparameters: Tensor,
) -> None:
    """Update all entries of `weights` in place, and copy `outputs` into `states`, if `enabled` is True.

    Args:
        weights, grads: the weights and their gradients.
        accumulators, velocities: state of the optimizer, in the shapes of the weights; no velocities if momentum is 0.
        states, outputs: hidden states before the block, and after it.
        enabled: bool [], whether anything is changed.
        hyperparameters: float64 [3]: learning rate, momentum, epsilon.
    """
    written = {"weights": weights, "accumulators": accumulators, "velocities": velocities, "states": states}
    read = {"grads": grads, "outputs": outputs, "enabled": [enabled], "hyperparameters": [hyperparameters]}
    check_memory(_name_elements(written), _name_elements(read))
    if not enabled:
        return
    options = dict(zip(("lr", "momentum", "eps"), hyperparameters.tolist(), strict=True))
    for i, (weight, accumulator, grad) in enumerate(zip(weights, accumulators, grads, strict=True)):
        update_all(adagrad_rule, weight, (accumulator, velocities[i] if velocities else None), grad, **options)
    for state, output in zip(states, outputs, strict=True):
        state.copy_(output)


def step_products_reference(
    weights: list[Tensor],
    accumulators: list[Tensor],
    velocities: list[Tensor],
    lefts: list[Tensor],
    rights: list[Tensor],
    states: list[Tensor],
    outputs: list[Tensor],
    enabled: Tensor,
    hyperparameters: Tensor,
) -> None:
    """Update `weights` as `step_apply_reference` does, by gradients that are products of two factors.

    Args:
        lefts: a factor [K, R] for each weight. The gradient of a bias [R] is the sum over K.
        rights: a factor [K, C] for each weight that is a matrix [R, C]. Its gradient is left.T @ right.
    """
    factors = iter(rights)
    grads = [left.sum(0) if w.dim() == 1 else left.T @ next(factors) for w, left in zip(weights, lefts, strict=True)]
    step_apply_reference(weights, accumulators, velocities, grads, states, outputs, enabled, hyperparameters)


def step_rows_reference(
    weight: Tensor,
    accumulator: Tensor,
    velocity: Tensor | None,
    bias: Tensor | None,
    bias_accumulator: Tensor | None,
    bias_velocity: Tensor | None,
    rows: Tensor,
    positions: Tensor,
    grad_inputs: Tensor,
    mask: Tensor | None,
    grad_items: Tensor,
    enabled: Tensor,
    hyperparameters: Tensor,
) -> None:
    """Update in place the rows of a table, and of its bias, that have a gradient, if `enabled` is True.

    Args:
        weight, accumulator, velocity: table [R, W] and its optimizer state; the velocity is None if momentum is 0.
        bias, bias_accumulator, bias_velocity: bias [R] of the table and its optimizer state, or None.
        rows, positions: int64 [n], the result of a stable sort of the row indices of all gradients. `rows` are the
            sorted indices (-1 selects no row); `positions` are the positions of their gradients in the concatenation
            of `grad_inputs` and `grad_items`.
        grad_inputs, grad_items: [n1, W] and [n2, W'], n = n1 + n2: gradients of input rows, and of target and negative
            rows. With `bias`, column W of grad_items has the gradients of the output biases. Others are unused.
        mask: [n1, W], factors of grad_inputs, or None.
        enabled, hyperparameters: as for `step_apply_reference`.
    """
    check_memory(
        {
            "weight": weight, "accumulator": accumulator, "velocity": velocity,
            "bias": bias, "bias_accumulator": bias_accumulator, "bias_velocity": bias_velocity,
        },
        {
            "rows": rows, "positions": positions, "grad_inputs": grad_inputs, "mask": mask,
            "grad_items": grad_items, "enabled": enabled, "hyperparameters": hyperparameters,
        },
    )  # fmt: skip
    if not enabled:
        return
    index = torch.empty_like(rows).scatter_(0, positions, rows)
    options, width = hyperparameters.tolist(), weight.shape[1]
    grad_inputs = grad_inputs if mask is None else grad_inputs * mask
    grads = torch.cat([grad_inputs, grad_items[:, :width]])
    adagrad_reference(weight, accumulator, velocity, index, grads, *options)
    if bias is not None:
        item_rows = index[len(grad_inputs) :]
        adagrad_reference(bias, bias_accumulator, bias_velocity, item_rows, grad_items[:, width], *options)


OPERATORS: dict[str, Callable[..., Any]] = {
    "step_gather": step_gather_reference,
    "step_gru": step_gru_reference,
    "step_gru_backward": step_gru_backward_reference,
    "step_loss": step_loss_reference,
    "step_store_losses_": step_store_losses_reference,
    "step_products_": step_products_reference,
    "step_apply_": step_apply_reference,
    "step_rows_": step_rows_reference,
}


def _name_elements(lists: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor | None]:
    """Return the tensors of named lists by names such as "weights[0]"."""
    return {f"{name}[{i}]": tensor for name, tensors in lists.items() for i, tensor in enumerate(tensors)}


@on_load
def _register(library: str) -> None:
    for name, reference in OPERATORS.items():
        register(library, name, reference)
