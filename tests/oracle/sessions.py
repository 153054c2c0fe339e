"""Session-parallel mini-batches, one step at a time, as plain lists would do it."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Step(NamedTuple):
    """One step of B lanes: items (-1 in dead lanes), and which lanes begin a session here."""

    inputs: np.ndarray
    targets: np.ndarray
    reset: np.ndarray

    @property
    def live(self) -> np.ndarray:
        """bool [B]"""
        return self.inputs >= 0


def split(items: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    """The sessions of a log as lists of items."""
    return [[int(i) for i in items[start:end]] for start, end in pairwise(offsets)]


def play(sessions: Sequence[Sequence[int]], lanes: int, min_live: int = 1) -> Iterator[Step]:
    """One epoch over sessions of two events or more, in the order given, until fewer than min_live >= 1 lanes live."""
    waiting = [list(session) for session in sessions]
    playing: list[list[int]] = [[] for _ in range(lanes)]
    while True:
        reset = np.zeros(lanes, dtype=bool)
        for lane in range(lanes):
            if len(playing[lane]) < 2 and waiting:
                playing[lane], reset[lane] = waiting.pop(0), True
        events = np.array([rest[:2] if len(rest) > 1 else [-1, -1] for rest in playing])
        if np.sum(events[:, 0] >= 0) < min_live:
            return
        yield Step(inputs=events[:, 0], targets=events[:, 1], reset=reset)
        playing = [rest[1:] for rest in playing]
