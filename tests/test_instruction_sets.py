"""Training steps at every instruction set, and kernels whose own test files do not cover instruction sets."""

from __future__ import annotations

from pathlib import Path

import pytest
from native import LEVELS, run_at_level

HERE = Path(__file__).parent
KERNELS = ("test_dropout.py", "test_negative_sampling.py", "test_laplacian_propagation.py", "test_ngcf_layer.py")


@pytest.mark.parametrize("level", LEVELS)
def test_kernels_equal_the_reference(native_library: None, level: str) -> None:
    files = [str(HERE / name) for name in KERNELS]
    run_at_level(level, files, "native_equals or draws_equal or one_and_two_threads or sum_exactly or change_a_bit")


@pytest.mark.parametrize("level", LEVELS)
def test_a_fused_step_is_as_close_to_float64(native_library: None, level: str) -> None:
    run_at_level(level, [str(HERE / "test_one_step.py")], "fused")


@pytest.mark.parametrize("level", LEVELS)
def test_threads_do_not_change_a_bit_of_a_training(native_library: None, level: str) -> None:
    chosen = "threads_do_not and (bpr-max or two-layers or bf16)"
    run_at_level(level, [str(HERE / "test_determinism.py")], chosen)
