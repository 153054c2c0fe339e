"""Dropout masks from counter-based random numbers (Philox), equal in every implementation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.ops._checks import check_n_elements, check_probability, split_step
from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load, register
from gru4rec_fast.ops.philox import WORD_RANGE, philox4x32, step_word

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def dropout_mask(
    steps: int,
    lanes: int,
    units: int,
    p: float,
    *,
    seed: int,
    stream: int,
    step: int | Tensor,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    impl: str = "auto",
) -> Tensor:
    """Return masks of inverted dropout; each element depends only on seed, stream, step, lane and unit.

    Args:
        steps, lanes, units: the shape, each in [0, 2**32). One call for T steps returns the masks of T calls for one
            step. A lane is one of the sessions that are processed in parallel.
        p: probability of dropping a unit, in [0, 1).
        seed: the key of the random numbers, in [0, 2**63).
        stream: Philox stream, which says what the mask is used for (`gru4rec_fast.ops.philox`): 1 for the input
            embedding, 2 + l for the output of GRU layer l.
        step: number of the first training step, an integer or a 0-dim int64 tensor on the device; step + steps must not
            exceed 2**32.
        dtype: dtype of the mask: float32, float64, float16 or bfloat16.
        device: device of the mask.
        impl: "auto", "native" or "reference".

    Returns:
        [steps, lanes, units]: 0 where a unit is dropped, else 1 / (1 - p).

    Raises:
        ValueError: an argument is out of range, or 1 / (1 - p) overflows the dtype.
    """
    device = torch.device(device)
    draw = implementation("dropout_mask", impl, device, dropout_mask_reference)
    step, counter = split_step(seed, step, steps, device, reads_value=draw is dropout_mask_reference)
    for name, value in (("lanes", lanes), ("units", units), ("stream", stream)):
        if not 0 <= value < WORD_RANGE:
            raise ValueError(f"{name}={value}: must be in [0, 2**32)")
    check_n_elements(steps=steps, lanes=lanes, units=units)
    check_probability("p", p)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}: choose one of float32, float64, float16, bfloat16")
    if 1 / (1 - p) > torch.finfo(dtype).max:
        raise ValueError(f"p={p}: 1 / (1 - p) is more than {dtype} can hold")
    return draw(steps, lanes, units, p, seed, stream, step, counter, dtype=dtype, device=device)


def dropout_mask_reference(
    steps: int,
    lanes: int,
    units: int,
    p: float,
    seed: int,
    stream: int,
    step: int,
    counter: Tensor | None = None,
    *,
    dtype: torch.dtype,
    device: Any,
) -> Tensor:
    """Return masks [steps, lanes, units] of inverted dropout.

    Element (t, lane, unit) is dropped if its random word is less than floor(p * 2**32). The word is the first output
    word of Philox4x32-10 for the counter (stream, step + t, lane, unit) under the key `seed`. The value of the argument
    `counter` is added to `step`.
    """
    if steps == 0 or lanes == 0 or units == 0:  # the tensors below may be large all the same
        return torch.empty(steps, lanes, units, dtype=dtype, device=device)
    words = (
        torch.tensor(stream, device=device),
        (step_word(step, counter, device) + torch.arange(steps, device=device))[:, None, None],
        torch.arange(lanes, device=device)[:, None],
        torch.arange(units, device=device),
    )
    word = philox4x32(words, seed)[0]
    mask = word >= math.floor(p * WORD_RANGE)
    return mask.to(dtype) * (1.0 / (1.0 - p))


def _fake(steps: int, lanes: int, units: int, *_: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(steps, lanes, units, dtype=dtype, device=device)


@on_load
def _register(library: str) -> None:
    register(library, "dropout_mask", None, _fake)
