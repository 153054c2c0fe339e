"""Adagrad with momentum, the optimizer of GRU4Rec, for dense and sparse gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.ops.sparse_update import State, adagrad_rule
from gru4rec_fast.optim.row_optimizer import RowOptimizer, get_or_create_state


class SparseAdagrad(RowOptimizer):
    """Adagrad with momentum: acc += g^2; v <- momentum * v - lr * g / sqrt(acc + eps); w += v.

    Differences from torch.optim.Adagrad: epsilon is inside the root, and there is heavy-ball momentum. A sparse
    gradient updates only the rows that it contains; the velocity of all other rows does not change. With momentum, the
    gradients of tables must be sparse.

    State of a parameter: `accumulator` and, with momentum, `velocity`, both of the parameter's shape and dtype.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, positive.
        momentum: in [0, 1).
        eps: non-negative, added to the accumulator inside the root.
        weight_decay: non-negative; weight_decay * w is added to the gradient, for a sparse gradient in its rows.
        maximize: ascend instead of descend.
        impl: implementation of the row update, "auto", "native" or "reference".

    Raises:
        ValueError: lr, momentum, eps or weight_decay is out of range. `step` raises it if there is momentum and a table
            has a dense gradient.
    """

    operator = "sparse_adagrad_"
    rule = staticmethod(adagrad_rule)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.05,
        momentum: float = 0.0,
        eps: float = 1e-6,
        *,
        weight_decay: float = 0.0,
        maximize: bool = False,
        impl: str = "auto",
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, impl)

    def accumulator_and_velocity(self, parameter: Tensor, momentum: float) -> tuple[Tensor, Tensor | None]:
        """Return the accumulator and the velocity of a parameter; create them if they are missing."""
        state = self.state[parameter]
        if "accumulator" not in state:
            state["accumulator"] = torch.zeros_like(parameter)
        return state["accumulator"], get_or_create_state(state, "velocity", parameter, create=momentum != 0)

    def moves_all_rows(self, group: dict[str, Any]) -> bool:
        return group["momentum"] != 0

    def state_tensors(self, state: dict[str, Any], parameter: Tensor, group: dict[str, Any]) -> State:
        return self.accumulator_and_velocity(parameter, group["momentum"])

    def options(self, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        return {"lr": float(group["lr"]), "momentum": group["momentum"], "eps": group["eps"]}
