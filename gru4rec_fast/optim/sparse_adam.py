"""Adam for dense and sparse gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.ops.sparse_update import State, adam_rule
from gru4rec_fast.optim.row_optimizer import RowOptimizer, get_or_create_state


class SparseAdam(RowOptimizer):
    """Adam for dense and sparse gradients ("lazy" Adam).

        m <- beta1 m + (1 - beta1) g;   s <- beta2 s + (1 - beta2) g^2
        w -= lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(s) + eps)

    t is the number of steps of the parameter. With sparse gradients, the result equals torch.optim.SparseAdam: a step
    changes the weights and the running means m and s only of the rows that the gradient contains.

    For dense gradients, which torch.optim.SparseAdam does not accept, the formula is the same. torch.optim.Adam divides
    s by 1 - beta2^t before it adds eps, so it equals this class with eps * sqrt(1 - beta2^t) in place of eps.
    Tables (parameters from which `gru4rec_fast.nn.gather_rows` gathered) must have sparse gradients.

    State of a parameter: `exp_avg` and `exp_avg_sq`, of the parameter's shape and dtype, and `step`, an int64 scalar on
    the CPU.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, positive.
        betas: (beta1, beta2), the decay rates of the two running means, each in [0, 1).
        eps: non-negative, added outside the root.
        weight_decay: non-negative; weight_decay * w is added to the gradient, for a sparse gradient in its rows.
        maximize: ascend instead of descend.
        impl: implementation of the row update, "auto", "native" or "reference".

    Raises:
        ValueError: lr, betas, eps or weight_decay is out of range. `step` raises it if a table has a dense gradient,
            for which torch.optim.Adam is meant.
    """

    operator = "sparse_adam_"
    rule = staticmethod(adam_rule)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        weight_decay: float = 0.0,
        maximize: bool = False,
        impl: str = "auto",
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, impl)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            if "beta1" in group:  # a state dict that version 0.1 saved
                group["betas"] = (group.pop("beta1"), group.pop("beta2"))

    def moves_all_rows(self, group: dict[str, Any]) -> bool:
        return True  # the running means decay

    def state_tensors(self, state: dict[str, Any], parameter: Tensor, group: dict[str, Any]) -> State:
        return get_or_create_state(state, "exp_avg", parameter), get_or_create_state(state, "exp_avg_sq", parameter)

    def options(self, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        return {
            "step": int(state["step"]),
            "lr": float(group["lr"]),
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
        }

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        state["step"] = state.get("step", torch.zeros((), dtype=torch.int64)) + 1
        super()._update(parameter, grad, group)
