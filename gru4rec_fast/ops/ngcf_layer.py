"""One layer of neural graph collaborative filtering.

Wang et al., "Neural graph collaborative filtering", SIGIR 2019 (arXiv 1905.08108), equation (7), and the variants of
its published code:

    sum       E' = act(P E W1 + b1 + (Q E * E) W2 + b2)
    per_term  E' = act(P E W1 + b1) + act((Q E * E) W2 + b2)

E are the input features, E' the output, act is LeakyReLU, and * is element-wise. P and Q are propagation matrices
(`gru4rec_fast.ops.laplacian_propagation`); the suffix "+I" of a name adds the identity matrix. If P and Q differ only
by the identity, their product with E is computed once.

Node dropout drops the same entries of P and Q, but no entries of the identity. Message dropout drops units of E': unit
k of node n is dropped if the first Philox word of the counter (STREAM_MESSAGE_DROPOUT + layer, step, n, k) is less than
floor(message_dropout * 2**32), else multiplied by 1 / (1 - message_dropout) (`gru4rec_fast.ops.philox`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gru4rec_fast._backend import resolve
from gru4rec_fast.ops._checks import check_choice, check_probability, check_tensor, split_step
from gru4rec_fast.ops._registry import on_load, operators, register, register_gradient
from gru4rec_fast.ops.dropout import dropout_mask, dropout_mask_reference
from gru4rec_fast.ops.laplacian_propagation import MATRICES, laplacian_propagation, laplacian_propagation_reference
from gru4rec_fast.ops.philox import STREAM_MESSAGE_DROPOUT, STREAM_TRIPLES

PROPAGATION_MATRICES = (*MATRICES, *(f"{matrix}+I" for matrix in MATRICES))
ACTIVATIONS = ("sum", "per_term")
FUSED_DTYPES = (torch.float32, torch.float64)


def ngcf_layer(
    features: Tensor,
    offsets: Tensor,
    neighbors: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    *,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    P: str = "symmetric+I",
    Q: str = "symmetric",
    activation: str = "sum",
    negative_slope: float = 0.2,
    node_dropout: float = 0.0,
    message_dropout: float = 0.0,
    seed: int = 0,
    step: int | Tensor = 0,
    layer: int = 0,
    impl: str = "auto",
) -> Tensor:
    """Return the output E' of an NGCF layer (formulas at the top of this file).

    Differentiable in features, weights and biases. The fused kernel has no second derivative: backward with
    create_graph=True raises RuntimeError. For dtypes without a fused kernel (bfloat16), the layer is computed by
    `laplacian_propagation` and matrix products of torch, with the same dropout.

    Args:
        features: E, floating [n_nodes, in] ([n_columns, in] with `columns`).
        offsets, neighbors: the graph, see `laplacian_propagation`.
        weight_1, weight_2: [in, out], in the dtype of `features`.
        bias_1, bias_2: [out], in the dtype of `features`.
        rows: int64 [n_rows], the nodes of which E' is computed, increasing; None: all.
        columns: int64 [n_columns], the nodes whose features are given, increasing; None: all. The features of all other
            nodes are taken as zero. With `columns`, `rows` must be given, and all `rows` must be among `columns`.
        P, Q: "symmetric", "mean", "norm" or "plain" (see `laplacian_propagation`), each with or without "+I".
        activation: "sum" or "per_term".
        negative_slope: slope of the LeakyReLU, not negative.
        node_dropout: probability in [0, 1) of dropping an entry of P and Q.
        message_dropout: probability in [0, 1) of dropping a unit of E'.
        seed: in [0, 2**63).
        step: number of the training step, in [0, 2**32), an integer or a 0-dim int64 tensor on the device. The tensor
            must not be changed in place before the backward pass, which reads it.
        layer: number of the layer, in [0, 2**17), so that layers drop different units.
        impl: "auto", "native" or "reference".

    Returns:
        E', [n_nodes, out], or [n_rows, out].

    Raises:
        ValueError: an argument is out of range or does not fit the others.
    """
    graph = {"offsets": offsets, "neighbors": neighbors, "rows": rows, "columns": columns}
    weights = {"weight_1": weight_1, "bias_1": bias_1, "weight_2": weight_2, "bias_2": bias_2}
    _check_tensors(features, weights, graph)
    _check_options(P, Q, activation, negative_slope, message_dropout, layer)
    chosen = resolve(impl, "ngcf_layer", features.device.type)
    is_fused = chosen != "reference" and features.dtype in FUSED_DTYPES
    # The step's number is step + counter; a `step` that is a tensor becomes the counter.
    step, counter = split_step(seed, step, 1, features.device, reads_value=chosen == "reference")
    options = (
        P,
        Q,
        activation == "per_term",
        negative_slope,
        node_dropout,
        message_dropout,
        seed,
        step,
        counter,
        layer,
    )
    if is_fused:
        return operators(chosen).ngcf_layer(features, *graph.values(), *weights.values(), *options)[0]
    if rows is not None and columns is not None and not torch.compiler.is_compiling():
        _check_rows_among(rows, columns)

    def with_counter(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Give a public function the arguments `step` and `counter` of its reference."""
        return lambda *args, step, counter, **options: function(
            *args, step=step if counter is None else counter, impl=impl, **options
        )

    propagate, draw_mask = with_counter(laplacian_propagation), with_counter(dropout_mask)
    run: Callable[..., Tensor] = partial(ngcf_layer_reference, propagate=propagate, draw_mask=draw_mask)
    return run(features, *graph.values(), *weights.values(), *options)


