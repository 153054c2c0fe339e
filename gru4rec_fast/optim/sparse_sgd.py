"""Gradient descent with momentum, for dense and for sparse gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from gru4rec_fast.optim.row_optimizer import RowOptimizer, kept
from gru4rec_fast.reference.sparse_update import State, sgd_rule


class SparseSGD(RowOptimizer):
    """v <- momentum * v + g; w -= lr * v.

    That is torch.optim.SGD (without dampening, weight decay and Nesterov's form), and with dense gradients, or without
    momentum, the results are its own. Where it differs: with momentum and a sparse gradient, a row that is not touched
    keeps its velocity and does not move, while torch's velocity is a sparse tensor that all rows ever touched move
    by at every step. State of a parameter: with momentum, `momentum_buffer`, of its shape and dtype.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, positive.
        momentum: in [0, 1).
        impl: implementation of the row update, "auto", "native" or "reference".

    Raises:
        ValueError: lr or momentum out of range.
    """

    operator = "sparse_sgd"
    rule = staticmethod(sgd_rule)

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.0, *, impl: str = "auto") -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum}, impl)

    def tensors(self, state: dict[str, Any], parameter: Tensor, group: dict[str, Any]) -> State:
        return (kept(state, "momentum_buffer", parameter, group["momentum"] != 0),)

    def options(self, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        return {"lr": float(group["lr"]), "momentum": group["momentum"]}
