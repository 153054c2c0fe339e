"""Compute a layer of a graph network by several processes (ranks), each of which computes a part of the nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.distributed import Ranks


def share_product(
    ranks: Ranks,
    multiply: Callable[..., Tensor],
    embeddings: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    n_nodes: int,
) -> Tensor:
    """Return multiply(embeddings, rows=rows, columns=columns), of which each rank computes every `ranks.size`-th row.

    In backward, each rank computes every `ranks.size`-th row of the transposed product. With native kernels, results
    and gradients have the bits of one process.

    Args:
        ranks: the processes.
        multiply: a product with the matrix of a graph, linear in the embeddings: `ops.laplacian_propagation` with the
            arguments rows, columns and transposed.
        embeddings: [n_columns, d].
        rows, columns: int64, increasing nodes of the output and of the embeddings; None: all nodes.
        n_nodes: number of nodes of the graph.

    Returns:
        [n_rows, d].
    """
    return _Product.apply(embeddings, ranks, multiply, rows, columns, n_nodes)


def share_rows(
    ranks: Ranks, layer: Callable[..., Tensor], embeddings: Tensor, rows: Tensor | None, n_nodes: int
) -> Tensor:
    """Return layer(embeddings, rows=rows), of which each rank computes every `ranks.size`-th row.

    Input, output and their gradients are the same on all ranks. The gradients of the layer's parameters are those of
    this rank's rows, so the caller must add them up. The arguments are those of `share_product`.
    """
    own, n_rows = _own_part(ranks, rows, n_nodes, embeddings.device)
    return _JoinRows.apply(layer(_SumGradients.apply(embeddings, ranks), rows=own), n_rows, ranks)


def _own_part(ranks: Ranks, nodes: Tensor | None, n_nodes: int, device: torch.device) -> tuple[Tensor, int]:
    """Return those of `nodes` that this rank computes, and the number of `nodes`; None: all nodes of the graph."""
    if nodes is None:
        return torch.arange(ranks.rank, n_nodes, ranks.size, device=device), n_nodes
    return nodes[ranks.rank :: ranks.size].contiguous(), len(nodes)


class _Product(torch.autograd.Function):
    """A product with a matrix, and in backward with its transpose; both are shared out by rows."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        ranks: Ranks,
        multiply: Callable[..., Tensor],
        rows: Tensor | None,
        columns: Tensor | None,
        n_nodes: int,
    ) -> Tensor:
        ctx.arguments = ranks, multiply, rows, columns, n_nodes
        own, n_rows = _own_part(ranks, rows, n_nodes, embeddings.device)
        return ranks.join_rows(multiply(embeddings, rows=own, columns=columns), n_rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ranks, multiply, rows, columns, n_nodes = ctx.arguments
        own, n_columns = _own_part(ranks, columns, n_nodes, grad.device)
        part = multiply(grad.contiguous(), rows=own, columns=rows, transposed=True)
        return ranks.join_rows(part, n_columns), None, None, None, None, None


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
