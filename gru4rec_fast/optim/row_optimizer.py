"""Base class of the optimizers, for dense and sparse gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast import ops
from gru4rec_fast._backend import resolve
from gru4rec_fast.ops.sparse_update import Rule, State, update_all

_KERNEL_DTYPES = (torch.float32, torch.float64)


class RowOptimizer(torch.optim.Optimizer):
    """Base class of optimizers whose update rule is an operator of `gru4rec_fast.ops.sparse_update`.

    A sparse gradient updates only the rows that it contains; a dense gradient updates every entry by the same rule.
    Tables (parameters from which `gru4rec_fast.nn.gather_rows` gathered, which sets their attribute `is_table`) must
    have sparse gradients if the rule moves rows that the gradient does not contain: updating all rows would give
    other results, and would take time in proportion to the table.

    `weight_decay` adds weight_decay * w to the gradient of what is updated; `maximize` negates the gradient. Parameters
    of other dtypes than float32 and float64 are updated by PyTorch operators.

    A subclass sets `operator`, the name in gru4rec_fast.ops of the row update, and `rule`, a PyTorch function that
    computes the same update of whole tensors. It implements `moves_all_rows`, `state_tensors` and `options`.
    """

    operator: str
    rule: Rule

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any], impl: str) -> None:
        self.impl = impl
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group. Raises ValueError if one of its options is out of range."""
        options = self.defaults | param_group
        if not options["lr"] > 0:
            raise ValueError(f"lr={options['lr']}: must be positive")
        if not 0 <= options.get("momentum", 0) < 1:
            raise ValueError(f"momentum={options['momentum']}: must be in [0, 1)")
        if not all(0 <= beta < 1 for beta in options.get("betas", ())):
            raise ValueError(f"betas={options['betas']}: both must be in [0, 1)")
        for name in ("eps", "weight_decay"):
            if not options[name] >= 0:
                raise ValueError(f"{name}={options[name]}: must not be negative")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"impl": self.impl}  # for pickle and copy.deepcopy

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # the state dict of an earlier version may lack these options
            group.setdefault("weight_decay", 0.0)
            group.setdefault("maximize", False)

    def moves_all_rows(self, group: dict[str, Any]) -> bool:
        """Return whether the rule, applied to a row whose gradient is zero, changes its weight or its state."""
        raise NotImplementedError

    def state_tensors(self, state: dict[str, Any], parameter: Tensor, group: dict[str, Any]) -> State:
        """Return the state tensors of a parameter, as the operator takes them; create tensors that are missing."""
        raise NotImplementedError

    def options(self, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        """Return the scalar arguments of the operator and the rule, by name."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; return the loss of `closure`, or None without one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updates = [
            (parameter, parameter.grad, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        for update in updates:
            self._check_table(*update)
        for update in updates:
            self._update(*update)
        return loss

    def _check_table(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """Raise ValueError if the parameter is a table, and a dense gradient would move rows that have no gradient."""
        if not grad.is_sparse and getattr(parameter, "is_table", False) and self.moves_all_rows(group):
            raise ValueError(
                f"{type(self).__name__}: the gradient of a table of shape {[*parameter.shape]} is dense. Momentum or "
                "running means would also move rows without a gradient, which gives other results and takes time in "
                "proportion to the table: pass sparse=True to SessionNetwork and SampledLoss, or use an optimizer of "
                "torch.optim"
            )

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        grad = _regularized(parameter, grad, group["weight_decay"], group["maximize"])
        state = self.state[parameter]
        tensors, options = self.state_tensors(state, parameter, group), self.options(state, group)
        impl = self.impl if parameter.dtype in _KERNEL_DTYPES or self.impl == "native" else "reference"
        update = partial(getattr(ops, self.operator), **options, impl=impl)
        if grad.is_sparse:
            update(parameter, *tensors, grad._indices()[0], grad._values())
        elif self._has_kernel(parameter):
            # The kernel updates the parameter as a table with one row. It passes over memory once; PyTorch operators
            # would make eight passes.
            flat = [None if tensor is None else tensor.view(1, -1) for tensor in tensors]
            index = torch.zeros(1, dtype=torch.int64, device=grad.device)
            update(parameter.view(1, -1), *flat, index, grad.reshape(1, -1))
        else:
            update_all(type(self).rule, parameter, tensors, grad, **options)

    def _has_kernel(self, parameter: Tensor) -> bool:
        """Return whether the native row update can update the whole parameter as one row."""
        is_native = resolve(self.impl, self.operator, parameter.device.type) != "reference"
        return is_native and parameter.is_contiguous() and parameter.dtype in _KERNEL_DTYPES


def _regularized(parameter: Tensor, grad: Tensor, weight_decay: float, maximize: bool) -> Tensor:
    """Return the gradient with `maximize` and `weight_decay` applied; see `RowOptimizer`."""
    if maximize:
        grad = -grad
    if weight_decay == 0:
        return grad
    if not grad.is_sparse:
        return grad.add(parameter, alpha=weight_decay)
    if grad.sparse_dim() != 1:
        return grad  # the operator says what is wrong with it
    grad = grad.coalesce()  # a row that occurs several times decays once
    index = grad._indices()
    values = grad._values().add(parameter[index[0]], alpha=weight_decay)
    return torch.sparse_coo_tensor(index, values, grad.shape, is_coalesced=True, check_invariants=False)


def get_or_create_state(state: dict[str, Any], name: str, parameter: Tensor, create: bool = True) -> Tensor | None:
    """Return a tensor of a parameter's state; if it is missing, create zeros or (without `create`) return None."""
    if create and name not in state:
        state[name] = torch.zeros_like(parameter)
    return state.get(name)
