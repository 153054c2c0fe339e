"""Compute a layer of a graph network by several processes (ranks), each of which computes a part of the nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.distributed import Ranks


def apply_layer(
    ranks: Ranks, layer: Callable[..., Tensor], embeddings: Tensor, rows: Tensor | None, n_nodes: int, **options: Any
) -> Tensor:
    """Return layer(embeddings, rows=rows, **options), of which each rank computes every `ranks.size`-th row.

    Input, output and their gradients are the same on all ranks. The gradients of the layer's parameters are those of
    this rank's rows, so the caller must add them up.

    Args:
        ranks: the processes.
        layer: the layer, with the argument `rows`.
        embeddings: [n_columns, d_in].
        rows: int64 [n_rows], the nodes to compute, increasing; None: all nodes of the graph.
        n_nodes: number of nodes of the graph.
        options: further arguments of the layer.

    Returns:
        [n_rows, d_out].
    """
    if rows is None:
        rows = torch.arange(n_nodes, device=embeddings.device)
    own = rows[ranks.rank :: ranks.size].contiguous()
    return _JoinRows.apply(layer(_SumGradients.apply(embeddings, ranks), rows=own, **options), len(rows), ranks)


class _SumGradients(torch.autograd.Function):
    """The identity. In backward, each rank has the gradient from its own rows, and gets the sum over all ranks."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return embeddings.view_as(embeddings)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        ctx.ranks.sum_(total)
        return total, None


class _JoinRows(torch.autograd.Function):
    """Joins the rows of all ranks. In backward, each rank takes the gradient of its own rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, n: int, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.join_rows(own, n)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[ctx.ranks.rank :: ctx.ranks.size], None, None
