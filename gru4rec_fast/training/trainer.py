"""The trainer: runs epochs, validates, saves checkpoints and the best model, stops early and resumes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from gru4rec_fast._untrusted import brief
from gru4rec_fast.distributed import Ranks
from gru4rec_fast.ops.ranking import NanScoreError
from gru4rec_fast.profiling import PeakMemory, active_profiler, phase
from gru4rec_fast.training.callbacks import Callback, StepRecord, check_callbacks, started
from gru4rec_fast.training.checkpoint import Checkpoint, CheckpointError
from gru4rec_fast.training.checkpoint_tensors import (
    OPTIMIZER,
    accumulator_maxima,
    load_optimizer,
    load_weights,
    optimizer_state,
)
from gru4rec_fast.training.earlier_training import LAST_FILE, PREVIOUS
from gru4rec_fast.training.early_stopping import EarlyStopping
from gru4rec_fast.training.folder_lock import lock_folder
from gru4rec_fast.training.interrupt import InterruptRequest, TrainingInterrupted, deferred_interrupt
from gru4rec_fast.training.options import MINIMIZED, TRAINING_LOSS, TrainerOptions
from gru4rec_fast.training.progress import Progress, SilentProgress
from gru4rec_fast.training.run_folder import RunFolder
from gru4rec_fast.training.saved_values import checked_history, damage_as_checkpoint_error
from gru4rec_fast.training.schedules import Schedule
from gru4rec_fast.training.training_position import TrainingDiverged, TrainingPosition, check_weights


class _TrainingStopped(Exception):
    """Raised between two updates to leave the epoch after a call of `Trainer.stop`."""


class EpochRunner(Protocol):
    """Protocol of the object that runs the epochs of a `Trainer` and updates the weights of `network`.

    An event is one training example: a target of a session, or a triple of a graph.

    Attributes:
        optimizer: optimizer of the network's parameters.
        schedule: learning-rate schedule. The runner calls `after_update`, the trainer calls `after_epoch`.
        position: how far the training has come.
        ranks: the processes that train the network together; None: this process alone.
    """

    optimizer: Optimizer
    schedule: Schedule | None
    position: TrainingPosition
    ranks: Ranks | None

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""

    def join(self, ranks: Ranks) -> None:
        """Train together with other processes from now on."""

    @property
    def n_events(self) -> int:
        """Number of events in an epoch."""

    @property
    def data_identity(self) -> dict[str, int | str]:
        """Counts and digests of the training data, as JSON values. Resuming on data with other values is an error."""

    def notice(self) -> str | None:
        """Return a line of text to show before training, or None."""

    def run_epoch(self, progress: Progress, between_updates: Callable[[], int | None]) -> None:
        """Run the current epoch from `position` to its end. Then `position` includes all of its losses.

        Calls `between_updates` where the training may be saved or stopped, which it does by an exception. It returns
        the maximum number of mini-batches until the next call; None means no limit.
        """

    def start_next_epoch(self) -> None:
        """Advance `position` to the start of the next epoch."""

    def read_losses(self) -> None:
        """Add the losses that are still on the device to `position`.

        Raises:
            TrainingDiverged: a loss is NaN or infinite.
        """

    def checkpoint_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and JSON values that this runner needs to resume, without weights and optimizer state."""

    def load_checkpoint_state(self, checkpoint: Checkpoint) -> None:
        """Restore what `checkpoint_state` returned."""


