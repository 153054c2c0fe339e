"""benchmarks/gpu/call.py: stages that fail in every way, and a complete run of call A without a GPU.

A call is one benchmark session on a GPU machine, A or B. A stage is a process of a call, with a time limit in seconds.
A group is a list of stages that call.py runs together. A row of the results compares several implementations, called
sides, at one workload. Sabotage makes stages fail on purpose.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gpu import table
from gpu.call import SABOTAGE, Call
from gpu.prepare_folder import prepare_rehearsal
from gpu.stages import CALLS, RESULT_FILE, Group, Stage, StageOptions
from gpu.workloads import OURS, row_names

CHECKOUT = Path(__file__).resolve().parents[1]


def python_command(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *arguments)


def command_that_writes(value: dict[str, Any]) -> tuple[str, ...]:
    """Return the command of a stage that writes `value` as its results."""
    return python_command("import sys; open(sys.argv[1], 'w').write(sys.argv[2])", RESULT_FILE, json.dumps(value))


def row_json(sides: list[str]) -> dict[str, Any]:
    """Return a row of results with the figures of these sides."""
    seconds = dict.fromkeys(sides, dict.fromkeys(("median", "q1", "q3"), 0.001))
    other_fields = {"n_bytes": 0, "flops": 0, "mib": {}, "notes": [], "failed": {}, "ratios": {}}
    return {"row": "r", "workload": "gru", "precision": "fp32", "seconds": seconds, **other_fields}


def run_call(out: Path, *groups: Group, seconds: float = 60, sabotage: str = "") -> Call:
    """Run the groups one after another in a call of at most `seconds`, and return the closed call."""
    call = Call("A", out, dict(os.environ), seconds, sabotage)
    for group in groups:
        call.run(group)
    call.close()
    return call


def test_failing_stages_do_not_affect_others(tmp_path: Path) -> None:
    waiting_program = "import sys, time; sys.stdin.readline(); print('started'); time.sleep(.1)"
    stages = {
        "exits": Stage("exits", python_command("print('a line'); raise SystemExit(3)"), 20),
        "hangs": Stage("hangs", python_command("import time; print('a line', flush=True); time.sleep(60)"), 1),
        "killed": Stage("killed", python_command("import os; os.kill(os.getpid(), 9)"), 20),
        "garbage": Stage("garbage", python_command("import sys; open(sys.argv[1], 'w').write('{')", RESULT_FILE), 20),
        "silent": Stage("silent", python_command("print('1 skipped')"), 20, must_print=" passed"),
        "waits": Stage("waits", python_command(waiting_program), 20, waits_for_start=True),
        "diagnostic": Stage(
            "diagnostic",
            command_that_writes({"facts": {"official": {}}, "device": "some GPU", "torch": "2.11", "cuda": "13.0"}),
            20,
            waits_for_start=True,
        ),
    }
    call = run_call(tmp_path, Group(tuple(stages.values())))
    outcomes = {name: stage["outcome"] for name, stage in call.results["stages"].items()}
    assert outcomes["exits"] == "exit status 3" and outcomes["killed"] == "killed by signal 9"
    assert outcomes["hangs"].startswith("stopped after 1") and outcomes["garbage"].startswith("wrote no results")
    assert outcomes["silent"] == "did not print ' passed'" and outcomes["waits"] == outcomes["diagnostic"] == "ok"
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == call.results and written["device"] == "some GPU"
    log = (tmp_path / "call.log").read_text()
    assert "[exits] a line" in log and "[hangs] a line" in log and "[waits] started" in log
    assert sorted(path.name for path in tmp_path.iterdir()) == ["call.log", "results.json", "table.md"]
    assert len(call.failures()) == 5


def test_other_sides_are_measured_if_this_package_fails(tmp_path: Path) -> None:
    fallback = command_that_writes({"rows": [row_json(["nn.GRU"])]})
    failing_stage = Stage("r", python_command("raise SystemExit(1)"), 20, fallback=fallback)
    call = run_call(tmp_path, Group((failing_stage,)))
    assert [*call.results["rows"][0]["seconds"]] == ["nn.GRU"]
    assert call.results["stages"]["r, again without ours"]["outcome"] == "ok"
    assert call.failures() == ["r: exit status 1"]
    # The fallback does not run if the failed stage has written results of the row.
    write_and_fail = python_command(
        "import sys; open(sys.argv[1], 'w').write(sys.argv[2]); raise SystemExit(1)", RESULT_FILE
    )
    stage = Stage("r", (*write_and_fail, json.dumps({"rows": [row_json([OURS])]})), 20, fallback=fallback)
    call = run_call(tmp_path, Group((stage,)))
    assert [*call.results["rows"][0]["seconds"]] == [OURS] and [*call.results["stages"]] == ["r"]


def test_stages_run_in_parallel_until_the_time_limit(tmp_path: Path) -> None:
    short_stages = [Stage(f"s{n}", python_command("import time; time.sleep(1)"), 20) for n in range(4)]
    call = run_call(tmp_path, Group(tuple(short_stages), n_parallel=4))
    assert call.failures() == [] and sum(s["seconds"] for s in call.results["stages"].values()) > 1.2 * call._elapsed()
    long_stages = [Stage(f"s{n}", python_command("import time; time.sleep(60)"), 90) for n in range(3)]
    call = run_call(tmp_path, Group(tuple(long_stages)), Group((short_stages[3],)), seconds=1)
    assert [stage["outcome"][:7] for stage in call.results["stages"].values()] == ["stopped"] + ["no time"] * 3


def test_without_a_library_stages_that_need_it_are_skipped(tmp_path: Path) -> None:
    """Later stages do not try to compile the library again."""
    call = Call("A", tmp_path, dict(os.environ), 60, "")
    call.run(Group((Stage("library", python_command("raise SystemExit(1)"), 20),)))
    assert not call.has_library()
    call.skip_without_library(Group((Stage("tests gru", python_command("pass"), 20),), needs_library=True))
    assert call.environment["GRU4REC_FAST_BUILD"] == "none"
    call.close()
    assert call.failures() == ["library: exit status 1", "tests gru: no native library"]


def test_interrupted_stage_writes_its_results(tmp_path: Path) -> None:
    code = """
