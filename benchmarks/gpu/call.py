#!/usr/bin/env python3
"""Run call A or call B, the two sessions on a GPU machine that measure all GPU benchmarks; see README.md.

    python3 benchmarks/gpu/call.py A FOLDER --out OUT    tests, latencies and profiles, rows in fp32
    python3 benchmarks/gpu/call.py B FOLDER --out OUT    rows in TF32 and bf16, all tests, sanitizers, a long training

A row of the results table compares this package with other implementations at one workload. A call is a list of stages.
A stage is a separate process with a time limit, which measures one row, runs one diagnostic (diagnostics.py) or runs
some tests. An error that destroys the CUDA context therefore affects only one stage. If the stage of a row fails
without a result, a second process measures the row's other implementations.

OUT is a folder. OUT/results.json and OUT/table.md are rewritten after each stage; OUT/call.log gets the output of all
stages. `--only TEXT` runs only the stages whose names contain the text, and always the stage that loads the library.

`--rehearsal` rehearses the call on a CPU with small sizes. `--sabotage even|odd` makes every other stage fail, to test
this program. The exit status is 0 if every stage passed. This program needs only the standard library and does not
import the package.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from threading import Lock, Thread
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from gpu import table  # noqa: E402
from gpu.results import WAIT_VARIABLE, merge, write_json  # noqa: E402
from gpu.stages import CALLS, LIBRARY, RESULT_FILE, ROOT, Group, Stage, StageOptions  # noqa: E402

TIME_LIMITS = {"A": 240.0, "B": 420.0}  # seconds
GRACE_SECONDS = 15.0  # between SIGINT and SIGKILL; a stage writes its results in this time
TAIL_LINES = 15  # number of output lines that are printed if a stage fails
# Python programs that fail in different ways; with --sabotage they replace stages. sys.argv[1] is the result file.
SABOTAGE = (
    "raise SystemExit(3)",
    "import time; time.sleep(1000)",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "import sys; open(sys.argv[1], 'w').write('not JSON')",
)


class Process:
    """The running process of a stage.

    result_file: the JSON file that the process writes. sabotage: a program of SABOTAGE to run instead of the stage.
    tail: the last lines of the process's output; all lines go to the call's log.
    """

    def __init__(self, stage: Stage, result_file: Path, call: Call, sabotage: str = "") -> None:
        self.stage, self.result_file = stage, result_file
        command = (sys.executable, "-c", sabotage, RESULT_FILE) if sabotage else stage.command
        self._limit_seconds = 3 if sabotage else stage.limit
        self.tail: list[str] = []
        self._call, self._was_stopped, self._started_at = call, False, time.monotonic()
        self._process = subprocess.Popen(
            [argument.replace(RESULT_FILE, str(result_file)) for argument in command],
            cwd=ROOT,
            env=call.environment | stage.environment | ({WAIT_VARIABLE: "1"} if stage.waits_for_start else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,  # not a new session, which would survive if this program is killed
        )
        self._reader = Thread(target=self._read_output, daemon=True)
        self._reader.start()

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.decode(errors="replace").rstrip()
            self.tail = [*self.tail[1 - TAIL_LINES :], text]
            self._call.log(f"[{self.stage.name}] {text}")

    def start_measuring(self) -> None:
        """Allow the process to use the device, and start its time limit.

        A stage with `waits_for_start` imports its modules first and then reads the line that this method writes.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the process has ended already
            self._process.stdin.write(b"go\n")
            self._process.stdin.close()
        self._started_at = time.monotonic()

    def has_ended(self, remaining: float) -> bool:
        """Stop the process if its time limit or the time limit of the call is over. Return whether it has ended.

        remaining: seconds that remain for the call.
        """
        if self._process.poll() is None and (
            time.monotonic() - self._started_at > self._limit_seconds or remaining <= 0
        ):
            self._was_stopped = True
            if self.stage.interrupt:
                self._signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(GRACE_SECONDS)
            self.kill()
        return self._was_stopped or self._process.poll() is not None

    def outcome(self) -> tuple[str, float]:
        """Return "ok" or the reason of the failure, and the seconds since `start_measuring`."""
        seconds = time.monotonic() - self._started_at
        self.kill()  # child processes of the stage may still run
        self._reader.join(2)
        status = self._process.returncode or 0  # negative: the signal that ended the process
        if self._was_stopped and not (self.stage.interrupt and status == 0):
            return f"stopped after {seconds:.0f} s", seconds
        if status:
            return f"killed by signal {-status}" if status < 0 else f"exit status {status}", seconds
        if self.stage.must_print and not any(self.stage.must_print in line for line in self.tail):
            return f"did not print '{self.stage.must_print}'", seconds
        return "ok", seconds

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process can hang inside the GPU driver
            self._process.wait(10)

    def _signal(self, signal_number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal_number)


