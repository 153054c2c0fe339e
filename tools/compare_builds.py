"""Compare the results of two builds of the package bit by bit, or compare their speed, on this machine.

    python tools/compare_builds.py OLD NEW [--new-path FOLDER] [--impl native] [--only TEXT] [--keep FOLDER]
    python tools/compare_builds.py OLD NEW [--new-path FOLDER] --time [--only TEXT] [--rounds 7]

OLD and NEW are the Python interpreters of two environments with the same torch. To compare the last release with the
working tree:

    python -m venv old && old/bin/pip install torch==2.13.0 && old/bin/pip install git+file://$PWD@v0.1.0
    python tools/compare_builds.py old/bin/python .venv/bin/python --new-path .

Each environment runs tools/build_cases.py of this checkout, once per implementation and instruction set. The cases are
every operator with its gradients (all data types, 1 and 2 threads), training, resuming, evaluating and recommending.
The environment's PYTHONPATH is not used; --old-path and --new-path replace it.

The exit status is 0 if every case is equal, or exists in OLD only and is named in `REMOVED`. A case that raises the
same error in both environments compares nothing and counts as different. With --time, the exit status is 0 if no row is
slower. A row is slower if all quartiles of new / old are above 1.05.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CASES = Path(__file__).with_name("build_cases.py")
IMPLEMENTATIONS = ("native", "reference", "emulated")
LEVELS = ("avx512", "avx2", "baseline")  # the slowest process is started first
SLOWER = 1.05
TURN_SECONDS = 0.3

# Name prefixes of cases that only the older build has, each with the reason.
REMOVED: dict[str, str] = {
    "sparse_sgd/": "deleted after 0.1.0: no model of the package trains with SGD",
    "sparse_rmsprop/": "deleted after 0.1.0: no model of the package trains with RMSprop",
    "optim.SparseSGD/": "deleted with sparse_sgd",
    "optim.SparseRMSprop/": "deleted with sparse_rmsprop",
}


@dataclass(frozen=True)
class Build:
    """An environment with the package: its Python interpreter and its PYTHONPATH."""

    name: str
    python: str
    path: str | None

    def command(self, *arguments: str) -> list[str]:
        return [self.python, "-P", str(CASES), *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment variables of this process with the PYTHONPATH of the build, and with `more`."""
        left_out = ("PYTHONPATH", "GRU4REC_FAST_SIMD")
        kept = {name: value for name, value in os.environ.items() if name not in left_out}
        return kept | ({"PYTHONPATH": self.path} if self.path else {}) | more

    def describe(self) -> dict[str, Any]:
        run = subprocess.run(
            self.command("describe"), env=self.environment(), stdout=subprocess.PIPE, text=True, check=False
        )
        if run.returncode:
            raise SystemExit(f"{self.name}: {self.python} cannot run the cases")
        return dict(json.loads(run.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="Python interpreter of the older build")
    parser.add_argument("new", help="Python interpreter of the newer build")
    parser.add_argument("--old-path", metavar="FOLDER", help="PYTHONPATH of the older build; by default none")
    parser.add_argument("--new-path", metavar="FOLDER", help="PYTHONPATH of the newer build; by default none")
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help="cases or rows with this text in their names"
    )
    parser.add_argument("--impl", choices=IMPLEMENTATIONS, action="append", help="cases of this implementation")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the tensors here and measure differences")
    parser.add_argument("--time", action="store_true", help="compare the speed of rows instead of bits")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each row in each build")
    parser.add_argument("--threads", type=int, default=2, help="threads of the timed rows")
    given = parser.parse_args()
    builds = [
        Build(name, python, path and str(Path(path).resolve()))
        for name, python, path in (("OLD", given.old, given.old_path), ("NEW", given.new, given.new_path))
    ]
    with ThreadPoolExecutor() as pool:
        facts = list(pool.map(Build.describe, builds))
    for build, fact in zip(builds, facts, strict=True):
        print(f"{build.name}: {', '.join(f'{name} {value}' for name, value in fact.items() if name != 'rows')}")
    if any(facts[0][name] != facts[1][name] for name in ("torch", "numpy")):
        raise SystemExit("OLD and NEW must have the same versions of torch and numpy")
    if given.time:
        rows = [row for row in facts[0]["rows"] if not given.only or any(text in row for text in given.only)]
        raise SystemExit(not compare_times(builds, rows, given.rounds, given.threads))
    impls = given.impl or IMPLEMENTATIONS
    if "native" in impls and any(fact["why_not"] for fact in facts):
        raise SystemExit("a build has no native kernels")
    levels = LEVELS[LEVELS.index(facts[0]["simd_detected"]) :] if "native" in impls else ()
    jobs = [*(("native", level) for level in levels), *((impl, None) for impl in impls if impl != "native")]
    raise SystemExit(not compare_bits(builds, jobs, given.only, given.keep))


