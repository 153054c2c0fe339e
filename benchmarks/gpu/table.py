"""Render the results of the GPU benchmarks as markdown: a table of all rows, then the diagnostics of each call.

    PYTHONPATH=benchmarks python -m gpu.table [results.json ...] [--into docs/performance.md]

A call is one benchmark session on a GPU machine; call.py writes its results.json. A row compares this package with
other implementations ("sides") at one workload. In the JSON, row["row"] is the row's name, row["workload"] its workload
(a key of WORKLOADS), and "ceilings" are the device's measured rates. Workloads without a result are shown as "not
measured yet", with the time that `gpu.time_model` predicts. This module needs the standard library only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any

from cpu_table import format_duration, format_ratio

from gpu.time_model import Speed, predict
from gpu.workloads import OURS, WORKLOADS, Goal

BEGIN, END = "<!-- gpu rows -->", "<!-- end of gpu rows -->"
COLUMNS = [
    "work", "our time", "compared with", "their time", "ratio [quartiles]", "MiB ours / theirs",
    "our share of the GPU's rates", "goal", "met",
]  # fmt: skip
SHOWN_KERNELS = 12  # number of kernels of a timeline that are shown


def render(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return the results of calls as lines of markdown.

    results: the content of results.json of each call, finished or not.
    """
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    rows = [(row, result.get("ceilings", {})) for result in results for row in result.get("rows", [])]
    speed = Speed.measured(results)
    for key, workload in WORKLOADS.items():
        rows_of_workload = [(row, rates) for row, rates in rows if row["workload"] == key]
        lines += [_line(cells) for row, rates in rows_of_workload for cells in _cells_of_row(row, rates)]
        if not rows_of_workload:
            predictions = "; ".join(starmap(_describe_prediction, predict(key, speed)))
            cells = [workload.description, predictions, workload.baseline, "", "not measured yet", "", ""]
            lines.append(_line([*cells, "; ".join(goal.text() for goal in workload.goals), ""]))
    for result in results:
        lines += ["", _describe_device(result)]
        lines += [f"- left out: {line}" for line in result.get("left_out", [])]
        lines += [f"- {side} failed: {row['row']}: {error}" for row, side, error in _failures(result)]
        stages = result.get("stages", {}).items()
        lines += [f"- stage {name}: {stage['outcome']}" for name, stage in stages if stage["outcome"] != "ok"]
        lines += _official_rates(result["rows"])
        lines += _diagnostics(result.get("facts", {}))
    return lines


def _cells_of_row(row: dict[str, Any], rates: dict[str, float]) -> Iterator[list[str]]:
    """Yield the cells of a line for each other implementation. The first line is the baseline's and has the goals."""
    workload = WORKLOADS[row["workload"]]
    values = goal_values(row, rates.get("copy"))
    ours = format_duration(row["seconds"][OURS]["median"]) if OURS in row["seconds"] else "failed"
    other_sides = [side for side in row["seconds"] if side not in (OURS, workload.baseline)]
    for other in [workload.baseline, *other_sides]:
        theirs, ratio = "", "left out"
        if other in row["seconds"]:
            theirs = format_duration(row["seconds"][other]["median"])
            ratio = format_ratio(row["ratios"][other]) if other in row["ratios"] else ""
        memory = [row["mib"].get(side) for side in (OURS, other)]
        mib = "" if None in memory else " / ".join(f"{value:.1f}" for value in memory)
        shares, goals, met = "", "", ""
        if other == workload.baseline:
            shares = _device_shares(row, rates)
            goals = "; ".join(goal.text() for goal in workload.goals)
            met = "; ".join(_verdict(goal, values[goal.kind]) for goal in workload.goals)
        yield [row["row"], ours, other, theirs, ratio, mib, shares, goals, met]


def _describe_prediction(case: str, terms: tuple[float, float, float]) -> str:
    """Return a predicted time and its terms in seconds as text, e.g. "model: 40 us (38 + 0.59 + 0.77)"."""
    scale, unit = (1e6, "us") if sum(terms) < 1e-3 else (1e3, "ms")
    total, *numbers = (f"{float(f'{seconds * scale:.2g}'):g}" for seconds in (sum(terms), *terms))
    return f"{f'{case}, ' if case else ''}model: {total} {unit} ({' + '.join(numbers)})"


