"""What the optimizers of this package share: dense and sparse gradients, one step over all parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast import ops
from gru4rec_fast._backend import resolve
from gru4rec_fast.ops.sparse_update import Rule, State, update_all


class RowOptimizer(torch.optim.Optimizer):
    """An optimizer whose rule is an operator of the family `sparse_update`.

    A sparse gradient updates the rows it names and nothing else; a dense one updates every entry by the same rule. A
    subclass names the operator and its rule, and says what state a parameter has.
    """

    operator: str  # in gru4rec_fast.ops
    rule: Rule  # the same on whole tensors

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any], impl: str) -> None:
        if not defaults["lr"] > 0:
            raise ValueError(f"lr={defaults['lr']}: must be positive")
        for name in ("momentum", "beta1", "beta2"):
            if not 0 <= defaults.get(name, 0) < 1:
                raise ValueError(f"{name}={defaults[name]}: must lie in [0, 1)")
        if not defaults.get("eps", 0) >= 0:
            raise ValueError(f"eps={defaults['eps']}: must not be negative")
        self.impl = impl
        super().__init__(params, defaults)

    def tensors(self, state: dict[str, Any], parameter: Tensor, group: dict[str, Any]) -> State:
        """The state in the order of the operator's arguments, made where it is not there yet."""
        raise NotImplementedError

    def options(self, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        """The operator's scalar arguments."""
        raise NotImplementedError

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
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        tensors, options = self.tensors(state, parameter, group), self.options(state, group)
        update = partial(getattr(ops, self.operator), **options, impl=self.impl)
        if grad.is_sparse:
            update(parameter, *tensors, grad._indices()[0], grad._values())
        elif self._has_kernel(parameter):
            # One pass over memory in the place of eight: every entry is touched, as in a table of a single row.
            flat = [None if tensor is None else tensor.view(1, -1) for tensor in tensors]
            only_row = torch.zeros(1, dtype=torch.int64, device=grad.device)
            update(parameter.view(1, -1), *flat, only_row, grad.reshape(1, -1))
        else:
            update_all(type(self).rule, parameter, tensors, grad, **options)

    def _has_kernel(self, parameter: Tensor) -> bool:
        """Whether the native row update takes the whole of a dense parameter."""
        kernel = resolve(self.impl, self.operator, parameter.device.type) != "reference"
        return kernel and parameter.is_contiguous() and parameter.dtype in (torch.float32, torch.float64)


def kept(state: dict[str, Any], name: str, parameter: Tensor, wanted: bool = True) -> Tensor | None:
    """A tensor of a parameter's state, zeros from when it is first wanted; None until then."""
    if wanted and name not in state:
        state[name] = torch.zeros_like(parameter)
    return state.get(name)
