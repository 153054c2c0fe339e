"""Defers Ctrl-C and SIGTERM to the end of a training step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

_MESSAGES: dict[int, bytes] = {
    signal.SIGINT: b"\nCtrl-C: finishing this step (or validation), then stopping; a second Ctrl-C stops at once\n",
    signal.SIGTERM: b"\nSIGTERM: finishing this step (or validation), then stopping; a second SIGTERM stops at once\n",
}
_STDERR = 2  # file descriptor


class TrainingInterrupted(KeyboardInterrupt):
    """Raised when Ctrl-C or SIGTERM ended a training between two updates; the message says how to resume.

    Attributes:
        signal_number: signal.SIGINT (Ctrl-C) or signal.SIGTERM.
    """

    def __init__(self, message: str, signal_number: int = signal.SIGINT):
        super().__init__(message)
        self.signal_number = signal_number


@dataclass
class InterruptRequest:
    """The signal that requested the end of the training; None if there was no signal."""

    signal_number: int | None = None


@contextmanager
def deferred_interrupt() -> Iterator[InterruptRequest]:
    """Only record the first Ctrl-C and the first SIGTERM inside the context; the second of each has its usual effect.

    Python handles signals in the main thread, so the context does nothing in any other thread. Signals that are ignored
    or handled outside of Python keep their handlers.
    """
    request = InterruptRequest()
    handlers: dict[int, Any] = {}

    def record(signal_number: int, _frame: FrameType | None) -> None:
        request.signal_number = signal_number
        signal.signal(signal_number, handlers[signal_number])
        with suppress(OSError):
            os.write(_STDERR, _MESSAGES[signal.Signals(signal_number)])  # print is not reentrant

    if threading.current_thread() is threading.main_thread():
        for signal_number in _MESSAGES:
            handler = signal.getsignal(signal_number)
            if callable(handler) or handler == signal.SIG_DFL:
                handlers[signal_number] = handler
    try:
        for signal_number in handlers:
            signal.signal(signal_number, record)
        yield request
    finally:
        for signal_number, handler in handlers.items():
            signal.signal(signal_number, handler)
