"""Counter-based dropout masks. Specification: `gru4rec_fast.reference.dropout`."""

from __future__ import annotations

import torch
from torch import Tensor

from gru4rec_fast._backend import resolve
from gru4rec_fast.ops._registry import on_load, operators
from gru4rec_fast.reference.dropout import dropout_mask as reference_dropout_mask
from gru4rec_fast.reference.philox import WORD_RANGE, check_counters

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
    """Mask of inverted dropout whose every element is a function of (seed, stream, step, lane, unit) alone.

    Args:
        steps, lanes, units: the shape, each in [0, 2**32).
        p: probability of dropping a unit, in [0, 1).
        seed: the key, in [0, 2**63).
        stream: which use of the seed this is: 1 the input embedding, 2 + l the output of GRU layer l.
        step: number of the first step; step + steps must not exceed 2**32.
        dtype: of the mask: float32, float64, float16 or bfloat16.
        device: of the mask.
        impl: "auto", "native", "reference" or "emulated".

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
    chosen = resolve(impl, "dropout_mask", device.type)
    if chosen != "reference":
        return operators(chosen).dropout_mask(steps, lanes, units, p, seed, stream, step, dtype=dtype, device=device)
    return reference_dropout_mask(
        steps, lanes, units, p, seed=seed, stream=stream, step=step, dtype=dtype, device=device
    )


def _fake(
    steps: int,
    lanes: int,
    units: int,
    p: float,
    seed: int,
    stream: int,
    step: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    return torch.empty(steps, lanes, units, dtype=dtype, device=device)


@on_load
def _register(library: str) -> None:
    torch.library.register_fake(f"{library}::dropout_mask", _fake)
