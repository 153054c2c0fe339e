"""Fixtures that several test files share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from gru4rec_fast import _backend


@pytest.fixture
def native_library() -> None:
    """Skip where the native library is not to be had; its operators are registered afterwards."""
    if not _backend.load():
        pytest.skip("the native library is not built (GRU4REC_FAST_BUILD=none, or no compiler)")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Forget what torch.compile learned in a test, so that its limit on recompilations counts within one test."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
