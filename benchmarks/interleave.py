"""Sides of a comparison, measured in turns within one run.

Rates of one and the same program drift by a factor of two within an hour on a shared machine: only ratios of turns that
lie side by side count, so a ratio here is the median over rounds of the two sides' times in the same round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pytest
from machine import facts

# Does n units of work, or the nearest number that it can do at once, and returns seconds per unit.
Side = Callable[[int], float]

WARMUP_ROUNDS = 1  # beside the turns that find out how long a unit takes


def timed(play: Callable[[], Any], units: int = 1) -> Side:
    """A side from a function that does so many units of work."""

    def run(n: int) -> float:
        times = max(1, round(n / units))
        started = time.perf_counter()
        for _ in range(times):
            play()
        return (time.perf_counter() - started) / times / units

    return run


def units_per_turn(side: Side, turn_seconds: float) -> int:
    """How many units of work take about this long; warms the side up as well (torch.compile compiles here)."""
    side(1)
    seconds = side(1)
    seconds = min(seconds, side(max(1, round(turn_seconds / 4 / seconds))))
    return max(1, round(turn_seconds / seconds))


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    q1, middle, q3 = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "q1": float(q1), "q3": float(q3)}


class Comparison:
    """What the fixture `compare` is: a call measures the sides of one row in turns.

    Args:
        benchmark: pytest-benchmark's fixture: its clock is on the last side, and the figures go to its extra_info.
        only: names of the sides to be measured; None: all.
        turn_seconds: about how long one side's turn takes.
    """

    def __init__(self, benchmark: Any, only: Collection[str] | None, turn_seconds: float, rounds: int) -> None:
        self._benchmark, self._only, self._turn_seconds, self._rounds = benchmark, only, turn_seconds, rounds

    def __call__(
        self, sides: Mapping[str, Side], *, row: str, unit: str, subjects: Mapping[str, Mapping[str, float]]
    ) -> dict[str, dict[str, float]]:
        """Median and quartiles of each side's seconds per unit.

        row, unit: what is measured, and what a unit of work is. subjects: of each of our sides, the ratio {other side:
        goal} it is to reach; it is also held against those of ours that stand before it.
        """
        sides = {name: side for name, side in sides.items() if self._only is None or name in self._only}
        if not sides:
            pytest.skip("none of its sides is among --sides")
        taken = self._play(sides)
        ours = [subject for subject in subjects if subject in sides]
        ratios = {
            subject: {
                other: spread([theirs / mine for theirs, mine in zip(taken[other], taken[subject], strict=True)])
                for other in sides
                if other not in ours[ours.index(subject) :]
            }
            for subject in ours
        }
        seconds = {name: spread(times) for name, times in taken.items()}
        goals = {subject: dict(goals) for subject, goals in subjects.items()}
        self.note(row=row, unit=unit, seconds_per_unit=seconds, ratios=ratios, goals=goals, machine=facts())
        return seconds

    def once(self, run: Callable[[], Any]) -> None:
        """Run what is measured by other means."""
        self._benchmark.pedantic(run, rounds=1, iterations=1)

    def note(self, **facts: Any) -> None:
        """Put further figures beside the row's."""
        self._benchmark.extra_info.update(facts)

    def _play(self, sides: Mapping[str, Side]) -> dict[str, list[float]]:
        n = {name: units_per_turn(side, self._turn_seconds) for name, side in sides.items()}
        self.note(units_per_turn=n)
        taken: dict[str, list[float]] = {name: [] for name in sides}
        *others, last = sides

        def turn(name: str) -> None:
            taken[name].append(sides[name](n[name]))

        def turns_of_the_others() -> None:
            for name in others:
                turn(name)

        self._benchmark.pedantic(
            lambda: turn(last),
            setup=turns_of_the_others,
            rounds=self._rounds,
            iterations=1,
            warmup_rounds=WARMUP_ROUNDS,
        )
        return {name: times[-self._rounds :] for name, times in taken.items()}
