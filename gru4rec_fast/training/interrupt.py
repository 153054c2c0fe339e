"""Ctrl-C and SIGTERM that take effect at the end of a step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

_MESSAGES = {
    signal.SIGINT: b"\nCtrl-C: finishing this step (or validation) and saving; press it again to stop at once\n",
    signal.SIGTERM: b"\nSIGTERM: finishing this step (or validation) and saving; a second one stops at once\n",
}
_STDERR = 2


class TrainingInterrupted(KeyboardInterrupt):
    """Raised when Ctrl-C or SIGTERM ended a training between two updates; the message says how to resume.

    signal_number: SIGINT or SIGTERM.
    """

    def __init__(self, message: str, signal_number: int = signal.SIGINT):
        super().__init__(message)
        self.signal_number = signal_number


@dataclass
class InterruptRequest:
    """The signal that requested the end, or None."""

    signal_number: int | None = None


@contextmanager
def deferred_interrupt() -> Iterator[InterruptRequest]:
    """Record the first Ctrl-C or SIGTERM inside the context instead of raising it; a second one acts at once.

    Python handles signals in the main thread: in any other thread the context does nothing. Signals that are ignored or
    handled outside of Python are left alone.
    """
    request = InterruptRequest()
    handlers: dict[int, Any] = {}

    def record(signal_number: int, _frame: FrameType | None) -> None:
        request.signal_number = signal_number
        signal.signal(signal_number, handlers[signal_number])
        with suppress(OSError):
            os.write(_STDERR, _MESSAGES[signal.Signals(signal_number)])  # print is not reentrant

    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in _MESSAGES}
        handlers = {n: handler for n, handler in handlers.items() if callable(handler) or handler == signal.SIG_DFL}
    try:
        for number in handlers:
            signal.signal(number, record)
        yield request
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