def _check_tensors(features: Tensor, weights: dict[str, Tensor], graph: dict[str, Tensor | None]) -> None:
    weight_1 = weights["weight_1"]
    if features.dim() != 2 or weight_1.dim() != 2:
        raise ValueError(
            f"features must be [n_nodes, in] and weight_1 [in, out], not {[*features.shape]} and {[*weight_1.shape]}"
        )
    n_in, n_out = features.shape[1], weight_1.shape[1]
    for name, tensor in weights.items():
        shape = (n_in, n_out) if name.startswith("weight") else (n_out,)
        check_tensor(name, tensor, features.dtype, shape, features.device)
    for name, indices in graph.items():
        if indices is not None and indices.device != features.device:
            raise ValueError(f"{name} is on {indices.device}, features are on {features.device}: use one device")
    if graph["columns"] is not None and graph["rows"] is None:
        raise ValueError("columns: also give rows; every row must be a column")


def _check_options(P: str, Q: str, activation: str, negative_slope: float, message_dropout: float, layer: int) -> None:
    split_matrix("P", P)
    split_matrix("Q", Q)
    check_choice("activation", activation, ACTIVATIONS)
    if not negative_slope >= 0:
        raise ValueError(f"negative_slope={negative_slope}: must not be negative")
    check_probability("message_dropout", message_dropout)
    if not 0 <= layer < STREAM_TRIPLES - STREAM_MESSAGE_DROPOUT:
        raise ValueError(f"layer={layer}: must be in [0, {STREAM_TRIPLES - STREAM_MESSAGE_DROPOUT})")


def _check_rows_among(rows: Tensor, columns: Tensor) -> None:
    """Raise ValueError unless all `rows` are in `columns`; on a GPU, assert it without synchronizing."""
    no_node = columns.new_full((1,), -1)  # searchsorted returns len(columns) for a row greater than all columns
    is_column = torch.cat([columns, no_node]).index_select(0, torch.searchsorted(columns, rows)) == rows
    if rows.device.type != "cpu":
        torch._assert_async(is_column.all(), "rows: a node is not among the columns")
    elif not bool(is_column.all()):
        raise ValueError(f"rows: node {int(rows[~is_column][0])} is not among the columns")


