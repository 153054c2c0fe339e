"""One row of the GPU table: its sides, timed in turns, and the JSON that they become."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from turns import Side, spread, units_per_turn

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


def measure(name: RowName, build: Builder, device: Device, folder: Folder, left_out: Collection[str]) -> dict[str, Any]:
    """Time the sides of a row in turns. A side that fails, ours included, is noted, and the others are timed.

    left_out: sides not to run.

    Raises:
        Missing: the row's data are not in the folder.
    """
    with precision(name.precision):
        row = build(name, device, folder)
        rounds, turn_seconds = (2, 0.0) if device.tiny else (row.rounds, row.turn_seconds)
        sides = {side: run for side, run in row.sides.items() if side not in left_out}
        n: dict[str, int] = {}
        failed = {}
        for side, run in sides.items():
            try:
                n[side] = units_per_turn(run, turn_seconds)
            except Missing as missing:
                row.notes.append(f"{side} left out: {missing}")
            except Exception as error:
                failed[side] = one_line(error)
        times: dict[str, list[float]] = {side: [] for side in n}
        for _ in range(rounds):
            for side, units in n.items():
                times[side].append(sides[side](units))
        # The peak of a whole training says nothing: some sides build a new model in every turn.
        mib = {side: device.peak_mib(sides[side]) for side in n if row.unit == "call"}
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
