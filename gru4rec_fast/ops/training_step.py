"""A training step between its products and kernels. Specification: `gru4rec_fast.reference.training_step`.

For `training/cuda_step.py`, which captures them; on the CPU there is the fused step instead
(`csrc/training_step/fused_training_step.cpp`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gru4rec_fast._backend import resolve
from gru4rec_fast.ops._registry import on_load, operators, register_composite
from gru4rec_fast.reference import training_step as reference

OPERATORS = ("step_gather", "step_settle", "step_apply", "step_rows")


def step_operator(name: str, impl: str, device: torch.device) -> Callable[..., Any]:
    """One of `OPERATORS`, as `impl` runs it on a device; arguments and results as the reference of that name."""
    chosen = resolve(impl, name, device.type)
    return getattr(reference if chosen == "reference" else operators(chosen), name)


@on_load
def _register(library: str) -> None:
    for name in OPERATORS:
        register_composite(library, name, getattr(reference, name))
