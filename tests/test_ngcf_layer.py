"""The operator ngcf_layer: compared with dense float64 formulas and with the reference, which calls other operators.

E are the embeddings of the nodes, P and Q the names of the propagation matrices, W and b weights and biases.
"""

from __future__ import annotations

import math
from typing import Any

import cuda_emulator
import pytest
import torch
from graph_oracle import dense_matrix, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from native import (
    assert_equal_bits,
    compile_backend,
    error_pattern,
    implementations,
    max_examples,
    native_and_emulated,
    operators_of,
    threads,
    why_not_emulated,
)
from oracle.philox import bernoulli_keep
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from gru4rec_fast import _backend
from gru4rec_fast.ops import ngcf_layer
from gru4rec_fast.ops.ngcf_layer import ACTIVATIONS, PROPAGATION_MATRICES

needs_native = pytest.mark.skipif(
    _backend.resolve("auto", "ngcf_layer", "cpu") != "native", reason="ngcf_layer is not built natively"
)
impls = implementations("ngcf_layer")  # reference, native, emulated
kernels = native_and_emulated("ngcf_layer")  # native, emulated
needs_emulation = pytest.mark.skipif(bool(why_not_emulated("ngcf_layer")), reason=why_not_emulated("ngcf_layer") or "-")
MESSAGE_STREAM = 1 << 17  # random stream of message dropout in layer 0; layer l has this plus l
Weights = tuple[Tensor, Tensor, Tensor, Tensor]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def weights_of(width: int, units: int, dtype: torch.dtype = torch.float64) -> Weights:
    """Return random W1 [width, units], b1 [units], W2 and b2."""
    shapes = ((width, units), (units,), (width, units), (units,))
    W1, b1, W2, b2 = (normal(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes, 1))
    return W1, b1, W2, b2


def leaky(x: Tensor, slope: float) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def some_nodes(n_nodes: int, seed: int) -> Tensor:
    """Return a random number of random nodes, in increasing order."""
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(n_nodes + 1, (), generator=generator))
    return torch.randperm(n_nodes, generator=generator)[:n].sort().values


@impls
@settings(max_examples=max_examples(60), deadline=None)
@given(
    graph_sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 40)),  # n_users, n_items, n_draws
    widths=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    P=st.sampled_from(PROPAGATION_MATRICES),
    Q=st.sampled_from(PROPAGATION_MATRICES),
    activation=st.sampled_from(ACTIVATIONS),
    slope=st.sampled_from([0.0, 0.2, 1.5]),
    node_dropout=st.sampled_from([0.0, 0.3]),
    message_dropout=st.sampled_from([0.0, 0.4]),
    selection=st.sampled_from(["all", "rows", "rows and columns"]),
    seed=st.integers(0, 2**40),
    step=st.integers(0, 2**32 - 1),
)
def test_forward_and_gradients_equal_the_dense_formula(
    impl: str,
    graph_sizes: tuple[int, int, int],
    widths: tuple[int, int],
    P: str,
    Q: str,
    activation: str,
    slope: float,
    node_dropout: float,
    message_dropout: float,
    selection: str,
    seed: int,
    step: int,
) -> None:
    offsets, neighbors = random_graph(*graph_sizes, seed=seed % 1000)
    n_nodes = len(offsets) - 1
    rows = columns = torch.arange(n_nodes)
    if selection != "all":
        rows = some_nodes(n_nodes, seed)
    if selection == "rows and columns":
        columns = torch.cat([rows, some_nodes(n_nodes, seed + 1)]).unique()
    E = normal(len(columns), widths[0]).requires_grad_()
    weights = tuple(weight.requires_grad_() for weight in weights_of(*widths))
    W1, b1, W2, b2 = weights

    def matrix(name: str) -> Tensor:
        dense = dense_matrix(offsets, neighbors, name.removesuffix("+I"), node_dropout, seed, step)
        dense = dense + torch.eye(n_nodes, dtype=torch.float64) if name.endswith("+I") else dense
        return dense[rows][:, columns]

    row_features = E[torch.searchsorted(columns, rows)]
    first, second = matrix(P) @ E @ W1 + b1, (matrix(Q) @ E * row_features) @ W2 + b2
    expected = leaky(first + second, slope) if activation == "sum" else leaky(first, slope) + leaky(second, slope)
    keep = bernoulli_keep(
        message_dropout, seed=seed, stream=MESSAGE_STREAM + 3, step=step, lanes=n_nodes, units=widths[1]
    )
    expected = expected * torch.from_numpy(keep)[rows] / (1 - message_dropout)
    out = ngcf_layer(
        E,
        offsets,
        neighbors,
        *weights,
        rows=None if selection == "all" else rows,
        columns=columns if selection == "rows and columns" else None,
        P=P,
        Q=Q,
        activation=activation,
        negative_slope=slope,
        node_dropout=node_dropout,
        message_dropout=message_dropout,
        seed=seed,
        step=step,
        layer=3,
        impl=impl,
    )
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12 * scale)
    grad_out = normal(*out.shape, seed=9)
    grads = torch.autograd.grad(out, (E, *weights), grad_out)
    expected_grads = torch.autograd.grad(expected, (E, *weights), grad_out)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        scale = max(1.0, float(expected_grad.abs().max())) if expected_grad.numel() else 1.0
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-11 * scale)


