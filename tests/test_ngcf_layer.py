"""The NGCF layer as one operator: against dense float64 formulas, its composition of other operators, and itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from graph_oracle import dense_matrix, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from native import compiler, examples
from oracle.philox import bernoulli_keep
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from gru4rec_fast import _backend
from gru4rec_fast.ops import ngcf_layer
from gru4rec_fast.reference.ngcf_layer import ACTIVATIONS, PROPAGATION_MATRICES

native = pytest.mark.skipif(
    _backend.resolve("auto", "ngcf_layer", "cpu") != "native", reason="ngcf_layer is not built natively"
)
impls = pytest.mark.parametrize("impl", ["reference", pytest.param("native", marks=native)])
MESSAGE_STREAM = 1 << 17
Weights = tuple[Tensor, Tensor, Tensor, Tensor]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def weights_of(width: int, units: int, dtype: torch.dtype = torch.float64) -> Weights:
    """W1, b1, W2, b2."""
    shapes = ((width, units), (units,), (width, units), (units,))
    first, bias, second, other = (normal(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes, 1))
    return first, bias, second, other


def leaky(x: Tensor, slope: float) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def some_nodes(n_nodes: int, seed: int) -> Tensor:
    """Any number of nodes, rising."""
    draws = torch.Generator().manual_seed(seed)
    n = int(torch.randint(n_nodes + 1, (), generator=draws))
    return torch.randperm(n_nodes, generator=draws)[:n].sort().values


@impls
@settings(max_examples=examples(80), deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 40)),
    widths=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    P=st.sampled_from(PROPAGATION_MATRICES),
    Q=st.sampled_from(PROPAGATION_MATRICES),
    activation=st.sampled_from(ACTIVATIONS),
    slope=st.sampled_from([0.0, 0.2, 1.5]),
    node_dropout=st.sampled_from([0.0, 0.3]),
    message_dropout=st.sampled_from([0.0, 0.4]),
    part=st.sampled_from(["all", "rows", "rows and columns"]),
    seed=st.integers(0, 2**40),
    step=st.integers(0, 2**32 - 1),
)
def test_forward_and_gradients_equal_the_dense_formula(
    impl: str,
    sizes: tuple[int, int, int],
    widths: tuple[int, int],
    P: str,
    Q: str,
    activation: str,
    slope: float,
    node_dropout: float,
    message_dropout: float,
    part: str,
    seed: int,
    step: int,
) -> None:
    offsets, neighbours = random_graph(*sizes, seed=seed % 1000)
    n_nodes = len(offsets) - 1
    every = torch.arange(n_nodes)
    rows = every if part == "all" else some_nodes(n_nodes, seed)
    columns = torch.cat([rows, some_nodes(n_nodes, seed + 1)]).unique() if part == "rows and columns" else every
    E = normal(len(columns), widths[0]).requires_grad_()
    weights = tuple(weight.requires_grad_() for weight in weights_of(*widths))
    W1, b1, W2, b2 = weights

    def matrix(name: str) -> Tensor:
        dense = dense_matrix(offsets, neighbours, name.removesuffix("+I"), node_dropout, seed, step)
        dense = dense + torch.eye(n_nodes, dtype=torch.float64) if name.endswith("+I") else dense
        return dense[rows][:, columns]

    own = E[torch.searchsorted(columns, rows)]
    first, second = matrix(P) @ E @ W1 + b1, (matrix(Q) @ E * own) @ W2 + b2
    expected = leaky(first + second, slope) if activation == "sum" else leaky(first, slope) + leaky(second, slope)
    keep = bernoulli_keep(
        message_dropout, seed=seed, stream=MESSAGE_STREAM + 3, step=step, lanes=n_nodes, units=widths[1]
    )
    expected = expected * torch.from_numpy(keep)[rows] / (1 - message_dropout)
    out = ngcf_layer(
        E,
        offsets,
        neighbours,
        *weights,
        rows=None if part == "all" else rows,
        columns=columns if part == "rows and columns" else None,
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
    direction = normal(*out.shape, seed=9)
    ours = torch.autograd.grad(out, (E, *weights), direction)
    theirs = torch.autograd.grad(expected, (E, *weights), direction)
    for mine, oracle in zip(ours, theirs, strict=True):
        scale = max(1.0, float(oracle.abs().max())) if oracle.numel() else 1.0
        torch.testing.assert_close(mine, oracle, rtol=0, atol=1e-11 * scale)


def large() -> tuple[Tensor, Tensor]:
    """A graph whose rows make several blocks and parts; its hub has more entries than are looked at together."""
    return random_graph(900, 1300, 30_000, seed=5, skewed=True)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("P", "Q"), [("norm", "norm"), ("symmetric+I", "symmetric"), ("mean", "plain+I")])
def test_native_equals_the_composition(dtype: torch.dtype, activation: str, P: str, Q: str) -> None:
    """Several blocks of rows, whole and in part; float32 as near to float64 as the composition is, and float64 within
    the rounding of sums over all rows."""
    offsets, neighbours = large()
    n_nodes = len(offsets) - 1
    for rows in (None, torch.arange(3, n_nodes, 2)):
        columns = None if rows is None else torch.cat([rows, torch.arange(0, n_nodes, 4)]).unique()
        options: dict[str, Any] = {"P": P, "Q": Q, "activation": activation, "rows": rows, "columns": columns}
        options |= {"node_dropout": 0.1, "message_dropout": 0.2, "seed": 7, "step": 5}

        def run(impl: str, to: torch.dtype, options: dict[str, Any] = options) -> list[Tensor]:
            chosen = options["columns"]
            given = [normal(n_nodes if chosen is None else len(chosen), 20), *weights_of(20, 70)]
            inputs = [tensor.to(dtype).to(to).requires_grad_() for tensor in given]
            out = ngcf_layer(inputs[0], offsets, neighbours, *inputs[1:], **options, impl=impl)
            return [out, *torch.autograd.grad(out, inputs, normal(*out.shape, seed=4).to(dtype).to(to))]

        exact = run("reference", torch.float64)
        for ours, theirs, right in zip(run("native", dtype), run("reference", dtype), exact, strict=True):
            size = float(right.detach().abs().max())
            error = float((theirs.double() - right).detach().abs().max())
            bound = 2 * error + 4 * torch.finfo(torch.float32).eps * size if dtype == torch.float32 else 1e-13 * size
            assert float((ours.double() - right).detach().abs().max()) <= bound


@native
def test_threads_do_not_change_a_bit() -> None:
    offsets, neighbours = large()
    inputs = [normal(len(offsets) - 1, 24, dtype=torch.float32), *weights_of(24, 40, torch.float32)]
    for tensor in inputs:
        tensor.requires_grad_()
    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            out = ngcf_layer(inputs[0], offsets, neighbours, *inputs[1:], node_dropout=0.1, message_dropout=0.1, seed=1)
            found.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


@impls
def test_a_unit_is_dropped_by_its_own_number(impl: str) -> None:
    """The mask of a node's units is the same whether the node is computed alone or with all others."""
    offsets, neighbours = large()
    E, weights = normal(len(offsets) - 1, 6), weights_of(6, 100)
    options: dict[str, Any] = {"message_dropout": 0.3, "seed": 2, "step": 8, "layer": 1, "impl": impl}
    whole = ngcf_layer(E, offsets, neighbours, *weights, **options)
    rows = torch.arange(5, len(offsets) - 1, 31)
    some = ngcf_layer(E, offsets, neighbours, *weights, rows=rows, **options)
    assert torch.equal(some == 0, whole[rows] == 0)
    assert abs(float((whole == 0).double().mean()) - 0.3) < 0.01
    other = ngcf_layer(E, offsets, neighbours, *weights, **(options | {"layer": 2}))
    assert not torch.equal(whole == 0, other == 0)


