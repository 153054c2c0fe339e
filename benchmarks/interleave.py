"""Time several implementations alternately within one process, so that changes of the machine's speed cancel in ratios.

A row of a results table compares several implementations, called sides. A turn is one timed call of a side. A round is
one turn of each side. The speed of a shared machine drifts by a factor of two within an hour. Therefore the ratio of
two sides is computed for each round, from times of the same round. The result is the median of these ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pytest
from machine import describe_machine

# side(n) runs about n units of work and returns the seconds per unit. A unit is, for example, a mini-batch or a call.
Side = Callable[[int], float]

WARMUP_ROUNDS = 1  # untimed rounds; they follow the calls of `units_per_turn`


def timed(work: Callable[[], Any], units: int = 1) -> Side:
    """Return the side that calls `work`. Each call does `units` units of work."""

    def run(n: int) -> float:
        calls = max(1, round(n / units))
        started = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - started) / calls / units

    return run


def units_per_turn(side: Side, turn_seconds: float) -> int:
    """Run the side, which also warms it up; return the number of units that take about `turn_seconds`."""
    side(1)
    seconds = side(1)
    seconds = min(seconds, side(max(1, round(turn_seconds / 4 / seconds))))
    return max(1, round(turn_seconds / seconds))


def spread(values: list[float]) -> dict[str, float]:
    """Return the median and the quartiles of the values."""
    q1, median, q3 = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "q1": float(q1), "q3": float(q3)}


class Comparison:
    """Times the sides of one row alternately and records the results. The fixture `compare` is a Comparison.

    Args:
        benchmark: pytest-benchmark's fixture. It times the last side only; `benchmark.extra_info` gets all results.
        only: names of the sides to measure; None means all.
        turn_seconds: approximate duration of a turn.
        rounds: number of rounds that count, after the warm-up.
    """

    def __init__(self, benchmark: Any, only: Collection[str] | None, turn_seconds: float, rounds: int) -> None:
        self._benchmark, self._only, self._turn_seconds, self._rounds = benchmark, only, turn_seconds, rounds

    def __call__(
        self, sides: Mapping[str, Side], *, row: str, unit: str, goals: Mapping[str, Mapping[str, float]]
    ) -> dict[str, dict[str, float]]:
        """Measure the sides; return the median and the quartiles of each side's seconds per unit.

        Args:
            sides: the sides by name.
            row: name of the row in the table.
            unit: name of the unit of work.
            goals: for each side of this package (called subject), {name of another side: smallest allowed ratio}, which
                may be empty. The ratio is the time of the other side divided by the time of the subject. A subject is
                compared with all sides that are no subjects. It is also compared with the subjects that precede it in
                `goals`.
        """
        sides = {name: side for name, side in sides.items() if self._only is None or name in self._only}
        if not sides:
            pytest.skip("--sides names no side of this row")
        times = self._measure(sides)
        measured_subjects = [subject for subject in goals if subject in sides]
        ratios = {
            subject: {
                other: spread([theirs / ours for theirs, ours in zip(times[other], times[subject], strict=True)])
                for other in sides
                if other not in measured_subjects[measured_subjects.index(subject) :]
            }
            for subject in measured_subjects
        }
        seconds = {name: spread(side_times) for name, side_times in times.items()}
        goals = {subject: dict(allowed_ratios) for subject, allowed_ratios in goals.items()}
        self.note(row=row, unit=unit, seconds_per_unit=seconds, ratios=ratios, goals=goals, machine=describe_machine())
        return seconds

    def run_once(self, work: Callable[[], Any]) -> None:
        """Run `work` once under pytest-benchmark, which saves no results of a test that times nothing.

        `work` records its results by `note`.
        """
        self._benchmark.pedantic(work, rounds=1, iterations=1)

    def note(self, **figures: Any) -> None:
        """Record further results of the row."""
        self._benchmark.extra_info.update(figures)

    def _measure(self, sides: Mapping[str, Side]) -> dict[str, list[float]]:
        """Return the seconds per unit of each side in each round."""
        units = {name: units_per_turn(side, self._turn_seconds) for name, side in sides.items()}
        self.note(units_per_turn=units)
        times: dict[str, list[float]] = {name: [] for name in sides}
        *other_sides, last_side = sides

        def take_turn(name: str) -> None:
            times[name].append(sides[name](units[name]))

        def take_turns_of_other_sides() -> None:
            for name in other_sides:
                take_turn(name)

        self._benchmark.pedantic(
            lambda: take_turn(last_side),
            setup=take_turns_of_other_sides,
            rounds=self._rounds,
            iterations=1,
            warmup_rounds=WARMUP_ROUNDS,
        )
        return {name: side_times[-self._rounds :] for name, side_times in times.items()}
