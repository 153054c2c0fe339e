"""Ctrl-C and SIGTERM that wait for the end of a step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

_NOTED = {
    signal.SIGINT: b"\nCtrl-C: finishing this step (or validation) and saving; press it again to stop at once\n",
    signal.SIGTERM: b"\nSIGTERM: finishing this step (or validation) and saving; a second one stops at once\n",
}
_STDERR = 2


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a training in good order; the message says where its state is and how to go on.

    signal_number: which of the two it was.
    """

    def __init__(self, message: str, signal_number: int = signal.SIGINT):
        super().__init__(message)
        self.signal_number = signal_number


@dataclass
class InterruptRequest:
    """The signal that asked for an end, or None."""

    signal_number: int | None = None


@contextmanager
def deferred_interrupt() -> Iterator[InterruptRequest]:
    """Within this context the first Ctrl-C or SIGTERM is only noted, the next one of its kind acts at once.

    Signals belong to the main thread: in any other the context does nothing, as with a signal that somebody has ignored
    or handles outside of Python.
    """
    request = InterruptRequest()
    before: dict[int, Any] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        request.signal_number = number
        signal.signal(number, before[number])
        with suppress(OSError):
            os.write(_STDERR, _NOTED[signal.Signals(number)])  # a print here could fall into another print

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _NOTED}
        before = {number: old for number, old in before.items() if callable(old) or old == signal.SIG_DFL}
    try:
        for number in before:
            signal.signal(number, note)
        yield request
    finally:
        for number, old in before.items():
            signal.signal(number, old)
