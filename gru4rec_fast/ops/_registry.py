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
from torch import Tensor

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


def register(
    library: str, op: str, reference: Callable[..., Any] | None, fake: Callable[..., Any] | None = None
) -> None:
    """Register the reference and the fake kernel of operator `op`; None: there is none.

    The reference runs on all devices for which the native library has no kernel. It is not registered for other
    libraries, whose operators fail on a device without a kernel.
    """
    if reference is not None and library == NATIVE:
        torch.library.impl(f"{library}::{op}", "CompositeExplicitAutograd", _with_tensors(library, op, reference))
    if fake is not None:
        torch.library.register_fake(f"{library}::{op}", _with_tensors(library, op, fake))


def _with_tensors(library: str, op: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls `function` if all tensors are given that the schema requires, else raises TypeError.

    torch itself accepts None where the schema requires a tensor.
    """
    arguments = getattr(getattr(torch.ops, library), op).default._schema.arguments
    required = [(i, a.name) for i, a in enumerate(arguments) if a.type.kind() == "TensorType"]

    def checked(*values: Any, **options: Any) -> Any:
        for i, name in required:
            if i < len(values) and values[i] is None:
                raise TypeError(f"{op}: {name} must be a tensor, not None")
        return function(*values, **options)

    return checked


def register_gradient(
    library: str, op: str, backward: Callable[..., tuple[Tensor | None, ...]], setup_context: Callable[..., None]
) -> None:
    """Register an autograd formula that is not differentiable itself.

    The backward pass raises RuntimeError with create_graph=True, and if an input requires a gradient that `backward`
    does not return. Without these errors, torch would silently treat both gradients as zero.
    """

    def checked(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f'{op}: its gradient is not differentiable (create_graph=True); use impl="reference" instead'
            )
        grads = backward(ctx, *grad_outputs)
        if not isinstance(grads, tuple) or len(grads) != len(ctx.needs_input_grad):
            raise TypeError(f"{op}: its backward must return a tuple of {len(ctx.needs_input_grad)} gradients or None")
        for i, (needed, grad) in enumerate(zip(ctx.needs_input_grad, grads, strict=True)):
            if needed and grad is None and any(g is not None for g in grads):
                name = getattr(getattr(torch.ops, library), op).default._schema.arguments[i].name
                raise RuntimeError(f"{op}: not differentiable in {name}; detach it")
        return grads

    torch.library.register_autograd(f"{library}::{op}", checked, setup_context=setup_context)


def operators(implementation: str) -> Any:
    """Return the torch.ops namespace of an implementation that `_backend.resolve` returned."""
    return getattr(torch.ops, NATIVE if implementation in ("native", "reference") else f"{NATIVE}_{implementation}")
