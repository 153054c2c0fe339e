"""Operators of a GRU4Rec training step in a CUDA graph, in addition to the GRU, the loss and the matrix products.

An update of the weights accumulates the gradients of blocks. A block has T steps of B lanes (sessions processed in
parallel). A captured step has fixed shapes, so padding and steps after the end of the epoch are masked: they have the
item -1, which selects no row. Two things can change without a new capture, because they are tensors on the device:
whether the weights are updated at all (`enabled`), and the hyperparameters of the optimizer.

    step_gather   gathers the rows of the tables for the inputs, targets and negatives of a block
    step_store_losses_  stores the losses of a block, and stops all further updates if a loss is not finite
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
from torch import Tensor

from gru4rec_fast.ops._checks import check_memory
from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load, register
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
        x [T, B, I], rows [T, lanes + N, H], biases [T, lanes + N] and log_q [T, lanes + N] (empty without
        log_support). All are zero where an index is -1.
    """
    x = gather_rows(embedding, inputs)
    x = x if mask is None else x * mask
    rows = gather_rows(weight, items)
    rows = rows.bfloat16() if bf16 else rows
    biases = gather_rows(bias.unsqueeze(1), items).squeeze(-1)
    if log_support is None:
        return x, rows, biases, bias.new_empty(0)
    log_q = logq * gather_rows(log_support.unsqueeze(1), items).squeeze(-1)
    log_q[:, lanes:] *= sample_alpha
    return x, rows, biases, log_q


def step_store_losses_reference(
    losses: Tensor, active: Tensor, stopped: Tensor, step_losses: Tensor, enabled: Tensor
) -> None:
    """Store the losses [T] of a block, and decide whether the weights are updated; the results are written in place.

    Args:
        active: bool [T], False for masked steps, which are the last steps of the block.
        stopped: bool [], set to True if a loss is not finite; never set to False.
        step_losses: [T], set to the losses; 0 for masked steps.
        enabled: bool [], set to True if the block has an active step and `stopped` is False, else to False.
    """
    check_memory(
        {"stopped": stopped, "step_losses": step_losses, "enabled": enabled}, {"losses": losses, "active": active}
    )
    step_losses.copy_(torch.where(active, losses, 0))
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
    grad_items: Tensor,
    grad_bias: Tensor | None,
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
        grad_inputs, grad_items: [n1, W] and [n2, W], n = n1 + n2: gradients of input rows, and of target and negative
            rows.
        grad_bias: [n2], gradients of the output biases of the target and negative rows; None without `bias`.
        enabled, hyperparameters: as for `step_apply_reference`.
    """
    check_memory(
        {
            "weight": weight, "accumulator": accumulator, "velocity": velocity,
            "bias": bias, "bias_accumulator": bias_accumulator, "bias_velocity": bias_velocity,
        },
        {
            "rows": rows, "positions": positions, "grad_inputs": grad_inputs, "grad_items": grad_items,
            "grad_bias": grad_bias, "enabled": enabled, "hyperparameters": hyperparameters,
        },
    )  # fmt: skip
    if not enabled:
        return
    index = torch.empty_like(rows).scatter_(0, positions, rows)
    options = hyperparameters.tolist()
    adagrad_reference(weight, accumulator, velocity, index, torch.cat([grad_inputs, grad_items]), *options)
    if bias is not None and grad_bias is not None:
        item_rows = index[len(grad_inputs) :]
        adagrad_reference(bias, bias_accumulator, bias_velocity, item_rows, grad_bias, *options)


OPERATORS: dict[str, Callable[..., Any]] = {
    "step_gather": step_gather_reference,
    "step_store_losses_": step_store_losses_reference,
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
