"""Measurement of one row of the GPU table: times its sides in alternating turns and returns the figures as JSON.

A side is one of the implementations that a row compares; interleave.py defines turns and rounds.
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

    sides: the sides by name; this package's is OURS. unit: name of the unit of work. n_bytes, flops: bytes that a unit
    of work must read and write, and its operations; 0 means not counted. notes: remarks for the results.
    """

    sides: dict[str, Side]
    unit: str = "call"
    n_bytes: int = 0
    flops: float = 0.0
    rounds: int = 15
    turn_seconds: float = 0.02
    notes: list[str] = field(default_factory=list)


# Builds a row; raises `MissingInput` if its data are not in the folder.
Builder = Callable[[RowName, Device, PreparedFolder], Row]


def built_at_first_use(build: Callable[[], Side]) -> Side:
    """Return a side that is built at its first call, so that an error while building it fails this side only."""
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
    """Measure a row and return it as JSON. If a side fails, its error is recorded and the other sides are measured.

    left_out: sides not to run. save: called with the row after every round, since the process may be stopped.

    Raises:
        MissingInput: the row's data are not in the folder.
    """
    with precision(name.precision):
        row = build(name, device, folder)
        rounds, turn_seconds = (2, 0.0) if device.tiny else (row.rounds, row.turn_seconds)
        sides = {side: run for side, run in row.sides.items() if side not in left_out}
        n: dict[str, int] = {}
        times: dict[str, list[float]] = {}
        mib: dict[str, float | None] = {}
        failed: dict[str, str] = {}

        def attempt(side: str, work: Callable[[], None]) -> None:
            try:
                work()
            except MissingInput as missing:
                row.notes.append(f"{side} left out: {missing}")
                del sides[side]
            except Exception as error:
                failed[side] = one_line(error)
                del sides[side]

        def warm_up(side: str) -> None:
            n[side] = units_per_turn(sides[side], turn_seconds)
            for _ in range(2 if row.unit == "mini-batch" and not device.tiny else 0):  # the first mini-batches are slow
                n[side] = max(n[side], round(turn_seconds / sides[side](n[side])))
            times[side] = []

        def take_turn(side: str) -> None:
            times[side].append(sides[side](n[side]))

        def measure_peak(side: str) -> None:
            mib[side] = device.peak_mib(sides[side])

        for side in [*sides]:
            attempt(side, partial(warm_up, side))
        for _ in range(rounds):
            for side in [*sides]:
                attempt(side, partial(take_turn, side))
            save(_row(name, row, n, {side: times[side] for side in sides}, mib, failed))
        # Not for mini-batches: some sides build a new model at every call.
        for side in [*sides] if row.unit == "call" else []:
            attempt(side, partial(measure_peak, side))
    return _row(name, row, n, {side: times[side] for side in sides}, mib, failed)


def _row(
    name: RowName,
    row: Row,
    n: dict[str, int],
    times: dict[str, list[float]],
    mib: dict[str, float | None],
    failed: dict[str, str],
) -> dict[str, Any]:
    """Return the row as JSON."""
    ours = times.get(OURS)
    return {
        "row": str(name),
        "target": name.workload,
        "precision": name.precision,
        "unit": row.unit,
        "units_per_turn": n,
        "seconds": {side: spread(of_side) for side, of_side in times.items()},
        "ratios": {
            side: spread([their_time / our_time for their_time, our_time in zip(of_side, ours, strict=True)])
            for side, of_side in times.items()
            if ours and side != OURS
        },
        "mib": mib,
        "notes": row.notes,
        "failed": failed,
        "n_bytes": row.n_bytes,
        "flops": row.flops,
    }


def one_line(error: BaseException) -> str:
    """Return the error's type and message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
