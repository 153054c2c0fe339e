"""Pads rows of different lengths to one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pad_rows(rows: Sequence[Sequence[int] | np.ndarray]) -> Tensor:
    """Return rows of different lengths as one int64 tensor [n, longest], padded with -1."""
    padded = np.full((len(rows), max(map(len, rows), default=0)), -1, np.int64)
    for padded_row, row in zip(padded, rows, strict=True):
        padded_row[: len(row)] = row
    return torch.from_numpy(padded)
