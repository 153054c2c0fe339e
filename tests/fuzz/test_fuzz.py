"""Every fuzzer replays its corpus and runs some new cases, without a finding that is not known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.run import HERE, TARGETS

from gru4rec_fast import _compile

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fuzzers limit memory and time as Linux does")


def run_fuzzer(target: str, seconds: float, cases: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a fuzzer with a fixed seed. New findings are written to `folder`."""
    arguments = [target, "--seconds", str(seconds), "--cases", str(cases), "--seed", "0", "--into", str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(HERE / "run.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.parametrize("target", TARGETS)
def test_a_fuzzer_finds_nothing(target: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Seed and number of cases are fixed, so a failure is due to a change. run.py runs longer, with other seeds."""
    if target in ("operators", "implementations"):
        request.getfixturevalue("native_library")
    result = run_fuzzer(target, 300, 150, tmp_path)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]


@pytest.mark.skipif(bool(_compile.sanitizers()), reason="sanitizers need more memory than the limit")
def test_every_kind_of_wrong_outcome_is_a_finding(tmp_path: Path) -> None:
    result = run_fuzzer("faulty", 10, sys.maxsize, tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    found = {json.loads(path.read_text())["finding"]: path for path in (tmp_path / "faulty").glob("*.json")}
    assert {*found} == {
        "SIGSEGV crash",  # outcome and case of faulty.py
        "hang hang",  # likewise
        "MemoryError in faulty.py: run",
        "KeyError in faulty.py: run",
        "message names nothing: ValueError in faulty.py: run",
        "not one line: TypeError in faulty.py: run",
        "long message: ValueError in faulty.py: run",
        "AssertionError in faulty.py: run (2 is not 1)",
    }
    assert json.loads(found["SIGSEGV crash"].read_text())["case"] == "crash"
