"""Callbacks: objects that a trainer calls during a training, e.g. to log, to stop early or to measure memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class StepRecord:
    """What a training has done since the previous call of `Callback.on_step_end`.

    Attributes:
        epoch: the current epoch, counted from 1.
        step: mini-batches since the training began.
        mini_batches: mini-batches since the previous call; at least 1.
        events: events (targets, or triples of a graph) since the previous call.
        loss: mean loss of these mini-batches. Where autograd trains on a GPU, losses are read 64 at a time, because
            reading one is a GPU synchronization: the loss is then the mean of those read since the previous call, None
            if none was read.
        learning_rate: learning rate of the next update.
    """

    epoch: int
    step: int
    mini_batches: int
    events: int
    loss: float | None
    learning_rate: float


class Callback:
    """Base class of callbacks, for `fit(callbacks=[...])` of the estimators and for `Trainer`. Its methods do nothing.

        class StopAtLoss(Callback):
            def on_step_end(self, trainer, record):
                if record.loss is not None and record.loss < 1.5:
                    trainer.stop()

    Every method gets the `gru4rec_fast.training.Trainer`: its `network`, `optimizer`, `position`, `options`, `history`
    and `best_epoch` can be read, and `trainer.stop()` ends the training. Callbacks are called in the order of the list,
    between two updates of the weights, in the thread that trains.

    An error in a method ends the training and is raised by `fit` or `Trainer.run`. The run folder keeps the checkpoints
    that were written before, from which the training can be resumed. Checkpoints contain no state of callbacks.
    """

    def on_fit_start(self, trainer: Any) -> None:
        """Do something before the first update, after the state of a resumed training was restored."""

    def on_step_end(self, trainer: Any, record: StepRecord) -> None:
        """Do something after updates of the weights.

        Called after every update where autograd or a graph model trains. The fused step makes many updates per call:
        this method is then called after each call, about every 0.1 s, and also at the end of an epoch.
        """

    def on_checkpoint(self, trainer: Any, path: Path) -> None:
        """Do something after a file of the run folder was written; never called without a run folder.

        The name of the file is last.safetensors, best.safetensors or, at the end, model.safetensors.
        """

    def on_epoch_end(self, trainer: Any, record: dict[str, Any]) -> None:
        """Do something after an epoch, its validation and its checkpoints.

        record: the last entry of `trainer.history`: epoch, loss (mean over the epoch), seconds, mini_batches, events,
            learning_rate and, if the epoch was validated, `validation` (metrics by name).
        """

    def on_fit_end(self, trainer: Any, error: BaseException | None) -> None:
        """Do something at the end of the training, even if it fails. Callbacks are called in reverse order.

        It is not called if this callback's own `on_fit_start` failed.

        error: the exception that ended the training, Ctrl-C included; None if it ended normally or by `stop`.
        """


def check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """Return the callbacks of a list as a tuple. Raises TypeError for anything but a list of `Callback` instances."""
    advice = "callbacks must be a list of instances of gru4rec_fast.training.Callback"
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"{advice}, not a {type(callbacks).__name__}")
    checked = tuple(callbacks)
    for callback in checked:
        if not isinstance(callback, Callback):
            given = f"the class {callback.__name__}" if isinstance(callback, type) else f"a {type(callback).__name__}"
            raise TypeError(f"{advice}; one of them is {given}")
    return checked


@contextmanager
def started(callbacks: Iterable[Callback], trainer: Any) -> Iterator[None]:
    """Call `on_fit_start` of all callbacks on entry to the context, and `on_fit_end` of the started ones on exit."""
    with ExitStack() as stack:
        for callback in callbacks:
            callback.on_fit_start(trainer)
            stack.push(partial(_end, callback, trainer))
        yield


def _end(
    callback: Callback,
    trainer: Any,
    _error_type: type[BaseException] | None,
    error: BaseException | None,
    _traceback: TracebackType | None,
) -> None:
    callback.on_fit_end(trainer, error)
