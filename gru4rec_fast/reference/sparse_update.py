"""Optimizer steps on the touched rows of a table: specification, fallback and oracle.

Four rules, for the gradient g of a row, its weight w and the state kept beside it:

    sgd      v <- momentum * v + g;   w -= lr * v
    adagrad  acc += g^2;   v <- momentum * v - lr * g / sqrt(acc + eps);   w += v
    rmsprop  s <- alpha * s + (1 - alpha) * g^2;   v <- momentum * v + g / (sqrt(s) + eps);   w -= lr * v
    adam     m <- beta1 * m + (1 - beta1) * g;   s <- beta2 * s + (1 - beta2) * g^2;
             w -= lr * sqrt(1 - beta2^step) / (1 - beta1^step) * m / (sqrt(s) + eps)

Heavy-ball momentum (Polyak 1964) throughout. Adagrad (Duchi et al. 2011) has epsilon inside the root, as the published
GRU4Rec code trains; sgd and rmsprop (Tieleman & Hinton 2012) are torch.optim's without weight decay; adam (Kingma & Ba
2015, algorithm 1 in the form at the end of their section 2) is torch.optim.SparseAdam's.

Gradients of a row that occurs several times are summed first. A touched row whose gradient is zero still takes its
step of momentum; rows that are not touched do nothing at all: their state neither moves nor decays ("lazy"), however
many steps have passed. `step` alone counts all steps. An index of -1, as dead lanes have, names no row: its gradient
is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

State = tuple[Tensor | None, ...]
# rule(gradient, *state, **options) -> (change of the weight, new state)
Rule = Callable[..., tuple[Tensor, State]]


def sgd_rule(grad: Tensor, velocity: Tensor | None, *, lr: float, momentum: float = 0.0) -> tuple[Tensor, State]:
    """Change and new state; see the formulas above. Nothing is updated in place, here and below."""
    if velocity is not None:
        grad = velocity = momentum * velocity + grad
    return -lr * grad, (velocity,)


def adagrad_rule(
    grad: Tensor, accumulator: Tensor, velocity: Tensor | None, *, lr: float, momentum: float = 0.0, eps: float = 1e-6
) -> tuple[Tensor, State]:
    accumulator = accumulator + grad * grad
    step = grad.mul(-lr).div_(accumulator.add(eps).sqrt_())
    if velocity is not None:
        step = velocity = momentum * velocity + step
    return step, (accumulator, velocity)


def rmsprop_rule(
    grad: Tensor,
    square: Tensor,
    velocity: Tensor | None,
    *,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
) -> tuple[Tensor, State]:
    square = square.lerp(grad * grad, 1 - alpha)
    scaled = grad / square.sqrt().add_(eps)
    if velocity is not None:
        scaled = velocity = momentum * velocity + scaled
    return -lr * scaled, (square, velocity)


def adam_rule(
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> tuple[Tensor, State]:
    mean, square = mean.lerp(grad, 1 - beta1), square.lerp(grad * grad, 1 - beta2)
    size = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    return mean.mul(-size).div_(square.sqrt().add_(eps)), (mean, square)


def update_rows(rule: Rule, table: Tensor, state: State, index: Tensor, grad: Tensor, **options: Any) -> None:
    """Apply a rule to the rows of table and state [R, ...] that index [K] names; in place. -1 names none."""
    if (index == -1).any():
        live = index != -1
        index, grad = index[live], grad[live]
    summed = torch.sparse_coo_tensor(index.unsqueeze(0), grad, table.shape, check_invariants=True).coalesce()
    rows = summed._indices()[0]
    change, new = rule(summed._values(), *(None if kept is None else kept[rows] for kept in state), **options)
    for kept, values in zip(state, new, strict=True):
        if kept is not None and values is not None:
            kept[rows] = values
    table[rows] += change


def update_all(rule: Rule, weight: Tensor, state: State, grad: Tensor, **options: Any) -> None:
    """Apply a rule to a parameter every entry of which is touched; in place."""
    change, new = rule(grad, *state, **options)
    for kept, values in zip(state, new, strict=True):
        if kept is not None and values is not None:
            kept.copy_(values)
    weight.add_(change)


def sparse_sgd(
    table: Tensor, momentum_buffer: Tensor | None, index: Tensor, grad: Tensor, *, lr: float, momentum: float = 0.0
) -> None:
    """Update in place; arguments as `gru4rec_fast.ops.sparse_sgd`."""
    update_rows(sgd_rule, table, (momentum_buffer,), index, grad, lr=lr, momentum=momentum)


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
    update_rows(adagrad_rule, table, (accumulator, velocity), index, grad, lr=lr, momentum=momentum, eps=eps)


def sparse_rmsprop(
    table: Tensor,
    square_avg: Tensor,
    momentum_buffer: Tensor | None,
    index: Tensor,
    grad: Tensor,
    *,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
) -> None:
    """Update in place; arguments as `gru4rec_fast.ops.sparse_rmsprop`."""
    options = {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum}
    update_rows(rmsprop_rule, table, (square_avg, momentum_buffer), index, grad, **options)


def sparse_adam(
    table: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    index: Tensor,
    grad: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> None:
    """Update in place; arguments as `gru4rec_fast.ops.sparse_adam`."""
    options = {"step": step, "lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps}
    update_rows(adam_rule, table, (exp_avg, exp_avg_sq), index, grad, **options)