def large_graph(impl: str = "native") -> tuple[Tensor, Tensor]:
    """Return a graph so large that a kernel processes the nodes in several blocks of rows.

    One node has so many neighbors that a kernel reads them in several passes.
    """
    if impl == "emulated":  # emulated blocks have fewer rows
        return random_graph(60, 90, 900, seed=5, skewed=True)
    return random_graph(900, 1300, 30_000, seed=5, skewed=True)


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("P", "Q"), [("norm", "norm"), ("symmetric+I", "symmetric"), ("mean", "plain+I")])
def test_kernels_are_as_close_as_the_reference(impl: str, dtype: torch.dtype, activation: str, P: str, Q: str) -> None:
    """Compare all rows and selected rows.

    float32 results must be about as close to the float64 reference as the float32 reference is. The tolerance for
    float64 allows another order of the sums.
    """
    offsets, neighbors = large_graph(impl)
    n_nodes = len(offsets) - 1
    for rows in (None, torch.arange(3, n_nodes, 2)):
        columns = None if rows is None else torch.cat([rows, torch.arange(0, n_nodes, 4)]).unique()
        options: dict[str, Any] = {"P": P, "Q": Q, "activation": activation, "rows": rows, "columns": columns}
        options |= {"node_dropout": 0.1, "message_dropout": 0.2, "seed": 7, "step": 5}

        def run(impl: str, run_dtype: torch.dtype, options: dict[str, Any] = options) -> list[Tensor]:
            """Return the output and the gradients, computed in `run_dtype` from numbers that `dtype` can represent."""
            columns = options["columns"]
            tensors = [normal(n_nodes if columns is None else len(columns), 20), *weights_of(20, 70)]
            inputs = [tensor.to(dtype).to(run_dtype).requires_grad_() for tensor in tensors]
            out = ngcf_layer(inputs[0], offsets, neighbors, *inputs[1:], **options, impl=impl)
            return [out, *torch.autograd.grad(out, inputs, normal(*out.shape, seed=4).to(dtype).to(run_dtype))]

        oracle = run("reference", torch.float64)
        for ours, reference, exact in zip(run(impl, dtype), run("reference", dtype), oracle, strict=True):
            norm = float(exact.detach().abs().max())
            reference_error = float((reference.double() - exact).detach().abs().max())
            bound = 2 * reference_error + 4 * torch.finfo(dtype).eps * norm if dtype == torch.float32 else 1e-13 * norm
            assert float((ours.double() - exact).detach().abs().max()) <= bound


@needs_native
def test_threads_do_not_change_a_bit() -> None:
    offsets, neighbors = large_graph()
    inputs = [normal(len(offsets) - 1, 24, dtype=torch.float32), *weights_of(24, 40, torch.float32)]
    for tensor in inputs:
        tensor.requires_grad_()
    results = []
    for n in (1, 2, 3):
        with threads(n):
            out = ngcf_layer(inputs[0], offsets, neighbors, *inputs[1:], node_dropout=0.1, message_dropout=0.1, seed=1)
            results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    assert_equal_bits(results[1], results[0])
    assert_equal_bits(results[2], results[0])


