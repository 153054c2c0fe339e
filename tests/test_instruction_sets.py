"""Run tests with each instruction set: of training steps, and of kernels whose test files do not do it themselves."""

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
def test_fused_step_is_close_to_float64(native_library: None, level: str) -> None:
    run_at_level(level, [str(HERE / "test_one_step.py")], "fused")


@pytest.mark.parametrize("level", LEVELS)
def test_number_of_threads_does_not_change_trained_weights(native_library: None, level: str) -> None:
    expression = "threads_do_not and (bpr-max or two-layers or bf16)"
    run_at_level(level, [str(HERE / "test_determinism.py")], expression)
