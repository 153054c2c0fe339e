"""After how long a run of long.sh reached a metric, as a row of the GPU table.

    PYTHONPATH=.:benchmarks python -m gpu.reached RUN DEVICE TARGET METRIC VALUE [--out NAME.json]

Seconds are those of training, from RUN/curves.csv, without start-up, evaluations and checkpoints; those of whole pieces
(RUN.pieces) stand beside them.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import torch

from gpu.clock import Place
from gpu.goals import TARGETS
from gpu.rows import OURS

PUBLISHED = 32_904.0  # seconds of the public code's log of NGCF on Gowalla


def reached(run: Path, target: str, metric: str, value: float) -> dict[str, Any]:
    """The row; its goal is missed where no epoch so far has reached the value."""
    seconds, best, arrived = 0.0, 0.0, None
    with open(run / "curves.csv", newline="") as file:
        for epoch in csv.DictReader(file):
            seconds += float(epoch["seconds"])
            measured = float(epoch[f"validation_{metric}"] or 0)
            best = max(best, measured)
            if measured >= value:
                arrived = int(epoch["epoch"])
                break
    told = f"after {seconds:.0f} s of training, epoch {arrived}" if arrived else f"not reached: {best:.4f} at best"
    pieces = run.with_name(run.name + ".pieces")
    if pieces.exists():
        told += f"; {sum(map(int, pieces.read_text().split()))} s in all pieces so far"
    against = TARGETS[target].against
    return {
        "row": f"{TARGETS[target].work} ({run.name}: {told})",
        "target": target,
        "precision": "",
        "seconds": {OURS: _same(seconds), against: _same(PUBLISHED)},
        "ratios": {against: _same(PUBLISHED / seconds)} if arrived and seconds else {},
        "mib": {},
        "goals": [
            {"of": goal.of, "limit": goal.limit, "value": seconds, "met": bool(arrived) and goal.met(seconds)}
            for goal in TARGETS[target].goals
        ],
    }


def _same(value: float) -> dict[str, float]:
    return {"median": value, "q1": value, "q3": value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("device")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("metric")
    parser.add_argument("value", type=float)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    row = reached(asked.run, asked.target, asked.metric, asked.value)
    print(row["row"])
    if asked.out is not None:
        answer = {**Place(torch.device(asked.device)).facts(), "rows": [row]}
        asked.out.write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
