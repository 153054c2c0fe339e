"""Chooses between a native operator and its PyTorch reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gru4rec_fast._backend import resolve
from gru4rec_fast.ops._registry import operators


def implementation(op: str, impl: str, device: torch.device, reference: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that runs operator `op` on a device: a compiled operator, or `reference`.

    The function takes the arguments of the operator's schema in csrc/schema.cpp.
    """
    chosen = resolve(impl, op, device.type)
    return reference if chosen == "reference" else getattr(operators(chosen), op)
