"""L @ E for the propagation matrices of graph recommenders, from the graph's indices alone: no values are stored.

Wang et al., "Neural graph collaborative filtering", SIGIR 2019 (arXiv 1905.08108), equation (8), and the variants of
its published code; He et al., LightGCN, SIGIR 2020 (arXiv 2002.02126), equation (7).

A is the symmetric 0/1 adjacency matrix of an undirected graph in CSR form, D its degrees. Every matrix below has
entries `left[row] * right[column]`, so it needs nothing but the indices and one number per node and side:

    symmetric  D^-1/2 A D^-1/2        left = right = D^-1/2
    mean       D^-1 A                 left = D^-1
    norm       (D + I)^-1 (A + I)     left = (D + 1)^-1, and a diagonal
    plain      A

A node without neighbors has a zero row and column (under norm: a 1 on the diagonal).

Dropout drops each *entry* with probability p, so the two directions of an edge, and the diagonal, each on its own, and
multiplies the rest by 1 / (1 - p); degrees stay those of the whole graph. Entry (row, column) is kept where the first
Philox word of counter (STREAM_EDGE_DROPOUT, step, row, column) is at least floor(p * 2**32).

The transposed matrix has left and right exchanged and the mask of (column, row) at (row, column); since A is symmetric,
the same indices serve. So the gradient of L @ E with respect to E needs no transpose and no stored mask.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load, register_composite
from gru4rec_fast.ops.philox import STREAM_EDGE_DROPOUT, WORD_RANGE, check_counters, philox4x32

MATRICES = ("symmetric", "mean", "norm", "plain")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_CHUNK = 1 << 22  # elements of messages that are held at a time


def laplacian_propagation(
    features: Tensor,
    offsets: Tensor,
    neighbors: Tensor,
    matrix: str = "symmetric",
    *,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    step: int = 0,
    transposed: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Return the product of a graph's propagation matrix with node features; differentiable in the features.

    The graph is undirected: whenever it lists c as a neighbor of r, it lists r as a neighbor of c. That is not
    checked here, and the gradient depends on it; `gru4rec_fast.data.InteractionGraph` gives such graphs.

    Args:
        features: float32, float64 or bfloat16 [n_nodes, d] ([n_columns, d] with `columns`); bfloat16 is summed in
            float32. A NaN reaches the rows of the node's neighbors and no others.
        offsets: int64 [n_nodes + 1], from 0 to n_entries.
        neighbors: int32 or int64 [n_entries]; those of node r are `neighbors[offsets[r]:offsets[r + 1]]`.
        matrix: "symmetric" D^-1/2 A D^-1/2, "mean" D^-1 A, "norm" (D + I)^-1 (A + I) or "plain" A.
        rows: int64 [n_rows], the rows of the product that are wanted, as nodes in rising order; None: all.
        columns: int64 [n_columns], the nodes whose features are given, in rising order; None: all. The features of all
            others count as zero.
        dropout: probability in [0, 1) with which each entry of the matrix is dropped, each direction of an edge on its
            own, and the diagonal of "norm"; the rest is multiplied by 1 / (1 - dropout). The mask is a function of
            (seed, step, row, column), recomputed in the backward pass and never stored.
        seed: in [0, 2**63). step: in [0, 2**32).
        transposed: multiply by the transposed matrix, its mask transposed too.
        impl: "auto", "native" or "reference".

    Returns:
        [n_nodes, d], or [n_rows, d], in the dtype of `features`. Native: each row is summed in the order of its
        neighbors by one thread, so the result depends neither on the number of threads nor on `rows`.

    Raises:
        ValueError: an argument that does not fit, named.
    """
    if matrix not in MATRICES:
        raise ValueError(f"matrix={matrix!r}: choose one of {', '.join(MATRICES)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}: the probability of dropping must be in [0, 1)")
    check_counters(seed, step, 1)
    if features.dim() != 2 or features.dtype not in DTYPES:
        raise ValueError(
            f"features must be float32, float64 or bfloat16 [n_nodes, d], not {features.dtype} {[*features.shape]}"
        )
    if features.shape[0] >= WORD_RANGE:
        raise ValueError(f"features of {features.shape[0]} nodes: there must be fewer than 2**32")
    for name, nodes in (("rows", rows), ("columns", columns)):
        if nodes is not None and (nodes.dtype != torch.int64 or nodes.dim() != 1 or nodes.device != features.device):
            raise ValueError(
                f"{name} must be int64, one-dimensional, on {features.device}, "
                f"not {nodes.dtype} {[*nodes.shape]} on {nodes.device}"
            )
    if columns is not None and columns.shape[0] != features.shape[0]:
        raise ValueError(f"features has {features.shape[0]} rows, but there are {columns.shape[0]} columns")
    if offsets.dtype != torch.int64 or offsets.dim() != 1 or offsets.shape[0] < 1:
        raise ValueError(f"offsets must be int64 [n_nodes + 1], not {offsets.dtype} {[*offsets.shape]}")
    if columns is None and offsets.shape[0] != features.shape[0] + 1:
        raise ValueError(
            f"offsets must be int64 [n_nodes + 1] beside features {[*features.shape]}, "
            f"not {offsets.dtype} {[*offsets.shape]}"
        )
    if neighbors.dtype not in (torch.int32, torch.int64) or neighbors.dim() != 1:
        raise ValueError(f"neighbors must be int32 or int64 [n_entries], not {neighbors.dtype} {[*neighbors.shape]}")
    for name, tensor in (("offsets", offsets), ("neighbors", neighbors)):
        if tensor.device != features.device:
            raise ValueError(f"{name} is on {tensor.device}, features are on {features.device}: use one device")
    propagate = implementation("laplacian_propagation", impl, features.device, laplacian_propagation_reference)
    if propagate is laplacian_propagation_reference and not torch.compiler.is_compiling():
        check_graph(offsets, neighbors)
        for name, nodes in (("rows", rows), ("columns", columns)):
            if nodes is not None:
                check_nodes(name, nodes, offsets.shape[0] - 1)
    return propagate(features, offsets, neighbors, rows, columns, matrix, dropout, seed, step, transposed)


