"""session_batch: epochs of a log, per event, against the official iterator and one as one would write it in NumPy.

    pytest benchmarks/bench_session_batch.py --peer official=PATH

A unit is an event, a pair of input and target. Lanes are those of the published configurations and of an evaluation.
`session_batch` is the operator called for 256 steps at a time, as the training does; `loader` a
`SessionParallelLoader`, which hands them out one by one to a loop in Python. Negatives are left out on all sides. The
real log is diginetica's, the synthetic one of its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from datasets import LogShelf
from interleave import Side, timed
from machine import limits

from gru4rec_fast.data import SessionParallelLoader, SessionStore
from gru4rec_fast.ops import session_batch, session_batch_state

CALL_STEPS = 256  # rows per call of the operator
EVENT_BYTES = 4 + 8 + 8 + 1  # an item read; an input, a target and a reset flag written


def naive_epoch(items: np.ndarray, offsets: np.ndarray, n_lanes: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Row by row with NumPy fancy indexing, dead lanes removed: what a loop without an operator would do."""
    lanes = np.arange(n_lanes)
    position, end = offsets[lanes], offsets[lanes + 1]
    started, reset = n_lanes, np.ones(n_lanes, dtype=bool)
    while len(position):
        yield items[position], items[position + 1], reset
        position = position + 1
        reset = position + 1 >= end
        for lane in np.flatnonzero(reset):
            if started < len(offsets) - 1:
                position[lane], end[lane] = offsets[started], offsets[started + 1]
                started += 1
        live = position + 1 < end
        position, end, reset = position[live], end[live], reset[live]


def run_naive(items: np.ndarray, offsets: np.ndarray, n_lanes: int) -> int:
    return sum(len(inputs) for inputs, _, _ in naive_epoch(items, offsets, n_lanes))


def run_operator(items: np.ndarray, offsets: np.ndarray, n_lanes: int, impl: str) -> int:
    log = torch.from_numpy(items), torch.from_numpy(offsets), None
    state = session_batch_state(n_lanes)
    events, live = 0, n_lanes
    while live:
        inputs, _, _ = session_batch(*log, *state, CALL_STEPS, impl=impl)
        live = int((inputs[-1] >= 0).sum())
        events += inputs.numel() if live == n_lanes else int((inputs >= 0).sum())
    return events


def run_loader(store: SessionStore, n_lanes: int) -> int:
    return sum(block.n_live[0] for block in SessionParallelLoader(store, n_lanes))


def epochs(play: Callable[[], int], n_events: int) -> Side:
    """A side from a function that plays an epoch and returns how many events it had."""

    def checked() -> None:
        assert play() == n_events

    return timed(checked, n_events)


@pytest.mark.parametrize("log", ["real", "synthetic"])
@pytest.mark.parametrize("n_lanes", [32, 128, 512])
def test_epoch(compare: Any, logs: LogShelf, official: Any, n_lanes: int, log: str) -> None:
    store = logs.store("diginetica") if log == "real" else logs.synthetic("diginetica")
    items, offsets, n_events = np.array(store.items), np.array(store.offsets), store.n_targets
    sides: dict[str, Side] = {}
    if official is not None and log == "real":
        sides["official"] = epochs(official.session_batches(logs.frame("diginetica"), n_lanes), n_events)
    sides["naive"] = epochs(lambda: run_naive(items, offsets, n_lanes), n_events)
    sides["reference"] = epochs(lambda: run_operator(items, offsets, n_lanes, "reference"), n_events)
    sides["loader"] = epochs(lambda: run_loader(store, n_lanes), n_events)
    sides["session_batch"] = epochs(lambda: run_operator(items, offsets, n_lanes, "auto"), n_events)
    goals: dict[str, dict[str, float]] = {"session_batch": {}, "loader": {}}
    if log == "real":
        goals["session_batch"]["official"] = 50.0
    name = "diginetica" if log == "real" else "synthetic log"
    seconds = compare(sides, row=f"session batches, {name}, B{n_lanes}", unit="event", subjects=goals)
    compare.note(limits={side: limits(taken["median"], n_bytes=EVENT_BYTES) for side, taken in seconds.items()})
