"""Render the results of the GPU calls as markdown: a table of all rows with their goals, then the facts of each call.

    PYTHONPATH=benchmarks python -m gpu.table [results.json ...] [--into docs/performance.md]

Rows without a result are "not measured yet". Standard library only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cpu_table import bracketed, duration

from gpu.workloads import OURS, WORKLOADS, Goal

BEGIN, END = "<!-- gpu rows -->", "<!-- end of gpu rows -->"
COLUMNS = ["work", "ours", "against", "theirs", "ratio [quartiles]", "MiB ours / theirs", "ours reaches", "goal", "met"]
SHOWN_KERNELS = 12


def render(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return lines of markdown. `results` are contents of results.json, of finished or unfinished calls."""
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    measured = [(row, result.get("ceilings", {})) for result in results for row in result.get("rows", [])]
    for key, workload in WORKLOADS.items():
        of_workload = [(row, ceilings) for row, ceilings in measured if row["target"] == key]
        lines += [_line(cells) for row, ceilings in of_workload for cells in _row(row, ceilings)]
        if not of_workload:
            cells = [workload.description, "", workload.baseline, "", "not measured yet", "", ""]
            lines.append(_line([*cells, "; ".join(goal.text() for goal in workload.goals), ""]))
    for result in results:
        lines += ["", _machine(result)]
        lines += [f"- left out: {line}" for line in result.get("left_out", [])]
        lines += [f"- {side} failed: {row['row']}: {error}" for row, side, error in _failures(result)]
        stages = result.get("stages", {}).items()
        lines += [f"- stage {name}: {stage['outcome']}" for name, stage in stages if stage["outcome"] != "ok"]
        lines += _official(result["rows"])
        lines += _facts(result.get("facts", {}))
    return lines


def _row(row: dict[str, Any], ceilings: dict[str, float]) -> Iterator[list[str]]:
    """Yield the cells of a line per other side. The first line is that of the baseline and has the goals."""
    workload = WORKLOADS[row["target"]]
    values = goal_values(row, ceilings.get("copy"))
    ours = duration(row["seconds"][OURS]["median"]) if OURS in row["seconds"] else "failed"
    others = [side for side in row["seconds"] if side not in (OURS, workload.baseline)]
    for other in [workload.baseline, *others]:
        theirs, ratio = "", "left out"
        if other in row["seconds"]:
            theirs = duration(row["seconds"][other]["median"])
            ratio = bracketed(row["ratios"][other]) if other in row["ratios"] else ""
        memory = [row["mib"].get(side) for side in (OURS, other)]
        mib = "" if None in memory else " / ".join(f"{value:.1f}" for value in memory)
        reached, goals, met = "", "", ""
        if other == workload.baseline:
            reached = _reached(row, ceilings)
            goals = "; ".join(goal.text() for goal in workload.goals)
            met = "; ".join(_met(goal, values[goal.kind]) for goal in workload.goals)
        yield [row["row"], ours, other, theirs, ratio, mib, reached, goals, met]


def goal_values(row: dict[str, Any], copy_rate: float | None) -> dict[str, float | None]:
    """Return the row's value for each kind of goal; None if a side or the copy rate was not measured."""
    baseline = WORKLOADS[row["target"]].baseline
    ours, ratio, mib = row["seconds"].get(OURS), row["ratios"].get(baseline), row["mib"]
    seconds = ours["median"] if ours else None
    memory = mib[OURS] / mib[baseline] if mib.get(OURS) is not None and mib.get(baseline) else None
    return {
        "ratio": ratio["median"] if ratio else None,
        "memory": memory,
        "copy": row["n_bytes"] / seconds / copy_rate if seconds and copy_rate and row["n_bytes"] else None,
        "microseconds": seconds * 1e6 if seconds else None,
        # For a whole training: infinite if it has not reached its metric.
        "seconds": seconds if row.get("reached", True) else float("inf"),
    }


def _met(goal: Goal, value: float | None) -> str:
    return "not measured" if value is None else "yes" if goal.met(value) else "no"