import sys, time
try:
    time.sleep(60)
except KeyboardInterrupt:
    open(sys.argv[1], "w").write('{"left_out": ["some of it"]}')
"""
    call = run_call(tmp_path, Group((Stage("long", python_command(code, RESULT_FILE), 2, interrupt=True),)))
    assert call.failures() == [] and call.results["left_out"] == ["some of it"]


def test_sabotage_even_and_odd_make_each_stage_fail_once(tmp_path: Path) -> None:
    """ "even" and "odd" make every other stage fail, each in the next of the ways listed in SABOTAGE."""
    stages = tuple(Stage(f"s{n}", python_command("print('fine')"), 20) for n in range(2 * len(SABOTAGE)))
    failed = {}
    for sabotage in ("even", "odd"):
        call = run_call(tmp_path, Group(stages), sabotage=sabotage)
        failed[sabotage] = {line.partition(":")[0] for line in call.failures()}
        assert len({line.partition(": ")[2][:7] for line in call.failures()}) == len(SABOTAGE)
    assert failed["even"] | failed["odd"] == {stage.name for stage in stages} and not failed["even"] & failed["odd"]


def rehearse(name: str, folder: Path, out: Path, *options: str) -> dict[str, Any]:
    """Run call `name` without a GPU, check the exit status and the table, and return the results."""
    command = [sys.executable, CHECKOUT / "benchmarks" / "gpu" / "call.py", name, folder, "--out", out, "--rehearsal"]
    command += ["--seconds", "3000", *options]
    process = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    results = json.loads((out / "results.json").read_text())
    output = process.stdout[-3000:] + process.stderr
    assert process.returncode == any(s["outcome"] != "ok" for s in results["stages"].values()), output
    assert (out / "table.md").read_text().splitlines() == table.render([results]), output
    return results


@pytest.mark.slow
@pytest.mark.usefixtures("native_library")
def test_rehearsal_of_call_a(tmp_path: Path) -> None:
    """Run the whole call A on the CPU, with the same commands as on a machine with a GPU."""
    folder = tmp_path / "folder"
    prepare_rehearsal(folder)
    results = rehearse("A", folder, tmp_path / "out")
    options = StageOptions(folder, rehearsal=True)
    names = [stage.name for group in CALLS["A"](options) for stage in group.stages]
    assert {name: s["outcome"] for name, s in results["stages"].items()} == dict.fromkeys(names, "ok")
    assert [row["row"] for row in results["rows"]] == [name for name in names if name in map(str, row_names())]
    assert set(results["facts"]) == {"latencies", "timeline", "ncu", "fused_step"} and results["tiny"]
    assert all(OURS in row["seconds"] and not row["failed"] for row in results["rows"])


@pytest.mark.slow
@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize("sabotage", ["even", "odd"])
def test_rehearsal_with_failing_rows(tmp_path: Path, sabotage: str) -> None:
    """Make some stages of a few rows fail. The other sides of these rows, and all other rows, are measured."""
    folder = tmp_path / "folder"
    prepare_rehearsal(folder)
    results = rehearse("A", folder, tmp_path / "out", "--only", "L @ E, Gowalla", "--sabotage", sabotage)
    outcomes = {name: stage["outcome"] for name, stage in results["stages"].items() if name != "library"}
    failed = [name for name, outcome in outcomes.items() if outcome != "ok"]
    assert failed and all(f"{name}, again without ours" in outcomes for name in failed)
    has_ours = {row["row"]: OURS in row["seconds"] for row in results["rows"]}
    assert has_ours == {name: name not in failed for name in outcomes if "again" not in name}
