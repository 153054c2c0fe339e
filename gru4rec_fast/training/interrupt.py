"""Ctrl-C that waits for the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a training in good order; the message says where its state is and how to go on from there."""


@dataclass
class InterruptRequest:
    """Whether Ctrl-C was pressed."""

    requested: bool = False


@contextmanager
def deferred_interrupt(announce: Callable[[str], None]) -> Iterator[InterruptRequest]:
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
        announce("Ctrl-C: finishing this step and saving; press it again to stop at once")

    signal.signal(signal.SIGINT, note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)
