"""Registrations with torch.library that are made when a native library is loaded.

The schemas of the operators are compiled into the native library (csrc/schema.cpp), and the library is loaded at the
first call that needs it. Fake kernels, autograd formulas and the references for devices without a kernel can be
registered only after that. So each module of operators passes a function that registers them to `on_load`, and the code
that loads a library calls `run_callbacks`. `_backend` loads the native library; tests load the library of the emulated
CUDA kernels, which they add by `_backend.register_implementation`.

`library` is the namespace of a library's operators in torch.ops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NATIVE = "gru4rec_fast"

_callbacks: list[Callable[[str], None]] = []
_loaded: list[str] = []  # namespaces of the libraries that are loaded


def on_load(callback: Callable[[str], None]) -> Callable[[str], None]:
    """Call `callback(library)` once for each library, now if it is loaded, else when it is; usable as a decorator."""
    _callbacks.append(callback)
    for library in _loaded:
        callback(library)
    return callback


def run_callbacks(library: str) -> None:
    """Call all functions that were passed to `on_load`, in that order, for a library that has just been loaded."""
    _loaded.append(library)
    for callback in _callbacks:
        callback(library)


def register_composite(library: str, op: str, function: Callable[..., Any]) -> None:
    """Register the reference `function` of operator `op` for all devices for which the native library has no kernel.

    Do nothing for other libraries, whose operators fail on a device without a kernel.
    """
    if library == NATIVE:
        torch.library.impl(f"{library}::{op}", "CompositeExplicitAutograd", function)


def operators(implementation: str) -> Any:
    """Return the torch.ops namespace of an implementation that `_backend.resolve` returned."""
    return getattr(torch.ops, NATIVE if implementation in ("native", "reference") else f"{NATIVE}_{implementation}")
