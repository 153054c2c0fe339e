"""Registrations that are deferred until a native library is loaded.

The schemas of the operators are compiled into the native library (csrc/schema.cpp), and the library is loaded at the
first call that needs it. Fake kernels, autograd formulas and composite implementations can be registered only after
that. So each module of operators passes its registrations to `on_load`, and the code that loads a library calls
`run_callbacks` with the namespace of the library's operators. That code is `_backend` for the native library, and the
test code that calls `_backend.register_implementation` for a further library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NATIVE = "gru4rec_fast"

_callbacks: list[Callable[[str], None]] = []
_loaded: list[str] = []


def on_load(callback: Callable[[str], None]) -> Callable[[str], None]:
    """Call `callback(library)` once for each loaded library; a decorator."""
    _callbacks.append(callback)
    for library in _loaded:
        callback(library)
    return callback


def run_callbacks(library: str) -> None:
    """Run all callbacks that were passed to `on_load`, in that order; call it after a library was loaded."""
    _loaded.append(library)
    for callback in _callbacks:
        callback(library)


def register_composite(library: str, op: str, function: Callable[..., Any]) -> None:
    """Register `function`, the reference, for devices for which the native library has no kernel.

    Does nothing for other libraries: there, an operator without a kernel is missing.
    """
    if library == NATIVE:
        torch.library.impl(f"{library}::{op}", "CompositeExplicitAutograd", function)


def operators(implementation: str) -> Any:
    """Return the torch.ops namespace of an implementation that `_backend.resolve` returned."""
    return getattr(torch.ops, NATIVE if implementation in ("native", "reference") else f"{NATIVE}_{implementation}")
