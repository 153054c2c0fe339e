"""L @ E from CSR indices and degrees alone. Specification: `gru4rec_fast.reference.laplacian`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast._backend import resolve
from gru4rec_fast.ops._registry import on_load, operators, register_composite
from gru4rec_fast.reference.laplacian import MATRICES, check_graph, check_nodes
from gru4rec_fast.reference.laplacian import laplacian as reference_laplacian
from gru4rec_fast.reference.philox import WORD_RANGE, check_counters

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def laplacian(
    features: Tensor,
    offsets: Tensor,
    neighbours: Tensor,
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
    """Product of a graph's propagation matrix with node features; differentiable with respect to the features.

    The graph is undirected: whenever it lists c as a neighbour of r, it lists r as a neighbour of c. That is not
    checked here, and the gradient depends on it; `gru4rec_fast.data.InteractionGraph` gives such graphs.

    Args:
        features: float32, float64 or bfloat16 [n_nodes, d] ([n_columns, d] with `columns`); bfloat16 is summed in
            float32. A NaN reaches the rows of the node's neighbours and no others.
        offsets: int64 [n_nodes + 1], from 0 to n_entries.
        neighbours: int32 or int64 [n_entries]; those of node r are `neighbours[offsets[r]:offsets[r + 1]]`.
        matrix: "symmetric" D^-1/2 A D^-1/2, "mean" D^-1 A, "norm" (D + I)^-1 (A + I) or "plain" A.
        rows: int64 [n_rows], the rows of the product that are wanted, as nodes in rising order; None: all.
        columns: int64 [n_columns], the nodes whose features are given, in rising order; None: all. The features of all
            others count as zero.
        dropout: probability in [0, 1) with which each entry of the matrix is dropped, each direction of an edge on its
            own, and the diagonal of "norm"; the rest is multiplied by 1 / (1 - dropout). The mask is a function of
            (seed, step, row, column), recomputed in the backward pass and never stored.
        seed: in [0, 2**63). step: in [0, 2**32).
        transposed: multiply by the transposed matrix, its mask transposed too.
        impl: "auto", "native", "reference" or "emulated".

    Returns:
        [n_nodes, d], or [n_rows, d], in the dtype of `features`. Native: each row is summed in the order of its
        neighbours by one thread, so the result depends neither on the number of threads nor on `rows`.

    Raises:
        ValueError: an argument that does not fit, named.
    """
    _check(features, offsets, neighbours, rows, columns, matrix, dropout, seed, step)
    chosen = resolve(impl, "laplacian", features.device.type)
    if chosen != "reference":
        return operators(chosen).laplacian(
            features, offsets, neighbours, rows, columns, matrix, dropout, seed, step, transposed
        )
    if not torch.compiler.is_compiling():
        check_graph(offsets, neighbours)
        for name, nodes in (("rows", rows), ("columns", columns)):
            if nodes is not None:
                check_nodes(name, nodes, offsets.shape[0] - 1)
    return reference_laplacian(features, offsets, neighbours, rows, columns, matrix, dropout, seed, step, transposed)


def _check(
    features: Tensor,
    offsets: Tensor,
    neighbours: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    matrix: str,
    dropout: float,
    seed: int,
    step: int,
) -> None:
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
    if neighbours.dtype not in (torch.int32, torch.int64) or neighbours.dim() != 1:
        raise ValueError(f"neighbours must be int32 or int64 [n_entries], not {neighbours.dtype} {[*neighbours.shape]}")
    for name, tensor in (("offsets", offsets), ("neighbours", neighbours)):
        if tensor.device != features.device:
            raise ValueError(f"{name} is on {tensor.device}, features are on {features.device}: use one device")


def _fake(features: Tensor, offsets: Tensor, neighbours: Tensor, rows: Tensor | None, *_: Any) -> Tensor:
    return features.new_empty(offsets.shape[0] - 1 if rows is None else rows.shape[0], features.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, offsets, neighbours, rows, columns, *ctx.options = inputs
    ctx.save_for_backward(offsets, neighbours, rows, columns)


def _backward(library: str, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    offsets, neighbours, rows, columns = ctx.saved_tensors
    *options, transposed = ctx.options
    grad = getattr(torch.ops, library).laplacian(grad, offsets, neighbours, columns, rows, *options, not transposed)
    return grad, *[None] * 9


@on_load
def _register(library: str) -> None:
    register_composite(library, "laplacian", reference_laplacian)
    torch.library.register_fake(f"{library}::laplacian", _fake)
    torch.library.register_autograd(f"{library}::laplacian", partial(_backward, library), setup_context=_setup_context)