class Call:
    """Runs groups of stages within a time limit and merges their results.

    name: "A" or "B". out: folder for results.json, table.md and call.log. environment: environment variables of the
    stages. seconds: time limit of the call. sabotage: "even" or "odd", the stages to make fail; "" for none.
    results: the content of results.json; results["stages"] has the outcome of each stage.
    """

    def __init__(self, name: str, out: Path, environment: dict[str, str], seconds: float, sabotage: str) -> None:
        self.environment, self.results = environment, {"call": name, "stages": {}, "rows": []}
        self._out, self._time_limit, self._sabotage = out, seconds, sabotage
        self._stage_files = Path(tempfile.mkdtemp())  # folder of the files that the stages write
        self._started_at, self._lock, self._n_processes, self._n_stages = time.monotonic(), Lock(), 0, 0
        out.mkdir(parents=True, exist_ok=True)
        self._log = (out / "call.log").open("w")

    def run(self, group: Group) -> None:
        """Run the stages of a group, `group.n_parallel` at a time.

        Importing torch takes seconds. Therefore the next stage with `waits_for_start` starts while another measures.
        """
        queue = [stage for stage in group.stages if not self._skip_if_late(stage)]
        running: list[Process] = []
        next_process: Process | None = None  # started early; it imports its modules and waits
        while queue or running or next_process:
            while len(running) < group.n_parallel and (next_process or queue):
                running.append(next_process or self._start(queue.pop(0)))
                running[-1].start_measuring()
                next_process = None
            may_import = not any(process.stage.exclusive for process in running)
            if next_process is None and queue and queue[0].waits_for_start and may_import:
                next_process = self._start(queue.pop(0))
            for process in [p for p in running if p.has_ended(self._remaining())]:
                running.remove(process)
                has_results = self._finish(process)
                if not has_results and process.stage.fallback and self._remaining() > 0:
                    running.append(self._start(process.stage.fallback_stage(), is_fallback=True))
                    running[-1].start_measuring()
            if self._remaining() <= 0:
                for stage in queue:
                    self._skip_if_late(stage)
                queue = []
            time.sleep(0.02)

    def _start(self, stage: Stage, is_fallback: bool = False) -> Process:
        self._n_processes += 1
        result_file, sabotage = self._stage_files / f"{self._n_processes}.json", ""
        if not is_fallback:
            self._n_stages += 1
            if self._sabotage and (self._n_stages % 2 == 0) == (self._sabotage == "even"):
                sabotage = SABOTAGE[self._n_stages // 2 % len(SABOTAGE)]
        return Process(stage, result_file, self, sabotage)

    def _finish(self, process: Process) -> bool:
        """Merge and print the results of an ended process. Return whether it passed or measured some implementation."""
        outcome, seconds = process.outcome()
        stage_results: dict[str, Any] = {}
        try:
            if process.result_file.exists():
                stage_results = json.loads(process.result_file.read_text())
                merge(self.results, stage_results)
        except (ValueError, AttributeError) as error:
            outcome = f"wrote no results ({error})"
        self.results["stages"][process.stage.name] = {"outcome": outcome, "seconds": round(seconds, 1)}
        self.print_and_log(f"=== {process.stage.name}: {outcome}, {seconds:.1f} s, at {self._elapsed():.0f} s")
        for line in process.tail[-4:] if outcome == "ok" else process.tail:
            print(f"    {line}"[:200], flush=True)
        # GPU timelines, which the diagnostic `timeline` writes next to its result file
        for trace in self._stage_files.glob("*.gz"):
            shutil.move(trace, self._out / trace.name)
        self.write()
        return outcome == "ok" or any(row["seconds"] for row in stage_results.get("rows", []))

    def _skip_if_late(self, stage: Stage) -> bool:
        """Return whether no time remains for the stage. If so, record "no time left" as the outcome of the stage."""
        if self._remaining() > 0:
            return False
        self.results["stages"][stage.name] = {"outcome": "no time left", "seconds": 0.0}
        return True

    def write(self) -> None:
        """Write results.json and table.md."""
        write_json(self._out / "results.json", self.results)
        try:
            text = "\n".join(table.render([self.results]))
        except Exception as error:  # the table can be rendered again later; this error must not lose the measurements
            text = f"no table: {type(error).__name__}: {error}"
            self.print_and_log(text)
        (self._out / "table.md").write_text(text + "\n")

    def has_library(self) -> bool:
        """Return whether the native library was loaded; True with sabotage, which can make the loading stage fail."""
        return bool(self._sabotage) or self.results["stages"].get(LIBRARY, {}).get("outcome") == "ok"

    def skip_without_library(self, group: Group) -> None:
        """Record that a group did not run without the native library. Keep later stages from compiling the library."""
        self.environment["GRU4REC_FAST_BUILD"] = "none"
        for stage in group.stages:
            self.results["stages"][stage.name] = {"outcome": "no native library", "seconds": 0.0}

    def failures(self) -> list[str]:
        """Return a line for each stage that did not pass."""
        return [f"{name}: {s['outcome']}" for name, s in self.results["stages"].items() if s["outcome"] != "ok"]

    def print_and_log(self, line: str) -> None:
        print(line, flush=True)
        self.log(line)

    def log(self, line: str) -> None:
        with self._lock:
            print(line, file=self._log, flush=True)

    def close(self) -> None:
        shutil.rmtree(self._stage_files)
        self._log.close()

    def _elapsed(self) -> float:
        return time.monotonic() - self._started_at

    def _remaining(self) -> float:
        return self._time_limit - self._elapsed()


def stage_environment(options: StageOptions) -> dict[str, str]:
    """Return the environment variables of the stages.

    The stages import the installed package; if none is installed, they import the source tree.
    """
    paths = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
    if importlib.util.find_spec("gru4rec_fast") is None:
        paths.insert(0, str(ROOT))
    environment = os.environ | {"PATH": options.path, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    if options.rehearsal:
        return environment | {"TORCH_COMPILE_DISABLE": "1"}  # torch.compile takes half a minute per row
    return environment | {
        "GRU4REC_FAST_BUILD": "cuda",
        "GRU4REC_FAST_CACHE": str(options.folder / "library"),
        "TORCH_CUDA_ARCH_LIST": "9.0",  # as in build_library.sh; another value would compile the library again
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", choices=CALLS)
    parser.add_argument("folder", type=Path, help="written by prepare_folder.py and build_library.sh")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--only", default="", metavar="TEXT", help="run only the stages whose names contain this")
    parser.add_argument("--seconds", type=float, help="time limit of the whole call (default: 240 for A, 420 for B)")
    parser.add_argument("--rehearsal", action="store_true", help="rehearse on a CPU, with small sizes")
    parser.add_argument("--impl", default="native", help="implementation of the package's operators in a rehearsal")
    parser.add_argument("--sabotage", choices=("even", "odd"), default="", help="make every other stage fail")
    arguments = parser.parse_args()
    options, out = (
        StageOptions(arguments.folder.resolve(), arguments.rehearsal, arguments.impl),
        arguments.out.resolve(),
    )
    call = Call(
        arguments.call,
        out,
        stage_environment(options),
        arguments.seconds or TIME_LIMITS[arguments.call],
        arguments.sabotage,
    )
    for tool in ("nvcc", "ncu", "compute-sanitizer"):
        if shutil.which(tool, path=options.path) is None:
            call.print_and_log(f"warning: {tool} is not on PATH")
    for group in CALLS[arguments.call](options):
        if group.needs_library and not call.has_library():
            call.skip_without_library(group)
            continue
        chosen = tuple(stage for stage in group.stages if arguments.only in stage.name or stage.name == LIBRARY)
        call.run(replace(group, stages=chosen))
    call.write()
    call.close()
    print((out / "table.md").read_text())
    failures = call.failures()
    print(f"{len(call.results['stages']) - len(failures)} stages passed, {len(failures)} did not", *failures, sep="\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
