"""Which implementation of an operator runs, and why: the only place that decides."""

from __future__ import annotations

from typing import Literal

import torch

Implementation = Literal["auto", "native", "reference"]


def load() -> bool:
    """Load the native library if there is one; True where its operators are registered."""
    try:
        from gru4rec_fast import _C  # noqa: F401
    except ImportError:
        return False
    return True


@torch.compiler.assume_constant_result
def resolve(impl: str, op: str, device_type: str) -> str:
    """Answer "native" or "reference" for operator `op` (its name in csrc/schema.cpp) on a device type."""
    if impl not in ("auto", "native", "reference"):
        raise ValueError(f"impl={impl!r}: choose one of 'auto', 'native', 'reference'")
    if impl == "reference":
        return "reference"
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type, "")
    native = bool(key) and load() and torch._C._dispatch_has_kernel_for_dispatch_key(f"gru4rec_fast::{op}", key)
    if impl == "native" and not native:
        raise RuntimeError(f"impl='native': operator {op} has no native kernel on {device_type}")
    return "native" if native else "reference"
