"""L @ E for the propagation matrices of graph recommenders, from the graph's indices alone: no values are stored.

Wang et al., "Neural graph collaborative filtering", SIGIR 2019 (arXiv 1905.08108), equation (8), and the variants of
its published code; He et al., LightGCN, SIGIR 2020 (arXiv 2002.02126), equation (7).

A is the symmetric 0/1 adjacency matrix of an undirected graph in CSR form, D its degrees. Every matrix below has
entries `left[row] * right[column]`, so it needs nothing but the indices and one number per node and side:

    symmetric  D^-1/2 A D^-1/2        left = right = D^-1/2
    mean       D^-1 A                 left = D^-1
    norm       (D + I)^-1 (A + I)     left = (D + 1)^-1, and a diagonal
    plain      A

A node without neighbours has a zero row and column (under norm: a 1 on the diagonal).

Dropout drops each *entry* with probability p, so the two directions of an edge, and the diagonal, each on its own, and
multiplies the rest by 1 / (1 - p); degrees stay those of the whole graph. Entry (row, column) is kept where the first
Philox word of counter (STREAM_EDGE_DROPOUT, step, row, column) is at least floor(p * 2**32).

The transposed matrix has left and right exchanged and the mask of (column, row) at (row, column); since A is symmetric,
the same indices serve. So the gradient of L @ E with respect to E needs no transpose and no stored mask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gru4rec_fast.reference.philox import STREAM_EDGE_DROPOUT, WORD_RANGE, philox4x32

MATRICES = ("symmetric", "mean", "norm", "plain")
_CHUNK = 1 << 22  # elements of messages that are held at a time


def laplacian(
    features: Tensor,
    offsets: Tensor,
    neighbours: Tensor,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    matrix: str = "symmetric",
    dropout: float = 0.0,
    seed: int = 0,
    step: int = 0,
    transposed: bool = False,
) -> Tensor:
    """Return L[rows][:, columns] @ features, [n_rows, d] in the dtype of `features` (bfloat16 is summed in float32).

    features: [n_columns, d]. rows, columns: int64, nodes in rising order, or None: all of them. offsets: int64
    [n_nodes + 1]; the neighbours of node r are `neighbours[offsets[r]:offsets[r + 1]]`, int32 or int64. matrix: one of
    MATRICES. dropout: probability of dropping an entry. seed, step: of the mask. transposed: L^T instead of L.
    """
    sums = torch.float32 if features.dtype == torch.bfloat16 else features.dtype
    left, right = node_scales(offsets.diff(), matrix, sums)
    if transposed:
        left, right = right, left
    if dropout:
        left = left / (1 - dropout)
    sources = torch.repeat_interleave(offsets.diff(), output_size=neighbours.shape[0])
    wide = features.to(sums)
    if columns is not None:
        wide = wide.new_zeros(offsets.shape[0] - 1, wide.shape[1]).index_copy(0, columns, wide)
    out = torch.zeros_like(wide)
    if matrix == "norm":
        nodes = torch.arange(offsets.shape[0] - 1, device=offsets.device)
        out = out + _messages(wide, nodes, nodes, right, dropout, seed, step, transposed)
    chunk = max(1, _CHUNK // max(1, features.shape[1]))
    for start in range(0, max(1, neighbours.shape[0]), chunk):  # once for no entries: the result has a gradient
        row, column = sources[start : start + chunk], neighbours[start : start + chunk].long()
        out = out.index_add(0, row, _messages(wide, row, column, right, dropout, seed, step, transposed))
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


def _messages(
    features: Tensor,
    row: Tensor,
    column: Tensor,
    right: Tensor,
    dropout: float,
    seed: int,
    step: int,
    transposed: bool,
) -> Tensor:
    """What each entry (row, column) carries to its row, [n_entries, d]: `right[column] * features[column]` or zeros."""
    messages = features.index_select(0, column) * right[column][:, None]
    if not dropout:
        return messages
    stream, now = torch.tensor([STREAM_EDGE_DROPOUT, step], device=row.device).unbind()
    entry = (column, row) if transposed else (row, column)
    dropped = philox4x32((stream, now, *entry), seed)[0] < math.floor(dropout * WORD_RANGE)
    return messages.masked_fill(dropped[:, None], 0)  # not times 0: a dropped NaN is gone


def check_graph(offsets: Tensor, neighbours: Tensor) -> None:
    """Raise ValueError unless `offsets` rise from 0 to the number of `neighbours`, which all name nodes."""
    n_nodes, n_entries = offsets.shape[0] - 1, neighbours.shape[0]
    if int(offsets[0]) != 0 or int(offsets[-1]) != n_entries or bool((offsets.diff() < 0).any()):
        raise ValueError(f"offsets must rise from 0 to {n_entries}, the number of neighbours, and never fall")
    outside = (neighbours < 0) | (neighbours >= n_nodes)
    if bool(outside.any()):
        at = int(outside.int().argmax())
        raise ValueError(f"neighbours[{at}]={int(neighbours[at])}: the graph has nodes 0 to {n_nodes - 1}")


def check_nodes(name: str, nodes: Tensor, n_nodes: int) -> None:
    """Raise ValueError unless `nodes` are in range and strictly rising; reads them."""
    if len(nodes) and (int(nodes[0]) < 0 or int(nodes[-1]) >= n_nodes or bool((nodes.diff() <= 0).any())):
        raise ValueError(f"{name} must be nodes in 0 to {n_nodes - 1}, each rising above the one before")
