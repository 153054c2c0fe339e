"""Render the JSON files of the CPU benchmarks as one markdown table.

    python benchmarks/cpu_table.py build/benchmarks/*.json [--into docs/performance.md]

A row compares one side of this package (the subject) with another side: times, ratio (median and quartiles over the
rounds), goal, and the share of the machine's own rates that the subject reached. The first subject is compared with all
other sides; the further subjects only with sides for which they have a goal and with the other subjects. A share of
sgemm above 100% means that the package's products are faster than torch's BLAS.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- cpu rows -->", "<!-- end of cpu rows -->"
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def duration(seconds: float) -> str:
    """Return a time with three digits and a unit."""
    unit = next((name for name, size in UNITS.items() if seconds >= size), "ns")
    return f"{seconds / UNITS[unit]:.3g} {unit}"


def bracketed(values: dict[str, float]) -> str:
    """Return a ratio's median, with its quartiles in brackets."""
    return f"{values['median']:.2f} [{values['q1']:.2f}, {values['q3']:.2f}]"


def shares(limits: dict[str, float], bf16: bool) -> str:
    """Return the shares of the machine's rates that `machine.rate_shares` computed, and these rates."""
    texts = []
    if "sgemm_share" in limits:
        products, name = ("bf16", "bf16 products") if bf16 else ("sgemm", "sgemm")
        texts.append(f"{limits[f'{products}_share']:.0%} of {name} ({limits[f'{products}_gflops']:.0f} GFLOP/s)")
    if "copy_share" in limits:
        texts.append(f"{limits['copy_share']:.0%} of copy ({limits['copy_gbytes']:.1f} GB/s)")
    return ", ".join(texts)


def rows(info: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the table's rows of one comparison; `info` is what `interleave.Comparison` recorded."""
    subjects = list(info["ratios"])
    for subject, ratios in info["ratios"].items():
        ours = duration(info["seconds_per_unit"][subject]["median"])
        goals = info["goals"].get(subject, {})
        shown = [*ratios] if subject == subjects[0] else [other for other in ratios if other in subjects]
        for other in dict.fromkeys([*goals, *shown]):
            goal = f">= {goals[other]:g}" if other in goals else ""
            if other not in ratios:
                yield [info["row"], subject, ours, other, "", f"skipped: no --peer {other}=PATH", goal, ""]
                continue
            met = "" if other not in goals else " (met)" if ratios[other]["median"] >= goals[other] else " (missed)"
            theirs = duration(info["seconds_per_unit"][other]["median"])
            limit = shares(info.get("limits", {}).get(subject, {}), "bf16" in subject)
            yield [info["row"], subject, ours, other, theirs, bracketed(ratios[other]), goal + met, limit]


def memory_rows(memory: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the table's rows of a comparison of peak memory: the ratio is ours over theirs, and smaller is better."""
    *others, subject = memory["sides"]
    ours = memory["sides"][subject]
    for other in others:
        theirs = memory["sides"][other]
        share = ours["peak_bytes"] / theirs["peak_bytes"]
        goal = ""
        if other == "official":
            goal = f"<= {memory['goal']:g} ({'met' if share <= memory['goal'] else 'missed'})"
        cells = [f"{figures['peak_bytes'] / 2**20:.1f} MiB" for figures in (ours, theirs)]
        loaded = f"{ours['loaded_bytes'] / 2**20:.1f} MiB of it model and log"
        yield [memory["row"], subject, cells[0], other, cells[1], f"{share:.3f}", goal, loaded]


def machine_line(machine: dict[str, Any]) -> str:
    """Return the machine and the versions in one line."""
    processor = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
    return f"{processor}; torch {machine['torch']}, numpy {machine['numpy']}, Python {machine['python']}"


def table(files: list[Path]) -> str:
    """Return the markdown table of these files, followed by the machines and the days of the measurements.

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
                lines += ["| " + " | ".join(row) + " |" for row in memory_rows(info["memory"])]
            if "ratios" not in info:
                continue
            lines += ["| " + " | ".join(row) + " |" for row in rows(info)]
            machines.setdefault(machine_line(info["machine"]), set()).add(day)
    if not machines:
        raise ValueError(f"no comparison in {', '.join(map(str, files))}")
    return "\n".join([*lines, "", *(f"{name}; {', '.join(sorted(days))}" for name, days in machines.items())])


def put_into(page: Path, text: str) -> None:
    """Replace the text between the page's markers.

    Raises:
        ValueError: the page has no markers.
    """
    head, begin, rest = page.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no lines {BEGIN} and {END}; add them where the table should be")
    page.write_text(f"{head}{begin}\n{text}\n{end}{tail}")


def main() -> None:
    """Print the table of the given files, or write it into a page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="JSON files of pytest-benchmark")
    parser.add_argument("--into", type=Path, help=f"a page; the text between {BEGIN} and {END} is replaced")
    arguments = parser.parse_args()
    text = table(arguments.files)
    if arguments.into:
        put_into(arguments.into, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
