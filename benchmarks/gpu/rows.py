"""One row of the GPU table: its sides, timed in turns, and the JSON that they become."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from interleave import Side, spread, units_per_turn

from gpu.device import Device, precision
from gpu.folder import Folder
from gpu.results import Missing
from gpu.targets import OURS, RowName


@dataclass
class Row:
    """What is compared.

    sides: ours under that name, and the others. n_bytes, flops: counted, per unit of work (0: not counted). notes: what
    a reader of the figures has to know.
    """

    sides: dict[str, Side]
    unit: str = "call"
    n_bytes: int = 0
    flops: float = 0.0
    rounds: int = 15
    turn_seconds: float = 0.02
    notes: list[str] = field(default_factory=list)


# Builds a row; raises `Missing` where the data are not there.
Builder = Callable[[RowName, Device, Folder], Row]


def built_at_first_use(build: Callable[[], Side]) -> Side:
    """Build a side when it is first timed, so that an error in building it is an error of that side alone."""
    built: list[Side] = []

    def run(n: int) -> float:
        if not built:
            built.append(build())
        return built[0](n)

    return run


def measure(
    name: RowName,
    build: Builder,
    device: Device,
    folder: Folder,
    left_out: Collection[str] = (),
    save: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """Time the sides of a row in turns. A side that fails, ours included, is noted, and the others are timed.

    left_out: sides not to run. save: called with the row after every round, since the process may be stopped.

    Raises:
        Missing: the row's data are not in the folder.
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
            except Missing as missing:
                row.notes.append(f"{side} left out: {missing}")
                del sides[side]
            except Exception as error:
                failed[side] = one_line(error)
                del sides[side]

        def warm_up(side: str) -> None:
            n[side] = units_per_turn(sides[side], turn_seconds)
            for _ in range(2 if row.unit == "mini-batch" and not device.tiny else 0):  # first ones are slower
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
        for side in [*sides] if row.unit == "call" else []:  # some sides build a new model in every turn
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
        "target": name.target,
        "precision": name.precision,
        "unit": row.unit,
        "units_per_turn": n,
        "seconds": {side: spread(of_side) for side, of_side in times.items()},
        "ratios": {
            side: spread([theirs / mine for theirs, mine in zip(of_side, ours, strict=True)])
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
