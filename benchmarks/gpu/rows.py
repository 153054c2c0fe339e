"""A row of the GPU table: its sides, and what is made of their times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from turns import Side, spread, units_per_turn

from gpu.clock import Place, precision
from gpu.goals import TARGETS

OURS = "ours"


@dataclass
class Row:
    """What is compared.

    sides: ours under that name, and the others. notes: what is left out of it, and why. n_bytes, flops: counted, of a
    unit of work (0: not counted).
    """

    sides: dict[str, Side]
    unit: str = "call"
    n_bytes: int = 0
    flops: float = 0.0
    rounds: int = 15
    turn_seconds: float = 0.02
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """A row that may come to be: building it raises `folder.Missing` where there is nothing to build it of.

    target: its key in `goals.TARGETS`. what: which of the target's rows. precision: of the products of all sides; ""
    where there is nothing to choose.
    """

    target: str
    build: Callable[[], Row]
    what: str = ""
    precision: str = ""

    @property
    def name(self) -> str:
        """As the table has it."""
        return ", ".join(part for part in (TARGETS[self.target].work, self.what, self.precision) if part)


def measure(plan: Plan, place: Place, ceilings: dict[str, float]) -> dict[str, Any]:
    """The figures of a row, its sides played in turns; a side of the others that fails is left out, and noted.

    Raises:
        Missing: the folder lacks its data; and whatever our own side raises.
    """
    with precision(plan.precision):
        row = plan.build()
        rounds, turn_seconds = (2, 0.0) if place.tiny else (row.rounds, row.turn_seconds)
        n: dict[str, int] = {}
        for name, side in row.sides.items():
            try:
                n[name] = units_per_turn(side, turn_seconds)
            except Exception as error:
                if name == OURS:
                    raise
                row.notes.append(f"{name} failed: {told(error)}")
        times: dict[str, list[float]] = {name: [] for name in n}
        for _ in range(rounds):
            for name, units in n.items():
                times[name].append(row.sides[name](units))
        # Of whole trainings it would say nothing: some of them make a model anew in every turn.
        mib = {name: place.peak_mib(row.sides[name]) for name in n if row.unit == "call"}
    ours = times[OURS]
    found = {
        "row": plan.name,
        "target": plan.target,
        "precision": plan.precision,
        "unit": row.unit,
        "units_per_turn": n,
        "seconds": {name: spread(of_side) for name, of_side in times.items()},
        "ratios": {
            name: spread([theirs / mine for theirs, mine in zip(of_side, ours, strict=True)])
            for name, of_side in times.items()
            if name != OURS
        },
        "mib": mib,
        "notes": row.notes,
        "n_bytes": row.n_bytes,
        "flops": row.flops,
    }
    seconds = found["seconds"][OURS]["median"]
    if row.n_bytes:
        found["copy_share"] = row.n_bytes / seconds / ceilings["copy"]
    if row.flops:
        found["product_share"] = row.flops / seconds / ceilings[plan.precision or "fp32"]
    return found | {"goals": reached(found)}


def reached(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Every goal of a row, with the value that was measured; None where its other side was left out."""
    target = TARGETS[row["target"]]
    ratio, mib = row["ratios"].get(target.against), row["mib"]
    theirs = mib.get(target.against)
    values = {
        "ratio": None if ratio is None else ratio["median"],
        "memory": mib[OURS] / theirs if theirs else None,
        "copy": row.get("copy_share"),
        "microseconds": row["seconds"][OURS]["median"] * 1e6,
    }
    return [
        {"of": goal.of, "limit": goal.limit, "value": value, "met": None if value is None else goal.met(value)}
        for goal in target.goals
        for value in [values[goal.of]]
    ]


def told(error: BaseException) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
