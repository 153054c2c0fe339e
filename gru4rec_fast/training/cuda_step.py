"""The training step on a GPU: GRU4Rec steps over memory that stays where it is, many of them in one CUDA graph.

What `fused.py` is on the CPU, put together from operators. Blocks, negatives and dropout masks of `per_launch` steps
are drawn by one operator each; a graph then plays forward, loss, backward and update of step after step. Nothing waits
for the host: lanes that died are masked, and a step that is not to be played, because the epoch is over or an earlier
loss was no finite number, names no rows (-1), and so moves nothing. Losses stay on the device until `run` ends.

On the CPU the same sequence runs uncaptured, with whatever `impl` the parts ask for: a tool for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gru4rec_fast import _backend, ops
from gru4rec_fast.data.loader import SessionParallelLoader
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.training.cuda_launch import Launch
from gru4rec_fast.training.fused import NO_KERNELS, BlockOutcome, why_not_parts

_OPERATORS = ("session_batch", "negative_sampling", "dropout_mask", "gru", "sampled_loss", "sparse_adagrad")


def why_not_cuda_step(
    network: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int, accumulate: int
) -> str | None:
    """Why this step cannot train these parts, in blocks of `steps`, on a GPU; None where it can."""
    if reason := why_not_parts(network, criterion, optimizer, "cuda"):
        return reason
    if isinstance(network, SessionNetwork) and network.embedding_mode == "none":
        return "on a GPU it trains embeddings, not the one-hot input"
    if steps * accumulate > 1:
        return "on a GPU it makes an update of every step: bptt=1, accumulate=1"
    missing = [op for op in _OPERATORS if _backend.resolve("auto", op, "cuda") != "native"]
    if len(missing) == len(_OPERATORS):
        return NO_KERNELS
    return f"operator {missing[0]} has no CUDA kernel" if missing else None


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
        self._launches: dict[tuple[int, ...], Launch] = {}

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

    def _launch(self, n: int, lanes: int, n_sample: int, min_live: int) -> Launch:
        """What plays `n` steps at a time; kept, with its graph."""
        key = (n, lanes, n_sample, min_live)
        if key not in self._launches:
            self._launches[key] = Launch(self, n, lanes, n_sample, min_live)
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
        self._items, self._offsets = loader.items.to(device), loader.offsets.to(device)
        self._order = None if order is None else order.to(device)
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
        lane_session, lane_position, cursor = self._lanes
        block = ops.session_batch(
            self._items, self._offsets, self._order, lane_session, lane_position, cursor, n, impl=self._loader.impl
        )
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