def goal_values(row: dict[str, Any], copy_rate: float | None) -> dict[str, float | None]:
    """Return the row's value for each kind of goal, or None if a number that the value needs was not measured.

    copy_rate: measured copy bandwidth in bytes/s.
    """
    baseline = WORKLOADS[row["workload"]].baseline
    ours, ratio, mib = row["seconds"].get(OURS), row["ratios"].get(baseline), row["mib"]
    seconds = ours["median"] if ours else None
    memory = mib[OURS] / mib[baseline] if mib.get(OURS) is not None and mib.get(baseline) else None
    return {
        "ratio": ratio["median"] if ratio else None,
        "memory": memory,
        "copy": row["n_bytes"] / seconds / copy_rate if seconds and copy_rate and row["n_bytes"] else None,
        "microseconds": seconds * 1e6 if seconds else None,
        # For a whole training: infinite if the metric has not reached the required value.
        "seconds": seconds if row.get("reached", True) else float("inf"),
    }


def _verdict(goal: Goal, value: float | None) -> str:
    """Return whether the value meets the goal, as text."""
    return "not measured" if value is None else "yes" if goal.is_met(value) else "no"


def _device_shares(row: dict[str, Any], rates: dict[str, float]) -> str:
    """Return as text what fraction of the device's measured copy and matrix product rates this package reached."""
    shares = []
    precision = row["precision"] or "fp32"
    if OURS in row["seconds"]:
        seconds = row["seconds"][OURS]["median"]
        if row["n_bytes"] and "copy" in rates:
            shares.append(f"{row['n_bytes'] / seconds / rates['copy']:.0%} of copy")
        if row["flops"] and precision in rates:
            shares.append(f"{row['flops'] / seconds / rates[precision]:.0%} of {precision} products")
    return ", ".join(shares)


def _failures(result: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield the row, the implementation and the error of each failed measurement."""
    for row in result.get("rows", []):
        for side, error in row["failed"].items():
            yield row, side, error


def _describe_device(result: dict[str, Any]) -> str:
    """Return a line with the device, the versions and the device's measured rates."""
    if "device" not in result:
        return f"call {result['call']}: the device was not recorded"
    device = f"{result['device']}, torch {result['torch']}, CUDA {result['cuda']}, call {result['call']}"
    if result.get("tiny"):
        device += "; TINY SIZES, the numbers mean nothing"
    if "ceilings" not in result:
        return device
    rates = result["ceilings"]
    products = ", ".join(f"{name} {rates[name] / 1e12:.1f}" for name in ("fp32", "tf32", "bf16"))
    return f"{device}; measured: copy {rates['copy'] / 1e9:.0f} GB/s, products {products} TFLOP/s"


def _official_rates(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table of the official code's mini-batches per second."""
    rates = [
        [row["row"], f"{1 / row['seconds']['official']['median']:.0f}"] for row in rows if "official" in row["seconds"]
    ]
    if rates:
        yield from _table("official code", ["mini-batches/s"], rates)


def _diagnostics(facts: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a table for each diagnostic in `facts`, which holds results by the diagnostic's name."""
    if "latencies" in facts:
        yield from _table("latency", ["us"], [[name, f"{ns / 1e3:.2f}"] for name, ns in facts["latencies"].items()])
    for setting, timeline in facts.get("timeline", {}).items():
        gaps = ", ".join(f"{name} {us:.2f}" for name, us in timeline["gaps_us"].items())
        yield from [
            "",
            f"GPU timeline of {setting}, replayed: {timeline['untraced_us_per_mini_batch']:.1f} us per mini-batch "
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
    if "fused_step" in facts:
        by_threads = facts["fused_step"]["us_per_mini_batch"]
        settings = list(dict.fromkeys(setting for times in by_threads.values() for setting in times))
        cells = [[setting, *(_number(times.get(setting)) for times in by_threads.values())] for setting in settings]
        title = f"fused training step on the CPU, us per mini-batch ({facts['fused_step']['processor']})"
        yield from _table(title, [f"{threads} threads" for threads in by_threads], cells)


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Yield the lines of a table. `title` is the header of the first column, `columns` are the other headers."""
    yield from ["", _line([title, *columns]), _line(["---"] * (1 + len(columns))), *map(_line, rows)]


def _number(value: float | None) -> str:
    """Return a number with four digits, or an empty text for None."""
    return "" if value is None else f"{value:.4g}"


def _code(name: str) -> str:
    """Return a kernel's name as markdown code, without `|`, which would end the table's cell."""
    return f"`{name.replace('|', '/')}`"


def _line(cells: Sequence[str]) -> str:
    """Return a line of a markdown table."""
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--into", type=Path, help=f"a markdown file, whose text between {BEGIN} and {END} is replaced")
    arguments = parser.parse_args()
    text = "\n".join(render([json.loads(path.read_text()) for path in arguments.results]))
    if arguments.into is None:
        print(text)
        return
    before, _, rest = arguments.into.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{arguments.into} has no lines {BEGIN} and {END}; add them where the tables should be")
    arguments.into.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
