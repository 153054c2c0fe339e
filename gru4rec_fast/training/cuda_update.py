"""One update of the weights on a GPU, from operators that wait for nobody: what `cuda_launch.py` captures.

A blocks of T steps: gather, forward, loss, backward, and the update at the end. What has to be known of the steps
beforehand lies in a `Plan`; see `ops/training_step.py` for what stands between the operators of the families.
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
class Trained:
    """What is trained and by what, and what of that the device has to know.

    stopped: bool [], set at a loss that is no finite number; nothing moves from then on.
    numbers: float64 [3], learning rate, momentum and epsilon.
    """

    network: SessionNetwork
    criterion: SampledLoss
    optimizer: SparseAdagrad
    precision: str
    stopped: Tensor
    numbers: Tensor

    @property
    def device(self) -> torch.device:
        return self.stopped.device

    @property
    def table(self) -> ItemTable:
        """Of the input embedding, or of the one-hot input's gates."""
        return self.network.output if self.network.embedding_mode == "constrained" else self.network.embedding

    def moments(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.optimizer.moments(weight, self.optimizer.param_groups[0]["momentum"])

    def operator(self, name: str) -> Callable[..., Any]:
        """One of `ops.training_step.OPERATORS`."""
        return step_operator(name, self.optimizer.impl, self.device)


@dataclass
class Plan:
    """The steps of one update: A T = S of them, of B lanes, with C = B + N items each; -1 where nothing is.

    inputs int64 [S, B]; items int64 [S, C]; reset, live bool [S, B]; played bool [S]: with enough live lanes.
    share: [S], of a step in the update's loss; None where that is all of it.
    sorted: for each table that moves, the rows that the update touches and their places, sorted.
    masks: dropout by Philox stream, [S, B, units] each.
    moves: bool [A], written: whether a block moves anything. losses: [S], written.
    hidden: of each layer the state [B, H], updated.
    """

    inputs: Tensor
    items: Tensor
    reset: Tensor
    live: Tensor
    played: Tensor
    share: Tensor | None
    sorted: list[tuple[Tensor, Tensor]]
    masks: dict[int, Tensor]
    moves: Tensor
    losses: Tensor
    hidden: list[Tensor]


@dataclass
class _Gradients:
    """What an update's blocks and steps leave, in their order; of whole weights, the sum."""

    inputs: list[Tensor] = field(default_factory=list)  # [T B, I] of each block
    rows: list[Tensor] = field(default_factory=list)  # [C, H] of each step
    bias: list[Tensor] = field(default_factory=list)  # [C] of each step
    weights: dict[Tensor, Tensor] = field(default_factory=dict)

    def add(self, weight: Tensor, grad: Tensor) -> None:
        self.weights[weight] = self.weights[weight].add_(grad) if weight in self.weights else grad


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


@torch.no_grad()
def play_update(trained: Trained, plan: Plan) -> None:
    """Play the update's blocks and move the weights."""
    grads, blocks = _Gradients(), len(plan.moves)
    steps = len(plan.inputs) // blocks
    for a in range(blocks):
        outputs = _play_block(trained, plan, slice(a * steps, (a + 1) * steps), plan.moves[a], grads)
        states = (plan.hidden, [output[-1] for output in outputs])
        if blocks > 1:
            _apply(trained, {}, states, plan.moves[a])
    if blocks == 1:
        moves = plan.moves[0]
        _apply(trained, grads.weights, states, moves)
    else:
        moves = plan.moves[0] & ~trained.stopped
        _apply(trained, grads.weights, ([], []), moves)
    _move_tables(trained, plan, grads, moves)


def _play_block(trained: Trained, plan: Plan, at: slice, moves: Tensor, grads: _Gradients) -> list[Tensor]:
    """Steps `at` forward and backward. The layers' outputs [T, B, H]."""
    criterion, output = trained.criterion, trained.network.output
    embedding_mask = plan.masks.get(STREAM_EMBEDDING_DROPOUT)
    mask = None if embedding_mask is None else embedding_mask[at]
    x, rows, biases, log_q = trained.operator("step_gather")(
        trained.table.weight, plan.inputs[at], mask, output.weight, output.bias, criterion.log_support, plan.items[at],
        plan.inputs.shape[1], criterion.logq, criterion.sample_alpha, trained.precision == "bf16",
    )  # fmt: skip
    kept = _forward(trained, plan, x, at)
    hidden = kept[-1].output
    scored = hidden.bfloat16() if trained.precision == "bf16" else hidden
    losses, grad_hidden = [], []
    for t in range(len(hidden)):
        s = at.start + t
        loss, *of_step = _score(
            trained, scored[t], rows[t], biases[t], plan.live[s], log_q[t] if log_q.numel() else None, plan.items[s]
        )
        if plan.share is not None:
            of_step = [grad * plan.share[s] for grad in of_step]
        losses.append(loss.view(1))
        grad_hidden.append(of_step[0].unsqueeze(0))
        grads.rows.append(of_step[1])
        grads.bias.append(of_step[2])
    trained.operator("step_settle_")(_joined(losses), plan.played[at], trained.stopped, plan.losses[at], moves)
    grad = _backward(trained, kept, _joined(grad_hidden), grads)
    grads.inputs.append((grad if mask is None else grad * mask).flatten(0, 1))
    return [layer.output for layer in kept]


@dataclass(frozen=True)
class _LayerPass:
    """A layer's forward pass, for its backward pass: x [T, B, I], and what the GRU's operators gave and were given."""

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


def _forward(trained: Trained, plan: Plan, x: Tensor, at: slice) -> list[_LayerPass]:
    passes = []
    layers: Any = trained.network.gru.layers
    for number, (layer, state) in enumerate(zip(layers, plan.hidden, strict=True)):
        forward, _ = _gru_operators(layer.impl, trained.device)
        mask = plan.masks.get(STREAM_HIDDEN_DROPOUT + number)
        gates = x + layer.bias_ih if layer.weight_ih is None else F.linear(x, layer.weight_ih, layer.bias_ih)
        arguments = (
            state, layer.weight_hh, layer.bias_hh, plan.reset[at], None if mask is None else mask[at], layer.form,
        )  # fmt: skip
        output, saved = forward(gates, *arguments)
        passes.append(_LayerPass(layer, x, output, saved, arguments))
        x = output
    return passes


def _score(
    trained: Trained, hidden: Tensor, rows: Tensor, bias: Tensor, live: Tensor, log_q: Tensor | None, items: Tensor
) -> tuple[Tensor, ...]:
    """A step's loss, and the gradients of the states, the items' rows and their biases."""
    criterion = trained.criterion
    chosen = _backend.resolve(criterion.impl, "sampled_loss", trained.device.type)
    score = sampled_loss_reference if chosen == "reference" else operators(chosen).sampled_loss
    return score(
        hidden, rows, bias, live, log_q, items if criterion.mask_accidental_hits else None, None, criterion.loss, True,
        float(criterion.batch_size), criterion.elu_param, criterion.bpreg, criterion.label_smoothing,
    )  # fmt: skip


def _backward(trained: Trained, passes: Sequence[_LayerPass], grad: Tensor, grads: _Gradients) -> Tensor:
    """The gradient of the first layer's x, [T, B, I]; those of the weights are added to `grads`."""
    for done in reversed(passes):
        layer = done.layer
        _, backward = _gru_operators(layer.impl, trained.device)
        gates, _, grad_hh, grad_bias_hh = backward(grad, done.output, done.saved, *done.arguments, False)
        flat = gates.flatten(0, 1)
        grads.add(layer.weight_hh, grad_hh)
        grads.add(layer.bias_ih, flat.sum(0))
        if layer.bias_hh is not None:
            grads.add(layer.bias_hh, grad_bias_hh)
        grad = gates
        if layer.weight_ih is not None:
            grads.add(layer.weight_ih, flat.T @ done.x.flatten(0, 1))
            grad = gates @ layer.weight_ih
    return grad


def _apply(
    trained: Trained,
    weights: dict[Tensor, Tensor],
    states: tuple[list[Tensor], list[Tensor]],
    moves: Tensor,
) -> None:
    """Move the GRU's weights by their gradients, and the states, in one launch."""
    moments = [trained.moments(weight) for weight in weights]
    velocities = [velocity for _, velocity in moments if velocity is not None]
    trained.operator("step_apply_")(
        [*weights], [accumulator for accumulator, _ in moments], velocities, [*weights.values()], *states, moves,
        trained.numbers,
    )  # fmt: skip


def _move_tables(trained: Trained, plan: Plan, grads: _Gradients, moves: Tensor) -> None:
    network, output = trained.network, trained.network.output
    inputs, rows, bias = _joined(grads.inputs), _joined(grads.rows), _joined(grads.bias)
    end = (moves, trained.numbers)
    move = trained.operator("step_rows_")
    if network.embedding_mode != "constrained":
        table, nothing = network.embedding.weight, inputs[:0]
        move(table, *trained.moments(table), None, None, None, *plan.sorted[1], inputs, nothing, None, *end)
        inputs = rows[:0]
    tables = (output.weight, *trained.moments(output.weight), output.bias, *trained.moments(output.bias))
    move(*tables, *plan.sorted[0], inputs, rows, bias, *end)
