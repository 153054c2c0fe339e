"""The training loop: session-parallel blocks in, a trained network, a history and checkpoints out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from gru4rec_fast import ops
from gru4rec_fast.data.loader import SessionParallelLoader
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.profiling import NULL_RECORD, MemoryRecord, PeakMemory
from gru4rec_fast.training.checkpoint import Checkpoint, CheckpointError
from gru4rec_fast.training.early_stopping import EarlyStopping
from gru4rec_fast.training.epoch import EpochPlayer
from gru4rec_fast.training.folder_lock import exclusive
from gru4rec_fast.training.interrupt import InterruptRequest, TrainingInterrupted, deferred_interrupt
from gru4rec_fast.training.options import LOSS, TrainingOptions
from gru4rec_fast.training.place import Place, TrainingDiverged, check_weights
from gru4rec_fast.training.progress import Progress, Silent
from gru4rec_fast.training.run_folder import LAST, PREVIOUS, RunFolder
from gru4rec_fast.training.schedules import Schedule
from gru4rec_fast.training.state import HIDDEN, MODEL, OPTIMIZER, hidden_tensors, load_optimizer, optimizer_state


class Trainer:
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
        watches_loss = options.monitor == LOSS
        if options.n_sample and sampler is None:
            raise ValueError(f"n_sample={options.n_sample} needs a sampler: ops.build_alias_table(support, alpha)")
        if options.patience is not None and validate is None and not watches_loss:
            raise ValueError(f"patience={options.patience} watches {options.monitor}, which needs validation data")
        self.network, self.loader, self.options, self.optimizer = network, loader, options, optimizer
        self.validate, self.progress = validate, progress or Silent()
        self.folder = RunFolder(out, identity or Checkpoint("gru4rec_fast.SessionNetwork/1"))
        self.history: list[dict[str, Any]] = []
        self._fingerprint = fingerprint
        self._picks_best = validate is not None or watches_loss
        self._peak, self.peak_memory_bytes = peak, 0
        self.early_stopping = EarlyStopping(options.patience, options.min_delta, maximise=not watches_loss)
        self.schedule: Schedule | None = None
        if options.lr_scheduler:
            self.schedule = Schedule(
                optimizer,
                options.lr_scheduler,
                options.lr_scheduler_options,
                n_epochs=options.n_epochs,
                maximise=validate is not None and not watches_loss,
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

    def _between_updates(self, interrupt: InterruptRequest) -> None:
        self._stop_if(interrupt)
        every = self.options.checkpoint_every
        if every and self.place.step - self._saved_at >= every:
            self._save_last()

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
        watched: float = record["loss"]
        if self.validate is not None:
            metrics = record["validation"] = self._validated(self.validate)
            if monitor not in (LOSS, *metrics):
                raise ValueError(f"monitor={monitor!r} is not measured; there are {', '.join(metrics)} and {LOSS}")
            watched = record[LOSS] if monitor == LOSS else metrics[monitor]
        if self.schedule:
            self.schedule.after_epoch(watched)
        better = self._picks_best and self.early_stopping.update(place.epoch, watched)
        self.history.append(record)
        self.player.end_epoch()
        if better:  # before `last`, which says which epoch is the best: resumed from the one before, this is repeated
            self.folder.save_best(self.network, self.history)
        self._save_last()
        self.folder.write_csv(self.history)
        self.progress.end_epoch(record)

    def _validated(self, validate: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """The metrics of the network as it is; TrainingDiverged where they, or the scores, are no numbers."""
        self.network.eval()
        try:
            metrics = dict(validate())
        except ValueError as error:
            if "NaN score" in str(error):  # finite weights can overflow too
                raise TrainingDiverged(f"validation found a NaN score {self.place}") from error
            raise
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
        state, values = optimizer_state(self.network, self.optimizer)
        progress = {
            "place": asdict(self.place),
            "history": self.history,
            "loader": None if self.player.hidden is None else self.loader.state_dict(),
            "optimizer": values,
            "schedule": self.schedule.state_dict() if self.schedule else None,
            "early_stopping": self.early_stopping.state_dict(),
            "data": self._data,
        }
        self._saved_at = self.place.step
        return self.folder.save_last(self.network, state | hidden_tensors(self.player.hidden), progress)

    @cached_property
    def _data(self) -> dict[str, int | str]:
        """What a checkpoint knows of the log."""
        loader = self.loader
        log = {"sessions": loader.n_sessions, "targets": loader.n_targets, "items": self.network.n_items}
        return log | ({} if self._fingerprint is None else {"fingerprint": self._fingerprint()})

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
        if (progress["schedule"] is None) != (not self.schedule):
            raise CheckpointError("the checkpoint was trained with another lr_scheduler")
        if self.schedule:
            try:
                self.schedule.load_state_dict(progress["schedule"])
            except ValueError as error:
                raise CheckpointError(str(error)) from None
        self.player.place, self.history = Place(**progress["place"]), progress["history"]
        self.early_stopping.load_state_dict(progress["early_stopping"])
        self.network.load_state_dict(checkpoint.group(MODEL))
        load_optimizer(self.network, self.optimizer, checkpoint.group(OPTIMIZER), progress["optimizer"])
        if progress["loader"] is not None:
            self.loader.load_state_dict(progress["loader"])
            hidden = checkpoint.group(HIDDEN)
            self.player.hidden = [hidden[str(layer)].to(self.loader.device) for layer in range(len(hidden))]
        self._saved_at = self.place.step
        self.folder.go_on_from(checkpoint.path)


def fit(
    network: SessionNetwork,
    loader: SessionParallelLoader,
    options: TrainingOptions,
    *,
    resume: Checkpoint | None = None,
    **parts: Any,
) -> list[dict[str, Any]]:
    """Train `network` in place and return the history; `parts` are the keyword arguments of `Trainer`."""
    return Trainer(network, loader, options, **parts).run(resume)