def laplacian_propagation_reference(
    features: Tensor,
    offsets: Tensor,
    neighbors: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    matrix: str,
    dropout: float,
    seed: int,
    step: int,
    transposed: bool = False,
) -> Tensor:
    """Return L[rows][:, columns] @ features, or L^T's; bfloat16 is summed in float32."""
    sums = torch.float32 if features.dtype == torch.bfloat16 else features.dtype
    left, right = node_scales(offsets.diff(), matrix, sums)
    if transposed:
        left, right = right, left
    if dropout:
        left = left / (1 - dropout)
    sources = torch.repeat_interleave(offsets.diff(), output_size=neighbors.shape[0])
    wide = features.to(sums)
    if columns is not None:
        wide = wide.new_zeros(offsets.shape[0] - 1, wide.shape[1]).index_copy(0, columns, wide)

    def messages(row: Tensor, column: Tensor) -> Tensor:
        """What each entry (row, column) carries to its row, [n_entries, d]: `right[column] * wide[column]` or zeros."""
        carried = wide.index_select(0, column) * right[column][:, None]
        if not dropout:
            return carried
        stream, now = torch.tensor([STREAM_EDGE_DROPOUT, step], device=row.device).unbind()
        entry = (column, row) if transposed else (row, column)
        dropped = philox4x32((stream, now, *entry), seed)[0] < math.floor(dropout * WORD_RANGE)
        return carried.masked_fill(dropped[:, None], 0)  # not times 0: a dropped NaN is gone

    out = torch.zeros_like(wide)
    if matrix == "norm":
        nodes = torch.arange(offsets.shape[0] - 1, device=offsets.device)
        out = out + messages(nodes, nodes)
    chunk = max(1, _CHUNK // max(1, features.shape[1]))
    for start in range(0, max(1, neighbors.shape[0]), chunk):  # once for no entries: the result has a gradient
        row, column = sources[start : start + chunk], neighbors[start : start + chunk].long()
        out = out.index_add(0, row, messages(row, column))
    out = (out * left[:, None]).to(features.dtype)
    return out if rows is None else out.index_select(0, rows)


def node_scales(degrees: Tensor, matrix: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`left` and `right` [n_nodes] of a propagation matrix: its entries are left[row] * right[column]."""
    ones = torch.ones_like(degrees, dtype=dtype)
    if matrix == "plain":
        return ones, ones
    if matrix == "norm":
        return ((degrees + 1).double() ** -1).to(dtype), ones
    inverse = degrees.double() ** (-0.5 if matrix == "symmetric" else -1.0)
    inverse = inverse.masked_fill(degrees == 0, 0).to(dtype)
    return inverse, (inverse if matrix == "symmetric" else ones)


def check_graph(offsets: Tensor, neighbors: Tensor) -> None:
    """Raise ValueError unless `offsets` rise from 0 to the number of `neighbors`, which all name nodes."""
    n_nodes, n_entries = offsets.shape[0] - 1, neighbors.shape[0]
    if int(offsets[0]) != 0 or int(offsets[-1]) != n_entries or bool((offsets.diff() < 0).any()):
        raise ValueError(f"offsets must increase from 0 to {n_entries}, the number of neighbors")
    outside = (neighbors < 0) | (neighbors >= n_nodes)
    if bool(outside.any()):
        at = int(outside.int().argmax())
        raise ValueError(f"neighbors[{at}]={int(neighbors[at])}: the graph has nodes 0 to {n_nodes - 1}")


def check_nodes(name: str, nodes: Tensor, n_nodes: int) -> None:
    """Raise ValueError unless `nodes` are in range and strictly rising; reads them."""
    if len(nodes) and (int(nodes[0]) < 0 or int(nodes[-1]) >= n_nodes or bool((nodes.diff() <= 0).any())):
        raise ValueError(f"{name} must be strictly increasing nodes from 0 to {n_nodes - 1}")


def _fake(features: Tensor, offsets: Tensor, neighbors: Tensor, rows: Tensor | None, *_: Any) -> Tensor:
    return features.new_empty(offsets.shape[0] - 1 if rows is None else rows.shape[0], features.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, offsets, neighbors, rows, columns, *ctx.options = inputs
    ctx.save_for_backward(offsets, neighbors, rows, columns)


def _backward(library: str, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    offsets, neighbors, rows, columns = ctx.saved_tensors
    *options, transposed = ctx.options
    grad = getattr(torch.ops, library).laplacian_propagation(grad, offsets, neighbors, columns, rows, *options, not transposed)
    return grad, *[None] * 9


@on_load
def _register(library: str) -> None:
    register_composite(library, "laplacian_propagation", laplacian_propagation_reference)
    torch.library.register_fake(f"{library}::laplacian_propagation", _fake)
    torch.library.register_autograd(f"{library}::laplacian_propagation", partial(_backward, library), setup_context=_setup_context)
