"""The training loop: session-parallel blocks in, a trained network, a history and checkpoints out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gru4rec_fast import ops
from gru4rec_fast.data import SessionParallelLoader
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.profiling import NULL_RECORD, MemoryRecord, PeakMemory
from gru4rec_fast.training.base import BaseTrainer
from gru4rec_fast.training.checkpoint import Checkpoint, CheckpointError
from gru4rec_fast.training.epoch import EpochPlayer
from gru4rec_fast.training.fused import NoKernels
from gru4rec_fast.training.options import TrainingOptions
from gru4rec_fast.training.progress import Progress
from gru4rec_fast.training.schedules import Schedule
from gru4rec_fast.training.state import HIDDEN, hidden_tensors


class Trainer(BaseTrainer):
    """Trains a SessionNetwork epoch by epoch (`EpochPlayer`): validates, keeps the best, saves, resumes.

    Args:
        network: in whatever state it is; trained in place.
        loader: plays the sessions; its `steps` is T.
        options: everything else that can be chosen.
        criterion: the loss of a block.
        optimizer: over the network's parameters.
        sampler: the table negatives are drawn from, on the loader's device; needed unless n_sample is 0.
        validate: called after each epoch with the network in eval mode; returns metrics by name.
        out: folder for last.safetensors, best.safetensors (where there is something to pick it by), curves.csv and
            curves.png; see `RunFolder` for what becomes of an earlier training there. None: nothing is written.
        identity: format, config and further tensors to put into the checkpoints, so that their reader knows the model.
        fingerprint: called once, with the first checkpoint that is written or resumed; what tells this log from others,
            e.g. `lambda: log_fingerprint(store)`. None: two logs of equal counts are taken for the same.
        memory: a MemoryRecord switches on the phases batch, forward, loss, backward and update.
        progress: what is shown.
        peak: meter of the peak memory; None: one that starts with `run`.

    Attributes:
        history: one dict per finished epoch: epoch, loss (mean over the epoch's mini-batches of the sum over live lanes
            / batch_size), seconds (of training), mini_batches, events (targets), learning_rate, and `validation`
            (metrics by name) where there is a validation.
        peak_memory_bytes: peak resident size above the baseline of `peak`, after `run` (pictures are drawn later).

    Raises:
        ValueError: parts that do not fit each other.
    """

    network: SessionNetwork
    options: TrainingOptions
    player: EpochPlayer

    def __init__(
        self,
        network: SessionNetwork,
        loader: SessionParallelLoader,
        options: TrainingOptions,
        *,
        criterion: SampledLoss,
        optimizer: Optimizer,
        sampler: ops.AliasTable | None = None,
        validate: Callable[[], Mapping[str, float]] | None = None,
        out: str | os.PathLike[str] | None = None,
        identity: Checkpoint | None = None,
        fingerprint: Callable[[], str] | None = None,
        memory: MemoryRecord = NULL_RECORD,
        progress: Progress | None = None,
        peak: PeakMemory | None = None,
    ):
        if options.n_sample and sampler is None:
            raise ValueError(f"n_sample={options.n_sample} needs a sampler: ops.build_alias_table(support, alpha)")
        super().__init__(
            network,
            options,
            optimizer=optimizer,
            validate=validate,
            out=out,
            identity=identity or Checkpoint("gru4rec_fast.SessionNetwork/1"),
            progress=progress,
            peak=peak,
        )
        self.loader = loader
        self._fingerprint = fingerprint
        self.schedule: Schedule | None = None
        if options.lr_scheduler:
            self.schedule = Schedule(
                optimizer,
                options.lr_scheduler,
                options.lr_scheduler_options,
                n_epochs=options.n_epochs,
                maximize=validate is not None and self.early_stopping.maximize,
            )
        self.player = EpochPlayer(
            network,
            loader,
            options,
            criterion=criterion,
            optimizer=optimizer,
            sampler=sampler,
            schedule=self.schedule,
            memory=memory,
            progress=self.progress,
        )

    def _say_what_is_there(self) -> None:
        super()._say_what_is_there()
        if self._is_done or self.player.fused_is_unwanted:
            return
        reason = self.player.why_not_fused
        if reason is not None and not isinstance(reason, NoKernels):
            self.progress.say(f"training by autograd, not by the fused step: {reason}")

    def _after_epoch(self, watched: float) -> None:
        if self.schedule:
            self.schedule.after_epoch(watched)

    @cached_property
    def _data(self) -> dict[str, int | str]:
        """What a checkpoint knows of the log."""
        loader = self.loader
        log = {"sessions": loader.n_sessions, "targets": loader.n_targets, "items": self.network.n_items}
        return log | ({} if self._fingerprint is None else {"fingerprint": self._fingerprint()})

    def _own_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        hidden = self.player.hidden
        return hidden_tensors(hidden), {
            "loader": None if hidden is None else self.loader.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule else None,
        }

    def _restore_own(self, checkpoint: Checkpoint) -> None:
        progress = checkpoint.progress
        if (progress["schedule"] is None) != (not self.schedule):
            raise CheckpointError("the checkpoint was trained with another lr_scheduler")
        if self.schedule:
            try:
                self.schedule.load_state_dict(progress["schedule"])
            except ValueError as error:
                raise CheckpointError(str(error)) from None
        if progress["loader"] is not None:
            self.loader.load_state_dict(progress["loader"])
            hidden = checkpoint.group(HIDDEN)
            self.player.hidden = [hidden[str(layer)].to(self.loader.device, copy=True) for layer in range(len(hidden))]