# Input and output width of a layer. Kernels load and store several elements together if a width is a multiple of 4.
LAYER_WIDTHS = [(1, 1), (3, 5), (8, 4), (7, 70), (4, 0)]


def whole_numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random integers from -2 to 2."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def whole_number_layer(impl: str, widths: tuple[int, int], device: str = "cpu", **changed: Any) -> list[Tensor]:
    """Return the output and the gradients of a layer. All numbers are multiples of 1/2, so sums are exact."""
    graph = [t.to(device) for t in random_graph(20, 30, 200, seed=3)]
    dtype = changed.pop("dtype", torch.float32)
    shapes = ((50, widths[0]), widths, (widths[1],), widths, (widths[1],))
    inputs = [whole_numbers(*shape, seed=seed, dtype=dtype).to(device) for seed, shape in enumerate(shapes)]
    options: dict[str, Any] = {"P": "plain+I", "Q": "plain", "negative_slope": 0.5, "seed": 2**40 + 3, "step": 9}
    options |= {"node_dropout": 0.5, "message_dropout": 0.5, **changed}
    E, *weights = (tensor.requires_grad_() for tensor in inputs)
    out = ngcf_layer(E, *graph, *weights, **options, impl=impl)
    grad_out = whole_numbers(*out.shape, seed=8, dtype=dtype).to(device)
    return [out.detach(), *torch.autograd.grad(out, (E, *weights), grad_out)]


@kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", LAYER_WIDTHS)
def test_kernels_equal_reference_for_whole_numbers(impl: str, activation: str, widths: tuple[int, int]) -> None:
    for changed in ({}, {"dtype": torch.float64, "Q": "plain+I", "P": "plain", "node_dropout": 0.0}):
        options: dict[str, Any] = {"activation": activation, **changed}
        assert_equal_bits(
            whole_number_layer(impl, widths, **options), whole_number_layer("reference", widths, **options)
        )


@kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_operator_saves_signs_and_mask_for_backward(impl: str, activation: str) -> None:
    """The last output has three bits for each unit.

    Bit 0 is set if the argument of the activation function is positive, bit 2 if the unit is not dropped. With
    activation "per_term" there are two arguments: bit 0 is for the first and bit 1 for the second.
    """
    offsets, neighbors = random_graph(20, 30, 200, seed=3)
    rows = torch.arange(1, 50, 3)
    E, W1, b1, W2, b2 = (whole_numbers(*shape) for shape in ((50, 3), (3, 8), (8,), (3, 8), (8,)))
    # P, Q, per_term, negative_slope, node_dropout, message_dropout, seed, step, counter, layer
    options = ("plain", "plain+I", activation == "per_term", 0.5, 0.0, 0.4, 5, 6, None, 7)
    _, p, q, saved_bits = operators_of(impl, "ngcf_layer").ngcf_layer(
        E, offsets, neighbors, rows, None, W1, b1, W2, b2, *options
    )
    A = dense_matrix(offsets, neighbors, "plain")[rows].float()
    assert torch.equal(p, A @ E) and q.numel() == 0  # q is empty, because P and Q differ only by the identity
    first, second = A @ E @ W1 + b1, ((A @ E + E[rows]) * E[rows]) @ W2 + b2
    keep = bernoulli_keep(0.4, seed=5, stream=MESSAGE_STREAM + 7, step=6, lanes=50, units=8)
    bits = [first + second > 0, torch.zeros_like(first, dtype=torch.bool)]
    bits = [first > 0, second > 0] if activation == "per_term" else bits
    expected = [*bits, torch.from_numpy(keep)[rows]]
    assert torch.equal(saved_bits.long(), sum(bit.long() << i for i, bit in enumerate(expected)))