@impls
def test_nan_reaches_its_neighbours_and_itself(impl: str) -> None:
    offsets, neighbours = random_graph(6, 6, 12, seed=1)
    E = normal(12, 5)
    E[3, 2] = math.nan
    reached = ngcf_layer(E, offsets, neighbours, *weights_of(5, 4), message_dropout=0.2, impl=impl).isnan().any(1)
    expected = torch.zeros(12, dtype=torch.bool)
    expected[neighbours[offsets[3] : offsets[4]].long()] = True
    expected[3] = True
    assert torch.equal(reached, expected)


@impls
def test_no_rows_and_no_nodes(impl: str) -> None:
    offsets, neighbours = random_graph(3, 4, 9, seed=2)
    for E, rows, graph in (
        (normal(7, 3), torch.empty(0, dtype=torch.int64), (offsets, neighbours)),
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
    offsets, neighbours = random_graph(4, 5, 11, seed=4)

    def run(E: Tensor, *weights: Tensor) -> Tensor:
        return ngcf_layer(
            E,
            offsets,
            neighbours,
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
    assert torch.autograd.gradcheck(run, inputs)


@impls
def test_bfloat16_is_made_of_other_operators(impl: str) -> None:
    offsets, neighbours = random_graph(30, 40, 200, seed=3)
    inputs = [normal(70, 16), *weights_of(16, 8)]
    small = [tensor.bfloat16() for tensor in inputs]
    out = ngcf_layer(small[0], offsets, neighbours, *small[1:], seed=1, impl=impl)
    exact = ngcf_layer(small[0].double(), offsets, neighbours, *(t.double() for t in small[1:]), seed=1, impl=impl)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=2**-5 * float(exact.abs().max()))


@native
@pytest.mark.parametrize(("P", "Q"), [("norm", "norm"), ("mean+I", "symmetric")])
def test_opcheck(P: str, Q: str) -> None:
    offsets, neighbours = random_graph(4, 5, 12, seed=2)
    options = (P, Q, True, 0.2, 0.1, 0.2, 3, 4, 1)
    W1, b1, W2, b2 = (weight.requires_grad_() for weight in weights_of(4, 3))
    rows, columns = torch.tensor([0, 2, 7]), torch.tensor([0, 2, 5, 6, 7])
    for E, chosen in ((normal(9, 4), (None, None)), (normal(5, 4), (rows, columns))):
        graph = (E.requires_grad_(), offsets, neighbours, *chosen)
        torch.library.opcheck(torch.ops.gru4rec_fast.ngcf_layer, (*graph, W1, b1, W2, b2, *options))
        out, *kept = torch.ops.gru4rec_fast.ngcf_layer(*graph, W1, b1, W2, b2, *options)
        given = (torch.ones_like(out), *graph, W1, W2, *kept, *options)
        arguments = tuple(value.detach() if isinstance(value, Tensor) else value for value in given)
        torch.library.opcheck(torch.ops.gru4rec_fast.ngcf_layer_backward, arguments)


@native
def test_compiled_step_serves_every_step() -> None:
    counter = CompileCounter()
    offsets, neighbours = random_graph(20, 30, 90, seed=2)
    weights = weights_of(8, 6)

    def train_step(E: Tensor, step: int) -> Tensor:
        return ngcf_layer(E, offsets, neighbours, *weights, message_dropout=0.5, seed=2, step=step).relu()

    compiled = torch.compile(train_step, fullgraph=True, backend=counter)
    E = normal(50, 8)
    for step in range(5, 12):
        assert torch.equal(compiled(E, step), train_step(E, step))
    assert counter.frame_count <= 2  # one for the first value, one for all others


@impls
def test_compiles_whole(impl: str) -> None:
    offsets, neighbours = random_graph(20, 30, 90, seed=2)
    inputs = [tensor.requires_grad_() for tensor in (normal(50, 8), *weights_of(8, 6))]

    def loss(*inputs: Tensor) -> Tensor:
        out = ngcf_layer(
            inputs[0] * 2, offsets, neighbours, *inputs[1:], node_dropout=0.2, message_dropout=0.2, impl=impl
        )
        return out.square().sum()

    expected = torch.autograd.grad(loss(*inputs), inputs)
    compiled = torch.compile(loss, fullgraph=True, backend=compiler(impl == "native"))
    grads = torch.autograd.grad(compiled(*inputs), inputs)
    for grad, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-11, atol=1e-11)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"P": "laplacian"}, "P='laplacian': choose one of symmetric, "),
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
    ({"features": torch.zeros(3, 2, dtype=torch.float64)}, "weight_1 is torch.float32 but features are torch.float64"),
    ({"weight_1": torch.zeros(3, 4)}, r"weight_1 must be \[2, 4\]"),
    ({"weight_2": torch.zeros(2, 5)}, r"weight_2 must be \[2, 4\]"),
    ({"bias_1": torch.zeros(1, 4)}, r"bias_1 must be \[4\]"),
    ({"bias_2": torch.zeros(5)}, r"bias_2 must be \[4\]"),
    ({"neighbours": torch.tensor([2, 3])}, r"neighbours\[1\]=3: the graph has nodes 0 to 2"),
    ({"rows": torch.tensor([1, 1])}, "rows must be nodes in 0 to 2, each rising"),
    ({"columns": torch.tensor([0, 1, 2])}, "columns: give rows too"),
]


@impls
@pytest.mark.parametrize(("changed", "message"), BAD)
def test_bad_arguments_are_named(impl: str, changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "features": torch.zeros(3, 2),
        "offsets": torch.tensor([0, 1, 1, 2]),
        "neighbours": torch.tensor([2, 0]),
        "weight_1": torch.zeros(2, 4),
        "bias_1": torch.zeros(4),
        "weight_2": torch.zeros(2, 4),
        "bias_2": torch.zeros(4),
        **changed,
    }
    with pytest.raises(ValueError, match=message):
        ngcf_layer(**arguments, impl=impl)


@impls
def test_rows_must_be_among_the_columns(impl: str) -> None:
    graph = torch.tensor([0, 1, 1, 2]), torch.tensor([2, 0])
    with pytest.raises(ValueError, match="rows: node 1 is not among the columns"):
        ngcf_layer(
            torch.zeros(2, 2, dtype=torch.float64),
            *graph,
            *weights_of(2, 4),
            rows=torch.tensor([0, 1]),
            columns=torch.tensor([0, 2]),
            impl=impl,
        )
