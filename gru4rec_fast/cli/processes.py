"""Commands that torchrun starts in several processes (ranks)."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gru4rec_fast.distributed import Ranks


def is_one_of_many() -> bool:
    """Return whether torchrun has started this process together with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first_rank() -> bool:
    """Return whether this process prints and writes files: rank 0, or the only process."""
    return not is_one_of_many() or os.environ.get("RANK") == "0"


def join_ranks(device: str) -> AbstractContextManager[Ranks | None]:
    """Return a context manager that yields the Ranks of torchrun's processes; None if this is the only process."""
    if not is_one_of_many():
        return nullcontext()
    from gru4rec_fast.distributed import Ranks

    return Ranks(device)
