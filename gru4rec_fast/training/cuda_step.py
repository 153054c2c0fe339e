"""The training step on a GPU: GRU4Rec steps over memory that stays where it is, many of them in one CUDA graph.

What `fused.py` is on the CPU, put together from operators. Blocks, negatives and dropout masks of `per_launch` steps
are drawn by one operator each; a graph then plays forward, loss, backward and update of step after step. Nothing waits
for the host: lanes that died are masked, and a step that is not to be played, because the epoch is over or an earlier
loss was no finite number, names no rows (-1), and so moves nothing. Losses stay on the device until `run` ends.

On the CPU the same sequence runs uncaptured, with whatever `impl` the parts ask for: a tool for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gru4rec_fast import _backend, ops
from gru4rec_fast.data.loader import SessionParallelLoader
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.ops._registry import operators
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.reference.gru import gru_backward, gru_forward
from gru4rec_fast.reference.philox import STREAM_EMBEDDING_DROPOUT, STREAM_HIDDEN_DROPOUT
from gru4rec_fast.reference.sampled_loss_gradients import sampled_loss_and_gradients
from gru4rec_fast.training.fused import BlockOutcome, why_not_parts

_OPERATORS = ("session_batch", "negative_sampling", "dropout_mask", "gru", "sampled_loss", "sparse_adagrad")


def why_not_cuda_step(
    network: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int, accumulate: int
) -> str | None:
    """Why this step cannot train these parts, in blocks of `steps`, on a GPU; None where it can.

    Raises:
        RuntimeError: impl="native" was asked for, and there are no native kernels.
    """
    if reason := why_not_parts(network, criterion, optimizer, "cuda"):
        return reason
    if isinstance(network, SessionNetwork) and network.embedding_mode == "none":
        return "on a GPU it trains embeddings, not the one-hot input"
    if steps * accumulate > 1:
        return "on a GPU it makes an update of every step: bptt=1, accumulate=1"
    for op in _OPERATORS:
        if _backend.resolve("auto", op, "cuda") != "native":
            return f"operator {op} has no native kernel on cuda"
    return None


class CudaTrainingStep:
    """Training steps of a SessionNetwork under a SampledLoss and a SparseAdagrad, where the network's weights are.

    Args:
        network, criterion, optimizer: parts for which `why_not_cuda_step` has no objection. The optimizer's state is
            made where it is not there yet.
        per_launch: K, steps in one graph.

    Raises:
        ValueError: the parts cannot be trained by it; the message says why.
    """

    def __init__(
        self, network: SessionNetwork, criterion: SampledLoss, optimizer: SparseAdagrad, *, per_launch: int = 16
    ) -> None:
        self.device = network.output.weight.device
        if self.device.type == "cuda":
            reason = why_not_cuda_step(network, criterion, optimizer, steps=1, accumulate=1)
            if reason:
                raise ValueError(f"no training step on {self.device}: {reason}")
        self.network, self.criterion, self.optimizer = network, criterion, optimizer
        self.per_launch = per_launch
        self.stopped = torch.zeros((), dtype=torch.bool, device=self.device)  # at a loss that was no finite number
        self._launches: dict[tuple[int, ...], _Launch] = {}

    def train_block(
        self,
        inputs: Tensor,
        targets: Tensor,
        reset: Tensor,
        negatives: Tensor | None,
        hidden: Sequence[Tensor],
        *,
        step: int,
    ) -> float:
        """One update from a block of one step that is given; arguments and result as `FusedTrainingStep.train_block`.

        The host waits for the loss.
        """
        self.stopped.zero_()
        launch = self._launch(1, inputs.shape[1], 0 if negatives is None else negatives.shape[1], min_live=1)
        launch.fill((inputs, targets, reset), negatives, step)
        launch.run(hidden)
        return float(launch.losses[0])

    def player(
        self, loader: SessionParallelLoader, sampler: ops.AliasTable | None, n_sample: int, seed: int
    ) -> CudaPlayer:
        """What plays an epoch of `loader` from where it stands, with `n_sample` negatives a step from `sampler`.

        Raises:
            ValueError: the loader plays blocks of more than one step.
        """
        if loader.steps != 1:
            raise ValueError(f"the loader plays blocks of {loader.steps} steps, this trains blocks of 1")
        return CudaPlayer(self, loader, sampler if n_sample else None, n_sample, seed)

    def _launch(self, n: int, lanes: int, n_sample: int, min_live: int) -> _Launch:
        """What plays `n` steps at a time; kept, with its graph."""
        key = (n, lanes, n_sample, min_live)
        if key not in self._launches:
            self._launches[key] = _Launch(self, n, lanes, n_sample, min_live)
        return self._launches[key]

    def moments(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.optimizer.moments(weight, self.numbers()["momentum"])

    def numbers(self) -> dict[str, float]:
        group = self.optimizer.param_groups[0]
        return {name: float(group[name]) for name in ("lr", "momentum", "eps")}

    def baked(self) -> tuple[Any, ...]:
        """What a graph has taken hold of: where one of these is another, it is captured anew."""
        kept = [tensor for weight in self.network.parameters() for tensor in (weight, *self.moments(weight))]
        pointers = tuple(tensor.data_ptr() for tensor in kept if tensor is not None)
        return pointers, tuple(self.numbers().values()), self.network.training

    def update(self, weight: Tensor, index: Tensor, grad: Tensor, *, as_one_row: bool = False) -> None:
        """Move the rows of a weight that `index` names; or all of it, as a table of one row, which is row 0."""
        tensors = (weight, *self.moments(weight))
        if as_one_row:
            tensors = tuple(None if tensor is None else tensor.view(1, -1) for tensor in tensors)  # type: ignore[assignment]
            grad = grad.reshape(1, -1)
        ops.sparse_adagrad(*tensors, index, grad, **self.numbers(), impl=self.optimizer.impl)  # type: ignore[arg-type]


class _Launch:
    """`n` steps, over memory of their own: played one by one at first, captured and replayed from then on."""

    def __init__(self, step: CudaTrainingStep, n: int, lanes: int, n_sample: int, min_live: int) -> None:
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
        lanes, width = self.inputs.shape[1], network.gru.layers[0].weight_ih.shape[1]  # type: ignore[union-attr]
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
        baked = self._step.baked()
        if baked != self._baked or self._step.device.type != "cuda":
            self._graph, self._baked = None, baked
            self._play()
            return
        if self._graph is None:  # the second time with the same numbers: all that is made at first use is there by now
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._play()
        self._graph.replay()

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
        table = network.output if network.embedding_mode == "constrained" else network.embedding
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

    def _forward(self, x: Tensor, t: int) -> list[Tensor]:
        """The layers' outputs; what the backward pass needs is kept."""
        self._kept = []
        outputs = []
        for number, (layer, state) in enumerate(zip(self._step.network.gru.layers, self.hidden, strict=True)):
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


