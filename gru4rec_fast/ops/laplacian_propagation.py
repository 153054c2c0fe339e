"""Products L @ E of a graph's propagation matrix L and node features E, as in graph recommenders.

Wang et al., "Neural graph collaborative filtering", SIGIR 2019 (arXiv 1905.08108), equation (8), and the variants of
its published code; He et al., LightGCN, SIGIR 2020 (arXiv 2002.02126), equation (7).

A is the symmetric 0/1 adjacency matrix of an undirected graph in CSR form, D the diagonal matrix of its degrees. The
nonzero entries of every matrix below are `row_scale[row] * column_scale[column]`. So the entries are not stored, but
computed from the indices and two vectors:

    symmetric  D^-1/2 A D^-1/2        row_scale = column_scale = D^-1/2
    mean       D^-1 A                 row_scale = D^-1, column_scale = 1
    norm       (D + I)^-1 (A + I)     row_scale = (D + I)^-1, column_scale = 1; also has entries on the diagonal
    plain      A                      row_scale = column_scale = 1

A node without neighbors has a zero row and column ("norm": a 1 on the diagonal).

Dropout drops each entry with probability p, independently for the two directions of an edge and for the diagonal, and
multiplies the other entries by 1 / (1 - p). The degrees are not changed by dropout. Entry (row, column) is dropped if
the first Philox word of the counter (STREAM_EDGE_DROPOUT, step, row, column) is less than floor(p * 2**32)
(`gru4rec_fast.ops.philox`).

In the transposed matrix, row_scale and column_scale are exchanged, and entry (row, column) has the mask of entry
(column, row). A is symmetric, so the indices are the same. Therefore the gradient of L @ E with respect to E needs
neither a transposed graph nor a stored mask.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.ops._checks import check_choice, check_probability, check_tensor, split_step
from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load, register
from gru4rec_fast.ops.philox import STREAM_EDGE_DROPOUT, WORD_RANGE, philox4x32, step_word

MATRICES = ("symmetric", "mean", "norm", "plain")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_CHUNK = 1 << 22  # the reference computes at most this many products (matrix entries times d) at a time


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
    step: int | Tensor = 0,
    transposed: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Return the product of a graph's propagation matrix with node features; differentiable in the features.

    The graph must be undirected: if c is a neighbor of r, then r is a neighbor of c. This is not checked, and the
    gradient is wrong otherwise. `gru4rec_fast.data.InteractionGraph` returns such graphs.

    Args:
        features: float32, float64 or bfloat16 [n_nodes, d] ([n_columns, d] with `columns`); bfloat16 is summed in
            float32. A NaN in the features of a node affects only the rows of its neighbors ("norm": also its own).
        offsets: int64 [n_nodes + 1], nondecreasing, from 0 to n_entries.
        neighbors: int32 or int64 [n_entries]; the neighbors of node r are `neighbors[offsets[r]:offsets[r + 1]]`.
        matrix: "symmetric" D^-1/2 A D^-1/2, "mean" D^-1 A, "norm" (D + I)^-1 (A + I) or "plain" A.
        rows: int64 [n_rows], the nodes whose rows of the product are computed, increasing; None: all.
        columns: int64 [n_columns], the nodes whose features are given, increasing; None: all. The features of all
            other nodes are taken as zero.
        dropout: probability in [0, 1) of dropping an entry of the matrix; the entries that stay are multiplied by
            1 / (1 - dropout). The two directions of an edge, and the diagonal of "norm", are dropped independently. The
            dropout mask depends on seed, step, row and column; the backward pass recomputes it.
        seed: in [0, 2**63).
        step: number of the training step, in [0, 2**32), an integer or a 0-dim int64 tensor on the device. The tensor
            must not be changed in place before the backward pass, which reads it.
        transposed: whether to multiply by the transpose of the matrix after dropout.
        impl: "auto", "native" or "reference".

    Returns:
        [n_nodes, d], or [n_rows, d], in the dtype of `features`. Native: the order in which a row is summed depends
        only on its neighbors, so the result depends neither on the number of threads nor on `rows`.

    Raises:
        ValueError: an argument is out of range or does not fit the others. The neighbors of nodes that are not among
            `rows` are not read, so they may be out of range.
    """
    check_choice("matrix", matrix, MATRICES)
    check_probability("dropout", dropout)
    device = features.device
    propagate = implementation("laplacian_propagation", impl, device, laplacian_propagation_reference)
    is_reference = propagate is laplacian_propagation_reference
    step, counter = split_step(seed, step, 1, device, reads_value=is_reference)
    check_tensor("features", features, DTYPES, ("n_nodes", "d"), device)
    if features.shape[0] >= WORD_RANGE:
        raise ValueError(f"features of {features.shape[0]} nodes: there must be fewer than 2**32")
    check_tensor("rows", rows, torch.int64, ("n_rows",), device)
    check_tensor("columns", columns, torch.int64, ("n_columns",), device)
    check_tensor("offsets", offsets, torch.int64, ("n_nodes + 1",), device)
    check_tensor("neighbors", neighbors, (torch.int32, torch.int64), ("n_entries",), device)
    if columns is not None and columns.shape[0] != features.shape[0]:
        raise ValueError(f"features has {features.shape[0]} rows, but columns has {columns.shape[0]} nodes")
    if offsets.shape[0] < 1 or (columns is None and offsets.shape[0] != features.shape[0] + 1):
        raise ValueError(
            "offsets must be int64 [n_nodes + 1] and features [n_nodes, d], "
            f"not {[*offsets.shape]} and {[*features.shape]}"
        )
    # The native kernels check the graph themselves.
    if is_reference and not torch.compiler.is_compiling():
        for name, nodes in (("rows", rows), ("columns", columns)):
            if nodes is not None:
                check_nodes(name, nodes, offsets.shape[0] - 1)
        check_graph(offsets, neighbors, rows)
    return propagate(features, offsets, neighbors, rows, columns, matrix, dropout, seed, step, counter, transposed)


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
    counter: Tensor | None,
    transposed: bool = False,
) -> Tensor:
    """Return L[rows][:, columns] @ features, with L transposed if `transposed`; bfloat16 is summed in float32.

    counter: added to `step` unless it is None.
    """
    sum_dtype = torch.float32 if features.dtype == torch.bfloat16 else features.dtype
    row_scale, column_scale = node_scales(offsets.diff(), matrix, sum_dtype)
    if transposed:
        row_scale, column_scale = column_scale, row_scale
    if dropout:
        row_scale = row_scale / (1 - dropout)
    row_of_entry = torch.repeat_interleave(offsets.diff(), output_size=neighbors.shape[0])
    if rows is not None:  # the neighbors of other rows are not used, so they may be out of range
        neighbors = neighbors.masked_fill(~is_read(rows, offsets, neighbors.shape[0]), 0)
    all_features = features.to(sum_dtype)
    if columns is not None:
        all_features = all_features.new_zeros(offsets.shape[0] - 1, features.shape[1]).index_copy(
            0, columns, all_features
        )

    def messages(row: Tensor, column: Tensor) -> Tensor:
        """Return column_scale[column] * features[column] for each entry (row, column), zeros if it is dropped."""
        message = all_features.index_select(0, column) * column_scale[column][:, None]
        if not dropout:
            return message
        stream = torch.tensor(STREAM_EDGE_DROPOUT, device=row.device)
        entry = (column, row) if transposed else (row, column)
        dropped = philox4x32((stream, step_word(step, counter, row.device), *entry), seed)[0] < math.floor(
            dropout * WORD_RANGE
        )
        return message.masked_fill(dropped[:, None], 0)  # a product with 0 would keep a NaN

    out = torch.zeros_like(all_features)
    if matrix == "norm":
        nodes = torch.arange(offsets.shape[0] - 1, device=offsets.device)
        out = out + messages(nodes, nodes)
    chunk = max(1, _CHUNK // max(1, features.shape[1]))
    for start in range(0, max(1, neighbors.shape[0]), chunk):  # at least once, so that autograd records it
        row, column = row_of_entry[start : start + chunk], neighbors[start : start + chunk].long()
        out = out.index_add(0, row, messages(row, column))
    out = (out * row_scale[:, None]).to(features.dtype)
    return out if rows is None else out.index_select(0, rows)


def node_scales(degrees: Tensor, matrix: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return row_scale and column_scale [n_nodes]: the matrix has entries row_scale[row] * column_scale[column]."""
    ones = torch.ones_like(degrees, dtype=dtype)
    if matrix == "plain":
        return ones, ones
    if matrix == "norm":
        return ((degrees + 1).double() ** -1).to(dtype), ones
    inverse = degrees.double() ** (-0.5 if matrix == "symmetric" else -1.0)
    inverse = inverse.masked_fill(degrees == 0, 0).to(dtype)
    return inverse, (inverse if matrix == "symmetric" else ones)


def is_read(rows: Tensor, offsets: Tensor, n_entries: int) -> Tensor:
    """Return which entries of the graph are neighbors of `rows`, bool [n_entries]."""
    is_row = torch.zeros_like(offsets[1:], dtype=torch.bool).index_fill(0, rows, True)
    return torch.repeat_interleave(is_row, offsets.diff(), output_size=n_entries)


def check_graph(offsets: Tensor, neighbors: Tensor, rows: Tensor | None) -> None:
    """Raise ValueError unless `offsets` increases from 0 to the number of `neighbors`, and the neighbors are nodes.

    rows: nodes whose neighbors are checked; None: all.
    """
    n_nodes, n_entries = offsets.shape[0] - 1, neighbors.shape[0]
    if int(offsets[0]) != 0 or int(offsets[-1]) != n_entries or bool((offsets.diff() < 0).any()):
        raise ValueError(f"offsets must not decrease from 0 to {n_entries}, the number of neighbors")
    outside = (neighbors < 0) | (neighbors >= n_nodes)
    if rows is not None:
        outside &= is_read(rows, offsets, neighbors.shape[0])
    if bool(outside.any()):
        entry = int(outside.int().argmax())
        raise ValueError(f"neighbors[{entry}]={int(neighbors[entry])}: the graph has nodes 0 to {n_nodes - 1}")


def check_nodes(name: str, nodes: Tensor, n_nodes: int) -> None:
    """Raise ValueError unless `nodes` are in range and strictly increasing; synchronizes with a GPU."""
    if len(nodes) and (int(nodes[0]) < 0 or int(nodes[-1]) >= n_nodes or bool((nodes.diff() <= 0).any())):
        raise ValueError(f"{name} must be strictly increasing nodes from 0 to {n_nodes - 1}")


def _fake(features: Tensor, offsets: Tensor, neighbors: Tensor, rows: Tensor | None, *_: Any) -> Tensor:
    return features.new_empty(offsets.shape[0] - 1 if rows is None else rows.shape[0], features.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, offsets, neighbors, rows, columns, *ctx.options, counter, ctx.transposed = inputs
    ctx.save_for_backward(offsets, neighbors, rows, columns, counter)


def _backward(library: str, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    offsets, neighbors, rows, columns, counter = ctx.saved_tensors
    propagate = getattr(torch.ops, library).laplacian_propagation
    # The transposed product exchanges rows and columns. None: one for each other input of the operator.
    return propagate(grad, offsets, neighbors, columns, rows, *ctx.options, counter, not ctx.transposed), *[None] * 10


@on_load
def _register(library: str) -> None:
    register(library, "laplacian_propagation", laplacian_propagation_reference, _fake)
    torch.library.register_autograd(
        f"{library}::laplacian_propagation", partial(_backward, library), setup_context=_setup_context
    )