@needs_emulation
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_emulated_bits_do_not_depend_on_order_of_threads_or_memory_alignment(activation: str) -> None:
    offsets, neighbors = large_graph("emulated")
    rows, columns = torch.arange(3, 150, 2), torch.arange(1, 150)
    aligned = [normal(149, 12, dtype=torch.float32), *weights_of(12, 8, torch.float32)]

    def shifted(tensor: Tensor) -> Tensor:
        """Return a copy that is not aligned for loads of several elements."""
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)

    def run(inputs: list[Tensor]) -> list[Tensor]:
        E, *weights = (tensor.requires_grad_() for tensor in inputs)
        options: dict[str, Any] = {"Q": "mean+I", "activation": activation, "node_dropout": 0.1, "message_dropout": 0.2}
        out = ngcf_layer(E, offsets, neighbors, *weights, rows=rows, columns=columns, **options, impl="emulated")
        return [out.detach(), *torch.autograd.grad(out.square().sum(), (E, *weights))]

    emulation = cuda_emulator.load()
    emulation.set_seed(1)
    expected = run(aligned)
    for seed, inputs in ((2, aligned), (3, [shifted(tensor) for tensor in aligned])):
        emulation.set_seed(seed)
        assert_equal_bits(run(inputs), expected)


@needs_emulation
def test_emulated_index_arithmetic_beyond_two_to_the_31st_feature() -> None:
    """There are more than 2**31 features and gradients, but only the last rows use memory.

    The graph has no edges. With P = Q = "plain+I" the output is leaky(E W1 + b1 + (E * E) W2 + b2).
    """
    n, width = 2**19 + 6, 2**12
    E = torch.empty(n, width)
    rows = torch.tensor([n - 3, n - 1])
    E[rows] = normal(2, width, dtype=torch.float32)
    W1, b1, W2, b2 = (weight.float() / width for weight in weights_of(width, 1))
    graph = torch.zeros(n + 1, dtype=torch.int64), torch.empty(0, dtype=torch.int32)
    # P, Q, per_term, negative_slope, node_dropout, message_dropout, seed, step, counter, layer
    options = ("plain+I", "plain+I", False, 0.5, 0.0, 0.0, 0, 0, None, 0)
    library = operators_of("emulated", "ngcf_layer")
    emulation = cuda_emulator.load()
    emulation.set_block_limit(64)  # runs all blocks of the two rows, and the last blocks of the gradient of E
    try:
        out, *saved = library.ngcf_layer(E, *graph, rows, None, W1, b1, W2, b2, *options)
        grads = library.ngcf_layer_backward(torch.ones_like(out), E, *graph, rows, None, W1, W2, *saved, *options)
    finally:
        emulation.set_block_limit(0)
    row_features = E[rows].double().requires_grad_()
    weights = [weight.double().requires_grad_() for weight in (W1, b1, W2, b2)]
    terms = row_features @ weights[0] + weights[1] + row_features.square() @ weights[2] + weights[3]
    expected = leaky(terms, 0.5)
    assert E.numel() > 2**31
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-6)
    grad_row_features, *grad_weights = torch.autograd.grad(expected.sum(), (row_features, *weights))
    torch.testing.assert_close(grads[0][-3:, -100:].double()[[0, 2]], grad_row_features[:, -100:], rtol=0, atol=1e-6)
    assert not grads[0][-2, -100:].any()
    for ours, theirs in zip(grads[1:], grad_weights, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5)


@impls
def test_message_dropout_of_a_node_does_not_depend_on_rows(impl: str) -> None:
    """The mask of a node's units is the same whether all nodes or only some are computed."""
    offsets, neighbors = large_graph(impl)
    E, weights = normal(len(offsets) - 1, 6), weights_of(6, 100)
    options: dict[str, Any] = {"message_dropout": 0.3, "seed": 2, "step": 8, "layer": 1, "impl": impl}
    dropped = ngcf_layer(E, offsets, neighbors, *weights, **options) == 0
    rows = torch.arange(5, len(offsets) - 1, 11)
    dropped_rows = ngcf_layer(E, offsets, neighbors, *weights, rows=rows, **options) == 0
    assert torch.equal(dropped_rows, dropped[rows])
    # 4 standard deviations, at a fixed seed
    assert abs(float(dropped.double().mean()) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / dropped.numel())
    dropped_in_layer_2 = ngcf_layer(E, offsets, neighbors, *weights, **(options | {"layer": 2})) == 0
    assert not torch.equal(dropped, dropped_in_layer_2)


