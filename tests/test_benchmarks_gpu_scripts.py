"""benchmarks/gpu/*.sh where there is no GPU: up to the first line that needs one, and long runs in pieces."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from synthetic import synthetic_store

CHECKOUT = Path(__file__).resolve().parents[1]
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def script(name: str, *arguments: str | Path, **environment: str | Path) -> subprocess.CompletedProcess[str]:
    """Run benchmarks/gpu/<name>, which takes the source tree: in pure PyTorch, so that nothing is compiled for it."""
    settings = {"PYTHON": sys.executable, "GRU4REC_FAST_BUILD": "none", "IMPL": "reference"}
    env = os.environ | settings | {key: str(value) for key, value in environment.items()}
    command = ["bash", str(CHECKOUT / "benchmarks" / "gpu" / name), *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def up_to_the_gpu(out: Path, **environment: str) -> None:
    """run_all.sh stops where a GPU is needed."""
    ran = script("run_all.sh", OUT=out, **environment)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    parts = [line.split()[1] for line in ran.stdout.splitlines() if line.startswith("=== ")]
    assert parts == ["tools", "gpu", "done"], ran.stdout
    assert "there is no GPU here" in ran.stdout or "is a build without CUDA" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "FAILED: gpu (code 1, see run.log)"
    assert [path.name for path in out.iterdir()] == ["run.log"]


def stand_ins(folder: Path, **scripts: str) -> str:
    """A PATH on which these programs come first; nvcc writes empty object files."""
    scripts = {"nvcc": 'while [ $# -gt 0 ]; do [ "$1" = -o ] && : >"$2"; shift; done'} | scripts
    for name, script in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    beside = Path(sys.executable).parent  # ninja, where the environment is not activated
    return f"{folder}:{beside}:{os.environ['PATH']}"


@no_gpu
def test_run_all_up_to_the_first_line_that_needs_a_gpu(tmp_path: Path) -> None:
    up_to_the_gpu(tmp_path / "out", PATH=stand_ins(tmp_path))


@no_gpu
@pytest.mark.slow
def test_run_all_after_that_line(tmp_path: Path) -> None:
    """What the script does with a GPU, with stand-ins for what needs one."""
    python = f"""case "$*" in
      *get_device_name*) echo "Some GPU capability 9.0"; exit ;;
      *build_info*) echo "built for $TORCH_CUDA_ARCH_LIST"; exit ;;
      *gpu.bench*) set -- "$@" --device cpu --impl reference --tiny --only "dropout mask" ;;
    esac
    GRU4REC_FAST_BUILD=none exec {sys.executable} "$@"
    """
    sanitizer = 'echo "under: $*"; shift 8; exec "$@"'
    path = stand_ins(tmp_path, python_of_a_gpu=python, compute_sanitizer=sanitizer)
    out = tmp_path / "out"
    ran = script("run_all.sh", PATH=path, OUT=out, PYTHON="python-of-a-gpu")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    parts = [line.split()[1] for line in ran.stdout.splitlines() if line.startswith("=== ")]
    expected = "tools gpu build tests rows table sanitizer_memcheck sanitizer_racecheck kernels done"
    assert parts == expected.split()
    assert "built for 9.0" in ran.stdout and "dropout mask, 1 x 32 x 100: " in ran.stdout
    assert sorted(file.name for file in out.iterdir()) == ["gpu.json", "ptxas.txt", "run.log", "table.md"]
    log = (out / "run.log").read_text()
    assert log.count("-m sanitizer") == 2 and log.count("--kernel-regex kns=grf") == 2


@pytest.mark.slow
def test_run_all_on_a_processor(tmp_path: Path) -> None:
    """The rows of the tiny sizes, and what leaves the machine."""
    ran = script("run_all.sh", tmp_path / "nothing", OUT=tmp_path / "out", DEVICE="cpu")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gpu.json", "table.md", "run.log"}
    table = (tmp_path / "out" / "table.md").read_text()
    assert "TINY SIZES" in table and "left out: NGCF-3 training step, Gowalla, fp32: no data/gowalla/train" in table
    assert ran.returncode == 0 and "- failed" not in table, ran.stdout


def test_long_says_what_it_lacks(tmp_path: Path) -> None:
    assert script("long.sh", tmp_path).returncode == 2
    ran = script("long.sh", tmp_path, "unheard_of")
    assert ran.returncode == 2 and "unheard_of.options is not there" in ran.stderr


@pytest.mark.slow
def test_a_long_run_goes_on_from_piece_to_piece(tmp_path: Path) -> None:
    synthetic_store(tmp_path / "data" / "tiny" / "train", 4000, 50)
    run = tmp_path / "runs" / "tiny"
    run.parent.mkdir()

    def piece(epochs: int, seconds: int) -> subprocess.CompletedProcess[str]:
        options = f"{{folder}}/data/tiny/train --validation {{folder}}/data/tiny/train -ps layers=8,n_epochs={epochs}"
        run.with_suffix(".options").write_text(f"{options},n_sample=8\nngcf-run recall@20 0.01\n")
        return script("long.sh", tmp_path, "tiny", DEVICE="cpu", SECONDS_A_PIECE=str(seconds), OUT=tmp_path / "out")

    def epochs() -> list[str]:
        with open(run / "curves.csv", newline="") as file:
            return [row["loss"] for row in csv.DictReader(file)]

    for seconds in (15, 30, 60, 120):  # on a busy machine the start alone may take that long
        ran = piece(100_000, seconds)
        assert ran.returncode == 75 and "interrupted after a piece; call again" in ran.stdout, ran.stderr
        if (run / "curves.csv").exists():
            break
    before = epochs()
    ran = piece(len(before) + 2, 300)
    assert ran.returncode == 0 and ran.stdout.splitlines()[-1] == f"finished: {run}", ran.stderr
    assert epochs()[: len(before)] == before and len(epochs()) == len(before) + 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"tiny.csv", "tiny.json"}
    assert len((tmp_path / "runs" / "tiny.pieces").read_text().split()) >= 2
