"""benchmarks/gpu/call.py: stages that fail in every way, and complete runs of both calls without a GPU."""

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
from gpu.prepare_folder import prepare_stand_in
from gpu.stages import CALLS, OUT, Group, Stage, StageOptions
from gpu.workloads import OURS, row_names

CHECKOUT = Path(__file__).resolve().parents[1]


def python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *arguments)


def writes(value: dict[str, Any]) -> tuple[str, ...]:
    return python("import sys; open(sys.argv[1], 'w').write(sys.argv[2])", OUT, json.dumps(value))


def row(sides: list[str]) -> dict[str, Any]:
    figures = dict.fromkeys(("median", "q1", "q3"), 0.001)
    counted = {"n_bytes": 0, "flops": 0, "mib": {}, "notes": [], "failed": {}, "ratios": {}}
    return {"row": "r", "target": "gru", "precision": "fp32", "seconds": dict.fromkeys(sides, figures), **counted}


def called(out: Path, *groups: Group, seconds: float = 60, sabotage: str = "") -> Call:
    call = Call("A", out, dict(os.environ), seconds, sabotage)
    for group in groups:
        call.run(group)
    call.close()
    return call


def test_a_stage_that_fails_costs_itself_alone(tmp_path: Path) -> None:
    waits = "import sys, time; sys.stdin.readline(); print('went'); time.sleep(.1)"
    stages = {
        "exits": Stage("exits", python("print('a line'); raise SystemExit(3)"), 20),
        "hangs": Stage("hangs", python("import time; print('before', flush=True); time.sleep(60)"), 1),
        "killed": Stage("killed", python("import os; os.kill(os.getpid(), 9)"), 20),
        "garbage": Stage("garbage", python("import sys; open(sys.argv[1], 'w').write('{')", OUT), 20),
        "silent": Stage("silent", python("print('1 skipped')"), 20, must_print=" passed"),
        "waits": Stage("waits", python(waits), 20, waits=True),
        "fact": Stage(
            "fact",
            writes({"facts": {"official": {}}, "device": "some GPU", "torch": "2.11", "cuda": "13.0"}),
            20,
            waits=True,
        ),
    }
    call = called(tmp_path, Group(tuple(stages.values())))
    outcomes = {name: stage["outcome"] for name, stage in call.results["stages"].items()}
    assert outcomes["exits"] == "exit status 3" and outcomes["killed"] == "killed by signal 9"
    assert outcomes["hangs"].startswith("stopped after 1") and outcomes["garbage"].startswith("wrote no results")
    assert outcomes["silent"] == "did not print ' passed'" and outcomes["waits"] == outcomes["fact"] == "ok"
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == call.results and written["device"] == "some GPU"
    log = (tmp_path / "call.log").read_text()
    assert "[exits] a line" in log and "[hangs] before" in log and "[waits] went" in log
    assert sorted(path.name for path in tmp_path.iterdir()) == ["call.log", "results.json", "table.md"]
    assert len(call.failures()) == 5


def test_where_our_side_fails_the_others_are_measured(tmp_path: Path) -> None:
    again = writes({"rows": [row(["nn.GRU"])]})
    crash = Stage("r", python("raise SystemExit(1)"), 20, fallback=again)
    call = called(tmp_path, Group((crash,)))
    assert [*call.results["rows"][0]["seconds"]] == ["nn.GRU"]
    assert call.results["stages"]["r, again without ours"]["outcome"] == "ok"
    assert call.failures() == ["r: exit status 1"]
    # A row that has results already is not measured again.
    fails_late = python("import sys; open(sys.argv[1], 'w').write(sys.argv[2]); raise SystemExit(1)", OUT)
    stage = Stage("r", (*fails_late, json.dumps({"rows": [row([OURS])]})), 20, fallback=again)
    call = called(tmp_path, Group((stage,)))
    assert [*call.results["rows"][0]["seconds"]] == [OURS] and [*call.results["stages"]] == ["r"]


def test_stages_in_parallel_and_the_end_of_the_time(tmp_path: Path) -> None:
    sleep = [Stage(f"s{n}", python("import time; time.sleep(1)"), 20) for n in range(4)]
    call = called(tmp_path, Group(tuple(sleep), at_once=4))
    assert call.failures() == [] and sum(s["seconds"] for s in call.results["stages"].values()) > 1.2 * call._elapsed()
    late = [Stage(f"s{n}", python("import time; time.sleep(60)"), 90) for n in range(3)]
    call = called(tmp_path, Group(tuple(late)), Group((sleep[3],)), seconds=1)
    assert [stage["outcome"][:7] for stage in call.results["stages"].values()] == ["stopped"] + ["no time"] * 3


