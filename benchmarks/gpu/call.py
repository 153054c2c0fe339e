#!/usr/bin/env python3
"""Run one of the two calls that measure all GPU benchmarks within fifteen minutes; see README.md.

    python3 benchmarks/gpu/call.py A FOLDER --out OUT      library, tests, facts, rows in fp32, the CPU engine
    python3 benchmarks/gpu/call.py B FOLDER --out OUT      rows in TF32 and bf16, all tests, sanitizers, a long training

A call is a list of stages. Each row, fact or test is a stage: a separate process with a time limit, so that an error
that destroys the CUDA context affects one stage only. OUT/results.json and OUT/table.md are rewritten after each stage;
OUT/call.log gets the output of the stages line by line. If this package's side of a row fails, the other sides are
measured without it. `--only TEXT` runs the stages whose names contain the text.

This program needs the standard library only, and never imports the package. `--stand-in` rehearses the call on a
processor, in small sizes. `--sabotage even|odd` makes every other stage fail at its first try. The exit status is 0 if
every stage passed.
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
from gpu.stages import CALLS, LIBRARY, OUT, ROOT, Group, Stage, StageOptions  # noqa: E402

SECONDS = {"A": 240.0, "B": 420.0}
GRACE = 15.0  # seconds between SIGINT and SIGKILL, in which a stage writes its figures
KEPT_LINES = 15
# Programs that fail in different ways, used one after the other. sys.argv[1] is the file that the stage should write.
SABOTAGE = (
    "raise SystemExit(3)",
    "import time; time.sleep(1000)",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "import sys; open(sys.argv[1], 'w').write('not JSON')",
)


class Process:
    """The running process of a stage. Its output goes to the log line by line; `tail` has the last lines."""

    def __init__(self, stage: Stage, fragment: Path, call: Call, sabotage: str = "") -> None:
        self.stage, self.fragment = stage, fragment
        command = (sys.executable, "-c", sabotage, OUT) if sabotage else stage.command
        self._limit = 3 if sabotage else stage.limit
        self.tail: list[str] = []
        self._call, self._stopped, self._began = call, False, time.monotonic()
        self._process = subprocess.Popen(
            [argument.replace(OUT, str(fragment)) for argument in command],
            cwd=ROOT,
            env=call.environment | stage.environment | ({WAIT_VARIABLE: "1"} if stage.waits else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,  # not a new session, which would survive if this program is killed
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.decode(errors="replace").rstrip()
            self.tail = [*self.tail[1 - KEPT_LINES :], text]
            self._call.log(f"[{self.stage.name}] {text}")

    def release(self) -> None:
        """Let the process use the device (see results.wait_for_device). Its time limit counts from now on."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the process has ended already
            self._process.stdin.write(b"go\n")
            self._process.stdin.close()
        self._began = time.monotonic()

    def has_ended(self, remaining: float) -> bool:
        """Return whether the process has ended; stop it at its limit, or if the call has no `remaining` seconds."""
        if self._process.poll() is None and (time.monotonic() - self._began > self._limit or remaining <= 0):
            self._stopped = True
            if self.stage.interrupt:
                self._signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(GRACE)
            self.kill()
        return self._stopped or self._process.poll() is not None

    def outcome(self) -> tuple[str, float]:
        """Return "ok" or the reason of the failure, and the seconds since `release`."""
        seconds = time.monotonic() - self._began
        self.kill()  # its child processes may still run
        self._reader.join(2)
        code = self._process.returncode or 0
        if self._stopped and not (self.stage.interrupt and code == 0):
            return f"stopped after {seconds:.0f} s", seconds
        if code:
            return f"killed by signal {-code}" if code < 0 else f"exit status {code}", seconds
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
    """Runs groups of stages within a time limit and merges their figures.

    results: the content of results.json; "stages" has the outcome of each stage.
    """

    def __init__(self, name: str, out: Path, environment: dict[str, str], seconds: float, sabotage: str) -> None:
        self.environment, self.results = environment, {"call": name, "stages": {}, "rows": []}
        self._out, self._seconds, self._sabotage = out, seconds, sabotage
        self._fragments = Path(tempfile.mkdtemp())  # JSON files of the stages; `out` gets the final files only
        self._began, self._lock, self._n_started, self._n_first_tries = time.monotonic(), Lock(), 0, 0
        out.mkdir(parents=True, exist_ok=True)
        self._log = (out / "call.log").open("w")

    def run(self, group: Group) -> None:
        """Run the stages of a group. While one stage measures, the next one with `waits` imports already."""
        queue = [stage for stage in group.stages if not self._skip_if_late(stage)]
        running: list[Process] = []
        importing: Process | None = None
        while queue or running or importing:
            while len(running) < group.at_once and (importing or queue):
                running.append(importing or self._start(queue.pop(0)))
                running[-1].release()
                importing = None
            if importing is None and queue and queue[0].waits and not any(p.stage.exclusive for p in running):
                importing = self._start(queue.pop(0))
            for process in [p for p in running if p.has_ended(self._remaining())]:
                running.remove(process)
                if not self._finish(process) and process.stage.fallback and self._remaining() > 0:
                    running.append(self._start(process.stage.second_try(), first_try=False))
                    running[-1].release()
            if self._remaining() <= 0:
                for stage in queue:
                    self._skip_if_late(stage)
                queue = []
            time.sleep(0.02)

    def _start(self, stage: Stage, first_try: bool = True) -> Process:
        self._n_started += 1
        fragment, sabotage = self._fragments / f"{self._n_started}.json", ""
        if first_try:
            self._n_first_tries += 1
            if self._sabotage and (self._n_first_tries % 2 == 0) == (self._sabotage == "even"):
                sabotage = SABOTAGE[self._n_first_tries // 2 % len(SABOTAGE)]
        return Process(stage, fragment, self, sabotage)

    def _finish(self, process: Process) -> bool:
        """Merge and report the figures of an ended process; return whether it passed or measured a side."""
        outcome, seconds = process.outcome()
        fragment: dict[str, Any] = {}
        try:
            if process.fragment.exists():
                fragment = json.loads(process.fragment.read_text())
                merge(self.results, fragment)
        except (ValueError, AttributeError) as error:
            outcome = f"wrote no results ({error})"
        self.results["stages"][process.stage.name] = {"outcome": outcome, "seconds": round(seconds, 1)}
        self.say(f"=== {process.stage.name}: {outcome}, {seconds:.1f} s, at {self._elapsed():.0f} s")
        for line in process.tail[-4:] if outcome == "ok" else process.tail:
            print(f"    {line}"[:200], flush=True)
        for trace in self._fragments.glob("*.gz"):
            shutil.move(trace, self._out / trace.name)
        self.write()
        return outcome == "ok" or any(row["seconds"] for row in fragment.get("rows", []))

    def _skip_if_late(self, stage: Stage) -> bool:
        """Return whether no time remains for the stage; if so, record that as its outcome."""
        if self._remaining() > 0:
            return False
        self.results["stages"][stage.name] = {"outcome": "no time left", "seconds": 0.0}
        return True

    def write(self) -> None:
        """Write results.json and table.md."""
        write_json(self._out / "results.json", self.results)
        try:
            text = "\n".join(table.render([self.results]))
        except Exception as error:  # the table can be rendered again later; the measurements must not be lost
            text = f"no table: {type(error).__name__}: {error}"
            self.say(text)
        (self._out / "table.md").write_text(text + "\n")

    def has_library(self) -> bool:
        """Return whether the native library loads; if not, keep later stages from compiling it again."""
        loads = bool(self._sabotage) or self.results["stages"].get(LIBRARY, {}).get("outcome") == "ok"
        if not loads:
            self.environment["GRU4REC_FAST_BUILD"] = "none"
        return loads

    def skip(self, group: Group, reason: str) -> None:
        """Record that the stages of a group were not run."""
        for stage in group.stages:
            self.results["stages"][stage.name] = {"outcome": reason, "seconds": 0.0}

    def failures(self) -> list[str]:
        """Return a line for each stage that did not pass."""
        return [f"{name}: {s['outcome']}" for name, s in self.results["stages"].items() if s["outcome"] != "ok"]

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.log(line)

    def log(self, line: str) -> None:
        with self._lock:
            print(line, file=self._log, flush=True)

    def close(self) -> None:
        shutil.rmtree(self._fragments)
        self._log.close()

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _remaining(self) -> float:
        return self._seconds - self._elapsed()


def environment_of(options: StageOptions) -> dict[str, str]:
    """Return the environment of the stages. They import the installed package, or the source tree if there is none."""
    paths = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
    if importlib.util.find_spec("gru4rec_fast") is None:
        paths.insert(0, str(ROOT))
    environment = os.environ | {"PATH": options.path, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    if options.stand_in:
        return environment | {"TORCH_COMPILE_DISABLE": "1"}  # torch.compile takes half a minute per row
    return environment | {
        "GRU4REC_FAST_BUILD": "cuda",
        "GRU4REC_FAST_CACHE": str(options.folder / "library"),
        "TORCH_CUDA_ARCH_LIST": "9.0",  # that of the library in FOLDER, else it would be compiled again
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", choices=CALLS)
    parser.add_argument("folder", type=Path, help="written by prepare_folder.py and build_library.sh")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", metavar="TEXT", help="run only the stages whose names contain this")
    parser.add_argument("--seconds", type=float, help="time limit of the whole call (default: 240 for A, 420 for B)")
    parser.add_argument("--stand-in", action="store_true", help="rehearse on a processor")
    parser.add_argument("--impl", default="native", help="implementation of the operators in a rehearsal")
    parser.add_argument("--sabotage", choices=("even", "odd"), default="", help="make every other stage fail once")
    given = parser.parse_args()
    options, out = StageOptions(given.folder.resolve(), given.stand_in, given.impl), given.out.resolve()
    call = Call(given.call, out, environment_of(options), given.seconds or SECONDS[given.call], given.sabotage)
    for tool in ("nvcc", "ncu", "compute-sanitizer"):
        if shutil.which(tool, path=options.path) is None:
            call.say(f"warning: {tool} is not on PATH")
    for group in CALLS[given.call](options):
        if group.needs_library and not call.has_library():
            call.skip(group, "no native library")
            continue
        chosen = tuple(stage for stage in group.stages if given.only in stage.name or stage.name == LIBRARY)
        call.run(replace(group, stages=chosen))
    call.write()
    call.close()
    print((out / "table.md").read_text())
    failures = call.failures()
    print(f"{len(call.results['stages']) - len(failures)} stages passed, {len(failures)} did not", *failures, sep="\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
