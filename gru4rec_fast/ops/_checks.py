"""Checks of arguments, for all operators; every error names the argument."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gru4rec_fast.ops.philox import WORD_RANGE


def check_tensor(
    name: str,
    tensor: Tensor | None,
    dtypes: torch.dtype | Sequence[torch.dtype],
    shape: Sequence[int | str],
    device: torch.device,
) -> None:
    """Raise ValueError unless a tensor has one of the dtypes, the shape and the device; None is accepted.

    shape: sizes; a string is the name of a dimension of any size.
    """
    if tensor is None:
        return
    allowed = (dtypes,) if isinstance(dtypes, torch.dtype) else dtypes
    fits = tensor.dim() == len(shape) and all(
        isinstance(size, str) or size == actual for size, actual in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype not in allowed or tensor.device != device:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(
            f"{name} must be {names} [{', '.join(map(str, shape))}] on {device}, "
            f"not {str(tensor.dtype).removeprefix('torch.')} {[*tensor.shape]} on {tensor.device}"
        )


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(choices)}")


def check_probability(name: str, p: float) -> None:
    """Raise ValueError unless `p`, a probability of dropping, is in [0, 1)."""
    if not 0 <= p < 1:
        raise ValueError(f"{name}={p}: the probability of dropping must be in [0, 1)")


def check_counters(seed: int, step: int, steps: int) -> None:
    """Raise ValueError unless `seed` fits the Philox key and the steps `step` to `step + steps - 1` fit 32 bits."""
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed={seed}: must be in [0, 2**63)")
    if steps < 0:
        raise ValueError(f"steps={steps}: must not be negative")
    if not 0 <= step <= WORD_RANGE - steps:
        raise ValueError(f"step={step} with steps={steps}: step must be at least 0 and step + steps at most 2**32")
