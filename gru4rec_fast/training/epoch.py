"""Playing one epoch: blocks in, updates of the weights out; by the fused step of the device, or by autograd."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gru4rec_fast import ops
from gru4rec_fast.data import SessionBlock, SessionParallelLoader
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.profiling import NULL_RECORD, MemoryRecord
from gru4rec_fast.training.cuda_step import CudaPlayer, CudaTrainingStep, why_not_cuda_step
from gru4rec_fast.training.fused import FusedPlayer, FusedTrainingStep, why_not_fused
from gru4rec_fast.training.options import TrainingOptions
from gru4rec_fast.training.place import LossWatch, Place, add_loss
from gru4rec_fast.training.progress import Progress
from gru4rec_fast.training.schedules import Schedule

# How long the fused step may be out of sight: Ctrl-C and the progress bar wait for it.
_SECONDS_PER_CALL = 0.1


class EpochPlayer:
    """Plays the sessions and moves the weights.

    A mini-batch is one step of all lanes; a block is T of them (truncated backpropagation through T steps), each with
    negatives of its own. The number of mini-batches since the training began keys negatives and dropout.

    Where the parts allow it, the fused step plays and moves the weights, many updates in one call; else autograd does,
    a block at a time.

    Args: as those of `Trainer`, and its schedule.

    Attributes:
        place: how far the training has come.
        hidden: the lanes' states, one tensor per layer; None between epochs.
    """

    def __init__(
        self,
        network: SessionNetwork,
        loader: SessionParallelLoader,
        options: TrainingOptions,
        *,
        criterion: SampledLoss,
        optimizer: Optimizer,
        sampler: ops.AliasTable | None,
        schedule: Schedule | None,
        memory: MemoryRecord,
        progress: Progress,
    ):
        self.network, self.loader, self.options = network, loader, options
        self.criterion, self.optimizer, self.sampler = criterion, optimizer, sampler
        self.schedule, self.memory, self.progress = schedule, memory, progress
        self.place = Place()
        self.hidden: list[Tensor] | None = None
        self._losses = LossWatch(loader.device)
        self._cuda_step: CudaTrainingStep | None = None

    @property
    def fused_is_unwanted(self) -> bool:
        """Whether it was the caller who chose autograd."""
        return not self.options.fused or "reference" in (self.options.impl, self.loader.impl, self.network.impl)

    @property
    def why_not_fused(self) -> str | None:
        """Why autograd trains; None where the fused step does. Looked at anew at the beginning of each epoch."""
        if self.fused_is_unwanted:
            return "fused=False or impl='reference' was asked for"
        if self.memory is not NULL_RECORD:
            return "a memory record looks at the phases of a step one by one"
        if type(self.loader) is not SessionParallelLoader:
            return f"it plays a plain SessionParallelLoader, not a {type(self.loader).__name__}"
        if self.loader.device.type != "cuda":
            return why_not_fused(self.network, self.criterion, self.optimizer)
        return why_not_cuda_step(self.network, self.criterion, self.optimizer)

    def play(self, between_updates: Callable[[], int | None]) -> None:
        """Play the epoch, or what is left of it; the weights move after every `accumulate` blocks and at its end.

        `between_updates` is called between updates, and answers after how many mini-batches at the latest it is to be
        called again (None: whenever it suits); not after an update that only the end of the epoch brought.
        """
        place = self.place
        why_not_fused = self.why_not_fused
        if why_not_fused and self.options.precision == "bf16":
            raise ValueError(f"precision='bf16' is the fused training step's, which cannot train this: {why_not_fused}")
        self.network.train()
        if self.hidden is None:
            self.loader.set_epoch(place.epoch - 1)
            self.hidden = self.network.initial_state(self.loader.n_lanes)
        else:  # after a stop, with or without a checkpoint between
            self.loader.load_state_dict(self.loader.state_dict())
        self.progress.begin_epoch(place.epoch, self.options.n_epochs, self.loader.n_targets, place.events)
        started = time.perf_counter() - place.seconds
        if why_not_fused is None:
            self._play_fused(between_updates, started)
        else:
            self._play_blocks(between_updates, started)
        place.seconds = time.perf_counter() - started
        if not place.mini_batches:
            raise ValueError(
                f"an epoch has no mini-batch: with n_sample={self.options.n_sample} a step needs "
                f"{self.loader.min_live} live lanes, and there are {self.loader.n_lanes}"
            )

    def _play_fused(self, between_updates: Callable[[], int | None], started: float) -> None:
        place, player = self.place, self.begin_fused()
        assert self.hidden is not None
        per_update = self.loader.steps * self.options.accumulate
        updates, finished = 1, False
        while not finished:
            called = time.perf_counter()
            blocks, finished = player.run(updates, self.hidden, step=place.step)
            for block in blocks:
                add_loss(place, block.loss, block.steps, place.mini_batches)
                place.step += block.steps
                place.mini_batches += block.steps
                place.events += block.events
            self.progress.advance(sum(block.events for block in blocks), place.mean_loss)
            place.seconds = time.perf_counter() - started
            updates = min(2 * updates, max(1, int(updates * _SECONDS_PER_CALL / (time.perf_counter() - called))))
            if self.schedule and blocks:
                self.schedule.after_update()
                updates = 1 if self.schedule.per_update else updates
            if not finished:
                until = between_updates()
                updates = updates if until is None else min(updates, max(1, -(-until // per_update)))

    def begin_fused(self) -> FusedPlayer | CudaPlayer:
        """What plays by the fused step from where the loader stands."""
        assert isinstance(self.optimizer, SparseAdagrad)
        options, parts = self.options, (self.network, self.criterion, self.optimizer)
        how: dict[str, Any] = {
            "steps": self.loader.steps,
            "accumulate": options.accumulate,
            "precision": options.precision,
        }
        step: FusedTrainingStep | CudaTrainingStep
        if self.loader.device.type == "cuda":
            # Kept from epoch to epoch, as its graphs are.
            step = self._cuda_step = self._cuda_step or CudaTrainingStep(*parts, **how)
        else:
            step = FusedTrainingStep(*parts, **how)
        return step.player(self.loader, self.sampler, options.n_sample, options.seed)

    def _play_blocks(self, between_updates: Callable[[], int | None], started: float) -> None:
        place, accumulate = self.place, self.options.accumulate
        blocks = iter(self.loader)
        pending = 0
        while True:
            with self.memory.phase("batch"):
                block = next(blocks, None)
                negatives = None if block is None else self._draw(len(block.n_live))
            if block is None:
                break
            self.play_block(block, negatives)
            pending += 1
            if pending == accumulate:
                pending = 0
                self._update()
                place.seconds = time.perf_counter() - started
                between_updates()
        if pending:
            self._update(scale=accumulate / pending)
        self.look_at_losses()

    def _draw(self, steps: int) -> Tensor | None:
        options = self.options
        if not options.n_sample or self.sampler is None:
            return None
        return ops.negative_sampling(
            self.sampler, options.n_sample, seed=options.seed, step=self.place.step, steps=steps, impl=options.impl
        )[0]

    def play_block(self, block: SessionBlock, negatives: Tensor | None) -> None:
        """Forward, loss and backward of one block; gradients add up until the next update."""
        place, memory, steps, events = self.place, self.memory, len(block.n_live), block.n_events
        assert self.hidden is not None
        with memory.phase("forward"):
            all_live = block.n_live[-1] == self.loader.n_lanes  # a lane that died never comes back
            output, hidden = self.network(block.inputs, self.hidden, block.reset, step=place.step, all_live=all_live)
        with memory.phase("loss"):
            table = self.network.output_weight, self.network.output_bias
            loss = self.criterion(output, *table, block.targets, negatives, n_live=block.n_live)
            self._losses.add(place, loss, steps)
        with memory.phase("backward"):
            (loss if self.options.accumulate == 1 else loss / self.options.accumulate).backward()
        self.hidden = [state.detach() for state in hidden]
        place.step += steps
        place.mini_batches += steps
        place.events += events
        self.progress.advance(events, place.mean_loss)

    def _update(self, scale: float = 1.0) -> None:
        with self.memory.phase("update"):
            if scale != 1:
                for parameter in self.network.parameters():
                    if parameter.grad is not None:
                        parameter.grad.mul_(scale)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if self.schedule:
            self.schedule.after_update()

    def end_epoch(self) -> None:
        """Stand before the next epoch."""
        self.place, self.hidden = Place(self.place.epoch + 1, self.place.step), None

    def look_at_losses(self) -> None:
        """Take in every loss so far; TrainingDiverged where one is no number."""
        self._losses.look(self.place)
