"""Registrations that have to wait for the native library.

The operators' schemas live in csrc/schema.cpp, so fake kernels, autograd formulas and composite implementations can be
attached only once the library is loaded: at the first call that needs it, or never where there is no native build. A
family hands its registrations to `on_load`; `_backend.load()` calls `run_callbacks` right after the library is in.
"""

from __future__ import annotations

from collections.abc import Callable

_waiting: list[Callable[[], None]] = []
_loaded = False


def on_load(callback: Callable[[], None]) -> Callable[[], None]:
    """Call `callback()` once, when the native library has been loaded, at once if it already is; a decorator."""
    if _loaded:
        callback()
    else:
        _waiting.append(callback)
    return callback


def run_callbacks() -> None:
    """Run everything handed to `on_load` so far, in that order; for `_backend.load()`, after a successful load."""
    global _loaded
    _loaded = True
    while _waiting:
        _waiting.pop(0)()
