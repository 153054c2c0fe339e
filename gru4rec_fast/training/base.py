"""What every training does around its epochs: validates, keeps the best, saves, stops, resumes, tells."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from gru4rec_fast.ops.ranking import NanScoreError
from gru4rec_fast.profiling import PeakMemory
from gru4rec_fast.training.checkpoint import Checkpoint, CheckpointError
from gru4rec_fast.training.early_stopping import EarlyStopping
from gru4rec_fast.training.folder_lock import exclusive
from gru4rec_fast.training.interrupt import InterruptRequest, TrainingInterrupted, deferred_interrupt
from gru4rec_fast.training.options import LOSS
from gru4rec_fast.training.place import Place, TrainingDiverged, check_weights
from gru4rec_fast.training.progress import Progress, Silent
from gru4rec_fast.training.run_folder import LAST, PREVIOUS, RunFolder
from gru4rec_fast.training.state import MODEL, OPTIMIZER, load_optimizer, optimizer_state


class Player(Protocol):
    """Plays one epoch after another and moves the weights; `place` says how far it has come."""

    place: Place

    def play(self, between_updates: Callable[[], int | None]) -> None:
        """Play the epoch, or what is left of it; call `between_updates` where the training may be saved or stopped.

        It answers after how many steps at the latest it is to be called again; None: whenever it suits.
        """

    def end_epoch(self) -> None:
        """Stand before the next epoch."""

    def look_at_losses(self) -> None:
        """Take in every loss so far; TrainingDiverged where one is no number."""


class EpochOptions(Protocol):
    """The options that every training has; see `TrainingOptions`."""

    @property
    def n_epochs(self) -> int: ...
    @property
    def monitor(self) -> str: ...
    @property
    def patience(self) -> int | None: ...
    @property
    def min_delta(self) -> float: ...
    @property
    def checkpoint_every(self) -> int | None: ...


class BaseTrainer:
    """What `Trainer` and `GraphTrainer` share; each adds its player (`player`) and what is its own in a checkpoint.

    Args: those of `Trainer` that have nothing to do with sessions.
    """

    network: nn.Module
    options: EpochOptions
    player: Player

    def __init__(
        self,
        network: nn.Module,
        options: EpochOptions,
        *,
        optimizer: Optimizer,
        validate: Callable[[], Mapping[str, float]] | None,
        out: str | os.PathLike[str] | None,
        identity: Checkpoint,
        progress: Progress | None,
        peak: PeakMemory | None,
    ) -> None:
        watches_loss = options.monitor == LOSS
        if options.patience is not None and validate is None and not watches_loss:
            raise ValueError(f"patience={options.patience} watches {options.monitor}, which needs validation data")
        self.network, self.options, self.optimizer = network, options, optimizer
        self.validate, self.progress = validate, progress or Silent()
        self.folder = RunFolder(out, identity)
        self.history: list[dict[str, Any]] = []
        self.early_stopping = EarlyStopping(options.patience, options.min_delta, maximize=not watches_loss)
        self._picks_best = validate is not None or watches_loss
        self._peak, self.peak_memory_bytes = peak, 0
        self._saved_at = 0

    @property
    def place(self) -> Place:
        """How far the training has come."""
        return self.player.place

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose model stands in best.safetensors; None where this training picks none, or has not yet."""
        return (self.early_stopping.best_epoch or None) if self._picks_best else None

    def run(self, resume: Checkpoint | None = None) -> list[dict[str, Any]]:
        """Train up to `n_epochs`, from the start or from where `resume` (or `restore`) stands; return the history.

        Raises:
            TrainingInterrupted: Ctrl-C or SIGTERM; raised between two updates, after `last` was written.
            TrainingDiverged: a NaN or infinite loss, weight or validation metric.
            CheckpointError: see `restore`.
            OSError: a checkpoint cannot be written, or another training writes to the folder.
        """
        peak = self._peak or PeakMemory()
        if resume is not None:
            self.restore(resume)
        with exclusive(self.folder.path):
            return self._run(peak)

    def _run(self, peak: PeakMemory) -> list[dict[str, Any]]:
        self._say_what_is_there()
        try:
            with deferred_interrupt() as interrupt:
                while not self._is_done:
                    self.player.play(partial(self._between_updates, interrupt))
                    self._finish_epoch()
                    self._stop_if(interrupt)
        except TrainingDiverged as error:
            saved = self.folder.last_saved
            kept = "no checkpoint had been written yet" if saved is None else f"the last good checkpoint is {saved}"
            raise TrainingDiverged(f"{error}; training stopped; {kept}; try a smaller learning_rate") from None
        finally:
            self.progress.close()
            self.peak_memory_bytes = peak.bytes
            self.folder.write_curves(self.history)
        return self.history

    @property
    def _is_done(self) -> bool:
        return self.place.epoch > self.options.n_epochs or self.early_stopping.should_stop

    def _say_what_is_there(self) -> None:
        finished = f"epoch {self.place.epoch - 1} of n_epochs={self.options.n_epochs}"
        if self.early_stopping.should_stop:
            best = f"no gain for {self.early_stopping.waited} epochs (patience={self.options.patience})"
            self.progress.say(f"nothing left to train: stopped after {finished}, with {best}")
        elif self._is_done:
            self.progress.say(f"nothing left to train: {finished} is finished; raise n_epochs to go on")
        elif (path := self.folder.path) is not None and self.folder.holds_another:
            self.progress.say(
                f"{path} holds an earlier training; the first checkpoint of this one will move it to {path / PREVIOUS}"
            )

    def _between_updates(self, interrupt: InterruptRequest) -> int | None:
        self._stop_if(interrupt)
        every = self.options.checkpoint_every
        if every is None:
            return None
        if self.place.step - self._saved_at >= every:
            self._save_last()
        return every - (self.place.step - self._saved_at)

    def _finish_epoch(self) -> None:
        """Validate, write the history, move the learning rate, pick the best, save."""
        place, monitor = self.place, self.options.monitor
        check_weights(self.network, place)
        record: dict[str, Any] = {
            "epoch": place.epoch,
            "loss": place.loss_sum / place.mini_batches,
            "seconds": place.seconds,
            "mini_batches": place.mini_batches,
            "events": place.events,
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
        }
        watched: float | None = record[LOSS] if monitor == LOSS else None
        if self.validate is not None and self._validates_now:
            metrics = record["validation"] = self._validated(self.validate)
            if monitor not in (LOSS, *metrics):
                raise ValueError(f"monitor={monitor!r} is not measured; there are {', '.join(metrics)} and {LOSS}")
            watched = record[LOSS] if monitor == LOSS else metrics[monitor]
        self._after_epoch(record[LOSS] if watched is None else watched)
        better = watched is not None and self.early_stopping.update(place.epoch, watched)
        self.history.append(record)
        self.player.end_epoch()
        if better:  # before `last`, which says which epoch is the best: resumed from the one before, this is repeated
            self.folder.save_best(self.network, self.history)
        self._save_last()
        self.folder.write_csv(self.history)
        self.progress.end_epoch(record)

    @property
    def _validates_now(self) -> bool:
        """Whether the epoch that was just played is to be validated."""
        return True

    def _after_epoch(self, watched: float) -> None:
        """What else is to be done after an epoch, with the watched value, or the loss where there is none."""

    def _validated(self, validate: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """The metrics of the network as it is; TrainingDiverged where they, or the scores, are no numbers."""
        self.network.eval()
        try:
            metrics = dict(validate())
        except NanScoreError as error:  # finite weights can overflow too
            raise TrainingDiverged(f"validation found a NaN score {self.place}") from error
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise TrainingDiverged(f"the validation metric {name} is {value} {self.place}")
        return metrics

    def _stop_if(self, interrupt: InterruptRequest) -> None:
        if interrupt.signal_number is None:
            return
        path = self._save_last()
        then = "nothing was saved: no out folder was given"
        if path is not None:
            then = f"to go on from {path}, resume with the same out folder"
        raise TrainingInterrupted(f"training interrupted {self.place}; {then}", interrupt.signal_number)

    def _save_last(self) -> Path | None:
        if self.folder.path is None:
            return None
        self.player.look_at_losses()
        check_weights(self.network, self.place)
        tensors, values = self._own_state()
        state, moments = optimizer_state(self.network, self.optimizer)
        progress = {
            "place": asdict(self.place),
            "history": self.history,
            "optimizer": moments,
            "early_stopping": self.early_stopping.state_dict(),
            "data": self._data,
        }
        self._saved_at = self.place.step
        return self.folder.save_last(self.network, state | tensors, progress | values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Stand where the checkpoint was written; `run` goes on from there.

        Raises:
            CheckpointError: it holds no training, or one over other data or with another schedule.
        """
        progress = checkpoint.progress
        if "place" not in progress:
            raise CheckpointError(f"the checkpoint holds a model but no training to go on with; resume from {LAST}")
        if progress["data"] != self._data:
            raise CheckpointError(f"the checkpoint was trained on other data: {progress['data']}, not {self._data}")
        self._restore_own(checkpoint)
        self.player.place, self.history = Place(**progress["place"]), progress["history"]
        self.early_stopping.load_state_dict(progress["early_stopping"])
        self.network.load_state_dict(checkpoint.group(MODEL))
        moments = {name: tensor.clone() for name, tensor in checkpoint.group(OPTIMIZER).items()}
        load_optimizer(self.network, self.optimizer, moments, progress["optimizer"])
        self._saved_at = self.place.step
        self.folder.go_on_from(checkpoint.path)

    @property
    def _data(self) -> dict[str, int | str]:
        """What a checkpoint knows of the data."""
        raise NotImplementedError

    def _own_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values that a checkpoint of this kind of training holds besides."""
        return {}, {}

    def _restore_own(self, checkpoint: Checkpoint) -> None:
        """Take up what `_own_state` gave; CheckpointError, before anything was changed, where it does not fit."""
