"""One markdown table from the JSON of pytest-benchmark: python benchmarks/report.py results/*.json > table.md

A row per comparison: our side against another one, the ratio's median and quartiles over the rounds, the goal, and what
share of the machine's own rates our side reached.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    unit = next((name for name, size in UNITS.items() if seconds >= size), "ns")
    return f"{seconds / UNITS[unit]:.3g} {unit}"


def bracketed(values: dict[str, float]) -> str:
    """Median and quartiles of a ratio."""
    return f"{values['median']:.2f} [{values['q1']:.2f}, {values['q3']:.2f}]"


def shares(limits: dict[str, float]) -> str:
    """The shares of the machine's rates, and these rates."""
    found = []
    if "sgemm_share" in limits:
        found.append(f"{limits['sgemm_share']:.0%} of sgemm ({limits['sgemm_gflops']:.0f} GFLOP/s)")
    if "copy_share" in limits:
        found.append(f"{limits['copy_share']:.0%} of copy ({limits['copy_gbytes']:.1f} GB/s)")
    return ", ".join(found)


def rows(info: dict[str, Any]) -> Iterator[list[str]]:
    """The table's rows of one comparison."""
    for subject, ratios in info["ratios"].items():
        ours = duration(info["seconds_per_unit"][subject]["median"])
        goals = info["goals"].get(subject, {})
        for other in dict.fromkeys([*goals, *ratios]):
            goal = f">= {goals[other]:g}" if other in goals else ""
            if other not in ratios:
                yield [info["row"], subject, ours, other, "", f"skipped: no --peer {other}=PATH", goal, ""]
                continue
            met = "" if other not in goals else " (met)" if ratios[other]["median"] >= goals[other] else " (missed)"
            theirs = duration(info["seconds_per_unit"][other]["median"])
            limit = shares(info.get("limits", {}).get(subject, {}))
            yield [info["row"], subject, ours, other, theirs, bracketed(ratios[other]), goal + met, limit]


def machine(facts: dict[str, Any]) -> str:
    """The machine and the versions in one line."""
    where = f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads"
    return f"{where}; torch {facts['torch']}, numpy {facts['numpy']}, Python {facts['python']}"


def table(files: list[Path]) -> str:
    """The markdown table of these files, and the machines they were made on."""
    header = ["row", "ours", "takes", "against", "takes", "ratio", "goal", "ours reaches"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    machines: dict[str, None] = {}
    for file in files:
        for entry in json.loads(file.read_text())["benchmarks"]:
            info = entry["extra_info"]
            if "ratios" not in info:
                continue
            lines += ["| " + " | ".join(row) + " |" for row in rows(info)]
            machines[machine(info["machine"])] = None
    return "\n".join([*lines, "", *machines])


def main() -> None:
    """Print the table of the files given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="JSON of pytest-benchmark")
    print(table(parser.parse_args().files))


if __name__ == "__main__":
    main()
