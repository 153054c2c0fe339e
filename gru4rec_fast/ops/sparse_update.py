"""Optimizer steps on the touched rows of a table.

Two rules, for the gradient g of a row, its weight w and the state kept with it:

    adagrad  acc += g^2;   v <- momentum * v - lr * g / sqrt(acc + eps);   w += v
    adam     m <- beta1 * m + (1 - beta1) * g;   s <- beta2 * s + (1 - beta2) * g^2;
             w -= lr * sqrt(1 - beta2^step) / (1 - beta1^step) * m / (sqrt(s) + eps)

Adagrad (Duchi et al. 2011) has heavy-ball momentum (Polyak 1964) and epsilon inside the root, as the published GRU4Rec
code trains; adam (Kingma & Ba 2015, algorithm 1 in the form at the end of their section 2) is torch.optim.SparseAdam's.

Gradients of a row that occurs several times are summed first. A touched row whose gradient is zero still takes its
step of momentum; rows that are not touched do nothing at all: their state neither moves nor decays ("lazy"), however
many steps have passed. `step` alone counts all steps. An index of -1, as dead lanes have, names no row: its gradient
is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load, register_composite

State = tuple[Tensor | None, ...]
# rule(gradient, *state, **options) -> (change of the weight, new state)
Rule = Callable[..., tuple[Tensor, State]]


def sparse_adagrad_(
    table: Tensor,
    accumulator: Tensor,
    velocity: Tensor | None,
    index: Tensor,
    grad: Tensor,
    *,
    lr: float,
    momentum: float = 0.0,
    eps: float = 1e-6,
    impl: str = "auto",
) -> None:
    """Update the rows of `table` named by `index` by Adagrad with momentum, in place.

    Args:
        table: [R, ...] floating, updated.
        accumulator: like table, sums of squared gradients, updated.
        velocity: like table, updated; None where momentum is 0.
        index: int64 [K], rows; one that occurs several times has its gradients summed first, -1 names none.
        grad: [K, ...].
        lr, momentum, eps: acc += g^2; v <- momentum * v - lr * g / sqrt(acc + eps); w += v.
        impl: "auto", "native" or "reference".

    Raises:
        ValueError: an argument that does not fit, named.
    """
    _check(table, {"accumulator": accumulator, "velocity": velocity}, index, grad, momentum)
    update = implementation("sparse_adagrad_", impl, table.device, adagrad_reference)
    update(table, accumulator, velocity, index, grad, lr, momentum, eps)


def sparse_adam_(
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
    impl: str = "auto",
) -> None:
    """Update the rows of `table` named by `index` by Adam, in place.

    Args:
        table, index, grad, impl: as in `sparse_adagrad_`.
        exp_avg, exp_avg_sq: like table, running means of gradients and of their squares, updated.
        step: number of this step, from 1; all steps count, also those that did not touch a row.
        lr, beta1, beta2, eps: m <- beta1 * m + (1 - beta1) * g; s <- beta2 * s + (1 - beta2) * g^2; w -= lr *
            sqrt(1 - beta2^step) / (1 - beta1^step) * m / (sqrt(s) + eps), as torch.optim.SparseAdam.

    Raises:
        ValueError: an argument that does not fit, named.
    """
    _check(table, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, index, grad)
    if step < 1:
        raise ValueError(f"step={step}: counts from 1")
    update = implementation("sparse_adam_", impl, table.device, adam_reference)
    update(table, exp_avg, exp_avg_sq, index, grad, step, lr, beta1, beta2, eps)


def _check(table: Tensor, state: dict[str, Tensor | None], index: Tensor, grad: Tensor, momentum: float = 0.0) -> None:
    """`state` by name; the last one may be missing where there is no momentum."""
    if index.dtype != torch.int64 or index.dim() != 1 or grad.shape != (index.shape[0], *table.shape[1:]):
        raise ValueError(
            f"index must be int64 [K] and grad [K, {', '.join(map(str, table.shape[1:]))}], "
            f"not {index.dtype} {[*index.shape]} and {[*grad.shape]}"
        )
    for name, tensor in state.items():
        if tensor is not None and (tensor.shape != table.shape or tensor.dtype != table.dtype):
            raise ValueError(f"{name} must be like table, {[*table.shape]} {table.dtype}")
        if tensor is None and momentum:
            raise ValueError(f"momentum={momentum} needs a {name} tensor")
    if grad.dtype != table.dtype:
        raise ValueError(f"grad is {grad.dtype} but table is {table.dtype}: use one dtype")


def adagrad_rule(
    grad: Tensor, accumulator: Tensor, velocity: Tensor | None, lr: float, momentum: float, eps: float
) -> tuple[Tensor, State]:
    """Return the change and the new state; see the formulas above. Nothing is updated in place, here and below."""
    accumulator = accumulator + grad * grad
    step = grad.mul(-lr).div_(accumulator.add(eps).sqrt_())
    if velocity is not None:
        step = velocity = momentum * velocity + step
    return step, (accumulator, velocity)


def adam_rule(
    grad: Tensor, mean: Tensor, square: Tensor, step: int, lr: float, beta1: float, beta2: float, eps: float
) -> tuple[Tensor, State]:
    """As `adagrad_rule`."""
    mean, square = mean.lerp(grad, 1 - beta1), square.lerp(grad * grad, 1 - beta2)
    size = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    return mean.mul(-size).div_(square.sqrt().add_(eps)), (mean, square)


def update_rows(
    rule: Rule, table: Tensor, first: Tensor | None, second: Tensor | None, index: Tensor, grad: Tensor, *options: Any
) -> None:
    """Apply a rule to the rows of a table and its state, `first` and `second`, that `index` names; in place."""
    if (index == -1).any():
        live = index != -1
        index, grad = index[live], grad[live]
    summed = torch.sparse_coo_tensor(index.unsqueeze(0), grad, table.shape, check_invariants=True).coalesce()
    rows = summed._indices()[0]
    state = (first, second)
    change, new = rule(summed._values(), *(None if kept is None else kept[rows] for kept in state), *options)
    for kept, values in zip(state, new, strict=True):
        if kept is not None and values is not None:
            kept[rows] = values
    table[rows] += change


adagrad_reference = partial(update_rows, adagrad_rule)
adam_reference = partial(update_rows, adam_rule)


def update_all(rule: Rule, weight: Tensor, state: State, grad: Tensor, **options: Any) -> None:
    """Apply a rule to a parameter every entry of which is touched; in place."""
    change, new = rule(grad, *state, **options)
    for kept, values in zip(state, new, strict=True):
        if kept is not None and values is not None:
            kept.copy_(values)
    weight.add_(change)


@on_load
def _register(library: str) -> None:
    for name, reference in (("sparse_adagrad_", adagrad_reference), ("sparse_adam_", adam_reference)):
        register_composite(library, name, reference)
        torch.library.register_fake(f"{library}::{name}", lambda *_: None)
