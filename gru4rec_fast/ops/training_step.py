"""What a GRU4Rec training step does between its products and kernels, on a GPU.

One update of the weights is made of blocks of T steps. Lanes that are dead, and steps that are not to be played, are
masked rather than removed: items of -1 name no row. Whether an update moves anything is known to the device alone
(`moves`), and so are the optimizer's numbers, which a schedule changes while a captured step stays as it is.

    gather    rows of the tables for a block's inputs, targets and negatives
    settle    the block's losses: kept, and from then on nothing moves where one is no finite number
    apply     Adagrad with momentum on whole weights, and the lanes' new states
    rows      Adagrad with momentum on the touched rows of a table and its bias, given which they are in sorted order

Formulas: `gru4rec_fast.ops.sparse_update` (adagrad), `nn.SampledLoss` (the logQ correction). `training/cuda_step.py`
captures these operators; on the CPU there is the fused step instead
(`csrc/training_step/fused_training_step.cpp`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load, register_composite
from gru4rec_fast.ops.sparse_update import adagrad_reference, adagrad_rule, update_all


def step_operator(name: str, impl: str, device: torch.device) -> Callable[..., Any]:
    """Return one of `OPERATORS`, as `impl` runs it on a device; arguments and results are those of its reference."""
    return implementation(name, impl, device, OPERATORS[name])


def gather_rows(table: Tensor, index: Tensor) -> Tensor:
    """[..., width] of a table [R, width]; zeros where index is -1."""
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
    """What the products of a block of T steps take from the tables.

    Args:
        embedding: [R, I], read at `inputs`, int64 [T, B]; times `mask` [T, B, I], the dropout on the embedding.
        weight, bias, log_support: [R, H], [R], [R] or None, read at `items`, int64 [T, lanes + N]: targets, then
            negatives.
        logq: strength of the logQ correction; times `sample_alpha` for the sampled items.
        bf16: the output rows are rounded to bfloat16.

    Returns:
        x [T, B, I], rows [T, lanes + N, H], their biases and their log_q, both [T, lanes + N] (log_q is empty, [0],
        without log_support). All zeros where an index is -1.
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


def step_settle_reference(losses: Tensor, played: Tensor, stopped: Tensor, kept: Tensor, moves: Tensor) -> None:
    """Take in a block's losses [T].

    Args:
        played: bool [T], steps with enough live lanes; those that are not played come last.
        stopped: bool [], updated: an earlier loss was no finite number, or one of these.
        kept: [T], becomes the losses, 0 where a step is not played.
        moves: bool [], becomes whether the block was played and is to move anything.
    """
    kept.copy_(torch.where(played, losses, 0))
    stopped.logical_or_(~kept.isfinite().all())
    moves.copy_(played[0] & ~stopped)


def step_apply_reference(
    weights: list[Tensor],
    accumulators: list[Tensor],
    velocities: list[Tensor],
    grads: list[Tensor],
    states: list[Tensor],
    outputs: list[Tensor],
    moves: Tensor,
    numbers: Tensor,
) -> None:
    """Move every entry of `weights`, and let `states` become `outputs`, if `moves`.

    Args:
        accumulators, velocities: of the weights' shapes; no velocities where momentum is 0.
        numbers: float64 [3]: learning rate, momentum, epsilon.
    """
    if not moves:
        return
    options = dict(zip(("lr", "momentum", "eps"), numbers.tolist(), strict=True))
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
    moves: Tensor,
    numbers: Tensor,
) -> None:
    """Move the rows of a table, and of its bias, that a step touches, if `moves`.

    Args:
        weight, accumulator, velocity: [R, W]; the velocity None where momentum is 0.
        bias, bias_accumulator, bias_velocity: [R]; None for a table without a bias.
        rows, positions: int64 [n], what sorting the touched rows, stably, gives: rising, -1 names none; and where in
            `grad_inputs` [n1, W], then `grad_items` [n2, W], n = n1 + n2, the gradient is.
        grad_bias: [n2]; an item that is an input and nothing else leaves its bias alone.
        moves, numbers: as for `step_apply_reference`.
    """
    if not moves:
        return
    index = torch.empty_like(rows).scatter_(0, positions, rows)
    options = numbers.tolist()
    adagrad_reference(weight, accumulator, velocity, index, torch.cat([grad_inputs, grad_items]), *options)
    if bias is not None and grad_bias is not None:
        of_items = index[len(grad_inputs) :]
        adagrad_reference(bias, bias_accumulator, bias_velocity, of_items, grad_bias, *options)


OPERATORS: dict[str, Callable[..., Any]] = {
    "step_gather": step_gather_reference,
    "step_settle_": step_settle_reference,
    "step_apply_": step_apply_reference,
    "step_rows_": step_rows_reference,
}


@on_load
def _register(library: str) -> None:
    for name, reference in OPERATORS.items():
        register_composite(library, name, reference)
