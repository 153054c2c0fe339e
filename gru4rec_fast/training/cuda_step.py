"""The training step on a GPU: GRU4Rec steps over memory that stays where it is, many of them in one CUDA graph.

What `fused.py` is on the CPU, put together from operators. Blocks, negatives and dropout masks of a launch's updates
are drawn by one operator each; a graph then plays forward, loss, backward and update, one after the other. Nothing
waits for the host: lanes that died are masked, and a step that is not to be played, because the epoch is over or an
earlier loss was no finite number, moves nothing. Losses stay on the device until `run` ends.

On the CPU the same sequence runs uncaptured, with whatever `impl` the parts ask for: a tool for tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gru4rec_fast import _backend, ops
from gru4rec_fast.data import SessionParallelLoader
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.ops.training_step import OPERATORS as STEP_OPERATORS
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.training.cuda_launch import Extent, Launch
from gru4rec_fast.training.cuda_update import Trained
from gru4rec_fast.training.fused import NO_KERNELS, BlockOutcome, outside_catalogue, why_not_parts

_OPERATORS = ("session_batch", "negative_sampling", "dropout_mask", "gru", "sampled_loss", *STEP_OPERATORS)


def why_not_cuda_step(network: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """Why this step cannot train these parts on a GPU; None where it can."""
    if reason := why_not_parts(network, criterion, optimizer, "cuda"):
        return reason
    missing = [op for op in _OPERATORS if _backend.resolve("auto", op, "cuda") != "native"]
    if len(missing) == len(_OPERATORS):
        return NO_KERNELS
    return f"operator {missing[0]} has no CUDA kernel" if missing else None


class CudaTrainingStep:
    """Training steps of a SessionNetwork under a SampledLoss and a SparseAdagrad, where the network's weights are.

    Args:
        network, criterion, optimizer: parts for which `why_not_cuda_step` has no objection. The optimizer's state is
            made where it is not there yet. A graph holds on to the criterion's options.
        steps: T, steps in a block (truncated backpropagation through time).
        accumulate: blocks per update.
        precision: "full", or "bf16": the products with the output table's rows are of float32 numbers rounded to
            bfloat16, summed in float32; all else stays in float32, the GRU's products among it.
        per_launch: K, steps in one graph, or one update's where it has more.

    Raises:
        ValueError: the parts cannot be trained by it; the message says why.
    """

    def __init__(
        self,
        network: SessionNetwork,
        criterion: SampledLoss,
        optimizer: SparseAdagrad,
        *,
        steps: int = 1,
        accumulate: int = 1,
        precision: str = "full",
        per_launch: int = 16,
    ) -> None:
        weight = network.output.weight
        self.device = weight.device
        if self.device.type == "cuda" and (reason := why_not_cuda_step(network, criterion, optimizer)):
            raise ValueError(f"no training step on {self.device}: {reason}")
        if precision == "bf16" and weight.dtype != torch.float32:
            raise ValueError(f"precision='bf16' goes with float32, not with {weight.dtype}")
        self.steps, self.accumulate = steps, accumulate
        self.updates_per_launch = max(1, per_launch // (steps * accumulate))
        stopped = torch.zeros((), dtype=torch.bool, device=self.device)
        numbers = torch.zeros(3, dtype=torch.float64, device=self.device)
        self._trained = Trained(network, criterion, optimizer, precision, stopped, numbers)
        self._numbers: tuple[float, ...] = ()  # those that are on the device
        self._launches: dict[Extent, Launch] = {}
        self._logs: dict[Tensor, tuple[Tensor, Tensor]] = {}  # by their items on the host

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
        """One update from a block that is given; arguments and result as `FusedTrainingStep.train_block`.

        The host waits for the loss.
        """
        self.begin()
        steps, lanes = inputs.shape
        n_sample = 0 if negatives is None else negatives.shape[1]
        launch = self.launch(Extent(1, 1, steps, lanes, n_sample, min_live=0))
        launch.fill((inputs, targets, reset), negatives, step)
        launch.run(hidden)
        return float(launch.losses.mean())

    def player(
        self, loader: SessionParallelLoader, sampler: ops.AliasTable | None, n_sample: int, seed: int
    ) -> CudaPlayer:
        """What plays an epoch of `loader` from where it stands, with `n_sample` negatives a step from `sampler`.

        Raises:
            ValueError: the loader plays other blocks than this step was made for, or an item is not in the catalogue.
        """
        if loader.steps != self.steps:
            raise ValueError(f"the loader plays blocks of {loader.steps} steps, this trains blocks of {self.steps}")
        return CudaPlayer(self, loader, sampler if n_sample else None, n_sample, seed)

    def begin(self) -> None:
        """Before updates: none has failed yet, and the device has the optimizer's numbers as they are now."""
        self._trained.stopped.zero_()
        group = self._trained.optimizer.param_groups[0]
        numbers = tuple(float(group[name]) for name in ("lr", "momentum", "eps"))
        if numbers != self._numbers:
            for place, number in enumerate(numbers):
                self._trained.numbers[place].fill_(number)  # by value: a copy from the host would wait
            self._numbers = numbers

    def log(self, loader: SessionParallelLoader) -> tuple[Tensor, Tensor]:
        """A loader's items and offsets on the device, copied and looked through once.

        Raises:
            ValueError: an item that is not in the catalogue.
        """
        if loader.items not in self._logs:
            items, offsets = loader.items.to(self.device), loader.offsets.to(self.device)
            if found := outside_catalogue(items, loader.n_items):
                raise loader.damage_error(f"values from {found[0]} to {found[1]}")
            self._logs[loader.items] = items, offsets
        return self._logs[loader.items]

    def launch(self, extent: Extent) -> Launch:
        """What plays so much at a time; kept, with its graph."""
        if extent not in self._launches:
            self._launches[extent] = Launch(self._trained, extent)
        return self._launches[extent]


