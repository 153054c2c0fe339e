"""Benchmark what measuring memory costs: a training of `fit` without it, and with MemoryProfiler or LeakDetector.

    pytest benchmarks/bench_memory_profiler.py --threads 1

A unit of work is one mini-batch of rsc15_100k with the setting "xe-100" (L100, B32). A side is one of the trainings
that are compared. The side "detector" takes a sample after each call of the fused step, or after each mini-batch by
autograd.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
from interleave import Side
from naive_pytorch import SETTINGS
from session_logs import SessionLogs
from trainers import gru_runner, runner_side

from gru4rec_fast.profiling import LeakDetector, MemoryProfiler

SETTING = SETTINGS[0]
# For fused and for autograd: the smallest allowed speed while memory is measured, relative to the speed without.
MIN_SPEED = {True: 0.95, False: 0.9}


def within(context: AbstractContextManager[Any], side: Side) -> Side:
    """Return a side that runs in a context."""

    def run(n: int) -> float:
        with context:
            return side(n)

    return run


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "autograd"])
def test_cost_of_measuring_memory(compare: Any, logs: SessionLogs, fused: bool) -> None:
    store, parameters = logs.store(SETTING.log), {**SETTING.parameters(), "fused": fused}

    def side() -> Side:
        return runner_side(gru_runner(store, parameters))

    watched = gru_runner(store, parameters)
    detector = LeakDetector()
    run_some = watched._run_some

    def run_and_sample(updates: int) -> tuple[int, bool]:
        n_made, finished = run_some(updates)
        detector.step(max(n_made, 1))
        return n_made, finished

    watched._run_some = run_and_sample  # type: ignore[method-assign]
    sides = {
        "off": side(),
        "profiler": within(MemoryProfiler(), side()),
        "detector": within(detector, runner_side(watched)),
    }
    goals = {name: {"off": MIN_SPEED[fused]} for name in ("profiler", "detector")}
    compare(sides, row=f"measuring memory, {'fused step' if fused else 'autograd'}", unit="mini-batch", goals=goals)
