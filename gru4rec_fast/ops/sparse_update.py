"""Optimizer steps that update only the rows of a table that have a gradient.

A rule updates the weight w and the optimizer state of a row from the gradient g of the row. There are two rules:

    adagrad  acc += g^2;   v <- momentum * v - lr * g / sqrt(acc + eps);   w += v
    adam     m <- beta1 * m + (1 - beta1) * g;   s <- beta2 * s + (1 - beta2) * g^2;
             w -= lr * sqrt(1 - beta2^step) / (1 - beta1^step) * m / (sqrt(s) + eps)

Adagrad (Duchi et al. 2011) has heavy-ball momentum (Polyak 1964) and epsilon inside the root, as in the published
GRU4Rec code. Adam (Kingma & Ba 2015, algorithm 1 with the efficient order of computation at the end of section 2)
equals torch.optim.SparseAdam.

`index` has the row of each gradient. If a row occurs several times, the gradients of this row are summed first. A row
with a gradient of zero is also updated, by momentum. The weight and the state of all other rows do not change ("lazy"
updates), but `step` of Adam counts every step. An index of -1 (padding) selects no row: that gradient is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.ops._checks import check_memory, check_tensor
from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load, register

State = tuple[Tensor | None, ...]  # (accumulator, velocity) or (exp_avg, exp_avg_sq)
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
    """Update rows of a table by Adagrad with momentum, in place.

    Args:
        table: floating [R, ...], updated.
        accumulator: sums of squared gradients, with shape and dtype of `table`, updated.
        velocity: with shape and dtype of `table`, updated; may be None if momentum is 0.
        index: int64 [K], rows of the table. Gradients of a row that occurs several times are summed; gradients of
            row -1 are ignored.
        grad: [K, ...], the gradients of these rows.
        lr, momentum, eps: acc += g^2; v <- momentum * v - lr * g / sqrt(acc + eps); w += v.
        impl: "auto", "native" or "reference".

    Raises:
        ValueError: an argument is out of range or does not fit the others.
    """
    _check(table, {"accumulator": accumulator, "velocity": velocity}, index, grad, momentum)
    update = implementation("sparse_adagrad_", impl, table.device, adagrad_reference)
    if update is adagrad_reference:
        written = {"table": table, "accumulator": accumulator, "velocity": velocity}
        check_memory(written, {"index": index, "grad": grad})
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
    """Update rows of a table by Adam, in place.

    Args:
        table, index, grad, impl: as in `sparse_adagrad_`.
        exp_avg, exp_avg_sq: running means of the gradients and of their squares, with shape and dtype of `table`,
            updated.
        step: number of this step, from 1; also counts the steps that do not update a row.
        lr, beta1, beta2, eps: m <- beta1 * m + (1 - beta1) * g; s <- beta2 * s + (1 - beta2) * g^2; w -= lr *
            sqrt(1 - beta2^step) / (1 - beta1^step) * m / (sqrt(s) + eps), as torch.optim.SparseAdam.

    Raises:
        ValueError: an argument is out of range or does not fit the others.
    """
    _check(table, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, index, grad)
    if step < 1:
        raise ValueError(f"step={step}: must be at least 1")
    update = implementation("sparse_adam_", impl, table.device, adam_reference)
    if update is adam_reference:
        written = {"table": table, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        check_memory(written, {"index": index, "grad": grad})
    update(table, exp_avg, exp_avg_sq, index, grad, step, lr, beta1, beta2, eps)


def _check(table: Tensor, state: dict[str, Tensor | None], index: Tensor, grad: Tensor, momentum: float = 0.0) -> None:
    """Raise ValueError unless the tensors fit each other. `state`: by name; may hold None if momentum is 0."""
    check_tensor("index", index, torch.int64, ("K",), table.device)
    check_tensor("grad", grad, table.dtype, (index.shape[0], *table.shape[1:]), table.device)
    for name, tensor in state.items():
        check_tensor(name, tensor, table.dtype, table.shape, table.device)
        if tensor is None and momentum:
            raise ValueError(f"momentum={momentum} needs a {name} tensor")


def adagrad_rule(
    grad: Tensor, accumulator: Tensor, velocity: Tensor | None, lr: float, momentum: float, eps: float
) -> tuple[Tensor, State]:
    """Return the change of the weight and the new state, by the formula at the top of this file; not in place."""
    accumulator = accumulator + grad * grad
    change = grad.mul(-lr).div_(accumulator.add(eps).sqrt_())
    if velocity is not None:
        change = velocity = momentum * velocity + change
    return change, (accumulator, velocity)


def adam_rule(
    grad: Tensor, mean: Tensor, square: Tensor, step: int, lr: float, beta1: float, beta2: float, eps: float
) -> tuple[Tensor, State]:
    """Return the change of the weight and the new state, by the formula at the top of this file; not in place."""
    mean, square = mean.lerp(grad, 1 - beta1), square.lerp(grad * grad, 1 - beta2)
    step_size = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    return mean.mul(-step_size).div_(square.sqrt().add_(eps)), (mean, square)


def update_rows(
    rule: Rule, table: Tensor, state1: Tensor | None, state2: Tensor | None, index: Tensor, grad: Tensor, *options: Any
) -> None:
    """Apply a rule in place to the rows `index` of a table and of the two tensors of the table's optimizer state."""
    if (index == -1).any():
        is_row = index != -1
        index, grad = index[is_row], grad[is_row]
    summed = torch.sparse_coo_tensor(index.unsqueeze(0), grad, table.shape, check_invariants=True).coalesce()
    rows = summed._indices()[0]
    state = (state1, state2)
    change, new_state = rule(summed._values(), *(None if old is None else old[rows] for old in state), *options)
    for old, new in zip(state, new_state, strict=True):
        if old is not None and new is not None:
            old[rows] = new
    table[rows] += change


adagrad_reference = partial(update_rows, adagrad_rule)
adam_reference = partial(update_rows, adam_rule)


def update_all(rule: Rule, weight: Tensor, state: State, grad: Tensor, **options: Any) -> None:
    """Apply a rule to all entries of a parameter and of its state, in place."""
    change, new_state = rule(grad, *state, **options)
    for old, new in zip(state, new_state, strict=True):
        if old is not None and new is not None:
            old.copy_(new)
    weight.add_(change)


@on_load
def _register(library: str) -> None:
    for name, reference in (("sparse_adagrad_", adagrad_reference), ("sparse_adam_", adam_reference)):
        register(library, name, reference, lambda *_: None)  # the operators return nothing