@impls
def test_nan_affects_only_the_node_and_the_neighbors(impl: str) -> None:
    offsets, neighbors = random_graph(6, 6, 12, seed=1)
    E = normal(12, 5)
    E[3, 2] = math.nan
    is_nan = ngcf_layer(E, offsets, neighbors, *weights_of(5, 4), message_dropout=0.2, impl=impl).isnan().any(1)
    expected = torch.zeros(12, dtype=torch.bool)
    expected[neighbors[offsets[3] : offsets[4]].long()] = True
    expected[3] = True
    assert torch.equal(is_nan, expected)


@impls
def test_no_rows_or_no_nodes_give_an_empty_output(impl: str) -> None:
    offsets, neighbors = random_graph(3, 4, 9, seed=2)
    for E, rows, graph in (
        (normal(7, 3), torch.empty(0, dtype=torch.int64), (offsets, neighbors)),
        (normal(0, 3), None, (torch.zeros(1, dtype=torch.int64), torch.empty(0, dtype=torch.int64))),
    ):
        inputs = [tensor.requires_grad_() for tensor in (E, *weights_of(3, 2))]
        out = ngcf_layer(inputs[0], *graph, *inputs[1:], rows=rows, message_dropout=0.1, impl=impl)
        assert out.shape == (0, 2)
        assert all(not grad.any() for grad in torch.autograd.grad(out.sum(), inputs))


@impls
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("P", "Q"), [("norm", "norm"), ("symmetric+I", "symmetric"), ("mean+I", "plain+I")])
def test_gradcheck(impl: str, activation: str, P: str, Q: str) -> None:
    offsets, neighbors = random_graph(4, 5, 11, seed=4)

    def run(E: Tensor, *weights: Tensor) -> Tensor:
        return ngcf_layer(
            E,
            offsets,
            neighbors,
            *weights,
            P=P,
            Q=Q,
            activation=activation,
            node_dropout=0.3,
            message_dropout=0.2,
            seed=5,
            impl=impl,
        )

    inputs = [tensor.requires_grad_() for tensor in (normal(9, 3), *weights_of(3, 2))]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=impl == "emulated")


@impls
def test_second_derivative_is_right_or_an_error(impl: str) -> None:
    """Without the error, `backward` could silently drop it: the first term of the loss has a gradient anyway."""
    offsets, neighbors = random_graph(4, 5, 12, seed=2)
    E, *weights = (tensor.requires_grad_() for tensor in (normal(9, 3), *weights_of(3, 2)))
    loss = ngcf_layer(E, offsets, neighbors, *weights, impl=impl).square().sum()
    if impl != "reference":
        with pytest.raises(RuntimeError, match=r'ngcf_layer: its gradient is not differentiable .* impl="reference"'):
            torch.autograd.grad(loss, E, create_graph=True)
        return
    (grad,) = torch.autograd.grad(loss, E, create_graph=True)
    (loss + grad.square().sum()).backward()
    assert E.grad is not None and E.grad.isfinite().all()


@kernels
def test_operators_check_the_graph_before_they_read_features(impl: str) -> None:
    """More nodes than features, and rows that are not nodes, would make forward and backward read out of bounds."""
    library = operators_of(impl, "ngcf_layer")
    offsets, neighbors = random_graph(4, 5, 12, seed=2)
    # P, Q, per_term, negative_slope, node_dropout, message_dropout, seed, step, counter, layer
    options = ("mean", "mean", True, 0.2, 0.0, 0.0, 0, 0, None, 0)
    W1, b1, W2, b2 = weights_of(4, 3)
    long_offsets = torch.cat([offsets, offsets[-1:].expand(1000)])
    bad_rows = torch.tensor([0, 2**40])
    for graph, rows, n, message in ((offsets, bad_rows, 2, "rows"), (long_offsets, None, 1009, "features has 9 rows")):
        with pytest.raises(ValueError, match=message):
            library.ngcf_layer(normal(9, 4), graph, neighbors, rows, None, W1, b1, W2, b2, *options)
        if rows is not None and impl == "emulated":
            continue  # CUDA kernels check the rows only after they have read the features
        saved = (normal(n, 4), normal(0), torch.zeros(n, 3, dtype=torch.uint8))
        with pytest.raises(ValueError, match=message):
            library.ngcf_layer_backward(
                normal(n, 3), normal(9, 4), graph, neighbors, rows, None, W1, W2, *saved, *options
            )


