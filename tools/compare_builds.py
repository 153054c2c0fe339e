"""Compare two builds of the package on this machine: their results bit by bit, or their speed.

    python tools/compare_builds.py OLD NEW [--new-path FOLDER] [--impl native] [--only TEXT] [--keep FOLDER]
    python tools/compare_builds.py OLD NEW [--new-path FOLDER] --time [--only TEXT] [--rounds 7]

OLD and NEW are the Python interpreters of two environments with the same torch and numpy. To compare the last commit
with the working tree:

    python -m venv old && old/bin/pip install torch==2.13.0 && old/bin/pip install git+file://$PWD@HEAD
    python tools/compare_builds.py old/bin/python .venv/bin/python --new-path .

Version 0.1.0 is 2f7e07c. Since then the last bits of some results have changed: gradients of `gru`, the losses bpr and
top1, scores of sessions, and training by autograd, which computes the score of a repeated negative once (CHANGELOG.md).

Each environment runs tools/build_cases.py of this checkout, once per implementation (native, reference, emulated) and
instruction set. A case is one call of the package with fixed inputs. The cases cover every operator with its gradients
(all data types, 1 and 2 threads), training, resuming, evaluating and recommending. The variable PYTHONPATH is ignored;
--old-path and --new-path set it for the two environments.

The exit status is 0 if every case of OLD gives equal results, or has been removed on purpose (`REMOVED`). A case that
raises the same error in both environments compares nothing and counts as different.

With --time, both builds run the workloads TIMED_WORKLOADS of build_cases.py alternately. A workload is slower if all
three quartiles of the ratio new / old are above 1.05. The exit status is 0 if no workload is slower.
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
LEVELS = ("avx512", "avx2", "baseline")  # instruction sets; avx512 starts first, because it takes longest
SLOWER_RATIO = 1.05  # a workload is slower if all quartiles of new / old are above this ratio
MEASUREMENT_SECONDS = 0.3  # approximate duration of one measurement

# Prefixes of the names of cases that only the older build has, with the reason.
REMOVED: dict[str, str] = {
    "sparse_sgd/": "deleted after 0.1.0: no model of the package trains with SGD",
    "sparse_rmsprop/": "deleted after 0.1.0: no model of the package trains with RMSprop",
    "optim.SparseSGD/": "deleted with sparse_sgd",
    "optim.SparseRMSprop/": "deleted with sparse_rmsprop",
}


@dataclass(frozen=True)
class Build:
    """An environment with the package.

    name: "OLD" or "NEW". python: path of the Python interpreter. path: the PYTHONPATH, or None.
    """

    name: str
    python: str
    path: str | None

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs build_cases.py with these arguments."""
        return [self.python, "-P", str(CASES), *arguments]

    def environment(self, **additional: str) -> dict[str, str]:
        """Return the environment variables of this process with the PYTHONPATH of the build and additional ones."""
        ignored = ("PYTHONPATH", "GRU4REC_FAST_SIMD")
        inherited = {name: value for name, value in os.environ.items() if name not in ignored}
        return inherited | ({"PYTHONPATH": self.path} if self.path else {}) | additional

    def describe(self) -> dict[str, Any]:
        """Return versions, instruction set, why there are no native kernels, and workloads (build_cases.describe)."""
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
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="run only the cases or workloads whose names contain this text",
    )
    parser.add_argument(
        "--impl", choices=IMPLEMENTATIONS, action="append", help="run only the cases of this implementation"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the cases' tensors in this folder, and print the differences"
    )
    parser.add_argument("--time", action="store_true", help="compare the speed of workloads instead of results")
    parser.add_argument("--rounds", type=int, default=7, help="number of measurements of each workload in each build")
    parser.add_argument("--threads", type=int, default=2, help="number of threads of the timed workloads")
    arguments = parser.parse_args()
    builds = [
        Build(name, python, path and str(Path(path).resolve()))
        for name, python, path in (
            ("OLD", arguments.old, arguments.old_path),
            ("NEW", arguments.new, arguments.new_path),
        )
    ]
    with ThreadPoolExecutor() as pool:
        descriptions = list(pool.map(Build.describe, builds))
    for build, description in zip(builds, descriptions, strict=True):
        texts = [f"{name} {value}" for name, value in description.items() if name != "workloads"]
        print(f"{build.name}: {', '.join(texts)}")
    if any(descriptions[0][name] != descriptions[1][name] for name in ("torch", "numpy")):
        raise SystemExit("OLD and NEW must have the same versions of torch and numpy")
    if arguments.time:
        names = descriptions[0]["workloads"]
        workloads = [name for name in names if not arguments.only or any(text in name for text in arguments.only)]
        raise SystemExit(not compare_times(builds, workloads, arguments.rounds, arguments.threads))
    impls = arguments.impl or IMPLEMENTATIONS
    if "native" in impls and any(description["why_not"] for description in descriptions):
        raise SystemExit("a build has no native kernels")
    levels = LEVELS[LEVELS.index(descriptions[0]["simd_detected"]) :] if "native" in impls else ()
    # A job is an implementation with an instruction set, or with None for implementations that ignore it.
    jobs = [*(("native", level) for level in levels), *((impl, None) for impl in impls if impl != "native")]
    raise SystemExit(not compare_bits(builds, jobs, arguments.only, arguments.keep))


