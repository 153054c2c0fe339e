"""L @ E from CSR indices and degrees alone. Specification: `gru4rec_fast.reference.laplacian`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gru4rec_fast._backend import resolve
from gru4rec_fast.ops._registry import on_load
from gru4rec_fast.reference.laplacian import MATRICES, check_graph
from gru4rec_fast.reference.laplacian import laplacian as reference_laplacian
from gru4rec_fast.reference.philox import WORD_RANGE, check_counters

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def laplacian(
    features: Tensor,
    offsets: Tensor,
    neighbours: Tensor,
    matrix: str = "symmetric",
    *,
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
        features: float32, float64 or bfloat16 [n_nodes, d]; bfloat16 is summed in float32. A NaN reaches the rows of
            the node's neighbours and no others.
        offsets: int64 [n_nodes + 1], from 0 to n_entries.
        neighbours: int32 or int64 [n_entries]; those of node r are `neighbours[offsets[r]:offsets[r + 1]]`.
        matrix: "symmetric" D^-1/2 A D^-1/2, "mean" D^-1 A, "norm" (D + I)^-1 (A + I) or "plain" A.
        dropout: probability in [0, 1) with which each entry of the matrix is dropped, each direction of an edge on its
            own, and the diagonal of "norm"; the rest is multiplied by 1 / (1 - dropout). The mask is a function of
            (seed, step, row, column), recomputed in the backward pass and never stored.
        seed: in [0, 2**63). step: in [0, 2**32).
        transposed: multiply by the transposed matrix, its mask transposed too.
        impl: "auto", "native" or "reference".

    Returns:
        [n_nodes, d] in the dtype of `features`. Native: each row is summed in the order of its neighbours by one
        thread, so the result does not depend on the number of threads.

    Raises:
        ValueError: an argument that does not fit, named.
    """
    _check(features, offsets, neighbours, matrix, dropout, seed, step)
    if resolve(impl, "laplacian", features.device.type) == "native":
        return torch.ops.gru4rec_fast.laplacian(features, offsets, neighbours, matrix, dropout, seed, step, transposed)
    if not torch.compiler.is_compiling():
        check_graph(offsets, neighbours)
    return reference_laplacian(features, offsets, neighbours, matrix, dropout, seed, step, transposed)


def _check(
    features: Tensor, offsets: Tensor, neighbours: Tensor, matrix: str, dropout: float, seed: int, step: int
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
    if offsets.dtype != torch.int64 or offsets.shape != (features.shape[0] + 1,):
        raise ValueError(
            f"offsets must be int64 [n_nodes + 1] beside features {[*features.shape]}, "
            f"not {offsets.dtype} {[*offsets.shape]}"
        )
    if neighbours.dtype not in (torch.int32, torch.int64) or neighbours.dim() != 1:
        raise ValueError(f"neighbours must be int32 or int64 [n_entries], not {neighbours.dtype} {[*neighbours.shape]}")
    for name, tensor in (("offsets", offsets), ("neighbours", neighbours)):
        if tensor.device != features.device:
            raise ValueError(f"{name} is on {tensor.device}, features are on {features.device}: use one device")


def _fake(features: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(features, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, offsets, neighbours, *ctx.options = inputs
    ctx.save_for_backward(offsets, neighbours)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *options, transposed = ctx.options
    grad = torch.ops.gru4rec_fast.laplacian(grad, *ctx.saved_tensors, *options, not transposed)
    return grad, None, None, None, None, None, None, None


@on_load
def _register() -> None:
    torch.library.impl("gru4rec_fast::laplacian", "CompositeExplicitAutograd", reference_laplacian)
    torch.library.register_fake("gru4rec_fast::laplacian", _fake)
    torch.library.register_autograd("gru4rec_fast::laplacian", _backward, setup_context=_setup_context)
