"""One update of the weights on a GPU, by operators without a GPU synchronization: `graph_capture.py` captures it.

An update has A blocks of T steps. Each block gathers table rows, runs forward, loss and backward; then all weights are
updated. An `UpdatePlan` holds what is computed before the update. The operators of this module's own are in
`ops/training_step.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gru4rec_fast import _backend
from gru4rec_fast.nn import ItemTable, SampledLoss, SessionNetwork
from gru4rec_fast.ops._registry import operators
from gru4rec_fast.ops.gru import gru_backward_reference, gru_reference
from gru4rec_fast.ops.philox import STREAM_EMBEDDING_DROPOUT, STREAM_HIDDEN_DROPOUT
from gru4rec_fast.ops.sampled_loss import sampled_loss_reference
from gru4rec_fast.ops.training_step import step_operator
from gru4rec_fast.optim import SparseAdagrad


@dataclass(frozen=True)
class UpdateContext:
    """The network, loss and optimizer of all updates, and their values on the device.

    Attributes:
        stopped: bool [], set by a loss that is not finite; while it is set, nothing is updated.
        hyperparameters: float64 [3]: learning rate, momentum, epsilon.
    """

    network: SessionNetwork
    criterion: SampledLoss
    optimizer: SparseAdagrad
    precision: str
    stopped: Tensor
    hyperparameters: Tensor

    @property
    def device(self) -> torch.device:
        return self.stopped.device

    @property
    def input_table(self) -> ItemTable:
        """The input table: embedding rows, or gate rows for one-hot input."""
        return self.network.output if self.network.embedding_mode == "constrained" else self.network.embedding

    def moments(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.optimizer.moments(weight, self.optimizer.param_groups[0]["momentum"])

    def operator(self, name: str) -> Callable[..., Any]:
        """Return one of `ops.training_step.OPERATORS`."""
        return step_operator(name, self.optimizer.impl, self.device)


@dataclass
class UpdatePlan:
    """The S = A T steps of one update. A step has B lanes and C = B + N items (targets, then negatives).

    Attributes:
        inputs, items: int64 [S, B] and [S, C]; -1 is padding.
        reset, live: bool [S, B].
        active: bool [S], whether the step has enough live lanes.
        loss_weight: [S], weight of a step's loss in the update's loss; None: 1.
        sorted_rows: for each table that is updated, its rows in ascending order, and the sorting permutation.
        masks: dropout masks [S, B, units] by Philox stream.
        enabled: output, bool [A], whether a block is active and no loss was bad, so that states and weights change.
        losses: output, [S].
        hidden: hidden states [B, H] of the layers, updated in place.
    """

    inputs: Tensor
    items: Tensor
    reset: Tensor
    live: Tensor
    active: Tensor
    loss_weight: Tensor | None
    sorted_rows: list[tuple[Tensor, Tensor]]
    masks: dict[int, Tensor]
    enabled: Tensor
    losses: Tensor
    hidden: list[Tensor]


@dataclass
class _Gradients:
    """Gradients of an update: those of table rows listed by block or step, those of whole weights summed."""

    inputs: list[Tensor] = field(default_factory=list)  # [T B, I] of each block
    rows: list[Tensor] = field(default_factory=list)  # [C, H] of each step
    bias: list[Tensor] = field(default_factory=list)  # [C] of each step
    weights: dict[Tensor, Tensor] = field(default_factory=dict)

    def add(self, weight: Tensor, grad: Tensor) -> None:
        self.weights[weight] = self.weights[weight].add_(grad) if weight in self.weights else grad


def _concatenate(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


@torch.no_grad()
def run_update(context: UpdateContext, plan: UpdatePlan) -> None:
    """Run the blocks of an update forward and backward, then update the weights."""
    grads, blocks = _Gradients(), len(plan.enabled)
    steps = len(plan.inputs) // blocks
    for block in range(blocks):
        outputs = _run_block(context, plan, slice(block * steps, (block + 1) * steps), plan.enabled[block], grads)
        states = (plan.hidden, [output[-1] for output in outputs])
        if blocks > 1:
            _apply(context, {}, states, plan.enabled[block])
    if blocks == 1:
        enabled = plan.enabled[0]
        _apply(context, grads.weights, states, enabled)
    else:
        enabled = plan.enabled[0] & ~context.stopped
        _apply(context, grads.weights, ([], []), enabled)
    _update_tables(context, plan, grads, enabled)


def _run_block(
    context: UpdateContext, plan: UpdatePlan, steps: slice, enabled: Tensor, grads: _Gradients
) -> list[Tensor]:
    """Run some steps forward and backward; return the layers' outputs [T, B, H]."""
    criterion, output = context.criterion, context.network.output
    embedding_mask = plan.masks.get(STREAM_EMBEDDING_DROPOUT)
    mask = None if embedding_mask is None else embedding_mask[steps]
    x, rows, biases, log_q = context.operator("step_gather")(
        context.input_table.weight, plan.inputs[steps], mask, output.weight, output.bias, criterion.log_support,
        plan.items[steps], plan.inputs.shape[1], criterion.logq, criterion.sample_alpha, context.precision == "bf16",
    )  # fmt: skip
    passes = _forward(context, plan, x, steps)
    hidden = passes[-1].output
    scored = hidden.bfloat16() if context.precision == "bf16" else hidden
    losses, grad_hidden = [], []
    for t in range(len(hidden)):
        s = steps.start + t
        loss, *step_grads = _score(
            context, scored[t], rows[t], biases[t], plan.live[s], log_q[t] if log_q.numel() else None, plan.items[s]
        )
        if plan.loss_weight is not None:
            step_grads = [grad * plan.loss_weight[s] for grad in step_grads]
        losses.append(loss.view(1))
        grad_hidden.append(step_grads[0].unsqueeze(0))
        grads.rows.append(step_grads[1])
        grads.bias.append(step_grads[2])
    context.operator("step_settle_")(
        _concatenate(losses), plan.active[steps], context.stopped, plan.losses[steps], enabled
    )
    grad_x = _backward(context, passes, _concatenate(grad_hidden), grads)
    grads.inputs.append((grad_x if mask is None else grad_x * mask).flatten(0, 1))
    return [layer_pass.output for layer_pass in passes]


