"""Optimizer step on the touched rows of a table: specification, fallback and oracle.

Adagrad with (heavy-ball) momentum, epsilon inside the root, as the published GRU4Rec code trains:

    acc += g^2;   v <- momentum * v - lr * g / sqrt(acc + eps);   w += v

Gradients of a row that occurs several times are summed before squaring. A touched row whose gradient is zero still
takes its momentum step; rows that are not touched do nothing at all.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sparse_adagrad(
    table: Tensor,
    accumulator: Tensor,
    velocity: Tensor | None,
    index: Tensor,
    grad: Tensor,
    *,
    lr: float,
    momentum: float = 0.0,
    eps: float = 1e-6,
) -> None:
    """Update in place; arguments as `gru4rec_fast.ops.sparse_adagrad`."""
    summed = torch.sparse_coo_tensor(index.unsqueeze(0), grad, table.shape, check_invariants=True).coalesce()
    rows, total = summed._indices()[0], summed._values()
    acc = accumulator[rows] + total * total
    accumulator[rows] = acc
    step = adagrad_direction(total, acc, lr, eps)
    if velocity is not None:
        step = momentum * velocity[rows] + step
        velocity[rows] = step
    table[rows] += step


def dense_adagrad(
    weight: Tensor,
    accumulator: Tensor,
    velocity: Tensor | None,
    grad: Tensor,
    *,
    lr: float,
    momentum: float = 0.0,
    eps: float = 1e-6,
) -> None:
    """The same rule for a parameter every entry of which is touched; in place."""
    accumulator.addcmul_(grad, grad)
    step = adagrad_direction(grad, accumulator, lr, eps)
    weight.add_(step if velocity is None else velocity.mul_(momentum).add_(step))


def adagrad_direction(grad: Tensor, acc: Tensor, lr: float, eps: float) -> Tensor:
    """-lr * grad / sqrt(acc + eps)."""
    return grad.mul(-lr).div_(acc.add(eps).sqrt_())
