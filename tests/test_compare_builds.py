"""tools/compare_builds.py reports equal builds as equal, and every difference between a package and a changed copy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import gru4rec_fast

TOOL = Path(__file__).resolve().parents[1] / "tools" / "compare_builds.py"
PACKAGE = Path(gru4rec_fast.__file__).parent

# Code that is added to gru4rec_fast/ops/__init__.py of a copy. In this copy, top_k raises an error.
TOP_K_RAISES = """

def top_k(*_, **__):
    raise ValueError("in both")
"""
# One result differs by one ulp, one operator raises an error, one is missing, and top_k raises the same error as in the
# other copy.
DELIBERATE_DIFFERENCES = f"""
from gru4rec_fast.ops import laplacian_propagation as _laplacian


def laplacian_propagation(*args, **kwargs):
    import torch

    return torch.nextafter(_laplacian(*args, **kwargs), torch.tensor(9.0, dtype=args[0].dtype))


def session_batch(*_, **__):
    raise ValueError("in NEW only")


del bpr_triples
{TOP_K_RAISES}"""


def compare(old_path: Path, new_path: Path, *options: str) -> tuple[int, str]:
    """Compare two copies of the package, with impl="reference", which needs no kernels.

    Returns:
        the exit status and the output of compare_builds.py.
    """
    command = [sys.executable, "-P", str(TOOL), sys.executable, sys.executable, "--impl", "reference", *options]
    paths = ["--old-path", str(old_path), "--new-path", str(new_path)]
    run = subprocess.run([*command, *paths], capture_output=True, text=True, check=False)
    return run.returncode, run.stdout + run.stderr


def copy_with(code: str, folder: Path) -> Path:
    """Copy the package into a folder, add code to its ops/__init__.py, and return the folder."""
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / PACKAGE.name / "ops" / "__init__.py").open("a") as file:
        file.write(code)
    return folder


def test_equal_builds_are_reported_as_equal() -> None:
    status, output = compare(PACKAGE.parent, PACKAGE.parent, "--only", "gru/", "--only", "optim.SparseAdam/")
    assert status == 0, output
    assert "gru                  32 equal\noptim.SparseAdam     16 equal" in output
    assert "48 cases equal, 0 not" in output


def test_deliberate_differences_are_reported(tmp_path: Path) -> None:
    old, new = copy_with(TOP_K_RAISES, tmp_path / "old"), copy_with(DELIBERATE_DIFFERENCES, tmp_path / "new")
    laplacian_case = "laplacian_propagation/reference/threads=1/small float64 matrix=plain nodes=all dropout=0.0"
    operators = ("bpr_triples", "session_batch", "top_k", "dropout_mask")
    cases = [laplacian_case, *(f"{operator}/reference/threads=1/small" for operator in operators)]
    keep = "--keep", str(tmp_path / "tensors")
    status, output = compare(old, new, *(f"--only={text}" for text in cases), *keep)
    # 17 = 1 that differs + 2 * 4 that fail in NEW only + 8 that raise the same error in both, which is not "equal".
    assert status == 1 and "8 cases equal, 17 not" in output, output
    # The changed operator has the same gradient as the original, so only tensor 0 differs.
    assert f"different: {laplacian_case}: tensors [0] of 2, max abs difference " in output
    assert output.count(": OLD returns, NEW ValueError: in NEW only\n") == 4
    assert output.count(": OLD returns, NEW AttributeError: ") == 4
    assert output.count(": both raise ValueError: in both\n") == 8


def test_comparison_without_cases_fails() -> None:
    status, output = compare(PACKAGE.parent, PACKAGE.parent, "--only", "no such case")
    assert status == 1 and "0 cases equal, 0 not" in output, output
