"""Optimizer steps on the touched rows of a table. Specification: `gru4rec_fast.reference.sparse_update`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gru4rec_fast._backend import resolve
from gru4rec_fast.ops._registry import on_load, operators, register_composite
from gru4rec_fast.reference import sparse_update as reference


def sparse_sgd(
    table: Tensor,
    momentum_buffer: Tensor | None,
    index: Tensor,
    grad: Tensor,
    *,
    lr: float,
    momentum: float = 0.0,
    impl: str = "auto",
) -> None:
    """SGD with momentum on the rows of `table` named by `index`, in place.

    Args:
        table: [R, ...] floating, updated.
        momentum_buffer: like table, updated; None where momentum is 0.
        index: int64 [K], rows; one that occurs several times has its gradients summed first, -1 names none.
        grad: [K, ...].
        lr, momentum: v <- momentum * v + g; w -= lr * v, as torch.optim.SGD without dampening.
        impl: "auto", "native", "reference" or "emulated".

    Raises:
        ValueError: an argument that does not fit, named.
    """
    _check(table, {"momentum_buffer": momentum_buffer}, index, grad, momentum)
    chosen = resolve(impl, "sparse_sgd", table.device.type)
    if chosen != "reference":
        operators(chosen).sparse_sgd(table, momentum_buffer, index, grad, lr, momentum)
    else:
        reference.sparse_sgd(table, momentum_buffer, index, grad, lr=lr, momentum=momentum)


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
    impl: str = "auto",
) -> None:
    """Adagrad with momentum on the rows of `table` named by `index`, in place.

    Args:
        table: [R, ...] floating, updated.
        accumulator: like table, sums of squared gradients, updated.
        velocity: like table, updated; None where momentum is 0.
        index: int64 [K], rows; one that occurs several times has its gradients summed first, -1 names none.
        grad: [K, ...].
        lr, momentum, eps: acc += g^2; v <- momentum * v - lr * g / sqrt(acc + eps); w += v.
        impl: "auto", "native", "reference" or "emulated".

    Raises:
        ValueError: an argument that does not fit, named.
    """
    _check(table, {"accumulator": accumulator, "velocity": velocity}, index, grad, momentum)
    chosen = resolve(impl, "sparse_adagrad", table.device.type)
    if chosen != "reference":
        operators(chosen).sparse_adagrad(table, accumulator, velocity, index, grad, lr, momentum, eps)
    else:
        reference.sparse_adagrad(table, accumulator, velocity, index, grad, lr=lr, momentum=momentum, eps=eps)


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
    impl: str = "auto",
) -> None:
    """RMSprop with momentum on the rows of `table` named by `index`, in place.

    Args:
        table: [R, ...] floating, updated.
        square_avg: like table, running mean of squared gradients, updated.
        momentum_buffer: like table, updated; None where momentum is 0.
        index: int64 [K], rows; one that occurs several times has its gradients summed first, -1 names none.
        grad: [K, ...].
        lr, alpha, eps, momentum: s <- alpha * s + (1 - alpha) * g^2; v <- momentum * v + g / (sqrt(s) + eps);
            w -= lr * v, as torch.optim.RMSprop, for the rows that are touched: the mean of others does not decay.
        impl: "auto", "native", "reference" or "emulated".

    Raises:
        ValueError: an argument that does not fit, named.
    """
    _check(table, {"square_avg": square_avg, "momentum_buffer": momentum_buffer}, index, grad, momentum)
    options = {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum}
    chosen = resolve(impl, "sparse_rmsprop", table.device.type)
    if chosen != "reference":
        operators(chosen).sparse_rmsprop(table, square_avg, momentum_buffer, index, grad, **options)
    else:
        reference.sparse_rmsprop(table, square_avg, momentum_buffer, index, grad, **options)


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
    impl: str = "auto",
) -> None:
    """Adam on the rows of `table` named by `index`, in place.

    Args:
        table: [R, ...] floating, updated.
        exp_avg, exp_avg_sq: like table, running means of gradients and of their squares, updated.
        index: int64 [K], rows; one that occurs several times has its gradients summed first, -1 names none.
        grad: [K, ...].
        step: number of this step, from 1; all steps count, also those that did not touch a row.
        lr, beta1, beta2, eps: m <- beta1 * m + (1 - beta1) * g; s <- beta2 * s + (1 - beta2) * g^2; w -= lr *
            sqrt(1 - beta2^step) / (1 - beta1^step) * m / (sqrt(s) + eps), as torch.optim.SparseAdam.
        impl: "auto", "native", "reference" or "emulated".

    Raises:
        ValueError: an argument that does not fit, named.
    """
    _check(table, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, index, grad)
    if step < 1:
        raise ValueError(f"step={step}: counts from 1")
    chosen = resolve(impl, "sparse_adam", table.device.type)
    if chosen != "reference":
        operators(chosen).sparse_adam(table, exp_avg, exp_avg_sq, index, grad, step, lr, beta1, beta2, eps)
    else:
        reference.sparse_adam(
            table, exp_avg, exp_avg_sq, index, grad, step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps
        )


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


@on_load
def _register(library: str) -> None:
    """The reference as composite implementation: the same arguments, those of the schema by their order."""
    composites: dict[str, Callable[..., None]] = {
        "sparse_sgd": lambda w, v, i, g, lr, momentum: reference.sparse_sgd(w, v, i, g, lr=lr, momentum=momentum),
        "sparse_adagrad": lambda w, a, v, i, g, lr, momentum, eps: reference.sparse_adagrad(
            w, a, v, i, g, lr=lr, momentum=momentum, eps=eps
        ),
        "sparse_rmsprop": lambda w, s, v, i, g, lr, alpha, eps, momentum: reference.sparse_rmsprop(
            w, s, v, i, g, lr=lr, alpha=alpha, eps=eps, momentum=momentum
        ),
        "sparse_adam": lambda w, m, s, i, g, step, lr, beta1, beta2, eps: reference.sparse_adam(
            w, m, s, i, g, step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps
        ),
    }
    for name, composite in composites.items():
        register_composite(library, name, composite)
        torch.library.register_fake(f"{library}::{name}", lambda *_, **__: None)
