"""Gather rows of embedding and bias parameters, with dense or sparse gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _SparseGather(torch.autograd.Function):
    """table[index] for an index [K], with a sparse gradient. Unlike F.embedding, also for tables that are not 2-D."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = table.shape
        return table.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(index.unsqueeze(0), grad, ctx.shape, check_invariants=False), None


def gather_rows(table: Tensor, index: Tensor, *, sparse: bool = False, padding: bool = True) -> Tensor:
    """Return the rows `index` of `table`; where the index is -1 (padding), zeros that give no gradient.

    A parameter `table` gets the attribute `is_table = True`, by which `gru4rec_fast.optim` recognizes tables.

    Args:
        table: [R, ...], of any number of dimensions: an embedding [R, width], biases [R].
        index: int64 of any shape [...], in [-1, R).
        sparse: whether the gradient of `table` is sparse (COO), with the gathered rows only. If False, it is dense.
        padding: whether the index may have -1. False saves the time of finding out.

    Returns:
        [*index.shape, *table.shape[1:]].
    """
    table.is_table = True  # type: ignore[attr-defined]
    reads_values = can_read_values(index)
    live = index >= 0 if padding else None
    if live is None or (reads_values and bool(live.all())):
        return _gather(table, index, sparse)
    mask = live[(..., *[None] * (table.dim() - 1))]
    if reads_values:
        zeros = table.new_zeros((*index.shape, *table.shape[1:]))
        return zeros.masked_scatter(mask, _gather(table, index[live], sparse))
    # Selecting the rows that are not padding would synchronize with the GPU. Instead, padding reads a row and adds zero
    # to its gradient: row 0 or, with a sparse gradient, the row of the largest index, which is in the gradient anyway.
    # (If everything is padding, that is row 0, too.)
    if sparse and index.numel():
        index = torch.where(live, index, index.amax())
    return _gather(table, index.clamp(min=0), sparse).masked_fill(~mask, 0)  # torch.where would copy the 0 to the GPU


def can_read_values(tensor: Tensor) -> bool:
    """Return whether a branch may depend on values of a tensor: it is on the CPU, and torch does not trace a graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _gather(table: Tensor, index: Tensor, sparse: bool) -> Tensor:
    """Return table[index] for an index without padding."""
    shape = (*index.shape, *table.shape[1:])
    if sparse:
        return _SparseGather.apply(table, index.reshape(-1)).view(shape)
    matrix = table if table.dim() == 2 else table.reshape(table.shape[0], math.prod(table.shape[1:]))
    return F.embedding(index, matrix).view(shape)
