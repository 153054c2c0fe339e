"""Tables of which a step touches few rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = table.shape
        return table.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(index.unsqueeze(0), grad, ctx.shape, check_invariants=False), None


def gather_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows [K, ...] of `table` [R, ...] named by int64 `index` [K], with a sparse (COO) gradient for the table.

    torch.nn.functional.embedding(sparse=True) for tables of any number of dimensions, so for biases [R] too.
    """
    return _GatherRows.apply(table, index)


def gather_live_rows(table: Tensor, index: Tensor) -> Tensor:
    """As `gather_rows` for an index of any shape that holds -1 in dead lanes: those read zeros and touch no row."""
    live = index >= 0
    rows = gather_rows(table, index[live])
    return table.new_zeros(*index.shape, *table.shape[1:]).masked_scatter(
        live.view(*live.shape, *([1] * (table.dim() - 1))), rows
    )
