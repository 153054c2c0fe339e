"""Fixtures that several test files share."""

from __future__ import annotations

import pytest

from gru4rec_fast import _backend


@pytest.fixture
def native_library() -> None:
    """Skip where the native library is not to be had; its operators are registered afterwards."""
    if not _backend.load():
        pytest.skip("the native library is not built (GRU4REC_FAST_BUILD=none, or no compiler)")
