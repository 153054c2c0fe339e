"""Adam, for dense and for sparse gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.ops.sparse_update import State, adam_rule
from gru4rec_fast.optim.row_optimizer import RowOptimizer, kept


class SparseAdam(RowOptimizer):
    """m <- beta1 m + (1 - beta1) g; s <- beta2 s + (1 - beta2) g^2;
    w -= lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(s) + eps).

    With sparse gradients that is torch.optim.SparseAdam: the means of a row move when the row is touched ("lazy"), t
    counts all steps of the parameter. Dense gradients, which that one refuses, follow the same formula;
    torch.optim.Adam adds eps behind the correction of s, which is this rule with eps * sqrt(1 - beta2^t) in the place
    of eps. State of a parameter: `exp_avg` and `exp_avg_sq`, of its shape and dtype, and `step`, an int64 scalar on
    the CPU.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, positive.
        beta1, beta2: in [0, 1), what is kept of the two means.
        eps: non-negative, added outside the root.
        impl: implementation of the row update, "auto", "native" or "reference".

    Raises:
        ValueError: lr, beta1, beta2 or eps out of range.
    """

    operator = "sparse_adam_"
    rule = staticmethod(adam_rule)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        *,
        impl: str = "auto",
    ) -> None:
        super().__init__(params, {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps}, impl)

    def tensors(self, state: dict[str, Any], parameter: Tensor, group: dict[str, Any]) -> State:
        return kept(state, "exp_avg", parameter), kept(state, "exp_avg_sq", parameter)

    def options(self, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        options = {name: group[name] for name in ("beta1", "beta2", "eps")}
        return options | {"step": int(state["step"]), "lr": float(group["lr"])}

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        state["step"] = state.get("step", torch.zeros((), dtype=torch.int64)) + 1
        super()._update(parameter, grad, group)
