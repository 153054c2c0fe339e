"""Counter-based dropout masks: the same units are dropped on every backend."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gru4rec_fast.reference.philox import WORD_RANGE, philox4x32


def dropout_mask(
    steps: int,
    lanes: int,
    units: int,
    p: float,
    *,
    seed: int,
    stream: int,
    step: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the mask that inverted dropout multiplies activations with: [steps, lanes, units] of 0 or 1 / (1 - p).

    Element (t, lane, unit) takes the first Philox4x32-10 word of counter (stream, step + t, lane, unit) under key
    `seed` and is kept where that word is at least floor(p * 2**32).

    p: probability of dropping a unit, in [0, 1). stream: which use of the seed this is (see reference/philox.py).
    step: number of the first step, so that a block of T steps holds the masks of T blocks of one step.
    """
    counter = (
        torch.tensor(stream, device=device),
        torch.arange(step, step + steps, device=device)[:, None, None],
        torch.arange(lanes, device=device)[:, None],
        torch.arange(units, device=device),
    )
    word = philox4x32(counter, seed)[0]
    kept = word >= math.floor(p * WORD_RANGE)
    return kept.to(dtype) * (1.0 / (1.0 - p))