# Bits -----------------------------------------------------------------------------------------------------------------


def compare_bits(
    builds: list[Build], jobs: list[tuple[str, str | None]], only: list[str], keep_folder: Path | None
) -> bool:
    """Run the cases of all jobs in both builds, and print a report. Return whether the comparison passed."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:  # a process per core
        futures = {
            (build.name, job): pool.submit(run_cases, build, *job, only, keep_folder, Path(folder))
            for job in jobs
            for build in builds
        }
        results: dict[str, dict[str, Any]] = {build.name: {} for build in builds}
        for (name, job), future in futures.items():
            records, failure = future.result()
            results[name] |= records
            if failure or not (records or only):
                case = "/".join(filter(None, job))
                results[name][case] = {"error": f"{name}'s process {failure or 'ran no case'}"}
    return report(results["OLD"], results["NEW"], keep_folder)


def run_cases(
    build: Build, impl: str, level: str | None, only: list[str], keep_folder: Path | None, folder: Path
) -> tuple[dict[str, Any], str]:
    """Run the cases of one job in a build.

    Returns:
        The records of the cases by name (build_cases.run_case).
        How the process failed, or "" if it did not fail.
    """
    results = folder / f"{build.name}-{impl}-{level}.jsonl"
    command = build.command("run", str(results), "--impl", impl, *(f"--only={text}" for text in only))
    if keep_folder is not None:
        (keep_folder / build.name).mkdir(parents=True, exist_ok=True)
        command += ["--keep", str(keep_folder / build.name)]
    environment = build.environment(OMP_WAIT_POLICY="passive", **({"GRU4REC_FAST_SIMD": level} if level else {}))
    run = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    lines = results.read_text().splitlines() if results.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]  # the last line may be incomplete
    last_case = records[-1]["name"] if records else "the first case"
    failure = f"ended with status {run.returncode} after {last_case}" if run.returncode else ""
    return {record.pop("name"): record for record in records}, failure


def report(old: dict[str, Any], new: dict[str, Any], keep_folder: Path | None) -> bool:
    """Print a line per family of cases and a line per difference. Return whether the comparison passed.

    old, new: the records of all cases by name. keep_folder: the folder of --keep.
    """
    counts: dict[str, Counter[str]] = {}
    lines: list[str] = []
    removed: Counter[str] = Counter()
    for name in old | new:
        verdict, detail = judge(name, old.get(name), new.get(name), keep_folder)
        prefix = next((prefix for prefix in REMOVED if name.startswith(prefix)), None)
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
    n_bad = total.total() - total["equal"] - total["removed"] - total["only in NEW"]
    seconds = [sum(record.get("seconds", 0) for record in records.values()) for records in (old, new)]
    print(f"{total['equal']} cases equal, {n_bad} not; {seconds[0]:.0f} and {seconds[1]:.0f} s of processor time")
    return n_bad == 0 and total["equal"] > 0


def judge(
    name: str, old: dict[str, Any] | None, new: dict[str, Any] | None, keep_folder: Path | None
) -> tuple[str, str]:
    """Return the verdict on a case, such as "equal" or "different", and details as text."""
    if old is None or new is None:
        record = old or new or {}
        return "only in " + ("NEW" if old is None else "OLD"), f": {record['error']}" if "error" in record else ""
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
    return "different", f": tensors {different} of {len(old['digests'])}{differences(name, different, keep_folder)}"


def differences(name: str, indices: list[int], keep_folder: Path | None) -> str:
    """Return as text the maximum difference of each tensor of a case with one of these indices; "" without --keep."""
    if keep_folder is None:
        return ""
    import torch

    file = f"{hashlib.sha256(name.encode()).hexdigest()}.pt"
    old, new = (torch.load(keep_folder / build / file, weights_only=True) for build in ("OLD", "NEW"))
    texts = []
    for i in indices:
        if old[i].shape != new[i].shape or old[i].dtype != new[i].dtype:
            texts.append(f"{old[i].dtype} {[*old[i].shape]} and {new[i].dtype} {[*new[i].shape]}")
        else:
            difference = (old[i].double() - new[i].double()).abs().max()
            texts.append(f"{difference:.3g} of values up to {old[i].double().abs().max():.3g}")
    return f", max abs difference {'; '.join(texts)}"


# Time -----------------------------------------------------------------------------------------------------------------


class TimedProcess:
    """A process of a build that times workloads on request (build_cases.serve)."""

    def __init__(self, build: Build, threads: int) -> None:
        environment = build.environment(OMP_PROC_BIND="true")
        self.threads = threads
        self.process = subprocess.Popen(
            build.command("serve"), env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, workload: str, n: int) -> float:
        """Run n units of a workload and return the seconds per unit."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"workload": workload, "n": n, "threads": self.threads}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"a process ended while it timed {workload}")
        return float(answer)

    def close(self) -> None:
        self.process.communicate()


