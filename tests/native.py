"""What the tests of kernels share: their implementations, the tolerance rule, thread counts, instruction sets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cuda_emulator
import pytest
import torch
from torch import Tensor

from gru4rec_fast import _backend, _compile
from gru4rec_fast.ops._registry import operators

LEVELS = ("baseline", "avx2", "avx512")


# Written out, so that a family whose CUDA kernels are not found fails, and is not skipped.
CUDA_FAMILIES = {
    *("session_batch", "negative_sampling", "gru", "sampled_loss", "sparse_update", "ranking", "laplacian_propagation"),
    *("ngcf_layer", "bpr_triples", "dropout", "training_step"),
}


def why_not_emulated(family: str) -> str:
    """Return why the CUDA kernels of a family do not run under emulation here; "" where they do.

    That no kernels can be compiled is the only reason, and an error where GRU4REC_FAST_REQUIRE_NATIVE is set; so is a
    family without CUDA kernels.
    """
    assert family in CUDA_FAMILIES and {*cuda_emulator.families()} == CUDA_FAMILIES, (family, cuda_emulator.families())
    reason = cuda_emulator.why_not()
    assert not (reason and os.environ.get("GRU4REC_FAST_REQUIRE_NATIVE")), reason
    return reason


def native_and_emulated(op: str, family: str = "") -> pytest.MarkDecorator:
    """Run a test with impl="native" and impl="emulated"; `family` names the files of `op` where these differ."""
    is_native = _backend.resolve("auto", op, "cpu") == "native"
    missing = why_not_emulated(family or op)
    native = pytest.param("native", marks=pytest.mark.skipif(not is_native, reason=f"{op} is not built natively"))
    emulated = pytest.param("emulated", marks=pytest.mark.skipif(bool(missing), reason=missing or "-"))
    return pytest.mark.parametrize("impl", [native, emulated])


def implementations(op: str, family: str = "") -> pytest.MarkDecorator:
    """Run a test with the reference, too."""
    mark = native_and_emulated(op, family)
    return pytest.mark.parametrize("impl", ["reference", *mark.args[1]])


def operators_of(impl: str, op: str) -> Any:
    """torch.ops' namespace in which `op` runs the implementation, "native" or "emulated", loaded where need be."""
    return operators(_backend.resolve(impl, op, "cpu"))


def told(message: str, impl: str) -> str:
    """The pattern of an error about what a tensor holds: on the device it names the argument, but no numbers."""
    return message if impl != "emulated" else re.match(r"[a-z_]+", message)[0]  # type: ignore[index]


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


def compiler(chosen: bool) -> str:
    """The backend of torch.compile: for the one case of a family that is `chosen` inductor, whose C++ takes up to a
    minute. The others are captured whole, differentiated and run without it: to inductor an operator is a call."""
    return "inductor" if chosen else "aot_eager"


def examples(n: int) -> int:
    """How many of hypothesis's examples to try, `n` of them but under sanitizers, where each takes many times as long:
    what they look for, memory, depends on fewer of an example's choices than results do."""
    return max(n // 4, 10) if _compile.sanitizers() else n


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

    Skips where the processor lacks it, and where this process has run them at that level itself.
    """
    info = _backend.build_info()
    if LEVELS.index(level) > LEVELS.index(info["simd_detected"]):
        pytest.skip(f"this processor has no {level}")
    if level == info["simd"]:
        pytest.skip(f"{level} is what this process itself runs at")
    files = [file] if isinstance(file, str) else file
    env = os.environ | {"GRU4REC_FAST_SIMD": level}
    folder = Path(files[0]).resolve().parents[1]
    python = [sys.executable, "-P"]  # as this process: no folder on the path that was not asked for
    command = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen]
    result = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "skipped" not in result.stdout and "passed" in result.stdout, result.stdout
