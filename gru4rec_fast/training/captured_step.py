"""The captured training step, which trains on a GPU: CUDA graphs that read and write preallocated tensors.

One call makes many updates of the weights, as the fused step of `fused_step.py` does on the CPU. For a group of
updates, one operator assembles the blocks, a second operator draws the negatives, and a third operator draws the
dropout masks. A CUDA graph then runs forward, loss, backward and update for the whole group (`graph_capture.py`,
`captured_update.py`). There is no GPU synchronization until the end of `run`. Therefore dead lanes are masked, and
steps after the end of the epoch or after a loss that is not finite are computed, but update nothing.

A lane is one of the B sessions that are processed in parallel. A lane is dead once no session is left for it. A block
is T consecutive steps (mini-batches) of all lanes.

In tests, the same operators run on the CPU without a graph, with the `impl` of network, criterion and optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gru4rec_fast import _backend, ops
from gru4rec_fast.data import SessionParallelLoader
from gru4rec_fast.data.sessions.loader import LaneState
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.ops.training_step import OPERATORS as STEP_OPERATORS
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.profiling import phase
from gru4rec_fast.profiling.out_of_memory import active_guard, is_out_of_memory
from gru4rec_fast.training.captured_update import UpdateContext
from gru4rec_fast.training.fused_step import (
    NO_KERNELS,
    BlockOutcome,
    check_loader,
    item_range_error,
    repeated_only_before_updates,
    why_not_options,
    why_not_trainable_on,
)
from gru4rec_fast.training.graph_capture import CapturedUpdates, GraphCapturer, UpdatesShape

# The operators of the step, which all need a CUDA kernel.
_OPERATORS = ("session_batch", "negative_sampling", "dropout_mask", "gru", "sampled_loss", *STEP_OPERATORS)


def why_not_captured(network: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """Return the reason why the captured step cannot train this network on a GPU; None if the step can."""
    if reason := why_not_trainable_on(network, criterion, optimizer, "cuda"):
        return reason
    missing = [op for op in _OPERATORS if _backend.resolve("auto", op, "cuda") != "native"]
    if len(missing) == len(_OPERATORS):
        return NO_KERNELS
    return f"operator {missing[0]} has no CUDA kernel" if missing else None


class CapturedTrainingStep:
    """Trains a SessionNetwork with a SampledLoss and a SparseAdagrad on the network's device, many updates per call.

    Args:
        network, criterion, optimizer: the network to train, its loss, and the optimizer of its parameters;
            `why_not_captured` must return None for them. Missing optimizer state is created. Later changes of the
            criterion's options have no effect on graphs that are already captured.
        steps: T, steps in a block (truncated backpropagation through time).
        accumulate: blocks per update.
        precision: "full", or "bf16": the factors of matrix products with the output table are rounded to bfloat16, and
            the products are summed in float32. Everything else stays in float32, also the matrix products of the GRU.
        steps_per_graph: maximum number of steps in one graph; if an update has more steps, a graph has one update.

    Raises:
        ValueError: the captured step cannot train the network; the message says why.
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
        steps_per_graph: int = 16,
    ) -> None:
        weight = network.output.weight
        self.device = weight.device
        if self.device.type == "cuda" and (reason := why_not_captured(network, criterion, optimizer)):
            raise ValueError(f"no training step on {self.device}: {reason}")
        if precision == "bf16" and weight.dtype != torch.float32:
            raise ValueError(f"precision='bf16' needs float32 weights, not {weight.dtype}")
        self.steps, self.accumulate = steps, accumulate
        self.updates_per_graph = max(1, steps_per_graph // (steps * accumulate))
        stopped = torch.zeros((), dtype=torch.bool, device=self.device)
        hyperparameters = torch.zeros(3, dtype=torch.float64, device=self.device)
        scored_padding = weight.new_zeros(8 - weight.shape[1] % 8)
        scored_padding[0] = 1
        self._context = UpdateContext(
            network, criterion, optimizer, precision, stopped, hyperparameters, scored_padding
        )
        self._copied_hyperparameters: tuple[float, ...] = ()  # the values that were last copied to the device
        self._capturer = GraphCapturer(self.device) if self.device.type == "cuda" else None
        self._captured: dict[UpdatesShape, CapturedUpdates] = {}
        # Items and offsets of each log on the device, by the tensor of its items on the host.
        self._logs: dict[Tensor, tuple[Tensor, Tensor]] = {}

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
        """Update the weights once, from a block that the caller provides, as `FusedTrainingStep.train_block` does.

        This synchronizes with the GPU, because the loss is read.
        """
        self.prepare()
        steps, lanes = inputs.shape
        n_sample = 0 if negatives is None else negatives.shape[1]
        shape = UpdatesShape(updates=1, blocks=1, steps=steps, lanes=lanes, n_sample=n_sample, min_live=0)
        captured = self.captured_updates(shape)
        captured.fill((inputs, targets, reset), negatives, step)
        captured.run(hidden)
        return float(captured.losses.mean())

    def start_epoch(
        self, loader: SessionParallelLoader, sampler: ops.AliasTable | None, n_sample: int, seed: int
    ) -> CapturedEpoch:
        """Start an epoch at the current position of `loader`, with `n_sample` negatives per step from `sampler`.

        Raises:
            ValueError: the loader's blocks have another number of steps, or an item is out of range for the catalogue.
        """
        check_loader(loader, self.steps)
        return CapturedEpoch(self, loader, sampler if n_sample else None, n_sample, seed)

    @property
    def n_begun(self) -> int:
        """Number of updates that have begun to change the weights."""
        return self._context.n_begun

    def prepare(self) -> None:
        """Allow updates again after a loss that was not finite, and copy changed hyperparameters to the device."""
        if reason := why_not_options(self._context.optimizer):
            raise ValueError(reason)
        self._context.stopped.zero_()
        group = self._context.optimizer.param_groups[0]
        hyperparameters = tuple(float(group[name]) for name in ("lr", "momentum", "eps"))
        if hyperparameters != self._copied_hyperparameters:
            for index, value in enumerate(hyperparameters):
                self._context.hyperparameters[index].fill_(value)  # copying a tensor from the host would synchronize
            self._copied_hyperparameters = hyperparameters

    def device_log(self, loader: SessionParallelLoader) -> tuple[Tensor, Tensor]:
        """Return the loader's items and offsets on the device; they are copied and checked at the first call.

        Raises:
            ValueError: an item is out of range for the catalogue.
        """
        if loader.items not in self._logs:
            items, offsets = loader.items.to(self.device), loader.offsets.to(self.device)
            if extremes := item_range_error(items, loader.n_items):
                raise loader.damage_error(f"lowest {extremes[0]}, highest {extremes[1]}")
            self._logs[loader.items] = items, offsets
        return self._logs[loader.items]

    def captured_updates(self, shape: UpdatesShape) -> CapturedUpdates:
        """Return the `CapturedUpdates` of this shape. Each shape has one object, which keeps the captured graph."""
        if shape not in self._captured:
            self._captured[shape] = CapturedUpdates(self._context, shape, self._capturer)
        return self._captured[shape]


class CapturedEpoch:
    """An epoch that `CapturedTrainingStep.start_epoch` has started. Each call of `run` makes some of the updates."""

    def __init__(
        self,
        training_step: CapturedTrainingStep,
        loader: SessionParallelLoader,
        sampler: ops.AliasTable | None,
        n_sample: int,
        seed: int,
    ) -> None:
        device = training_step.device
        order, lane_state = loader.start_epoch()
        self._training_step, self._loader = training_step, loader
        self._items, self._offsets = training_step.device_log(loader)
        self._host_order, self._order = order, None if order is None else order.to(device)
        self._lane_state = tuple(tensor.to(device, copy=True) for tensor in lane_state)
        self._sampler = None if sampler is None else sampler.to(device)
        self._n_sample, self._seed = (0 if sampler is None else n_sample), seed
        self._finished = False
        self._n_ordered = len(self._loader.offsets) - 1 if order is None else len(order)
        self._n_targets_left = self._count_targets_left(lane_state)
        self._n_steps_left = self._count_steps_left(lane_state)

    def run(self, updates: int, hidden: Sequence[Tensor], *, step: int) -> tuple[list[BlockOutcome], bool]:
        """Make at most `updates` updates, as `FusedEpoch.run` does. Synchronizes with the GPU once, at the end.

        An update that runs out of memory within `oom_guard` has not begun, and is tried again in the next call.

        Updates after the end of the epoch would cost as much as others. So the number of updates in a call is limited
        to the number that the epoch has left, or to a lower bound of it, but is at least one.
        """
        if self._finished:
            return [], True
        with repeated_only_before_updates(self._training_step):
            return self._run(updates, hidden, step)

    def _run(self, updates: int, hidden: Sequence[Tensor], step: int) -> tuple[list[BlockOutcome], bool]:
        """Do what `run` does, except for errors after an update has begun."""
        self._training_step.prepare()
        per_update = self._training_step.steps * self._training_step.accumulate
        updates = min(updates, max(1, math.ceil(self._n_steps_left / per_update)))
        results: list[Tensor] = []
        while updates > 0:
            position = None if active_guard() is None else [tensor.clone() for tensor in self._lane_state]
            n_begun = self._training_step.n_begun
            try:
                captured, result = self._run_next(updates, hidden, step)
            except RuntimeError as error:
                if position is None or not is_out_of_memory(error) or self._training_step.n_begun > n_begun:
                    raise
                for tensor, earlier in zip(self._lane_state, position, strict=True):
                    tensor.copy_(earlier)
                if not results:
                    raise
                break  # return the updates that were made; the next call tries this one again
            results.append(result)
            updates, step = updates - captured.shape.updates, step + captured.shape.mini_batches
        blocks = self._block_outcomes(torch.cat(results).tolist())
        lane_session, lane_position, cursor = (tensor.cpu() for tensor in self._lane_state)
        lane_state = lane_session, lane_position, cursor
        self._n_targets_left -= sum(block.events for block in blocks)
        self._n_steps_left = self._count_steps_left(lane_state)
        self._finished = self._finished or self._n_steps_left == 0
        self._loader.set_position(lane_state, self._finished)
        return blocks, self._finished

    def _run_next(self, updates: int, hidden: Sequence[Tensor], step: int) -> tuple[CapturedUpdates, Tensor]:
        """Make the next updates of one shape; return their object, and loss and live lanes of each mini-batch, [K, 2].

        Losses and numbers of live lanes are in one float64 tensor, so that one copy to the host suffices.
        """
        with phase("workspace"):
            captured = self.next_updates(updates, len(hidden[0]))
        with phase("batch"):
            captured.fill(*self.draw(captured.shape.mini_batches, step), step)
        with phase("updates"):  # the first call of a shape captures the CUDA graph
            captured.run(hidden)
        return captured, torch.stack([captured.losses.double(), captured.n_live.double()], 1)

    def _targets_left_in_lanes(self, lane_state: LaneState) -> Tensor:
        """Return the number of targets left in the session of each lane that has one. `lane_state` is on the CPU."""
        session, position, _ = lane_state
        has_session = (session >= 0) & (session < self._n_ordered)
        index = session[has_session] if self._host_order is None else self._host_order[session[has_session]]
        return self._loader.offsets[index + 1] - 1 - position[has_session]

    def _count_targets_left(self, lane_state: LaneState) -> int:
        """Return the number of targets from this position to the end of the epoch."""
        n_started = int(lane_state[2])
        if n_started == 0:
            return self._loader.n_targets
        per_session = (self._loader.offsets.diff() - 1).clamp_(min=0)
        not_started = slice(n_started, None) if self._host_order is None else self._host_order[n_started:]
        return int(per_session[not_started].sum() + self._targets_left_in_lanes(lane_state).sum())

    def _count_steps_left(self, lane_state: LaneState) -> int:
        """Return the number of mini-batches to the end of the epoch; a lower bound while sessions wait for a lane."""
        if int(lane_state[2]) < self._n_ordered:
            return math.ceil(self._n_targets_left / self._loader.n_lanes)
        # The epoch ends with the first step that has fewer than min_live lanes.
        ends = self._targets_left_in_lanes(lane_state).sort(descending=True).values[self._loader.min_live - 1 :]
        return int(ends[0]) if len(ends) else 0

    def next_updates(self, updates: int, lanes: int) -> CapturedUpdates:
        """Return the object that runs the next updates: as many as fit a graph, or one if fewer than that remain."""
        per_graph = self._training_step.updates_per_graph
        shape = UpdatesShape(
            updates=per_graph if updates >= per_graph else 1, blocks=self._training_step.accumulate,
            steps=self._training_step.steps, lanes=lanes, n_sample=self._n_sample, min_live=self._loader.min_live,
        )  # fmt: skip
        return self._training_step.captured_updates(shape)

    def draw(self, steps: int, step: int) -> tuple[Sequence[Tensor], Tensor | None]:
        """Return (inputs, targets, reset) and the negatives of the `steps` mini-batches that start at `step`."""
        lane_session, lane_position, cursor = self._lane_state
        block = ops.session_batch(
            self._items, self._offsets, self._order, lane_session, lane_position, cursor, steps, impl=self._loader.impl
        )
        if self._sampler is None:
            return block, None
        return block, ops.negative_sampling(
            self._sampler, self._n_sample, seed=self._seed, step=step, steps=steps, impl=self._loader.impl
        )[0]

    def _block_outcomes(self, steps: list[list[float]]) -> list[BlockOutcome]:
        """Return the outcome of each block, given (loss, number of live lanes) of each step; set `_finished`.

        Steps after the end of the epoch, or after a loss that is not finite, are not counted.
        """
        blocks: list[BlockOutcome] = []
        per_block = self._training_step.steps
        for start in range(0, len(steps), per_block):
            block = [(loss, live) for loss, live in steps[start : start + per_block] if live >= self._loader.min_live]
            self._finished = len(block) < per_block
            if block:
                losses, n_live = zip(*block, strict=True)
                blocks.append(BlockOutcome(sum(losses) / len(block), len(block), int(sum(n_live))))
            if self._finished or not math.isfinite(blocks[-1].loss):
                break
        return blocks