def _reached(row: dict[str, Any], ceilings: dict[str, float]) -> str:
    """Return the shares of the device's measured rates that this package's side reached."""
    shares = []
    precision = row["precision"] or "fp32"
    if OURS in row["seconds"]:
        seconds = row["seconds"][OURS]["median"]
        if row["n_bytes"] and "copy" in ceilings:
            shares.append(f"{row['n_bytes'] / seconds / ceilings['copy']:.0%} of copy")
        if row["flops"] and precision in ceilings:
            shares.append(f"{row['flops'] / seconds / ceilings[precision]:.0%} of {precision} products")
    return ", ".join(shares)


def _failures(result: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    for row in result.get("rows", []):
        for side, error in row["failed"].items():
            yield row, side, error


def _machine(result: dict[str, Any]) -> str:
    """Return the device of the call, the versions, and the device's measured rates."""
    if "device" not in result:
        return f"call {result['call']}: its device is not known"
    device = f"{result['device']}, torch {result['torch']}, CUDA {result['cuda']}, call {result['call']}"
    if result.get("tiny"):
        device += "; TINY SIZES, figures mean nothing"
    if "ceilings" not in result:
        return device
    rates = result["ceilings"]
    products = ", ".join(f"{name} {rates[name] / 1e12:.1f}" for name in ("fp32", "tf32", "bf16"))
    return f"{device}; measured: copy {rates['copy'] / 1e9:.0f} GB/s, products {products} TFLOP/s"


def _official(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a table of the official code's mini-batches per second, which do not depend on this package."""
    rates = [
        [row["row"], f"{1 / row['seconds']['official']['median']:.0f}"] for row in rows if "official" in row["seconds"]
    ]
    if rates:
        yield from _table("official code", ["mini-batches/s"], rates)


def _facts(facts: dict[str, Any]) -> Iterator[str]:
    """Yield a table for each fact of diagnostics.py."""
    if "latencies" in facts:
        yield from _table("latency", ["us"], [[name, f"{ns / 1e3:.2f}"] for name, ns in facts["latencies"].items()])
    for setting, timeline in facts.get("timeline", {}).items():
        gaps = ", ".join(f"{name} {us:.2f}" for name, us in timeline["gaps_us"].items())
        yield from [
            "",
            f"GPU timeline of {setting}, replayed: {timeline['untraced_us_per_mini_batch']:.1f} us a mini-batch "
            f"untraced, {timeline['us_per_mini_batch']:.1f} traced, "
            f"{timeline['busy_us_per_mini_batch']:.1f} of them in {timeline['events_per_mini_batch']:.1f} kernels; "
            f"gaps in us: {gaps}",
        ]
        kernels = [[_code(name), f"{n:g}", f"{us:.2f}"] for name, n, us in timeline["kernels"][:SHOWN_KERNELS]]
        yield from _table("kernel", ["per mini-batch", "mean us"], kernels)
    for setting, kernels in facts.get("ncu", {}).items():
        columns = [name for name in kernels[0] if name != "kernel"]
        cells = [[_code(k["kernel"]), *(_number(k[name]) for name in columns)] for k in kernels]
        yield from _table(f"kernel of an uncaptured step, {setting}", [c.replace("_", " ") for c in columns], cells)
    if "cpu_engine" in facts:
        by_threads = facts["cpu_engine"]["us_per_mini_batch"]
        settings = list(dict.fromkeys(setting for times in by_threads.values() for setting in times))
        cells = [[setting, *(_number(times.get(setting)) for times in by_threads.values())] for setting in settings]
        title = f"CPU engine, us a mini-batch ({facts['cpu_engine']['processor']})"
        yield from _table(title, [f"{threads} threads" for threads in by_threads], cells)


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield from ["", _line([title, *columns]), _line(["---"] * (1 + len(columns))), *map(_line, rows)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _code(name: str) -> str:
    """Return a kernel's name as markdown code; `|` would end the cell of the table."""
    return f"`{name.replace('|', '/')}`"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--into", type=Path, help=f"a page; the text between {BEGIN} and {END} is replaced")
    given = parser.parse_args()
    text = "\n".join(render([json.loads(path.read_text()) for path in given.results]))
    if given.into is None:
        print(text)
        return
    head, _, rest = given.into.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise SystemExit(f"{given.into} has no lines {BEGIN} and {END}; add them where the tables should be")
    given.into.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


if __name__ == "__main__":
    main()
