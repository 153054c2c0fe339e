"""Benchmark session_batch: whole epochs of session batches, compared with the official iterator and a NumPy iterator.

    pytest benchmarks/bench_session_batch.py --peer official=PATH

A lane is one of the B sessions processed in parallel. B is 32 or 128, as in published configurations, or 512, as in an
evaluation. A unit of work is an event, that is a pair of input and target. Sides (the implementations compared):
`official`, `naive` (NumPy), `reference` (the operator in pure PyTorch), `session_batch` (the native operator, 256 steps
per call, as in training) and `loader` (a Python loop over a `SessionParallelLoader`, one step per iteration). No side
samples negatives. The real log is diginetica; the synthetic log has as many events and items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from interleave import Side, timed
from machine import rate_shares
from session_logs import SessionLogs

from gru4rec_fast.data import SessionParallelLoader, SessionStore
from gru4rec_fast.ops import session_batch, session_batch_state

STEPS_PER_CALL = 256  # steps per call of ops.session_batch
EVENT_BYTES = 4 + 8 + 8 + 1  # bytes per event: read an item; write an input, a target and a reset flag


def naive_epoch(items: np.ndarray, offsets: np.ndarray, n_lanes: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield inputs, targets and reset flags of each step, made by NumPy indexing. Lanes without a session are removed.

    A reset flag is True where a session starts.
    """
    lanes = np.arange(n_lanes)
    position, end = offsets[lanes], offsets[lanes + 1]
    next_session, reset = n_lanes, np.ones(n_lanes, dtype=bool)
    while len(position):
        yield items[position], items[position + 1], reset
        position = position + 1
        reset = position + 1 >= end
        for lane in np.flatnonzero(reset):
            if next_session < len(offsets) - 1:
                position[lane], end[lane] = offsets[next_session], offsets[next_session + 1]
                next_session += 1
        is_live = position + 1 < end
        position, end, reset = position[is_live], end[is_live], reset[is_live]


def run_naive(items: np.ndarray, offsets: np.ndarray, n_lanes: int) -> int:
    """Make the batches of an epoch with NumPy and return the number of events."""
    return sum(len(inputs) for inputs, _, _ in naive_epoch(items, offsets, n_lanes))


def run_operator(items: np.ndarray, offsets: np.ndarray, n_lanes: int, impl: str) -> int:
    """Make the batches of an epoch with ops.session_batch and return the number of events."""
    log = torch.from_numpy(items), torch.from_numpy(offsets), None  # None: the sessions keep their order
    state = session_batch_state(n_lanes)
    n_events, n_live = 0, n_lanes
    while n_live:
        inputs, _, _ = session_batch(*log, *state, STEPS_PER_CALL, impl=impl)
        n_live = int((inputs[-1] >= 0).sum())
        n_events += inputs.numel() if n_live == n_lanes else int((inputs >= 0).sum())
    return n_events


def run_loader(store: SessionStore, n_lanes: int) -> int:
    """Make the batches of an epoch with the data loader and return the number of events."""
    return sum(block.n_live[0] for block in SessionParallelLoader(store, n_lanes))


def epoch_side(run_epoch: Callable[[], int], n_events: int) -> Side:
    """Return the side that calls `run_epoch`, which runs an epoch and returns its number of events."""

    def run_checked() -> None:
        assert run_epoch() == n_events

    return timed(run_checked, n_events)


@pytest.mark.parametrize("log", ["real", "synthetic"])
@pytest.mark.parametrize("n_lanes", [32, 128, 512])
def test_epoch(compare: Any, logs: SessionLogs, official: Any, n_lanes: int, log: str) -> None:
    store = logs.store("diginetica") if log == "real" else logs.synthetic("diginetica")
    items, offsets, n_events = np.array(store.items), np.array(store.offsets), store.n_targets
    sides: dict[str, Side] = {}
    if official is not None and log == "real":
        sides["official"] = epoch_side(official.session_batches(logs.frame("diginetica"), n_lanes), n_events)
    sides["naive"] = epoch_side(lambda: run_naive(items, offsets, n_lanes), n_events)
    sides["reference"] = epoch_side(lambda: run_operator(items, offsets, n_lanes, "reference"), n_events)
    sides["loader"] = epoch_side(lambda: run_loader(store, n_lanes), n_events)
    sides["session_batch"] = epoch_side(lambda: run_operator(items, offsets, n_lanes, "auto"), n_events)
    # For each side of this package: {other side: smallest allowed ratio, time of the other side / time of the side}.
    goals: dict[str, dict[str, float]] = {"session_batch": {}, "loader": {}}
    if log == "real":
        goals["session_batch"]["official"] = 50.0
    name = "diginetica" if log == "real" else "synthetic log"
    seconds = compare(sides, row=f"session batches, {name}, B{n_lanes}", unit="event", goals=goals)
    # cpu_table.py reads from "limits" how close each side is to the machine's copy bandwidth.
    compare.note(
        limits={side: rate_shares(figures["median"], n_bytes=EVENT_BYTES) for side, figures in seconds.items()}
    )