@impls
def test_bfloat16_is_within_rounding(impl: str) -> None:
    offsets, neighbors = random_graph(30, 40, 200, seed=3)
    inputs = [normal(70, 16), *weights_of(16, 8)]
    E, *weights = (tensor.bfloat16() for tensor in inputs)
    out = ngcf_layer(E, offsets, neighbors, *weights, seed=1, impl=impl)
    exact = ngcf_layer(E.double(), offsets, neighbors, *(t.double() for t in weights), seed=1, impl=impl)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=2**-5 * float(exact.abs().max()))


@kernels
@pytest.mark.parametrize(("P", "Q"), [("norm", "norm"), ("mean+I", "symmetric")])
def test_opcheck(impl: str, P: str, Q: str) -> None:
    library = operators_of(impl, "ngcf_layer")
    offsets, neighbors = random_graph(4, 5, 12, seed=2)
    # P, Q, per_term, negative_slope, node_dropout, message_dropout, seed, step, counter, layer
    options = (P, Q, True, 0.2, 0.1, 0.2, 3, 4, torch.tensor(3), 1)
    W1, b1, W2, b2 = (weight.requires_grad_() for weight in weights_of(4, 3))
    rows, columns = torch.tensor([0, 2, 7]), torch.tensor([0, 2, 5, 6, 7])
    for E, selection in ((normal(9, 4), (None, None)), (normal(5, 4), (rows, columns))):
        graph = (E.requires_grad_(), offsets, neighbors, *selection)
        torch.library.opcheck(library.ngcf_layer, (*graph, W1, b1, W2, b2, *options))
        out, *saved = library.ngcf_layer(*graph, W1, b1, W2, b2, *options)
        arguments = (torch.ones_like(out), *graph, W1, W2, *saved, *options)
        detached = tuple(value.detach() if isinstance(value, Tensor) else value for value in arguments)
        torch.library.opcheck(library.ngcf_layer_backward, detached)


@needs_native
def test_compiled_function_is_not_recompiled_for_each_step() -> None:
    counter = CompileCounter()
    offsets, neighbors = random_graph(20, 30, 90, seed=2)
    weights = weights_of(8, 6)

    def train_step(E: Tensor, step: int) -> Tensor:
        return ngcf_layer(E, offsets, neighbors, *weights, message_dropout=0.5, seed=2, step=step).relu()

    compiled = torch.compile(train_step, fullgraph=True, backend=counter)
    E = normal(50, 8)
    for step in range(5, 12):
        assert torch.equal(compiled(E, step), train_step(E, step))
    assert counter.frame_count <= 2  # one compilation for the first step, one for all others


@pytest.mark.parametrize("impl", ["reference", pytest.param("native", marks=needs_native)])
def test_compiles_to_one_graph(impl: str) -> None:
    offsets, neighbors = random_graph(20, 30, 90, seed=2)
    inputs = [tensor.requires_grad_() for tensor in (normal(50, 8), *weights_of(8, 6))]

    def loss(*inputs: Tensor) -> Tensor:
        out = ngcf_layer(
            inputs[0] * 2, offsets, neighbors, *inputs[1:], node_dropout=0.2, message_dropout=0.2, impl=impl
        )
        return out.square().sum()

    expected = torch.autograd.grad(loss(*inputs), inputs)
    compiled = torch.compile(loss, fullgraph=True, backend=compile_backend(impl == "native"))
    grads = torch.autograd.grad(compiled(*inputs), inputs)
    for grad, expected_grad in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-11)