@dataclass(frozen=True)
class _LayerPass:
    """A layer's forward pass, stored for its backward pass: x [T, B, I], arguments and results of the GRU operator."""

    layer: Any
    x: Tensor
    output: Tensor
    saved: Tensor
    arguments: tuple[Any, ...]


def _gru_operators(impl: str, device: torch.device) -> tuple[Callable[..., Any], Callable[..., Any]]:
    chosen = _backend.resolve(impl, "gru", device.type)
    if chosen == "reference":
        return gru_reference, gru_backward_reference
    return operators(chosen).gru, operators(chosen).gru_backward


def _forward(context: UpdateContext, plan: UpdatePlan, x: Tensor, steps: slice) -> list[_LayerPass]:
    passes = []
    layers: Any = context.network.gru.layers
    for index, (layer, state) in enumerate(zip(layers, plan.hidden, strict=True)):
        forward, _ = _gru_operators(layer.impl, context.device)
        mask = plan.masks.get(STREAM_HIDDEN_DROPOUT + index)
        gates = x + layer.bias_ih if layer.weight_ih is None else F.linear(x, layer.weight_ih, layer.bias_ih)
        arguments = (
            state, layer.weight_hh, layer.bias_hh, plan.reset[steps], None if mask is None else mask[steps], layer.form,
        )  # fmt: skip
        output, saved = forward(gates, *arguments)
        passes.append(_LayerPass(layer, x, output, saved, arguments))
        x = output
    return passes


def _score(
    context: UpdateContext,
    hidden: Tensor,
    rows: Tensor,
    bias: Tensor,
    live: Tensor,
    log_q: Tensor | None,
    items: Tensor,
) -> tuple[Tensor, ...]:
    """Return a step's loss, and its gradients by hidden states, item rows and biases."""
    criterion = context.criterion
    chosen = _backend.resolve(criterion.impl, "sampled_loss", context.device.type)
    score = sampled_loss_reference if chosen == "reference" else operators(chosen).sampled_loss
    return score(
        hidden, rows, bias, live, log_q, items if criterion.mask_accidental_hits else None, None, criterion.loss, True,
        float(criterion.batch_size), criterion.elu_param, criterion.bpreg, criterion.label_smoothing,
    )  # fmt: skip


def _backward(context: UpdateContext, passes: Sequence[_LayerPass], grad: Tensor, grads: _Gradients) -> Tensor:
    """Return the gradient by the first layer's x, [T, B, I]; add those by the layers' weights to `grads`."""
    for layer_pass in reversed(passes):
        layer = layer_pass.layer
        _, backward = _gru_operators(layer.impl, context.device)
        grad_gates, _, grad_hh, grad_bias_hh = backward(
            grad, layer_pass.output, layer_pass.saved, *layer_pass.arguments, False
        )
        flat = grad_gates.flatten(0, 1)
        grads.add(layer.weight_hh, grad_hh)
        grads.add(layer.bias_ih, flat.sum(0))
        if layer.bias_hh is not None:
            grads.add(layer.bias_hh, grad_bias_hh)
        grad = grad_gates
        if layer.weight_ih is not None:
            grads.add(layer.weight_ih, flat.T @ layer_pass.x.flatten(0, 1))
            grad = grad_gates @ layer.weight_ih
    return grad


def _apply(
    context: UpdateContext,
    grads: dict[Tensor, Tensor],
    states: tuple[list[Tensor], list[Tensor]],
    enabled: Tensor,
) -> None:
    """Update the GRU's weights, and copy the new hidden states (second) to the old ones (first), in one launch."""
    moments = [context.moments(weight) for weight in grads]
    velocities = [velocity for _, velocity in moments if velocity is not None]
    context.operator("step_apply_")(
        [*grads], [accumulator for accumulator, _ in moments], velocities, [*grads.values()], *states, enabled,
        context.hyperparameters,
    )  # fmt: skip


def _update_tables(context: UpdateContext, plan: UpdatePlan, grads: _Gradients, enabled: Tensor) -> None:
    network, output = context.network, context.network.output
    grad_inputs, grad_rows, grad_bias = map(_concatenate, (grads.inputs, grads.rows, grads.bias))
    update_rows = context.operator("step_rows_")
    if network.embedding_mode != "constrained":
        table, empty = network.embedding.weight, grad_inputs[:0]
        update_rows(
            table, *context.moments(table), None, None, None, *plan.sorted_rows[1], grad_inputs, empty, None, enabled,
            context.hyperparameters,
        )  # fmt: skip
        grad_inputs = grad_rows[:0]
    update_rows(
        output.weight, *context.moments(output.weight), output.bias, *context.moments(output.bias),
        *plan.sorted_rows[0], grad_inputs, grad_rows, grad_bias, enabled, context.hyperparameters,
    )  # fmt: skip
