"""Registrations that have to wait for a native library.

The operators' schemas live in csrc/schema.cpp, so fake kernels, autograd formulas and composite implementations can be
attached only once a library is loaded: at the first call that needs it, or never where there is none. There are two,
each with all schemas in a namespace of its own: the kernels, and the CUDA kernels under emulation. A family hands its
registrations to `on_load`; `_backend` calls `run_callbacks` right after a library is in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NATIVE = "gru4rec_fast"
EMULATED = "gru4rec_fast_emulated"

_callbacks: list[Callable[[str], None]] = []
_loaded: list[str] = []


def on_load(callback: Callable[[str], None]) -> Callable[[str], None]:
    """Call `callback(library)` once for each library's namespace, when it has been loaded; a decorator."""
    _callbacks.append(callback)
    for library in _loaded:
        callback(library)
    return callback


def run_callbacks(library: str) -> None:
    """Run everything handed to `on_load` so far, in that order; for `_backend`, after a successful load."""
    _loaded.append(library)
    for callback in _callbacks:
        callback(library)


def register_composite(library: str, op: str, function: Callable[..., Any]) -> None:
    """Let `function`, the reference, stand in on devices for which the library has no kernel.

    Not in the emulated library: there an operator without a kernel is missing, and never runs something else.
    """
    if library == NATIVE:
        torch.library.impl(f"{library}::{op}", "CompositeExplicitAutograd", function)


def operators(implementation: str) -> Any:
    """The namespace whose operators run a resolved implementation, "native" or "emulated"."""
    return torch.ops.gru4rec_fast_emulated if implementation == "emulated" else torch.ops.gru4rec_fast