# Bits -----------------------------------------------------------------------------------------------------------------


def compare_bits(builds: list[Build], jobs: list[tuple[str, str | None]], only: list[str], keep: Path | None) -> bool:
    """Run the cases of all jobs in both builds, one process per core, and print a report. See `report`."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {
            (build.name, job): pool.submit(run_cases, build, *job, only, keep, Path(folder))
            for job in jobs
            for build in builds
        }
        results: dict[str, dict[str, Any]] = {build.name: {} for build in builds}
        for (name, job), future in running.items():
            records, failure = future.result()
            results[name] |= records
            if failure or not (records or only):
                case = "/".join(filter(None, job))
                results[name][case] = {"error": f"{name}'s process {failure or 'ran no case'}"}
    return report(results["OLD"], results["NEW"], keep)


def run_cases(
    build: Build, impl: str, level: str | None, only: list[str], keep: Path | None, folder: Path
) -> tuple[dict[str, Any], str]:
    """Run the cases of one job. Return their records by name, and how the process failed ("" if it did not)."""
    results = folder / f"{build.name}-{impl}-{level}.jsonl"
    command = build.command("run", str(results), "--impl", impl, *(f"--only={text}" for text in only))
    if keep is not None:
        (keep / build.name).mkdir(parents=True, exist_ok=True)
        command += ["--keep", str(keep / build.name)]
    environment = build.environment(OMP_WAIT_POLICY="passive", **({"GRU4REC_FAST_SIMD": level} if level else {}))
    run = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    lines = results.read_text().splitlines() if results.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    last = records[-1]["name"] if records else "the first case"
    failure = f"ended with status {run.returncode} after {last}" if run.returncode else ""
    return {record.pop("name"): record for record in records}, failure


def report(old: dict[str, Any], new: dict[str, Any], keep: Path | None) -> bool:
    """Print a line per family and a line per difference. Return True if all cases are equal or named in `REMOVED`."""
    counts: dict[str, Counter[str]] = {}
    lines: list[str] = []
    removed: Counter[str] = Counter()
    for name in old | new:
        verdict, detail = judge(name, old.get(name), new.get(name), keep)
        prefix = next((b for b in REMOVED if name.startswith(b)), None)
        if verdict == "only in OLD" and prefix is not None:
            verdict = "removed"
            removed[prefix] += 1
        elif verdict != "equal":
            lines.append(f"{verdict}: {name}{detail}")
        counts.setdefault(name.split("/")[0], Counter())[verdict] += 1
    for family, verdicts in counts.items():
        print(f"{family:20} {', '.join(f'{n} {verdict}' for verdict, n in verdicts.items())}")
    print("\n".join(lines))
    for prefix, n in removed.items():
        print(f"removed: {prefix}, {n} cases: {REMOVED[prefix]}")
    total = sum(counts.values(), Counter())
    bad = total.total() - total["equal"] - total["removed"] - total["only in NEW"]
    seconds = [sum(record.get("seconds", 0) for record in side.values()) for side in (old, new)]
    print(f"{total['equal']} cases equal, {bad} not; {seconds[0]:.0f} and {seconds[1]:.0f} s of processor time")
    return bad == 0 and total["equal"] > 0


def judge(name: str, old: dict[str, Any] | None, new: dict[str, Any] | None, keep: Path | None) -> tuple[str, str]:
    """Return the verdict on a case, such as "equal" or "different", and details as text."""
    if old is None or new is None:
        found = old or new or {}
        return "only in " + ("NEW" if old is None else "OLD"), f": {found['error']}" if "error" in found else ""
    errors = [record.get("error") for record in (old, new)]
    if errors[0] and errors[0] == errors[1]:
        return "nothing compared", f": both raise {errors[0]}"
    if any(errors):
        return "different", f": OLD {errors[0] or 'returns'}, NEW {errors[1] or 'returns'}"
    if old["digests"] == new["digests"]:
        return "equal", ""
    if len(old["digests"]) != len(new["digests"]):
        return "different", f": {len(old['digests'])} tensors in OLD, {len(new['digests'])} in NEW"
    different = [i for i, pair in enumerate(zip(old["digests"], new["digests"], strict=True)) if pair[0] != pair[1]]
    return "different", f": tensors {different} of {len(old['digests'])}{differences(name, different, keep)}"


def differences(name: str, indices: list[int], keep: Path | None) -> str:
    """Return the maximum differences of the tensors with these indices as text, or "" without --keep."""
    if keep is None:
        return ""
    import torch

    file = f"{hashlib.sha256(name.encode()).hexdigest()}.pt"
    old, new = (torch.load(keep / side / file, weights_only=True) for side in ("OLD", "NEW"))
    found = []
    for i in indices:
        if old[i].shape != new[i].shape or old[i].dtype != new[i].dtype:
            found.append(f"{old[i].dtype} {[*old[i].shape]} and {new[i].dtype} {[*new[i].shape]}")
        else:
            difference = (old[i].double() - new[i].double()).abs().max()
            found.append(f"{difference:.3g} where the largest is {old[i].double().abs().max():.3g}")
    return f", max abs difference {'; '.join(found)}"


# Time -----------------------------------------------------------------------------------------------------------------


class TimedProcess:
    """A process of a build that keeps running and times rows on request."""

    def __init__(self, build: Build, threads: int) -> None:
        environment = build.environment(OMP_PROC_BIND="true")
        self.threads = threads
        self.process = subprocess.Popen(
            build.command("serve"), env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, row: str, n: int) -> float:
        """Run n units of work of a row and return the seconds per unit."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"row": row, "n": n, "threads": self.threads}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"a process ended in row {row}")
        return float(answer)

    def close(self) -> None:
        self.process.communicate()


