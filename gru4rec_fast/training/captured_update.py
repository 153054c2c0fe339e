"""One update of the weights without a GPU synchronization, so that a CUDA graph can capture it (`graph_capture.py`).

An update has A blocks of T steps. For each block, `run_update` gathers table rows and runs forward, loss and backward.
Then it updates all weights. An `UpdatePlan` has the inputs, which are computed before the update, and the tensors for
the results.

`ops/training_step.py` describes the operators. If an update has one step, a layer in the reset_after form runs in one
kernel, forward and backward, and one kernel computes the gradients of the GRU's weights and applies them. Otherwise the
operators `gru` and `gru_backward` run the layers, and torch computes the products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gru4rec_fast import _backend
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.ops._registry import operators
from gru4rec_fast.ops.gru import gru_backward_reference, gru_reference
from gru4rec_fast.ops.philox import STREAM_EMBEDDING_DROPOUT, STREAM_HIDDEN_DROPOUT
from gru4rec_fast.ops.training_step import step_operator
from gru4rec_fast.optim import SparseAdagrad


@dataclass
class UpdateContext:
    """The objects and device tensors that all updates share.

    Attributes:
        precision: "full" or "bf16", see `CapturedTrainingStep`.
        stopped: bool [], set to True by a loss that is not finite; while it is True, nothing is updated.
        hyperparameters: float64 [3]: learning rate, momentum, epsilon.
        scored_padding: [H' - H], the columns that scored states have in addition to the H hidden units
            (`ops.training_step.scored_states`): a one, then zeros. H' is a multiple of 8, so that rows in float32 and
            in bfloat16 are aligned for loads of 16 bytes.
        n_begun: number of updates that have begun to change the weights.
    """

    network: SessionNetwork
    criterion: SampledLoss
    optimizer: SparseAdagrad
    precision: str
    stopped: Tensor
    hyperparameters: Tensor
    scored_padding: Tensor
    n_begun: int = 0

    @property
    def device(self) -> torch.device:
        return self.stopped.device

    def optimizer_state(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the optimizer state of a weight: the Adagrad accumulator, and the velocity if there is momentum."""
        return self.optimizer.accumulator_and_velocity(weight, self.optimizer.param_groups[0]["momentum"])

    def operator(self, name: str, impl: str | None = None) -> Callable[..., Any]:
        """Return an implementation of one of `ops.training_step.OPERATORS`; by default that of the optimizer."""
        return step_operator(name, impl or self.optimizer.impl, self.device)


@dataclass
class UpdatePlan:
    """The inputs of the S = A T steps of one update, and the tensors for the results.

    A step has B lanes (sessions processed in parallel) and scores C = B + N items: the targets, then N negatives.

    Attributes:
        inputs: int64 [S, B], input items; -1 is padding.
        items: int64 [S, C], scored items; -1 is padding.
        reset: bool [S, B], whether the hidden state is set to zero before the step.
        live: bool [S, B], whether the lane has a target.
        active: bool [S], whether the step has at least `min_live` live lanes (see `UpdatesShape`).
        loss_weight: [S], weight of the step's loss in the loss of the update; None: 1.
        sorted_rows: for each table, the row indices of all gradients in ascending order, and the permutation that sorts
            them. The output table is first; the input table is second, unless it is the output table.
        masks: dropout masks [S, B, units] by Philox stream.
        enabled: output, bool [A], whether the block changes states and weights: it has an active step, and no loss so
            far is NaN or infinite.
        losses: output, [S], loss of each step.
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
    """Gradients of an update.

    Attributes:
        inputs: for each block, gradients of the gathered rows of the input table, [T B, I].
        rows: for each step, gradients of the gathered rows of the output table, [C, H'], and of their biases, column H.
        weights: gradients of the GRU's weights, summed over the blocks.
        factors: for updates of one step, in place of `weights`: the two factors of each weight's gradient, or only the
            left one for a bias (`ops.training_step.step_products_reference`).
    """

    inputs: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    weights: dict[Tensor, Tensor] = field(default_factory=dict)
    factors: dict[Tensor, tuple[Tensor, ...]] = field(default_factory=dict)

    def add(self, weight: Tensor, grad: Tensor) -> None:
        """Add the gradient of a weight to `weights`."""
        self.weights[weight] = self.weights[weight].add_(grad) if weight in self.weights else grad


def _concatenate(tensors: list[Tensor]) -> Tensor:
    """Return the concatenation; a single tensor is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


@torch.no_grad()
def run_update(context: UpdateContext, plan: UpdatePlan) -> None:
    """Run the blocks of an update forward and backward, then update the weights."""
    grads, blocks = _Gradients(), len(plan.enabled)
    steps = len(plan.inputs) // blocks
    for block in range(blocks):
        outputs = _run_block(context, plan, slice(block * steps, (block + 1) * steps), plan.enabled[block], grads)
        states = (plan.hidden, [output[-1] for output in outputs])
        if blocks > 1:  # the next block reads the new states
            _apply(context, {}, states, plan.enabled[block])
    context.n_begun += 1
    if blocks == 1:  # update states and weights in one launch
        enabled = plan.enabled[0]
        _apply(context, grads.weights, states, enabled, grads.factors)
    else:
        # An update with fewer than A blocks is padded at its end with blocks without an active step. So if the first
        # block is not enabled, no block is. If a loss of any block was NaN or infinite, `stopped` is set.
        enabled = plan.enabled[0] & ~context.stopped
        _apply(context, grads.weights, ([], []), enabled)
    _update_tables(context, plan, grads, enabled)


def _run_block(
    context: UpdateContext, plan: UpdatePlan, steps: slice, enabled: Tensor, grads: _Gradients
) -> list[Tensor]:
    """Run the steps of a block forward and backward; return the outputs [T, B, H] of each layer.

    Adds to `grads`, and sets `enabled` by `step_store_losses_`.
    """
    criterion, output = context.criterion, context.network.output
    embedding_mask = plan.masks.get(STREAM_EMBEDDING_DROPOUT)
    mask = None if embedding_mask is None else embedding_mask[steps]
    x, rows, offsets = context.operator("step_gather")(
        context.network.input_table.weight, plan.inputs[steps], mask, output.weight, output.bias, criterion.log_support,
        plan.items[steps], plan.inputs.shape[1], criterion.logq, criterion.sample_alpha, context.precision == "bf16",
    )  # fmt: skip
    passes, scored = _forward(context, plan, x, steps)
    ids = plan.items[steps] if criterion.mask_accidental_hits else None
    losses, grad_hidden = [], []
    for t in range(len(scored)):
        step = steps.start + t
        loss, *step_grads = context.operator("step_loss", criterion.impl)(
            scored[t], rows[t], offsets[t], plan.live[step], None if ids is None else ids[t], criterion.loss,
            float(criterion.batch_size), criterion.elu_param, criterion.bpreg, criterion.label_smoothing,
        )  # fmt: skip
        if plan.loss_weight is not None:
            step_grads = [grad * plan.loss_weight[step] for grad in step_grads]
        losses.append(loss.unsqueeze(0))
        grad_hidden.append(step_grads[0].unsqueeze(0))
        grads.rows.append(step_grads[1])
    context.operator("step_store_losses_")(
        _concatenate(losses), plan.active[steps], context.stopped, plan.losses[steps], enabled
    )
    grads.inputs.append(_backward(context, passes, _concatenate(grad_hidden), grads).flatten(0, 1))
    return [layer_pass.output for layer_pass in passes]


@dataclass(frozen=True)
class _LayerPass:
    """The values of a layer's forward pass that its backward pass needs.

    Attributes:
        layer: the SessionGRULayer.
        one_step: whether the operator `step_gru` has run the layer, else `gru`.
        x: input of the layer, [T, B, I].
        output, saved: results of the operator, with the dimension of the steps.
        arguments: arguments of `gru` after the first one.
    """

    layer: Any
    one_step: bool
    x: Tensor
    output: Tensor
    saved: Tensor
    arguments: tuple[Any, ...]


def _gru_operators(impl: str, device: torch.device) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the operators `gru` and `gru_backward`."""
    chosen = _backend.resolve(impl, "gru", device.type)
    if chosen == "reference":
        return gru_reference, gru_backward_reference
    return operators(chosen).gru, operators(chosen).gru_backward


def _forward(context: UpdateContext, plan: UpdatePlan, x: Tensor, steps: slice) -> tuple[list[_LayerPass], Tensor]:
    """Run the layers on x [T, B, I].

    Returns what the backward pass of each layer needs, and the scored states [T, B, H'] of the last layer, which
    `ops.training_step.scored_states` describes.
    """
    passes = []
    layers: Any = context.network.gru.layers
    bf16 = context.precision == "bf16"
    width = context.network.gru.sizes[-1] + len(context.scored_padding)
    scored = x.new_empty(0)
    for index, (layer, state) in enumerate(zip(layers, plan.hidden, strict=True)):
        mask = plan.masks.get(STREAM_HIDDEN_DROPOUT + index)
        reset, mask = plan.reset[steps], None if mask is None else mask[steps]
        arguments = (state, layer.weight_hh, layer.bias_hh, reset, mask, layer.form)
        one_step = len(plan.inputs) == 1 and layer.form == "reset_after"
        if one_step:
            is_last = index + 1 == len(layers)
            results = context.operator("step_gru", layer.impl)(
                x[0], layer.weight_ih, layer.bias_ih, state, layer.weight_hh, layer.bias_hh, reset[0],
                None if mask is None else mask[0], width if is_last else 0, bf16,
            )  # fmt: skip
            output, saved, scored = (tensor.unsqueeze(0) for tensor in results)
        else:
            forward, _ = _gru_operators(layer.impl, context.device)
            gates = x + layer.bias_ih if layer.weight_ih is None else F.linear(x, layer.weight_ih, layer.bias_ih)
            output, saved = forward(gates, *arguments)
        passes.append(_LayerPass(layer, one_step, x, output, saved, arguments))
        x = output
    if not passes[-1].one_step:
        scored = torch.cat([x, context.scored_padding.expand(*x.shape[:2], -1)], 2)
        scored = scored.bfloat16() if bf16 else scored
    return passes, scored


def _backward(context: UpdateContext, passes: Sequence[_LayerPass], grad: Tensor, grads: _Gradients) -> Tensor:
    """Return the gradient of the first layer's input, [T, B, I]; add the gradients of the weights to `grads`.

    grad: gradient of the last layer's output, [T, B, H].
    """
    for layer_pass in reversed(passes):
        layer, x = layer_pass.layer, layer_pass.x.flatten(0, 1)
        if layer_pass.one_step:
            state, _, _, reset, mask, _ = layer_pass.arguments
            grad_gates, grad_recurrent, previous = context.operator("step_gru_backward", layer.impl)(
                grad[0], layer_pass.saved[0], state, reset[0], None if mask is None else mask[0]
            )
            grads.factors[layer.weight_hh] = grad_recurrent, previous
            grads.factors[layer.bias_ih] = (grad_gates,)
            grads.factors[layer.bias_hh] = (grad_recurrent,)
            grads.factors[layer.weight_ih] = grad_gates, x
            grad_gates = grad_gates.unsqueeze(0)
        else:
            _, backward = _gru_operators(layer.impl, context.device)
            needs_grad_state = False
            grad_gates, _, grad_weight_hh, grad_bias_hh = backward(
                grad, layer_pass.output, layer_pass.saved, *layer_pass.arguments, needs_grad_state
            )
            flat_grad_gates = grad_gates.flatten(0, 1)
            grads.add(layer.weight_hh, grad_weight_hh)
            grads.add(layer.bias_ih, flat_grad_gates.sum(0))
            if layer.bias_hh is not None:
                grads.add(layer.bias_hh, grad_bias_hh)
            if layer.weight_ih is not None:
                grads.add(layer.weight_ih, flat_grad_gates.T @ x)
        grad = grad_gates if layer.weight_ih is None else grad_gates @ layer.weight_ih
    return grad


def _apply(
    context: UpdateContext,
    grads: dict[Tensor, Tensor],
    states: tuple[list[Tensor], list[Tensor]],
    enabled: Tensor,
    factors: dict[Tensor, tuple[Tensor, ...]] | None = None,
) -> None:
    """Update the weights in `grads` and in `factors`, and copy states[1] (new hidden states) to states[0].

    This takes one launch; two, if a network has weights in both.
    """
    if factors:
        optimizer_states = [context.optimizer_state(weight) for weight in factors]
        context.operator("step_products_")(
            [*factors], [accumulator for accumulator, _ in optimizer_states],
            [velocity for _, velocity in optimizer_states if velocity is not None],
            [pair[0] for pair in factors.values()], [pair[1] for pair in factors.values() if len(pair) == 2],
            *states, enabled, context.hyperparameters,
        )  # fmt: skip
        if not grads:
            return
        states = ([], [])
    optimizer_states = [context.optimizer_state(weight) for weight in grads]
    velocities = [velocity for _, velocity in optimizer_states if velocity is not None]
    context.operator("step_apply_")(
        [*grads], [accumulator for accumulator, _ in optimizer_states], velocities, [*grads.values()], *states, enabled,
        context.hyperparameters,
    )  # fmt: skip


def _update_tables(context: UpdateContext, plan: UpdatePlan, grads: _Gradients, enabled: Tensor) -> None:
    """Update the rows of the input table, the output table and the output bias that the update has used."""
    network, output = context.network, context.network.output
    grad_inputs, grad_rows = _concatenate(grads.inputs), _concatenate(grads.rows)
    mask = plan.masks.get(STREAM_EMBEDDING_DROPOUT)
    mask = None if mask is None else mask.flatten(0, 1)
    update_rows = context.operator("step_rows_")
    if network.embedding_mode != "constrained":
        # The input table has only gradients of inputs. None: it has no bias, bias accumulator and bias velocity.
        table, no_grad_items = network.embedding.weight, grad_inputs[:0]
        update_rows(
            table, *context.optimizer_state(table), None, None, None, *plan.sorted_rows[1],
            grad_inputs, mask, no_grad_items, enabled, context.hyperparameters,
        )  # fmt: skip
        grad_inputs, mask = grad_rows[:0, : output.weight.shape[1]], None  # no gradients of inputs in the output table
    update_rows(
        output.weight, *context.optimizer_state(output.weight), output.bias, *context.optimizer_state(output.bias),
        *plan.sorted_rows[0], grad_inputs, mask, grad_rows, enabled, context.hyperparameters,
    )  # fmt: skip