def test_without_a_library_what_needs_it_is_left_out(tmp_path: Path) -> None:
    """Nothing tries to compile the library again."""
    call = Call("A", tmp_path, dict(os.environ), 60, "")
    call.run(Group((Stage("library", python("raise SystemExit(1)"), 20),)))
    assert not call.has_library() and call.environment["GRU4REC_FAST_BUILD"] == "none"
    call.skip(Group((Stage("tests gru", python("pass"), 20),), needs_library=True), "no native library")
    call.close()
    assert call.failures() == ["library: exit status 1", "tests gru: no native library"]


def test_an_interrupted_stage_writes_what_it_measured(tmp_path: Path) -> None:
    code = """
import sys, time
try:
    time.sleep(60)
except KeyboardInterrupt:
    open(sys.argv[1], "w").write('{"left_out": ["some of it"]}')
"""
    call = called(tmp_path, Group((Stage("long", python(code, OUT), 2, interrupt=True),)))
    assert call.failures() == [] and call.results["left_out"] == ["some of it"]


def test_sabotage_makes_each_stage_fail_once(tmp_path: Path) -> None:
    stages = tuple(Stage(f"s{n}", python("print('fine')"), 20) for n in range(2 * len(SABOTAGE)))
    failed = {}
    for which in ("even", "odd"):
        call = called(tmp_path, Group(stages), sabotage=which)
        failed[which] = {line.partition(":")[0] for line in call.failures()}
        assert len({line.partition(": ")[2][:7] for line in call.failures()}) == len(SABOTAGE)
    assert failed["even"] | failed["odd"] == {stage.name for stage in stages} and not failed["even"] & failed["odd"]


def rehearse(name: str, folder: Path, out: Path, *options: str) -> dict[str, Any]:
    """Run a whole call without a GPU and return its results. Checks that a table can be made of them."""
    command = [sys.executable, CHECKOUT / "benchmarks" / "gpu" / "call.py", name, folder, "--out", out, "--stand-in"]
    command += ["--seconds", "3000", *options]
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    results = json.loads((out / "results.json").read_text())
    output = ran.stdout[-3000:] + ran.stderr
    assert ran.returncode == any(s["outcome"] != "ok" for s in results["stages"].values()), output
    assert (out / "table.md").read_text().splitlines() == table.render([results]), output
    return results


@pytest.mark.slow
@pytest.mark.usefixtures("native_library")
def test_call_a_on_a_stand_in(tmp_path: Path) -> None:
    """Run the whole call A, with every row, fact and family, by the commands that run on the GPU."""
    folder = tmp_path / "carried"
    prepare_stand_in(folder)
    results = rehearse("A", folder, tmp_path / "out")
    options = StageOptions(folder, stand_in=True)
    names = [stage.name for group in CALLS["A"](options) for stage in group.stages]
    assert {name: s["outcome"] for name, s in results["stages"].items()} == dict.fromkeys(names, "ok")
    assert [row["row"] for row in results["rows"]] == [name for name in names if name in map(str, row_names())]
    assert set(results["facts"]) == {"latencies", "timeline", "ncu", "cpu_engine"} and results["tiny"]
    assert all(OURS in row["seconds"] and not row["failed"] for row in results["rows"])


@pytest.mark.slow
@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize("which", ["even", "odd"])
def test_rows_that_fail_on_a_stand_in(tmp_path: Path, which: str) -> None:
    """Some processes of a few rows fail. The other implementations of these rows, and all other rows, are measured."""
    folder = tmp_path / "carried"
    prepare_stand_in(folder)
    results = rehearse("A", folder, tmp_path / "out", "--only", "L @ E, Gowalla", "--sabotage", which)
    outcomes = {name: stage["outcome"] for name, stage in results["stages"].items() if name != "library"}
    failed = [name for name, outcome in outcomes.items() if outcome != "ok"]
    assert failed and all(f"{name}, again without ours" in outcomes for name in failed)
    found = {row["row"]: OURS in row["seconds"] for row in results["rows"]}
    assert found == {name: name not in failed for name in outcomes if "again" not in name}
