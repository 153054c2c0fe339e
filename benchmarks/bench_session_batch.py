"""session_batch: one epoch of a log in events per second, against an iterator written as one would in NumPy.

    pytest benchmarks/bench_session_batch.py --benchmark-group-by=param:n_lanes

The log is synthetic: 100,000 sessions, lengths 2 + geometric (mean 5), uniform items. `events` in extra_info is the
number of (input, target) pairs of the epoch. Shapes: lanes of the published configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from gru4rec_fast.ops import session_batch, session_batch_state

N_SESSIONS = 100_000
N_ITEMS = 40_000
CALL_STEPS = 256  # rows per call of the operator


@pytest.fixture(scope="module")
def log() -> tuple[np.ndarray, np.ndarray]:
    """items int32 [n_events], offsets int64 [n_sessions + 1]"""
    generator = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(1 + generator.geometric(0.25, N_SESSIONS))])
    return generator.integers(0, N_ITEMS, offsets[-1], dtype=np.int32), offsets


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
    log = torch.from_numpy(items), torch.from_numpy(offsets), torch.arange(len(offsets) - 1)
    state = session_batch_state(n_lanes)
    events, live = 0, n_lanes
    while live:
        inputs, _, _ = session_batch(*log, *state, CALL_STEPS, impl=impl)
        live = int((inputs[-1] >= 0).sum())
        events += inputs.numel() if live == n_lanes else int((inputs >= 0).sum())
    return events


@pytest.mark.parametrize("n_lanes", [32, 128, 512])
@pytest.mark.parametrize("side", ["naive", "reference", "native"])
def test_epoch(benchmark: Any, log: tuple[np.ndarray, np.ndarray], side: str, n_lanes: int) -> None:
    items, offsets = log
    epoch: Callable[[], int] = (
        (lambda: run_naive(items, offsets, n_lanes))
        if side == "naive"
        else (lambda: run_operator(items, offsets, n_lanes, side))
    )
    events = benchmark.pedantic(epoch, rounds=7, warmup_rounds=1)
    benchmark.extra_info["events"] = events
    assert events == len(items) - N_SESSIONS
