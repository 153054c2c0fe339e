"""Tests of kernels and training steps pass with each instruction set of the processor.

They run in a new process for each instruction set. Test files of kernels that are not in KERNEL_TESTS do this
themselves.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from native import LEVELS, run_at_level

HERE = Path(__file__).parent
KERNEL_TESTS = ("test_dropout.py", "test_negative_sampling.py", "test_laplacian_propagation.py", "test_ngcf_layer.py")


# The tests in KERNEL_TESTS that run have one of these words in their names.
NAME_PARTS = ("kernels_equal", "table_equals", "as_close", "one_and_two_threads", "sum_exactly", "change_a_bit")


def test_every_name_part_matches_a_test() -> None:
    """If a part matched nothing, because a test was renamed, fewer tests would run without notice."""
    names = re.findall(r"def (test_\w+)", "".join((HERE / name).read_text() for name in KERNEL_TESTS))
    assert [part for part in NAME_PARTS if not any(part in name for name in names)] == []


@pytest.mark.parametrize("level", LEVELS)
def test_kernels_equal_the_reference(native_library: None, level: str) -> None:
    run_at_level(level, [str(HERE / name) for name in KERNEL_TESTS], " or ".join(NAME_PARTS))


@pytest.mark.parametrize("level", LEVELS)
def test_fused_step_is_close_to_float64(native_library: None, level: str) -> None:
    run_at_level(level, [str(HERE / "test_training_oracle.py")], "fused")


@pytest.mark.parametrize("level", LEVELS)
def test_number_of_threads_does_not_change_trained_weights(native_library: None, level: str) -> None:
    expression = "threads_do_not and (bpr-max or two-layers or bf16)"
    run_at_level(level, [str(HERE / "test_determinism.py")], expression)
