"""Some training steps over memory that stays where it is: what `cuda_step.py` captures in one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gru4rec_fast import _backend, ops
from gru4rec_fast.nn import ItemTable, SampledLoss, SessionNetwork
from gru4rec_fast.ops._registry import operators
from gru4rec_fast.reference.gru import gru_backward, gru_forward
from gru4rec_fast.reference.philox import STREAM_EMBEDDING_DROPOUT, STREAM_HIDDEN_DROPOUT
from gru4rec_fast.reference.sampled_loss_gradients import sampled_loss_and_gradients


class Trained(Protocol):
    """What is trained, and how it moves: a `CudaTrainingStep`."""

    network: SessionNetwork
    criterion: SampledLoss
    device: torch.device
    stopped: Tensor

    def baked(self) -> tuple[Any, ...]:
        """What a graph has taken hold of: where one of these is another, it is captured anew."""

    def update(self, weight: Tensor, index: Tensor, grad: Tensor, *, as_one_row: bool = False) -> None:
        """Move the rows of a weight that `index` names; or all of it, as a table of one row, which is row 0."""


class Launch:
    """`n` steps, over memory of their own: played one by one at first, captured and replayed from then on."""

    def __init__(self, step: Trained, n: int, lanes: int, n_sample: int, min_live: int) -> None:
        self.n, self._step, self._min_live = n, step, min_live
        network, device = step.network, step.device
        like = network.output.weight

        def events(*shape: int) -> Tensor:
            return torch.full(shape, -1, dtype=torch.int64, device=device)

        self.inputs, self.targets, self.n_live = events(n, lanes), events(n, lanes), events(n)
        self.reset = torch.zeros(n, lanes, dtype=torch.bool, device=device)
        self.negatives = events(n, n_sample)
        self.losses = like.new_zeros(n)
        self.hidden = [like.new_zeros(lanes, size) for size in network.gru.sizes]
        self.masks: dict[int, Tensor] = {}  # by Philox stream
        self._kept: list[tuple[Any, ...]] = []  # of each layer, for the backward pass
        self._graph: torch.cuda.CUDAGraph | None = None
        self._baked: tuple[Any, ...] = ()

    def fill(self, block: Sequence[Tensor], negatives: Tensor | None, first_step: int) -> None:
        """Take in the steps from `first_step` on, and draw their dropout masks."""
        for kept, given in zip((self.inputs, self.targets, self.reset), block, strict=True):
            kept.copy_(given)
        if negatives is not None:
            self.negatives.copy_(negatives)
        network = self._step.network
        lanes, width = self.inputs.shape[1], self._table().weight.shape[1]
        wanted = {STREAM_EMBEDDING_DROPOUT: (width, network.dropout_p_embed)}
        wanted |= {STREAM_HIDDEN_DROPOUT + i: (size, network.gru.dropout) for i, size in enumerate(network.gru.sizes)}
        for stream, (units, p) in wanted.items():
            if not (network.training and p):
                self.masks.pop(stream, None)
                continue
            mask = ops.dropout_mask(
                self.n, lanes, units, p, seed=network.seed, stream=stream, step=first_step, dtype=self.losses.dtype,
                device=self._step.device, impl=network.impl,
            )  # fmt: skip
            self.masks.setdefault(stream, mask).copy_(mask)

    def run(self, hidden: Sequence[Tensor]) -> None:
        """Play the steps; the states are updated."""
        for kept, given in zip(self.hidden, hidden, strict=True):
            kept.copy_(given)
        self._run()
        for kept, given in zip(self.hidden, hidden, strict=True):
            given.copy_(kept)

    def _run(self) -> None:
        baked = (self._step.baked(), [mask.data_ptr() for mask in self.masks.values()])
        if baked != self._baked or self._step.device.type != "cuda":
            self._graph, self._baked = None, baked
            self._play()
            return
        if self._graph is None:  # the second time with the same numbers: all that is made at first use is there by now
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._play()
        self._graph.replay()
        torch.autograd.graph.increment_version([*self._step.network.parameters()])

    def _play(self) -> None:
        for t in range(self.n):
            self._play_step(t)

    @torch.no_grad()
    def _play_step(self, t: int) -> None:
        step, network = self._step, self._step.network
        inputs, targets = self.inputs[t], self.targets[t]
        live = targets >= 0
        n_live = live.sum()
        self.n_live[t].copy_(n_live)
        active = (n_live >= self._min_live) & ~step.stopped
        table = self._table()
        x = table.weight.index_select(0, inputs.clamp(min=0)).masked_fill_(~live.unsqueeze(1), 0)
        embedding_mask = self.masks.get(STREAM_EMBEDDING_DROPOUT)
        x = x if embedding_mask is None else x * embedding_mask[t]
        outputs = self._forward(x, t)

        items = torch.cat([targets, self.negatives[t]])
        loss, grad, grad_rows, grad_bias = self._score(outputs[-1], items, live & active)
        self.losses[t].copy_(loss)
        moves = active & loss.isfinite()
        step.stopped.logical_or_(active & ~moves)

        grad = self._backward(grad, moves)
        grad = grad if embedding_mask is None else grad * embedding_mask[t]
        inputs, items = inputs.masked_fill(~moves, -1), items.masked_fill(~moves, -1)
        if table is network.output:
            step.update(table.weight, torch.cat([inputs, items]), torch.cat([grad, grad_rows]))
        else:
            step.update(table.weight, inputs, grad)
            step.update(network.output.weight, items, grad_rows)
        step.update(network.output.bias, items, grad_bias)
        for state, output in zip(self.hidden, outputs, strict=True):
            state.copy_(torch.where(moves, output, state))

    def _table(self) -> ItemTable:
        """Of the input embedding."""
        network = self._step.network
        return network.output if network.embedding_mode == "constrained" else network.embedding

    def _forward(self, x: Tensor, t: int) -> list[Tensor]:
        """The layers' outputs; what the backward pass needs is kept."""
        self._kept = []
        outputs = []
        layers: Any = self._step.network.gru.layers
        for number, (layer, state) in enumerate(zip(layers, self.hidden, strict=True)):
            forward, _ = _gru_operators(layer.impl, self._step.device)
            mask = self.masks.get(STREAM_HIDDEN_DROPOUT + number)
            mask = None if mask is None else mask[t : t + 1]
            gates = F.linear(x, layer.weight_ih, layer.bias_ih).unsqueeze(0)
            weights = (layer.weight_hh, layer.bias_hh, self.reset[t : t + 1], mask, layer.form)
            output, saved = forward(gates, state, *weights)
            self._kept.append((layer, x, output, saved, state, weights))
            x = output[0]
            outputs.append(x)
        return outputs

    def _score(self, hidden: Tensor, items: Tensor, live: Tensor) -> tuple[Tensor, ...]:
        """Loss, and gradients of the states, the items' rows and their biases."""
        step, criterion = self._step, self._step.criterion
        output, known = step.network.output, items.clamp(min=0)
        log_q = None
        if criterion.log_support is not None:
            log_q = criterion.logq * criterion.log_support.index_select(0, known)
            log_q[len(live) :] *= criterion.sample_alpha
        chosen = _backend.resolve(criterion.impl, "sampled_loss", step.device.type)
        score = sampled_loss_and_gradients if chosen == "reference" else operators(chosen).sampled_loss
        return score(
            hidden, output.weight.index_select(0, known), output.bias.index_select(0, known), live, log_q,
            items if criterion.mask_accidental_hits else None, None, criterion.loss, True, float(criterion.batch_size),
            criterion.elu_param, criterion.bpreg, criterion.label_smoothing,
        )  # fmt: skip

    def _backward(self, grad: Tensor, moves: Tensor) -> Tensor:
        """The gradient of the embedding; each layer's weights move once its own gradients are there."""
        whole = (moves.long() - 1).view(1)  # row 0, which is all of a weight, or none
        for layer, x, output, saved, state, weights in reversed(self._kept):
            _, backward = _gru_operators(layer.impl, self._step.device)
            gates, _, grad_hh, grad_bias_hh = backward(grad.unsqueeze(0), output, saved, state, *weights)
            grad = gates[0] @ layer.weight_ih
            grads = {"weight_ih": gates[0].T @ x, "bias_ih": gates[0].sum(0), "weight_hh": grad_hh}
            if layer.bias_hh is not None:
                grads["bias_hh"] = grad_bias_hh
            for name, of_weight in grads.items():
                self._step.update(getattr(layer, name), whole, of_weight, as_one_row=True)
        return grad


def _gru_operators(impl: str, device: torch.device) -> tuple[Callable[..., Any], Callable[..., Any]]:
    chosen = _backend.resolve(impl, "gru", device.type)
    if chosen == "reference":
        return gru_forward, gru_backward
    return operators(chosen).gru, operators(chosen).gru_backward