class Trainer:
    """Trains a network epoch by epoch: validates, saves checkpoints and the best model, stops early and resumes.

    On the CPU a resumed training ends with the same bits as one that was never interrupted.

    If several ranks train, each one runs a trainer with the same arguments. Rank 0 writes the files. A callback runs on
    every rank, but `on_checkpoint` on rank 0 only. A signal or `stop` on one rank stops all of them.

    Args:
        runner: runs the epochs: a `SessionEpochRunner` or a `GraphEpochRunner`. Its network is trained in place.
        options: number of epochs, validation, early stopping and checkpoints.
        validate: called with the network in eval mode after every `evaluate_every` epochs; returns metrics by name.
        out: folder for last.safetensors, best.safetensors (if there is a validation or monitor is "loss"), curves.csv,
            curves.png and, at the end, model.safetensors (the best model, else the last one). `RunFolder` says what
            happens to the files of an earlier training. None: nothing is written.
        checkpoint_template: a `Checkpoint` whose format, config and tensors are copied into every checkpoint file, so
            that a reader of the file can build the model. None: the format names the class of the network, and there is
            no config.
        callbacks: a list of `Callback` objects, which are called during the training.
        progress: shows the progress of the training; None: nothing is shown.
        peak: the `PeakMemory` that measures the peak memory above a baseline. None: the baseline is the memory in use
            when `run` starts.

    Attributes:
        history: one dict per finished epoch: epoch, loss (mean over the epoch's mini-batches), seconds (of training),
            mini_batches, events (targets or triples), learning_rate, and `validation` (metrics by name) if the epoch
            was validated.
        peak_memory_bytes: peak memory of the training above the baseline of `peak`; 0 until `run` has ended. The memory
            for drawing the curves is not included.

    Raises:
        ValueError: `patience` needs validation metrics, and `validate` is None; or `checkpoint_every` needs `out`.
        TypeError: `callbacks` is not a list of `Callback` objects.
    """

    def __init__(
        self,
        runner: EpochRunner,
        options: TrainerOptions,
        *,
        validate: Callable[[], Mapping[str, float]] | None = None,
        out: str | os.PathLike[str] | None = None,
        checkpoint_template: Checkpoint | None = None,
        callbacks: Iterable[Callback] = (),
        progress: Progress | None = None,
        peak: PeakMemory | None = None,
    ) -> None:
        monitors_loss = options.monitor == TRAINING_LOSS
        if options.patience is not None and validate is None and not monitors_loss:
            raise ValueError(f"patience={options.patience} monitors {options.monitor}, which needs validation data")
        if options.checkpoint_every is not None and out is None:
            raise ValueError(f"checkpoint_every={options.checkpoint_every}: give out=, the folder of the checkpoints")
        self.runner, self.options = runner, options
        self.network, self.optimizer = runner.network, runner.optimizer
        self.validate, self.progress = validate, progress or SilentProgress()
        self.callbacks = check_callbacks(callbacks)
        template = checkpoint_template or Checkpoint(f"gru4rec_fast.{type(runner.network).__name__}/2")
        self._saves = out is not None
        self.folder = RunFolder(out if self._is_first_rank else None, template)
        self.history: list[dict[str, Any]] = []
        self.early_stopping = EarlyStopping(
            options.patience, options.min_delta, maximize=options.monitor not in MINIMIZED
        )
        self._selects_best = validate is not None or monitors_loss
        self._peak, self.peak_memory_bytes = peak, 0
        self._saved_at_step = 0
        self._reported = replace(runner.position)  # the position at the last call of on_step_end
        self._is_stopped = False

    @property
    def _is_first_rank(self) -> bool:
        return self.runner.ranks is None or self.runner.ranks.is_first

    @property
    def position(self) -> TrainingPosition:
        """How far the training has come."""
        return self.runner.position

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose model is in best.safetensors; None if there is no such epoch."""
        return (self.early_stopping.best_epoch or None) if self._selects_best else None

    def run(self, resume: Checkpoint | None = None) -> list[dict[str, Any]]:
        """Train until `n_epochs` epochs are finished, or until the training is stopped; return the history.

        Args:
            resume: a checkpoint to continue from, see `restore`; None: continue from the current state.

        Raises:
            TrainingInterrupted: Ctrl-C or SIGTERM; raised between two updates, after last.safetensors was written.
            TrainingDiverged: a loss, weight or validation metric is NaN or infinite.
            CheckpointError: see `restore`.
            OSError: a checkpoint cannot be written, or another training writes to the folder.
            Any error of a callback.
        """
        peak = self._peak or PeakMemory()
        if self.runner.ranks is not None:
            own = {"writes to a folder": self._saves, "has validation data": self.validate is not None}
            self.runner.ranks.check_equal(asdict(self.options) | own)
        if resume is not None:
            self.restore(resume)
        self._is_stopped = False
        if (profiler := active_profiler()) is not None:
            profiler.track(self.network, self.optimizer)
        with lock_folder(self.folder.path):
            self.folder.prepare()
            self._announce()
            with started(self.callbacks, self):
                return self._run(peak)

    def stop(self) -> None:
        """End the training normally; for callbacks, which may call it in any method.

        Called in `on_step_end`, it ends the training before the next update, and last.safetensors is written. An epoch
        that has not finished is neither validated nor in the history. Called after an epoch, it ends the training
        before the next one. As at the end of any training, model.safetensors is written. A resumed training continues.
        """
        self._is_stopped = True

    def _run(self, peak: PeakMemory) -> list[dict[str, Any]]:
        try:
            with deferred_interrupt() as interrupt, suppress(_TrainingStopped):
                self._agree_to_stop(interrupt)
                while not self._is_done:
                    position = self.position
                    self.progress.begin_epoch(
                        position.epoch, self.options.n_epochs, self.runner.n_events, position.events
                    )
                    self._reported = replace(position)
                    self.runner.run_epoch(self.progress, partial(self._between_updates, interrupt))
                    self._call_on_step_end()
                    self._finish_epoch()
                    self._agree_to_stop(interrupt)
                    self._raise_if_interrupted(interrupt)
            if self._is_stopped:
                self.progress.say(f"a callback stopped the training {self.position.describe()}")
            maxima, is_best_selected = accumulator_maxima(self.network, self.optimizer), self.best_epoch is not None
            self._call_on_checkpoint(
                self.folder.save_model(self.network, self.history, maxima, is_best_selected=is_best_selected)
            )
        except TrainingDiverged as error:
            saved = self.folder.last_saved
            advice = "no checkpoint had been written yet" if saved is None else f"the last good checkpoint is {saved}"
            raise TrainingDiverged(f"{error}; training stopped; {advice}; try a smaller learning_rate") from None
        finally:
            self.progress.close()
            self.peak_memory_bytes = peak.bytes
            self.folder.write_curves(self.history)
            self.folder.close()
        return self.history

    @property
    def _is_done(self) -> bool:
        is_finished = self.position.epoch > self.options.n_epochs or self.early_stopping.should_stop
        return is_finished or self._is_stopped

    def _announce(self) -> None:
        """Say if there is nothing to train, if earlier files will be moved, and what the runner has to say."""
        finished = f"epoch {self.position.epoch - 1} of n_epochs={self.options.n_epochs}"
        if self.early_stopping.should_stop:
            best = f"best {self.options.monitor} in epoch {self.early_stopping.best_epoch}"
            self.progress.say(
                f"nothing left to train: stopped after {finished}; {best}, patience={self.options.patience}"
            )
        elif self._is_done:
            self.progress.say(f"nothing left to train: {finished} is finished; to continue, increase n_epochs")
        elif (path := self.folder.path) is not None and self.folder.has_earlier_training:
            self.progress.say(
                f"{path} has the files of an earlier training; they will be moved to {path / PREVIOUS} when the first "
                "checkpoint of this training is written"
            )
        if not self._is_done and (notice := self.runner.notice()):
            self.progress.say(notice)

    def _between_updates(self, interrupt: InterruptRequest) -> int | None:
        """Call the callbacks, save if due, stop if requested.

        Returns the number of mini-batches until the next save; None without saves.
        """
        self._call_on_step_end()
        self._agree_to_stop(interrupt)
        self._raise_if_interrupted(interrupt)
        every = self.options.checkpoint_every
        is_due = every is not None and self.position.step - self._saved_at_step >= every
        if is_due or self._is_stopped:
            self._save_last()
            self._agree_to_stop(interrupt)  # rank 0 has called `on_checkpoint`
        if self._is_stopped:
            raise _TrainingStopped
        return None if every is None else every - (self.position.step - self._saved_at_step)

    def _call_on_step_end(self) -> None:
        """Call `on_step_end` of the callbacks if there were updates since the previous call."""
        now, before = self.position, self._reported
        if not self.callbacks or now.step == before.step:
            return
        self._reported = replace(now)
        record = StepRecord(
            epoch=now.epoch,
            step=now.step,
            mini_batches=now.mini_batches - before.mini_batches,
            events=now.events - before.events,
            loss=now.mean_loss_since(before),
            learning_rate=self._learning_rate,
        )
        for callback in self.callbacks:
            callback.on_step_end(self, record)

    def _call_on_checkpoint(self, path: Path | None) -> None:
        """Call `on_checkpoint` of the callbacks if a file was written."""
        if path is not None:
            for callback in self.callbacks:
                callback.on_checkpoint(self, path)

    @property
    def _learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _finish_epoch(self) -> None:
        """Validate, step the schedule, append to the history, save, and call the callbacks."""
        position, options = self.position, self.options
        check_weights(self.network, position)
        record: dict[str, Any] = {
            "epoch": position.epoch,
            "loss": position.loss_sum / position.mini_batches,
            "seconds": position.seconds,
            "mini_batches": position.mini_batches,
            "events": position.events,
            "learning_rate": self._learning_rate,
        }
        monitored: float | None = record[TRAINING_LOSS] if options.monitor == TRAINING_LOSS else None
        must_validate = position.epoch % options.evaluate_every == 0 or position.epoch == options.n_epochs
        if self.validate is not None and must_validate:
            with phase("evaluation"):
                metrics = record["validation"] = self._run_validation(self.validate)
            if options.monitor not in (TRAINING_LOSS, *metrics):
                raise ValueError(
                    f"monitor={options.monitor!r} is not measured; choose one of {', '.join(metrics)}, {TRAINING_LOSS}"
                )
            monitored = record[TRAINING_LOSS] if options.monitor == TRAINING_LOSS else metrics[options.monitor]
        if self.runner.schedule is not None:
            # Without validation data, the schedule monitors the training loss.
            self.runner.schedule.after_epoch(monitored if self._selects_best else record[TRAINING_LOSS])
        is_better = monitored is not None and self.early_stopping.update(position.epoch, monitored)
        self.history.append(record)
        self.runner.start_next_epoch()
        # best.safetensors is written before last.safetensors. After a crash between the two, resuming from the old
        # last.safetensors repeats this epoch. In the other order, last.safetensors could name a best epoch that was
        # never saved.
        best_path = None
        if is_better:
            maxima = accumulator_maxima(self.network, self.optimizer)
            best_path = self.folder.save_best(self.network, self.history, maxima)
        self._save_last()
        self.folder.write_csv(self.history)
        self.progress.end_epoch(record)
        self._call_on_checkpoint(best_path)
        for callback in self.callbacks:
            callback.on_epoch_end(self, record)

    def _run_validation(self, validate: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """Return the metrics of the validation. Raises TrainingDiverged if a metric or score is not finite."""
        self.network.eval()
        try:
            metrics = dict(validate())
        except NanScoreError as error:  # scores of finite weights can overflow
            raise TrainingDiverged(f"the validation found a NaN score {self.position.describe()}") from error
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise TrainingDiverged(f"the validation metric {name} is {value} {self.position.describe()}")
        return metrics

    def _agree_to_stop(self, interrupt: InterruptRequest) -> None:
        """Make all ranks stop where one of them has received a signal, or a callback of one has called `stop`."""
        if self.runner.ranks is not None:
            signal_number, is_stopped = self.runner.ranks.highest(interrupt.signal_number or 0, self._is_stopped)
            interrupt.signal_number, self._is_stopped = signal_number or None, bool(is_stopped)

    def _raise_if_interrupted(self, interrupt: InterruptRequest) -> None:
        if interrupt.signal_number is None:
            return
        path = self._save_last()
        advice = (
            "rank 0 has saved; resume with the same out folder"
            if self._saves
            else "nothing was saved: no out folder was given"
        )
        if path is not None:
            advice = f"to continue from {path}, resume with the same out folder"
        message = f"training interrupted {self.position.describe()}; {advice}"
        raise TrainingInterrupted(message, interrupt.signal_number)

    def _save_last(self) -> Path | None:
        """Write last.safetensors, after a check of losses and weights; return its path, or None without a folder."""
        if not self._saves:
            return None
        self.runner.read_losses()
        check_weights(self.network, self.position)
        runner_tensors, runner_values = self.runner.checkpoint_state()
        optimizer_tensors, optimizer_values = optimizer_state(self.network, self.optimizer)
        schedule = self.runner.schedule
        progress = {
            "position": asdict(self.position),
            "history": self.history,
            "optimizer": optimizer_values,
            "schedule": None if schedule is None else schedule.state_dict(),
            "early_stopping": self.early_stopping.state_dict(),
            "data": self.runner.data_identity,
        }
        self._saved_at_step = self.position.step
        path = self.folder.save_last(self.network, optimizer_tensors | runner_tensors, progress | runner_values)
        self._call_on_checkpoint(path)
        return path

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state of the training that wrote the checkpoint; `run` continues from this state.

        Raises:
            CheckpointError: the checkpoint has no training state, or was written with other data or another schedule.
        """
        if "position" not in checkpoint.progress:
            raise CheckpointError(f"the checkpoint has a model but no training state; resume from {LAST_FILE}")
        with damage_as_checkpoint_error(checkpoint.path):
            self._restore(checkpoint)
        if (ranks := self.runner.ranks) is not None:  # each rank has read a file of its own
            ranks.check_equal({"position of the checkpoint": asdict(self.position)})
            ranks.check_equal_networks(self.network, self.optimizer)

    def _restore(self, checkpoint: Checkpoint) -> None:
        progress = checkpoint.progress
        data = self.runner.data_identity
        if progress["data"] != data:
            raise CheckpointError(f"the checkpoint was trained on other data: {brief(progress['data'])}, not {data}")
        self._restore_schedule(progress["schedule"])
        self.runner.load_checkpoint_state(checkpoint)
        self.runner.position = TrainingPosition.from_json(progress["position"])
        self.history = checked_history(progress)
        self.early_stopping.load_state_dict(progress["early_stopping"])
        load_weights(self.network, checkpoint)
        optimizer_tensors = {name: tensor.clone() for name, tensor in checkpoint.group(OPTIMIZER).items()}
        load_optimizer(self.network, self.optimizer, optimizer_tensors, progress["optimizer"])
        self._saved_at_step = self.position.step
        self.folder.continue_from(checkpoint.path)

    def _restore_schedule(self, state: dict[str, Any] | None) -> None:
        schedule = self.runner.schedule
        if (state is None) != (schedule is None):
            raise CheckpointError("the checkpoint was trained with another lr_scheduler")
        if schedule is not None and state is not None:
            try:
                schedule.load_state_dict(state)
            except ValueError as error:
                raise CheckpointError(str(error)) from None
