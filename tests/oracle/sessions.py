"""Session-parallel mini-batches, computed step by step with Python lists.

A lane is one of the B rows of a mini-batch. It processes one session after another, and is dead when none is left.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Step(NamedTuple):
    """One step of B lanes: inputs and targets (-1 in dead lanes), and reset, True where a lane starts a session."""

    inputs: np.ndarray
    targets: np.ndarray
    reset: np.ndarray

    @property
    def live(self) -> np.ndarray:
        """Mask of the lanes that have a session, bool [B]."""
        return self.inputs >= 0


def split(items: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    """Split a log into lists of items, one per session."""
    return [[int(i) for i in items[start:end]] for start, end in pairwise(offsets)]


def session_steps(sessions: Sequence[Sequence[int]], lanes: int, min_live: int = 1) -> Iterator[Step]:
    """Yield the steps of one epoch, until fewer than min_live lanes are live. Sessions must have two events or more."""
    remaining = [list(session) for session in sessions]
    current: list[list[int]] = [[] for _ in range(lanes)]  # the rest of each lane's session
    while True:
        reset = np.zeros(lanes, dtype=bool)
        for lane in range(lanes):
            if len(current[lane]) < 2 and remaining:
                current[lane], reset[lane] = remaining.pop(0), True
        pairs = np.array([events[:2] if len(events) > 1 else [-1, -1] for events in current])
        if np.sum(pairs[:, 0] >= 0) < min_live:
            return
        yield Step(inputs=pairs[:, 0], targets=pairs[:, 1], reset=reset)
        current = [events[1:] for events in current]
