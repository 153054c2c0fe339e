"""Every fuzzer runs its corpus and a few seconds of new cases, without a finding that is not known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TARGETS = [path.stem for path in sorted(HERE.glob("*.py")) if "TARGET = Target(" in path.read_text()]


@pytest.mark.parametrize("target", TARGETS)
def test_a_fuzzer_finds_nothing(target: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The seed is fixed, so that a change fails for what it changes. Longer runs with other seeds: run.py."""
    if sys.platform != "linux":
        pytest.skip("fuzzers limit their memory as Linux does")
    if target in ("operators", "implementations"):
        request.getfixturevalue("native_library")
    arguments = [target, "--seconds", "7", "--seed", "0", "--into", str(tmp_path)]
    command = [sys.executable, str(HERE / "run.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