def compare_times(builds: list[Build], workloads: list[str], rounds: int, threads: int) -> bool:
    """Time the workloads in both builds alternately and print a table. Return whether no workload is slower."""
    processes = [TimedProcess(build, threads) for build in builds]
    print(f"{'workload':36} {'old us [quartiles]':>30} {'new us [quartiles]':>30}   new / old [quartiles]")
    slower = []
    for workload in workloads:
        for process in processes:  # the first call makes the inputs
            process.seconds(workload, 1)
        n = max(1, round(MEASUREMENT_SECONDS / max(processes[0].seconds(workload, 2), 1e-9)))
        times: list[list[float]] = [[], []]
        for round_index in range(rounds + 1):  # round 0 is a warm-up
            for build in (0, 1) if round_index % 2 else (1, 0):
                times[build].append(processes[build].seconds(workload, n))
        old, new = (seconds[1:] for seconds in times)
        ratio = quartiles([new_time / old_time for old_time, new_time in zip(old, new, strict=True)])
        is_slower = ratio[0] > SLOWER_RATIO
        slower += [workload] if is_slower else []
        us = [quartiles([time * 1e6 for time in seconds]) for seconds in (old, new)]
        cells = [f"{median:.1f} [{q1:.1f}, {q3:.1f}]" for q1, median, q3 in us]
        ratio_cell = f"{ratio[1]:.3f} [{ratio[0]:.3f}, {ratio[2]:.3f}]{'  slower' if is_slower else ''}"
        print(f"{workload:36} {cells[0]:>30} {cells[1]:>30}   {ratio_cell}", flush=True)
    for process in processes:
        process.close()
    print(f"{len(workloads)} workloads, {len(slower)} slower{': ' if slower else ''}{', '.join(slower)}")
    return bool(workloads) and not slower


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the first quartile, the median and the third quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


if __name__ == "__main__":
    main()
