"""Shows the progress of a training on stderr: a bar on a terminal, plain lines in a file or pipe."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

# Minimum number of seconds from one update of the bar, or one line, to the next.
BAR_INTERVAL_S = 0.25
LINE_INTERVAL_S = 30.0


class Progress(Protocol):
    """Protocol of the objects that show the progress of a training.

    An event is one training example: a target of a session, or a triple of a graph. A loss is the mean over the epoch
    so far.
    """

    def begin_epoch(self, epoch: int, n_epochs: int, n_events: int, done: int) -> None:
        """Start epoch `epoch` (counted from 1), which has `n_events` events, `done` of them before a resume."""

    def advance(self, events: int, loss: float | None) -> None:
        """Add `events` events. The loss is None if it is not known. Called after each block or less often."""

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Finish the epoch, after its validation; `record` is the entry of the epoch in the history."""

    def say(self, message: str) -> None:
        """Show one line of text."""

    def close(self) -> None:
        """Release the terminal; called when the training ends."""


class SilentProgress:
    """Shows nothing."""

    def begin_epoch(self, epoch: int, n_epochs: int, n_events: int, done: int) -> None:
        """Show nothing."""

    def advance(self, events: int, loss: float | None) -> None:
        """Show nothing."""

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Show nothing."""

    def say(self, message: str) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Show nothing."""


def epoch_line(record: dict[str, Any], n_epochs: int, unit: str = "events") -> str:
    """Return one epoch of the history as a line of text. `unit` is what an event is called: "events" or "triples"."""
    parts = [
        f"epoch {record['epoch']}/{n_epochs}",
        f"loss {record['loss']:.6f}",
        f"{record['events']:,} {unit} in {record['seconds']:.1f} s",
        f"{record['events'] / max(record['seconds'], 1e-9):,.0f} {unit}/s",
    ]
    parts += [f"{name} {value:.4f}" for name, value in record.get("validation", {}).items()]
    return "  ".join(parts)


class _TimedProgress:
    """Base class: counts events, and calls `show` if at least `interval_s` seconds have passed since the last call.

    `unit` is what an event is called in the output: "events" or "triples".
    """

    interval_s = BAR_INTERVAL_S

    def __init__(self, unit: str = "events") -> None:
        self.unit = unit

    def begin_epoch(self, epoch: int, n_epochs: int, n_events: int, done: int) -> None:
        """Start counting."""
        self.epoch, self.n_epochs, self.n_events = epoch, n_epochs, n_events
        self.done = self._done_at_start = done
        self._started = self._last_shown = time.monotonic()

    def advance(self, events: int, loss: float | None) -> None:
        """Add the events, and call `show` if the interval has passed and the loss is known."""
        self.done += events
        now = time.monotonic()
        if loss is not None and now - self._last_shown >= self.interval_s:
            self._last_shown = now
            self.show(loss, (self.done - self._done_at_start) / (now - self._started))

    def show(self, loss: float, rate: float) -> None:
        """Show the state of the epoch; `rate` is the events per second since the epoch was started or resumed."""
        raise NotImplementedError


class PlainProgress(_TimedProgress):
    """Prints one line per epoch, and one every 30 s within a long epoch."""

    interval_s = LINE_INTERVAL_S

    def show(self, loss: float, rate: float) -> None:
        """Print the state of the epoch."""
        fraction = self.done / max(self.n_events, 1)
        self.say(f"epoch {self.epoch}/{self.n_epochs}  {fraction:.0%}  loss {loss:.6f}  {rate:,.0f} {self.unit}/s")

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Print the epoch's line."""
        self.say(epoch_line(record, self.n_epochs, self.unit))

    def say(self, message: str) -> None:
        """Print one line."""
        print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Do nothing."""


class BarProgress(_TimedProgress):
    """Draws a progress bar (by the library rich) for each epoch; replaces it by the epoch's line at the end."""

    def __init__(self, unit: str = "events") -> None:
        super().__init__(unit)
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        # No refresh thread, since it would compete with the training for the interpreter lock: `show` redraws the bar.
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  loss {task.fields[loss]:.4f}"),
            TextColumn(f" {{task.fields[rate]:,.0f}} {unit}/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task("", loss=0.0, rate=0.0)

    def begin_epoch(self, epoch: int, n_epochs: int, n_events: int, done: int) -> None:
        """Restart the bar."""
        super().begin_epoch(epoch, n_epochs, n_events, done)
        self._bar.start()
        self._bar.reset(self._task, total=n_events, completed=done, description=f"epoch {epoch}/{n_epochs}")
        self._bar.refresh()

    def show(self, loss: float, rate: float) -> None:
        """Redraw the bar."""
        self._bar.update(self._task, completed=self.done, loss=loss, rate=rate)
        self._bar.refresh()

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Replace the bar by the epoch's line."""
        self.say(epoch_line(record, self.n_epochs, self.unit))

    def say(self, message: str) -> None:
        """Print one line above the bar."""
        self._bar.console.print(message, highlight=False, markup=False)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()


def make_progress(show: bool | None = None, unit: str = "events") -> Progress:
    """Return a progress bar if stderr is a terminal, else plain lines; with show=False an object that shows nothing.

    `unit` is what is counted: "events" for sessions, "triples" for graphs.
    """
    if show is False:
        return SilentProgress()
    return BarProgress(unit) if sys.stderr.isatty() else PlainProgress(unit)
