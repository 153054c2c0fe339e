"""What the tests of native kernels share: the tolerance rule, thread counts, instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

LEVELS = ("baseline", "avx2", "avx512")


def assert_as_close(ours: Sequence[Tensor], reference: Sequence[Tensor], oracle: Sequence[Tensor]) -> None:
    """Each tensor is within twice the reference's own error of the float64 oracle, plus 4 roundings of its norm.

    Errors are Euclidean norms of whole tensors; the reference is in the dtype of `ours`. Where that is float64, oracle
    and reference are one, which leaves 1e-13 of the norm: room for sums that cancel.
    """
    for number, (mine, theirs, truth) in enumerate(zip(ours, reference, oracle, strict=True)):
        assert mine.shape == truth.shape and mine.dtype == theirs.dtype
        error, yardstick = ((t.double() - truth).norm().item() for t in (mine, theirs))
        allowed = 1e-13 if mine.dtype == torch.float64 else 4 * torch.finfo(mine.dtype).eps
        rounding = allowed * truth.norm().item()
        assert error <= 2 * yardstick + rounding, (number, error, yardstick, rounding)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Run with `n` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_equal_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    assert [torch.equal(one, two) for one, two in zip(first, second, strict=True)] == [True] * len(first)


def run_at_level(level: str, file: str | list[str], chosen: str) -> None:
    """Run the tests `chosen` (as pytest -k) of a file, or of several, in a process of that instruction set.

    Skips where the processor lacks it.
    """
    files = [file] if isinstance(file, str) else file
    env = os.environ | {"GRU4REC_FAST_SIMD": level}
    python = [sys.executable, "-P"]  # as this process: no folder on the path that was not asked for
    probe = [*python, "-c", "from gru4rec_fast import _backend; _backend.load()"]
    answer = subprocess.run(probe, env=env, capture_output=True, text=True, check=False)
    if "this processor offers" in answer.stderr:
        pytest.skip(f"this processor has no {level}")
    assert answer.returncode == 0, answer.stderr
    folder = Path(files[0]).resolve().parents[1]
    command = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen]
    result = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "skipped" not in result.stdout and "passed" in result.stdout, result.stdout
