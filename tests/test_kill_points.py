"""A process that is killed before any of its file-system calls loses nothing: the same command works again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and reads /proc")

SCRIPT = Path(__file__).with_name("kill_points.py")


def count_kills(scenario: str, folder: Path) -> int:
    """Run a scenario of kill_points.py and return the number of kills."""
    paths = os.pathsep.join([str(SCRIPT.parent), *(path for path in sys.path if path)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), scenario, str(folder / "kills")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return int(result.stdout.split()[-1])


@pytest.mark.parametrize(
    ("scenario", "min_kills"),
    [
        ("save", 8),
        ("previous", 50),
        ("store", 25),
        pytest.param("prepare", 60, marks=pytest.mark.slow),
        pytest.param("interactions", 40, marks=pytest.mark.slow),
    ],
)
def test_a_kill_before_any_file_system_call_loses_nothing(tmp_path: Path, scenario: str, min_kills: int):
    assert count_kills(scenario, tmp_path) >= min_kills


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["train", "random"])
def test_a_killed_training_resumes_and_loses_nothing(tmp_path: Path, scenario: str):
    """With "random", the training is killed 50 times at random moments, and resuming gives equal bits."""
    assert count_kills(scenario, tmp_path) >= 50
