"""Run tests with each instruction set: of training steps, and of kernels whose test files do not do it themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from native import LEVELS, run_at_level

HERE = Path(__file__).parent
KERNELS = ("test_dropout.py", "test_negative_sampling.py", "test_laplacian_propagation.py", "test_ngcf_layer.py")


# Parts of the names of the tests in these files that run at every level.
NAME_PARTS = ("kernels_equal", "table_equals", "as_close", "one_and_two_threads", "sum_exactly", "change_a_bit")


def test_every_name_part_matches_a_test() -> None:
    """A part that matches nothing, after a test was renamed, would silently select fewer tests."""
    names = re.findall(r"def (test_\w+)", "".join((HERE / name).read_text() for name in KERNELS))
    assert [part for part in NAME_PARTS if not any(part in name for name in names)] == []


@pytest.mark.parametrize("level", LEVELS)
def test_kernels_equal_the_reference(native_library: None, level: str) -> None:
    run_at_level(level, [str(HERE / name) for name in KERNELS], " or ".join(NAME_PARTS))


@pytest.mark.parametrize("level", LEVELS)
def test_fused_step_is_close_to_float64(native_library: None, level: str) -> None:
    run_at_level(level, [str(HERE / "test_one_step.py")], "fused")


@pytest.mark.parametrize("level", LEVELS)
def test_number_of_threads_does_not_change_trained_weights(native_library: None, level: str) -> None:
    expression = "threads_do_not and (bpr-max or two-layers or bf16)"
    run_at_level(level, [str(HERE / "test_determinism.py")], expression)
