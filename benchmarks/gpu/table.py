"""The markdown table of the GPU rows: every row, its goals beside it, and what was not measured yet.

    PYTHONPATH=.:benchmarks python -m gpu.table [gpu.json ...] [--out table.md] [--into docs/performance.md]

The JSON files are those of `gpu.bench` and of `long.sh`; without any, every row is "not measured yet".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from report import bracketed, duration

from gpu.goals import TARGETS, Goal
from gpu.rows import OURS

BEGIN, END = "<!-- gpu rows -->", "<!-- end of gpu rows -->"
COLUMNS = ["work", "ours", "against", "theirs", "ratio [quartiles]", "MiB ours / theirs", "ours reaches", "goal", "met"]


def render(results: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of markdown; results: what the JSON files hold."""
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    measured = [row for result in results for row in result["rows"]]
    for key, target in TARGETS.items():
        own = [row for row in measured if row["target"] == key]
        lines += [_line(cells) for row in own for cells in _cells(row)]
        if not own:
            goals = "; ".join(goal.text() for goal in target.goals)
            lines.append(_line([target.work, "", target.against, "", "not measured yet", "", "", goals, ""]))
    for result in results:
        lines += ["", _machine(result)]
        for what in ("left_out", "failed"):
            lines += [f"- {what.replace('_', ' ')}: {line}" for line in result.get(what, [])]
    return lines


def _cells(row: dict[str, Any]) -> Iterator[list[str]]:
    """A line per other side; goals stand on the first, which is the side they are meant against."""
    target = TARGETS[row["target"]]
    goals = "; ".join(Goal(goal["of"], goal["limit"]).text() for goal in row["goals"])
    met = "; ".join({True: "yes", False: "no", None: "not measured"}[goal["met"]] for goal in row["goals"])
    ours = duration(row["seconds"][OURS]["median"])
    reaches = []
    if "copy_share" in row:
        reaches.append(f"{row['copy_share']:.0%} of copy")
    if "product_share" in row:
        reaches.append(f"{row['product_share']:.0%} of {row['precision'] or 'fp32'} products")
    others = [name for name in row["ratios"] if name != target.against]
    for number, other in enumerate([target.against, *others]):
        theirs, ratio = "", "left out"
        if other in row["ratios"]:
            theirs, ratio = duration(row["seconds"][other]["median"]), bracketed(row["ratios"][other])
        memory = [row["mib"].get(side) for side in (OURS, other)]
        mib = "" if None in memory else " / ".join(f"{value:.1f}" for value in memory)  # type: ignore[str-format]
        first = [", ".join(reaches), goals, met] if number == 0 else ["", "", ""]
        yield [row["row"], ours, other, theirs, ratio, mib, *first]


def _machine(result: dict[str, Any]) -> str:
    """What the figures belong to, and its ceilings."""
    named = f"{result['device']}, torch {result['torch']}, CUDA {result['cuda']}"
    if result.get("tiny"):
        named += "; TINY SIZES, figures mean nothing"
    if "ceilings" not in result:
        return named
    found = result["ceilings"]
    rates = ", ".join(f"{name} {found[name] / 1e12:.1f}" for name in ("fp32", "tf32", "bf16"))
    return f"{named}; measured: copy {found['copy'] / 1e9:.0f} GB/s, products {rates} TFLOP/s"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--into", type=Path, help="put the table between the marks in this file")
    asked = parser.parse_args()
    table = "\n".join(render([json.loads(path.read_text()) for path in asked.results]))
    print(table)
    if asked.out is not None:
        asked.out.write_text(table + "\n")
    if asked.into is None:
        return
    before, _, rest = asked.into.read_text().partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{asked.into} has no lines {BEGIN} and {END}")
    asked.into.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


if __name__ == "__main__":
    main()