class CudaPlayer:
    """Plays one epoch, some updates at a time; see `CudaTrainingStep.player`. The log is copied to the device."""

    def __init__(
        self,
        step: CudaTrainingStep,
        loader: SessionParallelLoader,
        sampler: ops.AliasTable | None,
        n_sample: int,
        seed: int,
    ) -> None:
        device = step.device
        order, lanes = loader.begin()
        self._step, self._loader = step, loader
        self._log = [None if t is None else t.to(device) for t in (loader.items, loader.offsets, order)]
        self._lanes = tuple(t.to(device, copy=True) for t in lanes)
        self._sampler = None if sampler is None else sampler.to(device)
        self._n_sample, self._seed, self._finished = n_sample, seed, False

    def run(self, updates: int, hidden: Sequence[Tensor], *, step: int) -> tuple[list[BlockOutcome], bool]:
        """Train on for at most `updates` updates; arguments, result and errors as `FusedPlayer.run`.

        The host waits for the device once, at the end.
        """
        if self._finished:
            return [], True
        self._step.stopped.zero_()
        lanes, played = len(hidden[0]), []
        n_sample = self._n_sample if self._sampler is not None else 0
        while updates > 0:
            n = self._step.per_launch if updates >= self._step.per_launch else 1
            launch = self._step._launch(n, lanes, n_sample, self._loader.min_live)
            launch.fill(*self._draw(n, step), step)
            launch.run(hidden)
            played.append(torch.stack([launch.losses.double(), launch.n_live.double()], 1))
            updates, step = updates - n, step + n
        blocks = self._outcomes(torch.cat(played).tolist())
        self._loader.moved_to(tuple(t.cpu() for t in self._lanes), self._finished)  # type: ignore[arg-type]
        return blocks, self._finished

    def _draw(self, n: int, step: int) -> tuple[Sequence[Tensor], Tensor | None]:
        """Blocks and negatives of the `n` steps from `step` on."""
        block = ops.session_batch(*self._log, *self._lanes, n, impl=self._loader.impl)  # type: ignore[arg-type]
        if self._sampler is None:
            return block, None
        return block, ops.negative_sampling(
            self._sampler, self._n_sample, seed=self._seed, step=step, steps=n, impl=self._loader.impl
        )[0]

    def _outcomes(self, played: list[list[float]]) -> list[BlockOutcome]:
        """The steps that were played: none after the end of the epoch, or after a loss that is no finite number."""
        blocks: list[BlockOutcome] = []
        for loss, n_live in played:
            if n_live < self._loader.min_live:
                self._finished = True
                break
            blocks.append(BlockOutcome(loss, 1, int(n_live)))
            if not abs(loss) < float("inf"):
                break
        return blocks
