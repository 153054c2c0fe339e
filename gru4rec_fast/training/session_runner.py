"""Runs an epoch of session training by the fused step (CPU), the captured step (GPU) or autograd."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gru4rec_fast import ops
from gru4rec_fast.data import SessionBlock, SessionParallelLoader
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.profiling import NULL_RECORD, MemoryRecord
from gru4rec_fast.training.captured_step import CapturedEpoch, CapturedTrainingStep, why_not_captured
from gru4rec_fast.training.checkpoint import Checkpoint
from gru4rec_fast.training.checkpoint_tensors import HIDDEN, hidden_tensors
from gru4rec_fast.training.fused_step import FusedEpoch, FusedTrainingStep, NoKernels, why_not_fused
from gru4rec_fast.training.options import check_at_least
from gru4rec_fast.training.progress import Progress
from gru4rec_fast.training.schedules import Schedule
from gru4rec_fast.training.training_position import LossMonitor, TrainingPosition, add_loss

# Time in seconds that a call into the fused step should take. Ctrl-C and the progress bar wait for the end of the call.
_SECONDS_PER_CALL = 0.1


class SessionEpochRunner:
    """Trains a SessionNetwork on sessions, epoch by epoch; see `EpochRunner`.

    The loader processes a number of sessions in parallel, one per lane. A mini-batch is one step of all lanes. A block
    is T consecutive mini-batches (truncated backpropagation through T steps), each with its own negatives. Negatives
    and dropout masks are functions of the seeds and of the number of mini-batches since the training began.

    The fused step runs many updates in one call. If it cannot train the network, autograd trains, one block at a time.
    "Fused step" means `FusedTrainingStep` on the CPU and `CapturedTrainingStep` on a GPU.

    Args:
        network: trained in place, from the weights that it has.
        loader: loads the blocks of sessions; `loader.steps` is T.
        criterion: the loss of a block.
        optimizer: optimizer of the network's parameters.
        sampler: table from which negatives are drawn, on the loader's device; required unless n_sample is 0.
        n_sample: negatives per mini-batch, shared by its lanes; 0: the other lanes' targets are the only negatives.
        accumulate: blocks per update of the weights. The losses of these blocks are averaged; no gradient flows from
            one block to another.
        seed: seed of the negatives. The network has its own seed for weights and dropout, the loader for its shuffle.
        schedule: learning-rate schedule of `optimizer`; None: a constant learning rate.
        fused: True: train by the fused step if it can train the network. False: train by autograd.
        precision: "full" or "bf16", see `FusedTrainingStep`; "bf16" is an error if autograd has to train.
        fingerprint: function that returns a digest of the log, e.g. `lambda: log_fingerprint(store)`. It is called
            once, when the first checkpoint is written or resumed. None: a checkpoint of another log is detected only if
            the numbers of sessions, targets or items differ.
        memory: a MemoryRecord records the phases batch, forward, loss, backward and update; autograd then trains.
        impl: "auto", "native" or "reference", for negative sampling.

    Attributes:
        position: how far the training has come.
        hidden: hidden states of the lanes, one tensor per layer; None between epochs.

    Raises:
        ValueError: a value is out of range, or n_sample is not 0 and there is no sampler.
    """

    def __init__(
        self,
        network: SessionNetwork,
        loader: SessionParallelLoader,
        *,
        criterion: SampledLoss,
        optimizer: Optimizer,
        sampler: ops.AliasTable | None = None,
        n_sample: int = 2048,
        accumulate: int = 1,
        seed: int = 0,
        schedule: Schedule | None = None,
        fused: bool = True,
        precision: str = "full",
        fingerprint: Callable[[], str] | None = None,
        memory: MemoryRecord = NULL_RECORD,
        impl: str = "auto",
    ):
        check_at_least(0, n_sample=n_sample, seed=seed)
        check_at_least(1, accumulate=accumulate)
        if precision not in ("full", "bf16"):
            raise ValueError(f"precision={precision!r}: choose 'full' or 'bf16'")
        if n_sample and sampler is None:
            raise ValueError(f"n_sample={n_sample} needs a sampler: ops.build_alias_table(support, alpha)")
        self.network, self.loader, self.criterion, self.optimizer = network, loader, criterion, optimizer
        self.sampler, self.n_sample, self.accumulate, self.seed = sampler, n_sample, accumulate, seed
        self.schedule, self.fused, self.precision = schedule, fused, precision
        self.memory, self.impl = memory, impl
        self.position = TrainingPosition()
        self.hidden: list[Tensor] | None = None
        self._fingerprint = fingerprint
        self._losses = LossMonitor(loader.device)
        self._captured_step: CapturedTrainingStep | None = None

    @property
    def n_events(self) -> int:
        """Number of events in an epoch: one per target."""
        return self.loader.n_targets

    @cached_property
    def data_identity(self) -> dict[str, int | str]:
        """Numbers of sessions, targets and items, and the fingerprint of the log if the runner was given one."""
        loader = self.loader
        counts = {"sessions": loader.n_sessions, "targets": loader.n_targets, "items": self.network.n_items}
        return counts | ({} if self._fingerprint is None else {"fingerprint": self._fingerprint()})

    @property
    def _autograd_was_requested(self) -> bool:
        return not self.fused or "reference" in (self.impl, self.loader.impl, self.network.impl)

    @property
    def why_not_fused(self) -> str | None:
        """The reason why the next epoch is trained by autograd; None if the fused step trains it."""
        if self._autograd_was_requested:
            return "fused=False or impl='reference' was requested"
        if self.memory is not NULL_RECORD:
            return "a memory record needs the phases of a step one by one"
        if type(self.loader) is not SessionParallelLoader:
            return f"the loader must be exactly a SessionParallelLoader, not a {type(self.loader).__name__}"
        if self.loader.device.type != "cuda":
            return why_not_fused(self.network, self.criterion, self.optimizer)
        return why_not_captured(self.network, self.criterion, self.optimizer)

    def notice(self) -> str | None:
        """Return a line that says why autograd trains; None if the fused step trains or autograd was requested."""
        reason = None if self._autograd_was_requested else self.why_not_fused
        if reason is None or isinstance(reason, NoKernels):  # missing kernels are announced by the first operator
            return None
        return f"training by autograd, not by the fused step: {reason}"

    def run_epoch(self, progress: Progress, between_updates: Callable[[], int | None]) -> None:
        """Run the rest of the current epoch; weights are updated after every `accumulate` blocks and at the end.

        `between_updates` is called between updates, but not after an update that the end of the epoch caused. It
        returns the maximum number of mini-batches until the next call; None means no limit.
        """
        position = self.position
        reason = self.why_not_fused
        if reason and self.precision == "bf16":
            raise ValueError(f"precision='bf16' needs the fused training step, which cannot train this: {reason}")
        self.network.train()
        if self.hidden is None:
            self.loader.set_epoch(position.epoch - 1)
            self.hidden = self.network.initial_state(self.loader.n_lanes)
        else:  # Continue an interrupted epoch: without a loaded state the loader would start at the first block.
            state = self.loader.state_dict()
            if state.get("epoch", position.epoch - 1) != position.epoch - 1:
                return  # the training was interrupted after the last block of the epoch
            self.loader.load_state_dict(state)
        started = time.perf_counter() - position.seconds
        if reason is None:
            self._run_fused(progress, between_updates, started)
        else:
            self._run_autograd(progress, between_updates, started)
        position.seconds = time.perf_counter() - started
        if not position.mini_batches:
            raise ValueError(
                f"the epoch has no mini-batch: with n_sample={self.n_sample} a step needs {self.loader.min_live} lanes "
                f"with a session, and there are {self.loader.n_lanes}; use more sessions or negatives"
            )

    def _run_fused(self, progress: Progress, between_updates: Callable[[], int | None], started: float) -> None:
        """Train the rest of the epoch by the fused step. started: `time.perf_counter()` minus `position.seconds`."""
        position, epoch = self.position, self.start_fused_epoch()
        assert self.hidden is not None
        mini_batches_per_update = self.loader.steps * self.accumulate
        updates, finished = 1, False
        while not finished:
            call_started = time.perf_counter()
            blocks, finished = epoch.run(updates, self.hidden, step=position.step)
            for block in blocks:
                add_loss(position, block.loss, block.steps, position.mini_batches)
                self._advance(block.steps, block.events)
            progress.advance(sum(block.events for block in blocks), position.mean_loss)
            position.seconds = time.perf_counter() - started
            # The next call makes as many updates as fit _SECONDS_PER_CALL at the speed of the last call, but at most
            # twice as many as the last call, which may have been unusually fast.
            seconds = time.perf_counter() - call_started
            updates = min(2 * updates, max(1, int(updates * _SECONDS_PER_CALL / seconds)))
            if self.schedule and blocks:
                self.schedule.after_update()
                updates = 1 if self.schedule.per_update else updates
            if not finished:
                limit = between_updates()
                if limit is not None:  # in mini-batches; rounded up to whole updates
                    updates = min(updates, max(1, math.ceil(limit / mini_batches_per_update)))

    def start_fused_epoch(self) -> FusedEpoch | CapturedEpoch:
        """Start an epoch of the fused step at the loader's current position."""
        assert isinstance(self.optimizer, SparseAdagrad)
        modules = (self.network, self.criterion, self.optimizer)
        options: dict[str, Any] = {
            "steps": self.loader.steps,
            "accumulate": self.accumulate,
            "precision": self.precision,
        }
        step: FusedTrainingStep | CapturedTrainingStep
        if self.loader.device.type == "cuda":
            # The step is created once, since it has the captured graphs, which the next epochs replay.
            self._captured_step = self._captured_step or CapturedTrainingStep(*modules, **options)
            step = self._captured_step
        else:
            step = FusedTrainingStep(*modules, **options)
        return step.start_epoch(self.loader, self.sampler, self.n_sample, self.seed)

    def _run_autograd(self, progress: Progress, between_updates: Callable[[], int | None], started: float) -> None:
        """Train the rest of the epoch by autograd. started: as for `_run_fused`."""
        position = self.position
        blocks = iter(self.loader)
        accumulated = 0
        while True:
            with self.memory.phase("batch"):
                block = next(blocks, None)
                negatives = None if block is None else self._draw_negatives(len(block.n_live))
            if block is None:
                break
            self.backpropagate(block, negatives)
            progress.advance(block.n_events, position.mean_loss)
            accumulated += 1
            if accumulated == self.accumulate:
                accumulated = 0
                self._update_weights()
                position.seconds = time.perf_counter() - started
                between_updates()
        if accumulated:
            # The losses were divided by `accumulate`, but this last update of the epoch has fewer blocks.
            self._update_weights(scale=self.accumulate / accumulated)
        self.read_losses()

    def _draw_negatives(self, steps: int) -> Tensor | None:
        if not self.n_sample or self.sampler is None:
            return None
        return ops.negative_sampling(
            self.sampler, self.n_sample, seed=self.seed, step=self.position.step, steps=steps, impl=self.impl
        )[0]

    def backpropagate(self, block: SessionBlock, negatives: Tensor | None) -> None:
        """Compute a block's loss, accumulate the gradients of the weights, and advance `position`."""
        position, memory, steps = self.position, self.memory, len(block.n_live)
        assert self.hidden is not None
        with memory.phase("forward"):
            output, hidden = self.network(block.inputs, self.hidden, block.reset, step=position.step)
        with memory.phase("loss"):
            table = self.network.output_weight, self.network.output_bias
            loss = self.criterion(output, *table, block.targets, negatives, n_live=block.n_live)
            self._losses.add(position, loss, steps)
        with memory.phase("backward"):
            (loss if self.accumulate == 1 else loss / self.accumulate).backward()
        self.hidden = [state.detach() for state in hidden]
        self._advance(steps, block.n_events)

    def _advance(self, steps: int, events: int) -> None:
        self.position.step += steps
        self.position.mini_batches += steps
        self.position.events += events

    def _update_weights(self, scale: float = 1.0) -> None:
        with self.memory.phase("update"):
            if scale != 1:
                for parameter in self.network.parameters():
                    if parameter.grad is not None:
                        parameter.grad.mul_(scale)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if self.schedule:
            self.schedule.after_update()

    def start_next_epoch(self) -> None:
        """Advance `position` to the start of the next epoch."""
        self.position, self.hidden = TrainingPosition(self.position.epoch + 1, self.position.step), None

    def read_losses(self) -> None:
        """Add the losses that are still on the device to `position`.

        Raises:
            TrainingDiverged: a loss is NaN or infinite.
        """
        self._losses.read(self.position)

    def checkpoint_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the hidden states and the loader's position; between epochs, no tensors and {"loader": None}.

        The seed of the loader's shuffle is always stored, because it may have been drawn.
        """
        position = None if self.hidden is None else self.loader.state_dict()
        return hidden_tensors(self.hidden), {"loader": position, "loader_seed": self.loader.seed}

    def load_checkpoint_state(self, checkpoint: Checkpoint) -> None:
        """Restore what `checkpoint_state` returned. Raises KeyError or TypeError for other values."""
        self.loader.restore_seed(checkpoint.progress.get("loader_seed"))
        if checkpoint.progress["loader"] is not None:
            self.loader.load_state_dict(checkpoint.progress["loader"])
            saved, initial = checkpoint.group(HIDDEN), self.network.initial_state(self.loader.n_lanes)
            self.hidden = [saved[str(layer)].to(self.loader.device, copy=True) for layer in range(len(saved))]
            if [(state.shape, state.dtype) for state in self.hidden] != [(s.shape, s.dtype) for s in initial]:
                raise TypeError("the hidden states have other shapes or dtypes than the network")
