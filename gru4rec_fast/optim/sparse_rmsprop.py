"""RMSprop with momentum, for dense and for sparse gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from gru4rec_fast.optim.row_optimizer import RowOptimizer, kept
from gru4rec_fast.reference.sparse_update import State, rmsprop_rule


class SparseRMSprop(RowOptimizer):
    """s <- alpha * s + (1 - alpha) * g^2; v <- momentum * v + g / (sqrt(s) + eps); w -= lr * v.

    That is torch.optim.RMSprop (not centred, without weight decay), which takes dense gradients only; with these the
    results are its own. A sparse gradient updates the rows it names and nothing else: the mean square of a row that is
    not touched does not decay, and its velocity does not move it. State of a parameter: `square_avg` and, with
    momentum, `momentum_buffer`, both of the parameter's shape and dtype.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, positive.
        alpha: in [0, 1), what is kept of the mean square.
        eps: non-negative, added outside the root.
        momentum: in [0, 1).
        impl: implementation of the row update, "auto", "native" or "reference".

    Raises:
        ValueError: lr, alpha, eps or momentum out of range.
    """

    operator = "sparse_rmsprop"
    rule = staticmethod(rmsprop_rule)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        *,
        impl: str = "auto",
    ) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum}, impl)

    def tensors(self, state: dict[str, Any], parameter: Tensor, group: dict[str, Any]) -> State:
        square = kept(state, "square_avg", parameter)
        return square, kept(state, "momentum_buffer", parameter, group["momentum"] != 0)

    def options(self, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        return {"lr": float(group["lr"])} | {name: group[name] for name in ("alpha", "eps", "momentum")}
