#!/usr/bin/env python3
"""Run one of the two calls that fit into fifteen minutes on a GPU; README.md has the command lines.

    python3 benchmarks/gpu/call.py A FOLDER --out OUT      library, tests, facts, rows in fp32, the CPU engine
    python3 benchmarks/gpu/call.py B FOLDER --out OUT      rows in TF32 and bf16, all tests, a long run, sanitizers

Every row, fact and family of tests is a process of its own, with a time limit: an error that kills the CUDA context
costs that process alone. OUT/results.json and OUT/table.md are written anew after each process, OUT/call.log as lines
come. Where our side of a row fails, the other sides are measured without it. `--only TEXT` runs the stages whose names
contain the text.

Standard library only, and no code of the package runs in this process. `--stand-in` runs the same stages on a
processor, in small sizes; `--sabotage even|odd` makes every other stage fail at its first try. Ends with 0 where every
stage passed.
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
from gpu.stages import CALLS, LIBRARY, OUT, ROOT, Group, Setting, Stage  # noqa: E402

SECONDS = {"A": 240.0, "B": 420.0}
GRACE = 15.0  # seconds that an interrupted stage has to write what it measured
KEPT_LINES = 15
# Ways to fail, in turns; the argument is the file that the stage should write.
SABOTAGE = (
    "raise SystemExit(3)",
    "import time; time.sleep(1000)",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "import sys; open(sys.argv[1], 'w').write('not JSON')",
)


class Process:
    """A started stage. Its output goes to the log line by line; the last lines are kept."""

    def __init__(self, stage: Stage, fragment: Path, call: Call, sabotage: str = "") -> None:
        self.stage, self.fragment = stage, fragment
        command = (sys.executable, "-c", sabotage, OUT) if sabotage else stage.command
        self._limit = 3 if sabotage else stage.limit
        self.tail: list[str] = []
        self._call, self._stopped, self._began = call, False, time.monotonic()
        self._process = subprocess.Popen(
            [part.replace(OUT, str(fragment)) for part in command],
            cwd=ROOT,
            env=call.environment | stage.environment | ({WAIT_VARIABLE: "1"} if stage.waits else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,  # and no session of its own, which would outlive this program where that is killed
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.decode(errors="replace").rstrip()
            self.tail = [*self.tail[1 - KEPT_LINES :], text]
            self._call.log(f"[{self.stage.name}] {text}")

    def begin(self) -> None:
        """Let the stage use the device; its time counts from here."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.write(b"go\n")
            self._process.stdin.close()
        self._began = time.monotonic()

    def has_ended(self, left: float) -> bool:
        """Return whether the process has ended. It is stopped at its limit, or when the call has no seconds left."""
        if self._process.poll() is None and (time.monotonic() - self._began > self._limit or left <= 0):
            self._stopped = True
            if self.stage.interrupt:
                self._signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(GRACE)
            self.kill()
        return self._stopped or self._process.poll() is not None

    def outcome(self) -> tuple[str, float]:
        """Return "ok" or the reason for the failure, and the seconds taken."""
        seconds = time.monotonic() - self._began
        self.kill()  # and what the process may have left running
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
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver can keep a process for ever
            self._process.wait(10)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class Call:
    """Runs groups of stages within a time limit and merges what they measure.

    results: what results.json holds; "stages" has the outcome of each.
    """

    def __init__(self, name: str, out: Path, environment: dict[str, str], seconds: float, sabotage: str) -> None:
        self.environment, self.results = environment, {"call": name, "stages": {}, "rows": []}
        self._out, self._seconds, self._sabotage = out, seconds, sabotage
        self._fragments = Path(tempfile.mkdtemp())  # not in `out`, of which the first few files come back
        self._began, self._lock, self._n_started, self._n_first_tries = time.monotonic(), Lock(), 0, 0
        out.mkdir(parents=True, exist_ok=True)
        self._log = (out / "call.log").open("w")

    def run(self, group: Group) -> None:
        """Run the stages of a group; of those that wait, the next one imports while this one measures."""
        waiting = [stage for stage in group.stages if not self._is_late(stage)]
        running: list[Process] = []
        importing: Process | None = None
        while waiting or running or importing:
            while len(running) < group.at_once and (importing or waiting):
                running.append(importing or self._start(waiting.pop(0)))
                running[-1].begin()
                importing = None
            if importing is None and waiting and waiting[0].waits and not any(p.stage.alone for p in running):
                importing = self._start(waiting.pop(0))
            for process in [p for p in running if p.has_ended(self._left())]:
                running.remove(process)
                if not self._settle(process) and process.stage.otherwise and self._left() > 0:
                    running.append(self._start(process.stage.second_try(), first_try=False))
                    running[-1].begin()
            if self._left() <= 0:
                for stage in waiting:
                    self._is_late(stage)
                waiting = []
            time.sleep(0.02)

    def _start(self, stage: Stage, first_try: bool = True) -> Process:
        self._n_started += 1
        fragment, sabotage = self._fragments / f"{self._n_started}.json", ""
        if first_try:
            self._n_first_tries += 1
            if self._sabotage and (self._n_first_tries % 2 == 0) == (self._sabotage == "even"):
                sabotage = SABOTAGE[self._n_first_tries // 2 % len(SABOTAGE)]
        return Process(stage, fragment, self, sabotage)

    def _settle(self, process: Process) -> bool:
        """Merge and report what a process has measured; return whether it passed or left figures."""
        outcome, seconds = process.outcome()
        fragment: dict[str, Any] = {}
        try:
            if process.fragment.exists():
                fragment = json.loads(process.fragment.read_text())
                merge(self.results, fragment)
        except (ValueError, AttributeError) as error:
            outcome = f"wrote no results ({error})"
        self.results["stages"][process.stage.name] = {"outcome": outcome, "seconds": round(seconds, 1)}
        shown = process.tail[-4:] if outcome == "ok" else process.tail
        self.say(f"=== {process.stage.name}: {outcome}, {seconds:.1f} s, at {self._at():.0f} s")
        for line in shown:
            print(f"    {line}"[:200], flush=True)
        for trace in self._fragments.glob("*.gz"):
            shutil.move(trace, self._out / trace.name)
        self.write()
        return outcome == "ok" or any(row["seconds"] for row in fragment.get("rows", []))

    def _is_late(self, stage: Stage) -> bool:
        """Note a stage for which no time is left."""
        if self._left() > 0:
            return False
        self.results["stages"][stage.name] = {"outcome": "no time left", "seconds": 0.0}
        return True

    def write(self) -> None:
        """Write the results and their table."""
        write_json(self._out / "results.json", self.results)
        try:
            text = "\n".join(table.render([self.results]))
        except Exception as error:  # the table can be made later, the measurements cannot
            text = f"no table: {type(error).__name__}: {error}"
            self.say(text)
        (self._out / "table.md").write_text(text + "\n")

    def has_library(self) -> bool:
        """Return whether the native library loads; where it does not, no later stage tries to compile it again."""
        loads = bool(self._sabotage) or self.results["stages"].get(LIBRARY, {}).get("outcome") == "ok"
        if not loads:
            self.environment["GRU4REC_FAST_BUILD"] = "none"
        return loads

    def skip(self, group: Group, reason: str) -> None:
        """Note that the stages of a group were not run."""
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

    def _at(self) -> float:
        return time.monotonic() - self._began

    def _left(self) -> float:
        return self._seconds - self._at()


def environment_of(where: Setting) -> dict[str, str]:
    """Return the environment of the stages; an installed package is used, elsewhere the source tree."""
    paths = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
    if importlib.util.find_spec("gru4rec_fast") is None:
        paths.insert(0, str(ROOT))
    found = os.environ | {"PATH": where.path, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    if where.stand_in:
        return found | {"TORCH_COMPILE_DISABLE": "1"}  # half a minute a row
    # The carried library was compiled for this architecture.
    return found | {
        "GRU4REC_FAST_BUILD": "cuda",
        "GRU4REC_FAST_CACHE": str(where.folder / "library"),
        "TORCH_CUDA_ARCH_LIST": "9.0",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", choices=CALLS)
    parser.add_argument("folder", type=Path, help="what was carried: data/, peers/, library/, latencies")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", metavar="TEXT", help="stages whose names contain this")
    parser.add_argument("--seconds", type=float, help="for the whole call (240 for A, 420 for B)")
    parser.add_argument("--stand-in", action="store_true")
    parser.add_argument("--impl", default="native", help="of the operators, on the stand-in")
    parser.add_argument("--sabotage", choices=("even", "odd"), default="")
    given = parser.parse_args()
    where, out = Setting(given.folder.resolve(), given.stand_in, given.impl), given.out.resolve()
    call = Call(given.call, out, environment_of(where), given.seconds or SECONDS[given.call], given.sabotage)
    for tool in ("nvcc", "ncu", "compute-sanitizer"):
        if shutil.which(tool, path=where.path) is None:
            call.say(f"warning: {tool} is not on PATH")
    for group in CALLS[given.call](where):
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
