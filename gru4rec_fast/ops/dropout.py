"""Counter-based dropout masks: the same units are dropped on every backend."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load
from gru4rec_fast.ops.philox import WORD_RANGE, check_counters, philox4x32

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


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
    impl: str = "auto",
) -> Tensor:
    """Return a mask of inverted dropout; each element is a function of (seed, stream, step, lane, unit) alone.

    Args:
        steps, lanes, units: the shape, each in [0, 2**32). A block of T steps holds the masks of T blocks of one step.
        p: probability of dropping a unit, in [0, 1).
        seed: the key, in [0, 2**63).
        stream: which use of the seed this is: 1 the input embedding, 2 + l the output of GRU layer l (see
            `gru4rec_fast.ops.philox`).
        step: number of the first step; step + steps must not exceed 2**32.
        dtype: of the mask: float32, float64, float16 or bfloat16.
        device: of the mask.
        impl: "auto", "native" or "reference".

    Returns:
        [steps, lanes, units] of 0 (dropped) or 1 / (1 - p) (kept); the same units on every backend.

    Raises:
        ValueError: an argument outside its range, or a p so close to 1 that 1 / (1 - p) overflows the dtype, named.
    """
    check_counters(seed, step, steps)
    for name, value in (("lanes", lanes), ("units", units), ("stream", stream)):
        if not 0 <= value < WORD_RANGE:
            raise ValueError(f"{name}={value}: must be in [0, 2**32)")
    if not 0 <= p < 1:
        raise ValueError(f"p={p}: the probability of dropping must be in [0, 1)")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}: choose one of float32, float64, float16, bfloat16")
    if 1 / (1 - p) > torch.finfo(dtype).max:
        raise ValueError(f"p={p}: 1 / (1 - p) is more than {dtype} can hold")
    device = torch.device(device)
    draw = implementation("dropout_mask", impl, device, dropout_mask_reference)
    return draw(steps, lanes, units, p, seed, stream, step, dtype=dtype, device=device)


def dropout_mask_reference(
    steps: int, lanes: int, units: int, p: float, seed: int, stream: int, step: int, *, dtype: torch.dtype, device: Any
) -> Tensor:
    """Keep element (t, lane, unit) where a random word of it is at least floor(p * 2**32).

    The word is the first of Philox4x32-10 counter (stream, step + t, lane, unit) under key `seed`.
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


def _fake(steps: int, lanes: int, units: int, *_: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(steps, lanes, units, dtype=dtype, device=device)


@on_load
def _register(library: str) -> None:
    torch.library.register_fake(f"{library}::dropout_mask", _fake)
