"""Measure one row of the table of GPU results.

A row compares several implementations, called sides, at one workload. A turn is one timed run of a side, a round is one
turn of each side. The sides run alternately, so that a drift of the machine's speed affects all sides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from interleave import Side, spread, units_per_turn

from gpu.device import Device, precision
from gpu.prepared_folder import PreparedFolder
from gpu.results import MissingInput
from gpu.workloads import OURS, RowName


@dataclass
class Row:
    """A comparison that is ready to be measured.

    sides: the sides by name; this package's side is named OURS. unit: name of the unit of work. n_bytes: bytes that a
    unit must read and write; 0 means not counted. flops: floating-point operations of a unit; 0 means not counted.
    rounds: number of rounds. turn_seconds: approximate duration of a turn. notes: remarks for the results.
    """

    sides: dict[str, Side]
    unit: str = "call"
    n_bytes: int = 0
    flops: float = 0.0
    rounds: int = 15
    turn_seconds: float = 0.02
    notes: list[str] = field(default_factory=list)


# A function that builds a row; it raises `MissingInput` if the folder lacks the row's data.
Builder = Callable[[RowName, Device, PreparedFolder], Row]


def built_at_first_use(build: Callable[[], Side]) -> Side:
    """Return a side that calls `build` at its first turn, so that an error of `build` fails this side only."""
    side: Side | None = None

    def run(n: int) -> float:
        nonlocal side
        side = side or build()
        return side(n)

    return run


def measure(
    name: RowName,
    build: Builder,
    device: Device,
    folder: PreparedFolder,
    left_out: Collection[str] = (),
    save: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """Measure a row and return the results as JSON. If a side fails, record its error and measure the other sides.

    left_out: names of sides that are not measured. save: called with the results so far after every round, since the
    process may be stopped.

    Raises:
        MissingInput: the row's data are not in the folder.
    """
    with precision(name.precision):
        row = build(name, device, folder)
        rounds, turn_seconds = (2, 0.0) if device.tiny else (row.rounds, row.turn_seconds)
        sides = {side: run for side, run in row.sides.items() if side not in left_out}
        units: dict[str, int] = {}  # units of work per turn
        times: dict[str, list[float]] = {}
        mib: dict[str, float | None] = {}
        failed: dict[str, str] = {}

        def attempt(side: str, work: Callable[[], None]) -> None:
            """Call `work`. If it fails, record the error and remove the side from `sides`."""
            try:
                work()
            except MissingInput as missing:
                row.notes.append(f"{side} left out: {missing}")
                del sides[side]
            except Exception as error:
                failed[side] = format_error(error)
                del sides[side]

        def warm_up(side: str) -> None:
            units[side] = units_per_turn(sides[side], turn_seconds)
            for _ in range(2 if row.unit == "mini-batch" and not device.tiny else 0):  # the first mini-batches are slow
                units[side] = max(units[side], round(turn_seconds / sides[side](units[side])))
            times[side] = []

        def take_turn(side: str) -> None:
            times[side].append(sides[side](units[side]))

        def measure_peak(side: str) -> None:
            mib[side] = device.peak_mib(sides[side])

        for side in [*sides]:
            attempt(side, partial(warm_up, side))
        for _ in range(rounds):
            for side in [*sides]:
                attempt(side, partial(take_turn, side))
            save(_figures(name, row, units, {side: times[side] for side in sides}, mib, failed))
        # The memory of training steps is not measured, because some sides build a new model at every call.
        for side in [*sides] if row.unit == "call" else []:
            attempt(side, partial(measure_peak, side))
    return _figures(name, row, units, {side: times[side] for side in sides}, mib, failed)


def _figures(
    name: RowName,
    row: Row,
    units: dict[str, int],
    times: dict[str, list[float]],
    mib: dict[str, float | None],
    failed: dict[str, str],
) -> dict[str, Any]:
    """Return the results of a row as JSON. All arguments but `name` and `row` are dictionaries by side."""
    ours = times.get(OURS)
    return {
        "row": str(name),
        "workload": name.workload,
        "precision": name.precision,
        "unit": row.unit,
        "units_per_turn": units,
        "seconds": {side: spread(side_times) for side, side_times in times.items()},
        "ratios": {
            side: spread([their_time / our_time for their_time, our_time in zip(side_times, ours, strict=True)])
            for side, side_times in times.items()
            if ours and side != OURS
        },
        "mib": mib,
        "notes": row.notes,
        "failed": failed,
        "n_bytes": row.n_bytes,
        "flops": row.flops,
    }


def format_error(error: BaseException) -> str:
    """Return the error's type and message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
