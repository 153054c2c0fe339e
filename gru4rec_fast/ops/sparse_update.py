"""Optimizer step on the touched rows of a table. Specification: `gru4rec_fast.reference.sparse_update`."""

from __future__ import annotations

import torch
from torch import Tensor

from gru4rec_fast._backend import resolve
from gru4rec_fast.ops._registry import on_load
from gru4rec_fast.reference.sparse_update import sparse_adagrad as reference_sparse_adagrad


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
        index: int64 [K], rows; one that occurs several times has its gradients summed first.
        grad: [K, ...].
        lr, momentum, eps: acc += g^2; v <- momentum * v - lr * g / sqrt(acc + eps); w += v.
        impl: "auto", "native" or "reference".

    Raises:
        ValueError: an argument that does not fit, named.
    """
    if index.dtype != torch.int64 or index.dim() != 1 or grad.shape != (index.shape[0], *table.shape[1:]):
        raise ValueError(
            f"index must be int64 [K] and grad [K, {', '.join(map(str, table.shape[1:]))}], "
            f"not {index.dtype} {[*index.shape]} and {[*grad.shape]}"
        )
    for name, tensor in {"accumulator": accumulator, "velocity": velocity}.items():
        if tensor is not None and (tensor.shape != table.shape or tensor.dtype != table.dtype):
            raise ValueError(f"{name} must be like table, {[*table.shape]} {table.dtype}")
    if grad.dtype != table.dtype:
        raise ValueError(f"grad is {grad.dtype} but table is {table.dtype}: use one dtype")
    if velocity is None and momentum:
        raise ValueError(f"momentum={momentum} needs a velocity tensor")
    if resolve(impl, "sparse_adagrad", table.device.type) == "native":
        torch.ops.gru4rec_fast.sparse_adagrad(table, accumulator, velocity, index, grad, lr, momentum, eps)
    else:
        reference_sparse_adagrad(table, accumulator, velocity, index, grad, lr=lr, momentum=momentum, eps=eps)


def _composite(
    table: Tensor,
    accumulator: Tensor,
    velocity: Tensor | None,
    index: Tensor,
    grad: Tensor,
    lr: float,
    momentum: float,
    eps: float,
) -> None:
    reference_sparse_adagrad(table, accumulator, velocity, index, grad, lr=lr, momentum=momentum, eps=eps)


@on_load
def _register() -> None:
    torch.library.impl("gru4rec_fast::sparse_adagrad", "CompositeExplicitAutograd", _composite)
    torch.library.register_fake("gru4rec_fast::sparse_adagrad", lambda *_: None)
