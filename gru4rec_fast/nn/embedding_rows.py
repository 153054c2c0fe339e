"""Functions that gather rows of embedding and bias parameters, with sparse gradients."""

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
    """Return the rows `index` (int64 [K]) of `table` [R, ...], as [K, ...]; the table's gradient is sparse (COO).

    Like torch.nn.functional.embedding(sparse=True), but for tables of any number of dimensions, for example biases [R].
    """
    return _GatherRows.apply(table, index)


def gather_live_rows(table: Tensor, index: Tensor) -> Tensor:
    """Return the rows `index` of `table`, like `gather_rows`; zeros without a gradient where the index is -1 (padding).

    index: int64 [...], of any shape. The result is [..., *table.shape[1:]].
    """
    live = index >= 0
    rows = gather_rows(table, index[live])
    return table.new_zeros(*index.shape, *table.shape[1:]).masked_scatter(
        live.view(*live.shape, *([1] * (table.dim() - 1))), rows
    )