# Arguments that replace valid ones, and the pattern of the error.
BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"P": "laplacian_propagation"}, "P='laplacian_propagation': choose one of symmetric, "),
    ({"Q": "norm+2I"}, r"Q='norm\+2I'"),
    ({"activation": "relu"}, "activation='relu': choose one of sum, per_term"),
    ({"negative_slope": -0.1}, "negative_slope=-0.1"),
    ({"negative_slope": math.nan}, "negative_slope=nan"),
    ({"node_dropout": 1.0}, "dropout=1"),
    ({"message_dropout": 1.0}, "message_dropout=1"),
    ({"message_dropout": -0.5}, "message_dropout=-0.5"),
    ({"seed": -1}, "seed=-1"),
    ({"step": 2**32}, f"step={2**32}"),
    ({"layer": -1}, "layer=-1"),
    ({"layer": 2**17}, f"layer={2**17}"),
    ({"features": torch.zeros(3)}, "features must be"),
    ({"features": torch.zeros(3, 2, dtype=torch.float64)}, "weight_1 must be float64 .*, not float32"),
    ({"weight_1": torch.zeros(3, 4)}, r"weight_1 must be float32 \[2, 4\]"),
    ({"weight_2": torch.zeros(2, 5)}, r"weight_2 must be float32 \[2, 4\]"),
    ({"bias_1": torch.zeros(1, 4)}, r"bias_1 must be float32 \[4\]"),
    ({"bias_2": torch.zeros(5)}, r"bias_2 must be float32 \[4\]"),
    ({"neighbors": torch.tensor([2, 3])}, r"neighbors\[1\]=3: the graph has nodes 0 to 2"),
    ({"rows": torch.tensor([1, 1])}, "rows must be strictly increasing nodes from 0 to 2"),
    ({"columns": torch.tensor([0, 1, 2])}, "columns: also give rows"),
    ({"bias_2": torch.zeros(4, device="meta")}, r"bias_2 must be float32 \[4\] on cpu, not float32 \[4\] on meta"),
    ({"offsets": torch.tensor([0, 1, 1, 2], device="meta")}, "offsets is on meta"),
]


@impls
@pytest.mark.parametrize(("changed", "message"), BAD_ARGUMENTS)
def test_error_names_the_argument(impl: str, changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "features": torch.zeros(3, 2),
        "offsets": torch.tensor([0, 1, 1, 2]),
        "neighbors": torch.tensor([2, 0]),
        "weight_1": torch.zeros(2, 4),
        "bias_1": torch.zeros(4),
        "weight_2": torch.zeros(2, 4),
        "bias_2": torch.zeros(4),
        **changed,
    }
    pattern = error_pattern(message, impl) if changed.keys() & {"neighbors", "rows"} else message
    with pytest.raises(ValueError, match=pattern):
        ngcf_layer(**arguments, impl=impl)


@impls
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("columns", "missing_node"), [([0, 2], 1), ([0], 1), ([], 0)])
def test_rows_must_be_among_the_columns(impl: str, dtype: torch.dtype, columns: list[int], missing_node: int) -> None:
    graph = torch.tensor([0, 1, 1, 2]), torch.tensor([2, 0])
    with pytest.raises(ValueError, match=error_pattern(f"rows: node {missing_node} is not among the columns", impl)):
        ngcf_layer(
            torch.zeros(len(columns), 2, dtype=dtype),
            *graph,
            *weights_of(2, 4, dtype),
            rows=torch.tensor([0, 1]),
            columns=torch.tensor(columns, dtype=torch.int64),
            impl=impl,
        )


@impls
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_tensor_as_step_equals_the_integer(impl: str, dtype: torch.dtype) -> None:
    offsets, neighbors = random_graph(20, 30, 200, seed=3)
    E = normal(50, 4).to(dtype).requires_grad_()
    weights = [weight.to(dtype).requires_grad_() for weight in weights_of(4, 5)]

    def run(step: Any) -> tuple[Tensor, ...]:
        options = {"node_dropout": 0.5, "message_dropout": 0.5, "seed": 2, "layer": 1, "impl": impl}
        out = ngcf_layer(E, offsets, neighbors, *weights, step=step, **options)
        return out.detach(), *torch.autograd.grad(out.square().sum(), [E, *weights])

    assert all(torch.equal(*pair) for pair in zip(run(torch.tensor(7)), run(7), strict=True))
    with pytest.raises(ValueError, match="step"):
        run(torch.tensor(-1))
