"""Adagrad with momentum, as GRU4Rec trains, for dense and for sparse gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast import ops
from gru4rec_fast._backend import resolve
from gru4rec_fast.reference.sparse_update import dense_adagrad


class SparseAdagrad(torch.optim.Optimizer):
    """acc += g^2; v <- momentum * v - lr * g / sqrt(acc + eps); w += v.

    Differs from torch.optim.Adagrad: epsilon inside the root, heavy-ball momentum, and sparse gradients update the rows
    they name and nothing else (a row that is not touched keeps its velocity). State of a parameter: `accumulator` and,
    with momentum, `velocity`, both of the parameter's shape and dtype.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, positive.
        momentum: in [0, 1).
        eps: non-negative, added to the accumulator inside the root.
        impl: implementation of the row update, "auto", "native" or "reference".

    Raises:
        ValueError: lr, momentum or eps out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.05,
        momentum: float = 0.0,
        eps: float = 1e-6,
        *,
        impl: str = "auto",
    ) -> None:
        if not lr > 0:
            raise ValueError(f"lr={lr}: must be positive")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: must lie in [0, 1)")
        if not eps >= 0:
            raise ValueError(f"eps={eps}: must not be negative")
        self.impl = impl
        super().__init__(params, {"lr": lr, "momentum": momentum, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, float(group["lr"]), group["momentum"], group["eps"])
        return loss

    def moments(self, parameter: Tensor, momentum: float) -> tuple[Tensor, Tensor | None]:
        """A parameter's accumulator and velocity, made where they are not there yet."""
        state = self.state[parameter]
        if not state:
            state["accumulator"] = torch.zeros_like(parameter)
        if momentum and "velocity" not in state:  # from the start, or since momentum was set in the group
            state["velocity"] = torch.zeros_like(parameter)
        return state["accumulator"], state.get("velocity")

    def _update(self, parameter: Tensor, grad: Tensor, lr: float, momentum: float, eps: float) -> None:
        accumulator, velocity = self.moments(parameter, momentum)
        update = partial(ops.sparse_adagrad, lr=lr, momentum=momentum, eps=eps, impl=self.impl)
        if grad.is_sparse:
            update(parameter, accumulator, velocity, grad._indices()[0], grad._values())
        elif self._has_kernel(parameter):
            # One pass over memory in the place of eight: every entry is touched, as in a table of a single row.
            moving = None if velocity is None else velocity.view(1, -1)
            only_row = torch.zeros(1, dtype=torch.int64, device=grad.device)
            update(parameter.view(1, -1), accumulator.view(1, -1), moving, only_row, grad.reshape(1, -1))
        else:
            dense_adagrad(parameter, accumulator, velocity, grad, lr=lr, momentum=momentum, eps=eps)

    def _has_kernel(self, parameter: Tensor) -> bool:
        """Whether the native row update takes the whole of a dense parameter."""
        kernel = resolve(self.impl, "sparse_adagrad", parameter.device.type) == "native"
        return kernel and parameter.is_contiguous() and parameter.dtype in (torch.float32, torch.float64)