def ngcf_layer_reference(
    features: Tensor,
    offsets: Tensor,
    neighbors: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    P: str,
    Q: str,
    per_term: bool,
    negative_slope: float,
    node_dropout: float,
    message_dropout: float,
    seed: int,
    step: int,
    counter: Tensor | None,
    layer: int,
    *,
    propagate: Callable[..., Tensor] = laplacian_propagation_reference,
    draw_mask: Callable[..., Tensor] = dropout_mask_reference,
) -> Tensor:
    """Return E' of the nodes `rows` from E of the nodes `columns`.

    counter: added to `step` unless it is None. propagate: computes the products with P and Q. draw_mask: draws the mask
    of the message dropout.
    """
    row_features = select_nodes(features, rows, columns)
    counters = {"seed": seed, "step": step, "counter": counter}
    multiply = partial(
        propagate, features, offsets, neighbors, rows=rows, columns=columns, dropout=node_dropout, **counters
    )
    (p_matrix, p_identity), (q_matrix, q_identity) = split_matrix("P", P), split_matrix("Q", Q)
    p = q = multiply(matrix=p_matrix)
    if q_matrix != p_matrix:
        q = multiply(matrix=q_matrix)
    p = p + row_features if p_identity else p
    q = q + row_features if q_identity else q
    if not per_term:
        first = torch.addmm(bias_1 + bias_2, p, weight_1)
        out = F.leaky_relu_(torch.addmm(first, q * row_features, weight_2), negative_slope)
    else:
        first = torch.addmm(bias_1, p, weight_1)
        second = torch.addmm(bias_2, q * row_features, weight_2)
        out = F.leaky_relu(first, negative_slope) + F.leaky_relu(second, negative_slope)
    if message_dropout == 0:
        return out
    shape, stream = (1, offsets.shape[0] - 1, out.shape[1]), STREAM_MESSAGE_DROPOUT + layer
    mask = draw_mask(*shape, message_dropout, stream=stream, **counters, dtype=out.dtype, device=out.device)
    return out * select_nodes(mask[0], rows, None)


def select_nodes(table: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """Select the nodes `rows` (None: all) from a table that has one row per node in `columns` (None: all nodes)."""
    if rows is None:
        return table
    return table.index_select(0, rows if columns is None else torch.searchsorted(columns, rows))


def split_matrix(name: str, matrix: str) -> tuple[str, bool]:
    """Return the matrix for `laplacian_propagation` and whether the identity is added: ("mean", True) for "mean+I"."""
    check_choice(name, matrix, PROPAGATION_MATRICES)
    return matrix.removesuffix("+I"), matrix.endswith("+I")


def _fake(
    features: Tensor, offsets: Tensor, neighbors: Tensor, rows: Tensor | None, columns: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    weight, P, Q = rest[0], rest[4], rest[5]  # rest: weight_1, bias_1, weight_2, bias_2, P, Q, ...
    n_rows = offsets.shape[0] - 1 if rows is None else rows.shape[0]
    one_product = P.removesuffix("+I") == Q.removesuffix("+I")
    return (
        features.new_empty(n_rows, weight.shape[1]),
        features.new_empty(n_rows, features.shape[1]),
        features.new_empty(0) if one_product else features.new_empty(n_rows, features.shape[1]),
        features.new_empty(n_rows, weight.shape[1], dtype=torch.uint8),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, offsets, neighbors, rows, columns, weight_1, _, weight_2, _, *ctx.options, counter, ctx.layer = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else autograd allocates zeros as gradients of the saved tensors
    ctx.save_for_backward(features, offsets, neighbors, rows, columns, weight_1, weight_2, *output[1:], counter)


def _backward(library: str, ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 19  # one for each input of the operator
    *saved, counter = ctx.saved_tensors
    backward = getattr(torch.ops, library).ngcf_layer_backward
    grads = backward(grad, *saved, *ctx.options, counter, ctx.layer)
    return grads[0], None, None, None, None, *grads[1:], *(None,) * 10


def _fake_backward(grad: Tensor, features: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    weight = rest[4]  # rest: offsets, neighbors, rows, columns, weight_1, ...
    bias = weight.new_empty(weight.shape[1])
    return tuple(torch.empty_like(tensor) for tensor in (features, weight, bias, weight, bias))


@on_load
def _register(library: str) -> None:
    register(library, "ngcf_layer", None, _fake)
    register(library, "ngcf_layer_backward", None, _fake_backward)
    register_gradient(library, "ngcf_layer", partial(_backward, library), _setup_context)