def compare_times(builds: list[Build], rows: list[str], rounds: int, threads: int) -> bool:
    """Time the rows, both builds alternately, and print a table. Return True if no row is slower."""
    processes = [TimedProcess(build, threads) for build in builds]
    print(f"{'row':36} {'old us [quartiles]':>30} {'new us [quartiles]':>30}   new / old [quartiles]")
    slower = []
    for row in rows:
        for process in processes:  # compiles, allocates, warms up
            process.seconds(row, 1)
        n = max(1, round(TURN_SECONDS / max(processes[0].seconds(row, 2), 1e-9)))
        times: list[list[float]] = [[], []]
        for turn in range(rounds + 1):
            for side in (0, 1) if turn % 2 else (1, 0):
                times[side].append(processes[side].seconds(row, n))
        old, new = (t[1:] for t in times)
        ratio = quartiles([b / a for a, b in zip(old, new, strict=True)])
        is_slower = ratio[0] > SLOWER
        slower += [row] if is_slower else []
        cells = [f"{m:.1f} [{a:.1f}, {b:.1f}]" for a, m, b in (quartiles([t * 1e6 for t in s]) for s in (old, new))]
        told = f"{ratio[1]:.3f} [{ratio[0]:.3f}, {ratio[2]:.3f}]{'  slower' if is_slower else ''}"
        print(f"{row:36} {cells[0]:>30} {cells[1]:>30}   {told}", flush=True)
    for process in processes:
        process.close()
    print(f"{len(rows)} rows, {len(slower)} slower{': ' if slower else ''}{', '.join(slower)}")
    return bool(rows) and not slower


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the first quartile, the median and the third quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


if __name__ == "__main__":
    main()