class CudaPlayer:
    """Plays one epoch, some updates at a time; see `CudaTrainingStep.player`."""

    def __init__(
        self,
        step: CudaTrainingStep,
        loader: SessionParallelLoader,
        sampler: ops.AliasTable | None,
        n_sample: int,
        seed: int,
    ) -> None:
        device = step.device
        order, lanes = loader.start_epoch()
        self._step, self._loader = step, loader
        self._items, self._offsets = step.log(loader)
        self._order = None if order is None else order.to(device)
        self._lanes = tuple(t.to(device, copy=True) for t in lanes)
        self._sampler = None if sampler is None else sampler.to(device)
        self._n_sample, self._seed = (0 if sampler is None else n_sample), seed
        self._finished = False

    def run(self, updates: int, hidden: Sequence[Tensor], *, step: int) -> tuple[list[BlockOutcome], bool]:
        """Train on for at most `updates` updates; arguments and result as `FusedPlayer.run`.

        The host waits for the device at the end alone.
        """
        if self._finished:
            return [], True
        self._step.begin()
        lanes, played = len(hidden[0]), []
        while updates > 0:
            launch = self.next_launch(updates, lanes)
            n = launch.extent.mini_batches
            launch.fill(*self.draw(n, step), step)
            launch.run(hidden)
            played.append(torch.stack([launch.losses.double(), launch.n_live.double()], 1))
            updates, step = updates - launch.extent.updates, step + n
        blocks = self._outcomes(torch.cat(played).tolist())
        self._loader.set_position(tuple(t.cpu() for t in self._lanes), self._finished)  # type: ignore[arg-type]
        return blocks, self._finished

    def next_launch(self, updates: int, lanes: int) -> Launch:
        """What plays the next of `updates` updates: as many as a launch has, or one."""
        whole = self._step.updates_per_launch
        n = whole if updates >= whole else 1
        shape = (self._step.accumulate, self._step.steps, lanes, self._n_sample, self._loader.min_live)
        return self._step.launch(Extent(n, *shape))

    def draw(self, n: int, step: int) -> tuple[Sequence[Tensor], Tensor | None]:
        """Blocks and negatives of the `n` mini-batches from `step` on."""
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
        """The blocks that were played: none after the end of the epoch, or after a loss that is no finite number."""
        blocks: list[BlockOutcome] = []
        steps = self._step.steps
        for first in range(0, len(played), steps):
            block = [(loss, int(n)) for loss, n in played[first : first + steps] if n >= self._loader.min_live]
            self._finished = len(block) < steps
            if block:
                loss = sum(loss for loss, _ in block) / len(block)
                blocks.append(BlockOutcome(loss, len(block), sum(n for _, n in block)))
            if self._finished or not abs(blocks[-1].loss) < float("inf"):
                break
        return blocks
