"""Measures the rows of the GPU table, the sides of each in turns, and writes them to a JSON file as they come.

    PYTHONPATH=.:benchmarks python -m gpu.bench --out gpu.json [--folder FOLDER] [--only WORDS] [--seconds 180]

FOLDER holds data and peers (prepare_folder.py). Rows, and sides of rows, for which it lacks something are left out; a
row that fails does not keep the others from being measured. What was left out and what failed stands in the JSON and
on a line of its own in the output. Ends with 0 where nothing failed.

`--device cpu --tiny` tries the same code out on a processor; `--impl emulated` with the CUDA kernels' own source.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from gpu import rows_graph, rows_products, rows_sessions
from gpu.clock import Place, ceilings
from gpu.folder import Folder, Missing
from gpu.goals import TARGETS
from gpu.rows import Plan, measure, told


def all_plans(place: Place, folder: Folder) -> list[Plan]:
    """Every row, those with a goal first, float32 before the rest: time may run out."""
    found = chain(rows_sessions.plans(place, folder), rows_products.plans(place), rows_graph.plans(place, folder))
    return sorted(found, key=lambda plan: (not TARGETS[plan.target].goals, plan.precision in ("tf32", "bf16")))


def play(plans: Sequence[Plan], place: Place, seconds: float, out: Path) -> dict[str, Any]:
    """Measure the rows one after another; `out` is written anew after each."""
    started = time.perf_counter()
    answer: dict[str, Any] = {**place.facts(), "ceilings": ceilings(place), "rows": [], "left_out": [], "failed": []}
    for plan in plans:
        if time.perf_counter() - started > seconds:
            has_goals = bool(TARGETS[plan.target].goals)  # which a green run has measured
            answer["failed" if has_goals else "left_out"].append(f"{plan.name}: no time left")
            continue
        begun = time.perf_counter()
        try:
            row = measure(plan, place, answer["ceilings"])
        except Missing as missing:
            answer["left_out"].append(f"{plan.name}: {missing}")
        except Exception as error:  # a row that cannot be measured leaves the others their turn
            answer["failed"].append(f"{plan.name}: {told(error)}")
        else:
            answer["rows"].append(row)
            answer["left_out"] += [f"{plan.name}: {note}" for note in row["notes"] if "left out" in note]
            answer["failed"] += [f"{plan.name}: {note}" for note in row["notes"] if "failed" in note]
            took = time.perf_counter() - begun
            print(f"{plan.name}: {row['seconds']['ours']['median'] * 1e6:.1f} us ({took:.1f} s)", flush=True)
        write(out, answer)
    write(out, answer)
    return answer


def write(path: Path, answer: dict[str, Any]) -> None:
    """A whole file or none: the run may be stopped at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(answer, indent=1) + "\n")
    os.replace(part, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="holds data/ and peers/")
    parser.add_argument("--only", help="rows whose names hold this")
    parser.add_argument("--seconds", type=float, default=180, help="after which no row is begun")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--impl", default="native")
    parser.add_argument("--tiny", action="store_true", help="small sizes")
    asked = parser.parse_args()
    place = Place(torch.device(asked.device), asked.impl, asked.tiny)
    plans = [plan for plan in all_plans(place, Folder(asked.folder)) if not asked.only or asked.only in plan.name]
    answer = play(plans, place, asked.seconds, asked.out)
    for line in answer["left_out"]:
        print("left out:", line)
    for line in answer["failed"]:
        print("FAILED:", line)
    return bool(answer["failed"])


if __name__ == "__main__":
    raise SystemExit(main())
