"""Render the JSON files of the CPU benchmarks as one markdown table.

    python benchmarks/cpu_table.py build/benchmarks/*.json [--into docs/performance.md]

The JSON files are written by pytest-benchmark; interleave.Comparison adds the results to them. An implementation that
belongs to this package is called a subject.

A row of the table compares a subject with another implementation. It has both times, their ratio (median and quartiles
over the rounds), the goal, and how near the subject comes to the machine's speed of matrix products (sgemm) and of
copying memory. The first subject is compared with all other implementations. Each further subject is compared with
the other subjects, and with the implementations named in its goals. More than 100% of sgemm means that the package's
matrix products are faster than torch's BLAS.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- cpu rows -->", "<!-- end of cpu rows -->"
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def format_duration(seconds: float) -> str:
    """Return a time with three digits and a unit."""
    unit = next((name for name, size in UNITS.items() if seconds >= size), "ns")
    return f"{seconds / UNITS[unit]:.3g} {unit}"


def format_ratio(values: dict[str, float]) -> str:
    """Return a ratio's median, with its quartiles in brackets."""
    return f"{values['median']:.2f} [{values['q1']:.2f}, {values['q3']:.2f}]"


def format_shares(limits: dict[str, float], bf16: bool) -> str:
    """Return the results of `machine.rate_shares` as text: how much of which speed of the machine a subject reaches.

    bf16: compare with bfloat16 matrix products instead of float32 ones (sgemm).
    """
    texts = []
    if "sgemm_share" in limits:
        products, name = ("bf16", "bf16 products") if bf16 else ("sgemm", "sgemm")
        texts.append(f"{limits[f'{products}_share']:.0%} of {name} ({limits[f'{products}_gflops']:.0f} GFLOP/s)")
    if "copy_share" in limits:
        texts.append(f"{limits['copy_share']:.0%} of copy ({limits['copy_gbytes']:.1f} GB/s)")
    return ", ".join(texts)


def make_time_rows(info: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the table's rows for the times in `info`, the results of one `interleave.Comparison`."""
    subjects = list(info["ratios"])
    for subject, ratios in info["ratios"].items():
        ours = format_duration(info["seconds_per_unit"][subject]["median"])
        goals = info["goals"].get(subject, {})
        without_goal = [*ratios] if subject == subjects[0] else [other for other in ratios if other in subjects]
        for other in dict.fromkeys([*goals, *without_goal]):
            goal = f">= {goals[other]:g}" if other in goals else ""
            if other not in ratios:
                reason = f"not measured: the benchmark was run without --peer {other}=PATH"
                yield [info["row"], subject, ours, other, "", reason, goal, ""]
                continue
            verdict = "" if other not in goals else " (met)" if ratios[other]["median"] >= goals[other] else " (missed)"
            theirs = format_duration(info["seconds_per_unit"][other]["median"])
            share = format_shares(info.get("limits", {}).get(subject, {}), "bf16" in subject)
            yield [info["row"], subject, ours, other, theirs, format_ratio(ratios[other]), goal + verdict, share]


def make_memory_rows(memory: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the table's rows for the peak memory of one comparison.

    The ratio is the memory of this package, whose side is the last, divided by the memory of the other side.
    """
    *others, subject = memory["sides"]
    ours = memory["sides"][subject]
    for other in others:
        theirs = memory["sides"][other]
        ratio = ours["peak_bytes"] / theirs["peak_bytes"]
        goal = ""
        if other == "official":
            goal = f"<= {memory['goal']:g} ({'met' if ratio <= memory['goal'] else 'missed'})"
        cells = [f"{figures['peak_bytes'] / 2**20:.1f} MiB" for figures in (ours, theirs)]
        loaded = f"{ours['loaded_bytes'] / 2**20:.1f} MiB of it are model and log"
        yield [memory["row"], subject, cells[0], other, cells[1], f"{ratio:.3f}", goal, loaded]


def describe_machine(machine: dict[str, Any]) -> str:
    """Return the processor and the versions in one line."""
    processor = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
    return f"{processor}; torch {machine['torch']}, numpy {machine['numpy']}, Python {machine['python']}"


def render_table(files: list[Path]) -> str:
    """Return the markdown table of these JSON files, followed by the machines and the days of the measurements.

    Raises:
        ValueError: the files contain no comparison.
    """
    header = [
        "row",
        "ours",
        "our time",
        "compared with",
        "their time",
        "ratio",
        "goal",
        "our share of the machine's rates",
    ]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    machines: dict[str, set[str]] = {}
    for file in files:
        content = json.loads(file.read_text())
        day, _, _ = content["datetime"].partition("T")
        for entry in content["benchmarks"]:
            info = entry["extra_info"]
            if "memory" in info:
                lines += ["| " + " | ".join(row) + " |" for row in make_memory_rows(info["memory"])]
            if "ratios" not in info:
                continue
            lines += ["| " + " | ".join(row) + " |" for row in make_time_rows(info)]
            machines.setdefault(describe_machine(info["machine"]), set()).add(day)
    if not machines:
        raise ValueError(f"no comparison in {', '.join(map(str, files))}")
    return "\n".join([*lines, "", *(f"{name}; {', '.join(sorted(days))}" for name, days in machines.items())])


def replace_table(page: Path, text: str) -> None:
    """Replace the text between the lines BEGIN and END of a page.

    Raises:
        ValueError: the page lacks these lines.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no lines {BEGIN} and {END}; add them where the table should be")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def main() -> None:
    """Print the table of the given files, or write it into a page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="JSON files of pytest-benchmark")
    parser.add_argument("--into", type=Path, help=f"a markdown file, whose text between {BEGIN} and {END} is replaced")
    arguments = parser.parse_args()
    text = render_table(arguments.files)
    if arguments.into:
        replace_table(arguments.into, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
