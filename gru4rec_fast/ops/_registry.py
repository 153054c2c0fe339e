"""Registrations that have to wait for a native library.

The operators' schemas live in csrc/schema.cpp, so fake kernels, autograd formulas and composite implementations can be
attached only once a library is loaded: at the first call that needs it, or never where there is none. A family hands
its registrations to `on_load`; whoever loads a library calls `run_callbacks` with the library's namespace: `_backend`,
and an implementation registered by `_backend.register_implementation`, whose library has all schemas in a namespace of
its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NATIVE = "gru4rec_fast"

_callbacks: list[Callable[[str], None]] = []
_loaded: list[str] = []


def on_load(callback: Callable[[str], None]) -> Callable[[str], None]:
    """Call `callback(library)` once for each library's namespace, when it has been loaded; a decorator."""
    _callbacks.append(callback)
    for library in _loaded:
        callback(library)
    return callback


def run_callbacks(library: str) -> None:
    """Run everything handed to `on_load` so far, in that order; after a successful load."""
    _loaded.append(library)
    for callback in _callbacks:
        callback(library)


def register_composite(library: str, op: str, function: Callable[..., Any]) -> None:
    """Let `function`, the reference, stand in on devices for which the library has no kernel.

    Only in the native library: in that of a registered implementation an operator without a kernel is missing.
    """
    if library == NATIVE:
        torch.library.impl(f"{library}::{op}", "CompositeExplicitAutograd", function)


def operators(implementation: str) -> Any:
    """Return the namespace whose operators run an implementation, as `_backend.resolve` names it."""
    return getattr(torch.ops, NATIVE if implementation in ("native", "reference") else f"{NATIVE}_{implementation}")
