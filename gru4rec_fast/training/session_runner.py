"""Runs an epoch of session training by the fused step (CPU), the captured step (GPU) or autograd."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cached_property
from itertools import islice, pairwise
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from gru4rec_fast import ops
from gru4rec_fast.data import SessionBlock, SessionParallelLoader
from gru4rec_fast.distributed import Ranks
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.profiling import attempts, phase
from gru4rec_fast.profiling.out_of_memory import UPDATE
from gru4rec_fast.training.captured_step import CapturedEpoch, CapturedTrainingStep, why_not_captured
from gru4rec_fast.training.checkpoint import Checkpoint
from gru4rec_fast.training.checkpoint_tensors import HIDDEN, hidden_tensors
from gru4rec_fast.training.fused_step import FusedEpoch, FusedTrainingStep, NoKernels, check_loader, why_not_fused
from gru4rec_fast.training.gradient_sums import sum_gradients
from gru4rec_fast.training.options import check_at_least
from gru4rec_fast.training.progress import Progress
from gru4rec_fast.training.schedules import Schedule
from gru4rec_fast.training.training_position import LossMonitor, TrainingPosition, add_loss

# Time in seconds that a call into the fused step should take. Ctrl-C and the progress bar wait for the end of the call.
_SECONDS_PER_CALL = 0.1


class UpdatesOutcome(NamedTuple):
    """Result of `SessionEpochRunner.run_updates`.

    loss: mean loss of the mini-batches of the call, each before its update; None if the call made no update;
    mini_batches, events: number of mini-batches, and of targets in live lanes;
    finished: whether the epoch is over.
    """

    loss: float | None
    mini_batches: int
    events: int
    finished: bool


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
        independent_lanes: after `join`, the in-batch negatives of a lane are the targets of its own process's lanes.
            False: those of the lanes of all processes.
        fingerprint: function that returns a digest of the log, e.g. `lambda: log_fingerprint(store)`. It is called
            once, when the first checkpoint is written or resumed. None: a checkpoint of another log is detected only if
            the numbers of sessions, targets or items differ.
        impl: "auto", "native" or "reference", for negative sampling.

    Attributes:
        position: how far the training has come.
        hidden: hidden states of this process's lanes, one tensor per layer; None between epochs.
        ranks: the processes that train this network together, see `join`; None: this process alone.
        lanes: (first, end), the lanes that this process computes.

    Raises:
        ValueError: a value is out of range, n_sample is not 0 and there is no sampler, or the loader has the lanes of
            one process only.
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
        independent_lanes: bool = False,
        fingerprint: Callable[[], str] | None = None,
        impl: str = "auto",
    ):
        check_at_least(0, n_sample=n_sample, seed=seed)
        check_at_least(1, accumulate=accumulate)
        if precision not in ("full", "bf16"):
            raise ValueError(f"precision={precision!r}: choose 'full' or 'bf16'")
        check_loader(loader, loader.steps)
        if n_sample and sampler is None:
            raise ValueError(f"n_sample={n_sample} needs a sampler: ops.build_alias_table(support, alpha)")
        if independent_lanes and not n_sample:
            raise ValueError(
                "independent lanes need n_sample > 0: a process with one session left would otherwise have no negatives"
            )
        self.network, self.loader, self.criterion, self.optimizer = network, loader, criterion, optimizer
        self.sampler, self.n_sample, self.accumulate, self.seed = sampler, n_sample, accumulate, seed
        self.schedule, self.fused, self.precision = schedule, fused, precision
        self.independent_lanes = independent_lanes
        self.impl = impl
        self.ranks: Ranks | None = None
        self.lanes = 0, loader.n_lanes
        self.position = TrainingPosition()
        self.hidden: list[Tensor] | None = None
        self._fingerprint = fingerprint
        self._losses = LossMonitor(loader.device)
        self._captured_step: CapturedTrainingStep | None = None
        # What runs the current epoch; None between epochs and after a state was loaded.
        self._running: FusedEpoch | CapturedEpoch | Iterator[SessionBlock] | None = None

    def join(self, ranks: Ranks) -> None:
        """Train together with other processes from now on, before an epoch has begun.

        Each process must have made a runner of the same arguments. Weights and drawn seeds become those of rank 0.

        Raises:
            ValueError: the arguments differ between the ranks, or there are fewer lanes than ranks.
        """
        loader = self.loader
        if loader.n_lanes < ranks.size:
            raise ValueError(
                f"{loader.n_lanes} lanes are too few for {ranks.size} ranks: increase batch_size, or use fewer ranks"
            )
        settings = {"batch_size": loader.n_lanes, "steps": loader.steps, "n_sample": self.n_sample}
        settings |= {"accumulate": self.accumulate, "independent_lanes": self.independent_lanes}
        settings |= {"position": asdict(self.position)}
        plain = bool | int | float | str | None
        loss = {name: value for name, value in vars(self.criterion).items() if isinstance(value, plain)}
        ranks.check_equal(self.data_identity | settings | loss)
        ranks.check_equal_networks(self.network, self.optimizer)
        self.ranks, self.lanes = ranks, ranks.part(loader.n_lanes)
        self.seed = ranks.from_first(self.seed)
        for seeded in (self.network, loader):
            seeded.restore_seed(ranks.from_first(seeded.seed))
        ranks.check_equal({"seed of the network": self.network.seed, "seed of the loader": loader.seed})
        ranks.copy_from_first(self.network)

    @property
    def n_events(self) -> int:
        """Number of events in an epoch: one per target."""
        return self.loader.n_targets

    @property
    def n_updates(self) -> int:
        """Number of updates in the loader's current epoch. The first call takes as long as `len(loader)`."""
        return math.ceil(len(self.loader) / self.accumulate)

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
        if type(self.loader) is not SessionParallelLoader:
            return f"the loader must be exactly a SessionParallelLoader, not a {type(self.loader).__name__}"
        if self.ranks is not None and self.loader.device.type == "cuda":
            return "the captured step trains in one process only"
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

        `between_updates` is called between updates, but not once the end of the epoch has been found. It returns the
        maximum number of mini-batches until the next call; None means no limit.
        """
        position, mini_batches_per_update = self.position, self.loader.steps * self.accumulate
        self._running, updates, finished = None, 1, False
        while not finished:
            started, n_events = time.perf_counter(), position.events
            n_made, finished = self._run_some(updates)
            progress.advance(position.events - n_events, position.mean_loss)
            # The next call makes as many updates as fit _SECONDS_PER_CALL at the speed of the last call, but at most
            # twice as many as the last call made, which may have been unusually fast.
            seconds = time.perf_counter() - started
            updates = max(1, min(2 * n_made, int(n_made * _SECONDS_PER_CALL / seconds)))
            if self.ranks is not None:  # all ranks must save and stop after the same update
                updates = self.ranks.from_first(updates)
            if not finished:
                limit = between_updates()
                if limit is not None:  # in mini-batches; rounded up to whole updates
                    updates = min(updates, max(1, math.ceil(limit / mini_batches_per_update)))
        self.read_losses()

    def run_updates(self, updates: int | None = None) -> UpdatesOutcome:
        """Make at most `updates` updates of the current epoch, in a training loop that is not a `Trainer`'s.

            while not runner.run_updates(100).finished:
                ...
            runner.start_next_epoch()

        The last call of an epoch may make no update. The network is set to training mode.

        Args:
            updates: at least 1; None makes all updates that are left.

        Raises:
            ValueError: `updates` is below 1, the epoch has no mini-batch, or precision="bf16" needs the fused step.
            TrainingDiverged: a loss is NaN or infinite. The update with this loss was not made, except perhaps by
                autograd on a GPU.
        """
        check_at_least(1, updates=updates)
        position, before, finished = self.position, replace(self.position), False
        # An epoch has at most one update per event. One more may have to be tried to find the end of the epoch.
        n_left = self.n_events + 1 if updates is None else updates
        while n_left > 0 and not finished:
            n_made, finished = self._run_some(n_left)
            n_left -= n_made
        self.read_losses()
        return UpdatesOutcome(
            loss=position.mean_loss_since(before),
            mini_batches=position.mini_batches - before.mini_batches,
            events=position.events - before.events,
            finished=finished,
        )

    def _run_some(self, updates: int) -> tuple[int, bool]:
        """Make at most `updates` updates, autograd at most one; return how many, and whether the epoch is over."""
        position, started = self.position, time.perf_counter()
        if not self.network.training:  # e.g. after a validation
            self.network.train()
        # During the call, `_running` is None: after an error, it is unknown how many updates were made.
        running, self._running = self._running or self._start_or_continue_epoch(), None
        outcome = None if isinstance(running, Iterator) else self._run_fused(running, updates)
        if outcome is None:
            if not isinstance(running, Iterator):
                running = iter(self.loader) if self._load_loader_position() else iter(())
            outcome = self._run_autograd(running)
        n_made, finished = outcome
        self._running = running
        position.seconds += time.perf_counter() - started
        if finished and not position.mini_batches:
            raise ValueError(
                f"the epoch has no mini-batch: with n_sample={self.n_sample} a step needs {self.loader.min_live} lanes "
                f"with a session, and there are {self.loader.n_lanes}; use more sessions or negatives"
            )
        return n_made, finished

    def _start_or_continue_epoch(self) -> FusedEpoch | CapturedEpoch | Iterator[SessionBlock]:
        """Return what runs the rest of the epoch: the fused step, or the blocks from which autograd trains."""
        reason = self.why_not_fused
        if self.ranks is not None:  # the fused step and autograd exchange other tensors
            self.ranks.check_equal({"trained by the fused step": reason is None})
        if reason and self.precision == "bf16":
            raise ValueError(f"precision='bf16' needs the fused training step, which cannot train this: {reason}")
        if self.hidden is None:
            self.loader.set_epoch(self.position.epoch - 1)
            self.hidden = self.network.initial_state(self._n_own_lanes)
        elif not self._load_loader_position():
            return iter(())
        return self.start_fused_epoch() if reason is None else iter(self.loader)

    @property
    def _n_own_lanes(self) -> int:
        return self.lanes[1] - self.lanes[0]

    def _load_loader_position(self) -> bool:
        """Make the loader continue its interrupted epoch, not start it anew; return whether blocks are left."""
        state = self.loader.state_dict()
        if state.get("epoch", self.position.epoch - 1) != self.position.epoch - 1:
            return False  # the training was interrupted after the last block of the epoch
        self.loader.load_state_dict(state)
        return True

    def _run_fused(self, epoch: FusedEpoch | CapturedEpoch, updates: int) -> tuple[int, bool] | None:
        """Make at most `updates` updates by the fused step; return how many, and whether the epoch is over.

        None: on a GPU, an update does not fit into memory unless autograd computes it in parts.
        """
        assert self.hidden is not None
        if self.schedule and self.schedule.per_update:
            updates = 1
        n_made, finished = 0, False
        while n_made < updates and not finished:
            for attempt in attempts(UPDATE, most=self.loader.n_lanes):
                with attempt:
                    if isinstance(epoch, FusedEpoch):
                        epoch.training_step.n_tiles = attempt.n_parts
                    elif attempt.n_parts > 1:
                        self._captured_step = None  # frees its CUDA graphs and their memory
                        return None
                    blocks, finished = epoch.run(updates - n_made, self.hidden, step=self.position.step)
            for block in blocks:
                add_loss(self.position, block.loss, block.steps, self.position.mini_batches)
                self._advance(block.steps, block.events)
            if self.schedule and blocks:
                self.schedule.after_update()
            n_made += math.ceil(len(blocks) / self.accumulate)
            if self.ranks is None:
                break
            # A call that has run out of memory has made fewer updates. The other ranks wait for the rest of them.
        return n_made, finished

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
        if isinstance(step, CapturedTrainingStep):
            return step.start_epoch(self.loader, self.sampler, self.n_sample, self.seed)
        return step.start_epoch(
            self.loader,
            self.sampler,
            self.n_sample,
            self.seed,
            ranks=self.ranks,
            independent_lanes=self.independent_lanes,
        )

    def _run_autograd(self, blocks: Iterator[SessionBlock]) -> tuple[int, bool]:
        """Make the next update by autograd; return the number of updates, 0 or 1, and whether the epoch is over."""
        assert self.hidden is not None
        step = self.position.step
        with phase("batch"):
            pending = []
            for block in islice(blocks, self.accumulate):
                pending.append((block, self._draw_negatives(step, len(block.n_live)), step))
                step += len(block.n_live)
        if not pending:
            return 0, True
        for attempt in attempts(UPDATE, most=self.loader.n_lanes):
            with attempt:
                self.optimizer.zero_grad(set_to_none=True)  # the gradients of an attempt that ran out of memory
                hidden, losses = self.hidden, []
                for block, negatives, step in pending:
                    loss, hidden = self.backpropagate(block, negatives, hidden, step, attempt.n_parts)
                    losses.append(loss)
        if self.ranks is not None:
            with phase("exchange"):
                losses = self._sum_over_ranks(self.ranks, pending, losses)
        for (block, _, _), loss in zip(pending, losses, strict=True):
            self._losses.add(self.position, loss, len(block.n_live))
            self._advance(len(block.n_live), block.n_events)
        self.hidden = hidden
        # The losses were divided by `accumulate`, but the last update of the epoch may have fewer blocks.
        self._update_weights(scale=self.accumulate / len(pending))
        return 1, len(pending) < self.accumulate

    def _sum_over_ranks(
        self, ranks: Ranks, pending: list[tuple[SessionBlock, Tensor | None, int]], losses: list[Tensor]
    ) -> list[Tensor]:
        """Replace the gradients by their sums over all ranks; return the sums of the losses."""
        network = self.network
        inputs = [block.inputs for block, _, _ in pending]
        columns = [block.targets for block, _, _ in pending] + [drawn for _, drawn, _ in pending if drawn is not None]
        rows: dict[Tensor, Tensor] = {}
        if network.output.sparse:
            is_constrained = network.embedding_mode == "constrained"
            rows[network.output.bias] = _unique_rows(columns)
            rows[network.output.weight] = _unique_rows(columns + inputs if is_constrained else columns)
            if not is_constrained:
                rows[network.embedding.weight] = _unique_rows(inputs)
        return sum_gradients(ranks, list(network.parameters()), rows, losses)

    def _draw_negatives(self, step: int, steps: int) -> Tensor | None:
        if not self.n_sample or self.sampler is None:
            return None
        return ops.negative_sampling(
            self.sampler, self.n_sample, seed=self.seed, step=step, steps=steps, impl=self.impl
        )[0]

    def backpropagate(
        self, block: SessionBlock, negatives: Tensor | None, hidden: list[Tensor], step: int, n_parts: int = 1
    ) -> tuple[Tensor, list[Tensor]]:
        """Add the gradients of a block's loss to those of the weights; return the loss and the new hidden states.

        Args:
            negatives: int64 [T, N], or None.
            hidden: one hidden state [B, H] for each layer.
            step: number of mini-batches before this block since the training began.
            n_parts: in how many parts of the lanes to compute the loss.
        """
        inputs, reset, lanes = block.inputs, block.reset, None
        if self.ranks is not None:
            inputs, reset = (tensor[:, slice(*self.lanes)].contiguous() for tensor in (inputs, reset))
            lanes = self.lanes[0], self.loader.n_lanes
        with phase("forward"):
            output, hidden = self.network(inputs, hidden, reset, step=step, lanes=lanes)
        if n_parts == 1:
            loss = self._loss_backward(block, negatives, output, None if self.ranks is None else self.lanes)
        else:
            loss = self._loss_backward_in_parts(block, negatives, output, n_parts)
        return loss, [state.detach() for state in hidden]

    def _loss_backward(
        self, block: SessionBlock, negatives: Tensor | None, output: Tensor, lanes: tuple[int, int] | None = None
    ) -> Tensor:
        """Compute the loss of all lanes or of some, and run its backward; return the loss.

        With `lanes` (first, end), `output` has these lanes only.
        """
        table, targets = (self.network.output_weight, self.network.output_bias), block.targets
        n_live: list[int] | None = block.n_live
        if self.ranks is not None and self.independent_lanes:
            first, end = self.lanes
            targets, n_live = targets[:, first:end], None
            lanes = None if lanes is None else (lanes[0] - first, lanes[1] - first)
        with phase("loss"):
            loss = self.criterion(output, *table, targets, negatives, n_live=n_live, lanes=lanes)
        with phase("backward"):
            (loss if self.accumulate == 1 else loss / self.accumulate).backward()
        return loss.detach()

    def _loss_backward_in_parts(
        self, block: SessionBlock, negatives: Tensor | None, output: Tensor, n_parts: int
    ) -> Tensor:
        """Do the same as `_loss_backward`, one part of the lanes after another, so that it needs less memory."""
        copy, loss = output.detach().requires_grad_(), output.new_zeros(())  # copy.grad becomes the sum over the parts
        first = self.lanes[0]
        for begin, end in pairwise(part * output.shape[1] // n_parts for part in range(n_parts + 1)):
            lanes = first + begin, first + end
            loss = loss + self._loss_backward(block, negatives, copy[:, begin:end], lanes)
            for parameter in (self.network.output_weight, self.network.output_bias):
                if parameter.grad is not None and parameter.grad.is_sparse:  # it has the rows of every part
                    parameter.grad = parameter.grad.coalesce()
        with phase("backward"):
            output.backward(copy.grad)
        return loss

    def _advance(self, steps: int, events: int) -> None:
        self.position.step += steps
        self.position.mini_batches += steps
        self.position.events += events

    def _update_weights(self, scale: float = 1.0) -> None:
        with phase("update"):
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
        self._running = None

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
        position, hidden = None if self.hidden is None else self.loader.state_dict(), self.hidden
        if hidden is not None and self.ranks is not None:
            hidden = self.ranks.join_lanes(hidden, self.loader.n_lanes)
        return hidden_tensors(hidden), {"loader": position, "loader_seed": self.loader.seed}

    def load_checkpoint_state(self, checkpoint: Checkpoint) -> None:
        """Restore what `checkpoint_state` returned. Raises KeyError or TypeError for other values."""
        self.loader.restore_seed(checkpoint.progress.get("loader_seed"))
        if checkpoint.progress["loader"] is not None:
            self.loader.load_state_dict(checkpoint.progress["loader"])
            saved, initial = checkpoint.group(HIDDEN), self.network.initial_state(self.loader.n_lanes)
            hidden = [saved[str(layer)].to(self.loader.device, copy=True) for layer in range(len(saved))]
            if [(state.shape, state.dtype) for state in hidden] != [(s.shape, s.dtype) for s in initial]:
                raise TypeError("the hidden states have other shapes or dtypes than the network")
            self.hidden = [state[slice(*self.lanes)].clone() for state in hidden]  # saved by any number of ranks

    def state_dict(self) -> dict[str, Any]:
        """Return position, hidden states, seeds and schedule, as tensors and JSON values.

        The network and the optimizer have state dicts of their own. A training that loads the three continues with the
        same bits on the CPU, also within an epoch.
        """
        tensors, values = self.checkpoint_state()
        return {
            "position": asdict(self.position),
            "seed": self.seed,
            "data": self.data_identity,
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "hidden": {name: tensor.clone() for name, tensor in tensors.items()},
            **values,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of `state_dict`. If the loader's seed was drawn, the seeds become those of `state`.

        Raises:
            ValueError: the state was saved with other data, another seed or another loader.
        """
        for name, own in {"data": self.data_identity, "seed": self.seed}.items():
            if state[name] != own and not (name == "seed" and self.loader.seed_was_drawn):
                raise ValueError(f"the state was saved with {name}={state[name]}, not {own}")
        if (state["schedule"] is None) != (self.schedule is None):
            raise ValueError("the state was saved with another lr_scheduler")
        self.load_checkpoint_state(Checkpoint("", tensors=state["hidden"], progress=state))
        self.position, self.seed, self._running = TrainingPosition.from_json(state["position"]), state["seed"], None
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])

    def to(self, device: torch.device | str) -> Self:
        """Move everything but the network and its optimizer to a device, on which the network must be; return self."""
        self.loader.device = torch.device(device)
        self.criterion.to(device)
        self.sampler = None if self.sampler is None else self.sampler.to(self.loader.device)
        self.hidden = None if self.hidden is None else [state.to(device) for state in self.hidden]
        self._losses, self._captured_step, self._running = LossMonitor(self.loader.device), None, None
        return self


def _unique_rows(items: list[Tensor]) -> Tensor:
    """Return the sorted distinct items, without the -1 of dead lanes."""
    rows = torch.unique(torch.cat([part.reshape(-1) for part in items]))
    return rows[rows >= 0]
