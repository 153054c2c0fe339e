"""Ctrl-C that waits for the end of a step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

_NOTED = b"\nCtrl-C: finishing this step (or validation) and saving; press it again to stop at once\n"
_STDERR = 2


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a training in good order; the message says where its state is and how to go on from there."""


@dataclass
class InterruptRequest:
    """Whether Ctrl-C was pressed."""

    requested: bool = False


@contextmanager
def deferred_interrupt() -> Iterator[InterruptRequest]:
    """Within this context the first Ctrl-C is only noted, the second acts at once.

    Signals belong to the main thread: in any other the context does nothing, as where somebody has SIGINT ignored or
    handled outside of Python.
    """
    request = InterruptRequest()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield request
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        request.requested = True
        signal.signal(signal.SIGINT, before)
        with suppress(OSError):
            os.write(_STDERR, _NOTED)  # a print here could fall into another print

    signal.signal(signal.SIGINT, note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)
