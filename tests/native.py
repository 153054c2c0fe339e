"""Helpers for tests of kernels: marks for implementations, tolerances, thread counts, instruction sets."""

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

LEVELS = ("baseline", "avx2", "avx512")  # instruction sets, from the smallest to the largest

# Families (folders of csrc) with CUDA kernels. This is a constant, so that a test fails if the kernels are missing.
CUDA_FAMILIES = {
    "session_batch", "negative_sampling", "gru", "sampled_loss", "sparse_update", "ranking", "laplacian_propagation",
    "ngcf_layer", "bpr_triples", "dropout", "training_step",
}  # fmt: skip


def why_not_emulated(family: str) -> str:
    """Return why the CUDA kernels of a family cannot be compiled for emulation; "" if they can.

    Raises AssertionError if the family has no CUDA kernels, or if GRU4REC_FAST_REQUIRE_NATIVE is set and they cannot be
    compiled.
    """
    assert family in CUDA_FAMILIES and {*cuda_emulator.families()} == CUDA_FAMILIES, (family, cuda_emulator.families())
    reason = cuda_emulator.why_not()
    assert not (reason and os.environ.get("GRU4REC_FAST_REQUIRE_NATIVE")), reason
    return reason


def native_and_emulated(op: str, family: str = "") -> pytest.MarkDecorator:
    """Run a test with impl="native" and impl="emulated". `family` is the family of operator `op`, by default `op`."""
    is_native = _backend.resolve("auto", op, "cpu") == "native"
    why_not = why_not_emulated(family or op)
    native = pytest.param("native", marks=pytest.mark.skipif(not is_native, reason=f"{op} is not built natively"))
    emulated = pytest.param("emulated", marks=pytest.mark.skipif(bool(why_not), reason=why_not or "-"))
    return pytest.mark.parametrize("impl", [native, emulated])


def implementations(op: str, family: str = "") -> pytest.MarkDecorator:
    """Run a test with impl="reference", "native" and "emulated". See `native_and_emulated`."""
    mark = native_and_emulated(op, family)
    return pytest.mark.parametrize("impl", ["reference", *mark.args[1]])


def operators_of(impl: str, op: str) -> Any:
    """Load the library that implements `op`, and return its namespace of torch.ops. `impl`: "native" or "emulated"."""
    return operators(_backend.resolve(impl, op, "cpu"))


def error_pattern(message: str, impl: str) -> str:
    """Return the pattern of an error about values of a tensor: `message`, or its first word if `impl` is "emulated".

    The first word is the name of the argument. Errors of CUDA kernels have this name, but not the values.
    """
    return message if impl != "emulated" else re.match(r"[a-z_]+", message)[0]  # type: ignore[index]


def assert_as_close(
    outputs: Sequence[Tensor], reference: Sequence[Tensor], oracle: Sequence[Tensor], *, factor: float = 2
) -> None:
    """Assert that each output is nearly as close to the float64 oracle as the reference is.

    The reference has the dtypes of the outputs. An error is the Euclidean norm of the difference from the oracle. The
    error of an output may be `factor` times that of the reference, plus 4 eps times the norm of the oracle. In float64,
    where the reference itself is the oracle, the second term is 1e-13 times the norm, because of cancellation.
    """
    for i, (output, expected, exact) in enumerate(zip(outputs, reference, oracle, strict=True)):
        assert output.shape == exact.shape and output.dtype == expected.dtype
        error, reference_error = ((t.double() - exact).norm().item() for t in (output, expected))
        relative = 1e-13 if output.dtype == torch.float64 else 4 * torch.finfo(output.dtype).eps
        rounding = relative * exact.norm().item()
        assert error <= factor * reference_error + rounding, (i, error, reference_error, rounding)


def compile_backend(use_inductor: bool) -> str:
    """Return the backend of torch.compile: "inductor" or "aot_eager".

    Tests use inductor in one case of each family, because it compiles C++ for up to a minute. "aot_eager" traces and
    differentiates the same graph; all that inductor adds is the generated call of the operator.
    """
    return "inductor" if use_inductor else "aot_eager"


def max_examples(n: int) -> int:
    """Return the number of hypothesis examples: `n`, but only a quarter under sanitizers, which are many times slower.

    Fewer examples are enough there, because memory errors depend on sizes rather than on values.
    """
    return max(n // 4, 10) if _compile.sanitizers() else n


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Let torch use `n` threads within this context."""
    previous = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


def assert_equal_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    """Assert that the tensors are equal in pairs. A failure shows which pairs differ."""
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [True] * len(first)


def run_at_level(level: str, file: str | list[str], expression: str) -> None:
    """Run the tests of `file` that match `expression` (pytest -k) in a new process with the instruction set `level`.

    `file` may be a list of files. Skips if the processor lacks the instruction set, or if this process uses it, because
    then pytest runs these tests anyway.
    """
    info = _backend.build_info()
    if LEVELS.index(level) > LEVELS.index(info["simd_detected"]):
        pytest.skip(f"this processor has no {level}")
    if level == info["simd"]:
        pytest.skip(f"this process itself uses {level}")
    files = [file] if isinstance(file, str) else file
    env = os.environ | {"GRU4REC_FAST_SIMD": level}
    folder = Path(files[0]).resolve().parents[1]
    python = [sys.executable, "-P"]  # -P: does not add the current folder to sys.path
    command = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", expression]
    result = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "skipped" not in result.stdout and "passed" in result.stdout, result.stdout
