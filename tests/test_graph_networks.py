"""Propagation modules, NGCF and LightGCN: compared with recorded training runs and with dense float64 formulas."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from golden import GoldenRun, golden_names, load
from graph_oracle import dense_matrix
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native import compile_backend, implementations, max_examples
from oracle.philox import bernoulli_keep
from sync_detector import SyncDetector
from torch import Tensor

from gru4rec_fast import InteractionGraph, _backend
from gru4rec_fast.nn import GraphIndices, LaplacianPropagation, LightGCNNetwork, NGCFLayer, NGCFNetwork
from gru4rec_fast.ops.ngcf_layer import PROPAGATION_MATRICES

needs_native = pytest.mark.skipif(
    _backend.resolve("auto", "laplacian_propagation", "cpu") != "native",
    reason="no native laplacian_propagation",
)
impls = pytest.mark.parametrize("impl", ["reference", pytest.param("native", marks=needs_native)])
MESSAGE_STREAM = 1 << 17  # random stream of message dropout in layer 0; layer l has this plus l


def random_graph(n_users: int, n_items: int, n_draws: int, seed: int) -> InteractionGraph:
    """Return a graph of `n_draws` random interactions, of which some may be equal."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(n_users, size=n_draws), rng.integers(n_items, size=n_draws)
    return InteractionGraph.from_arrays(users, items, n_users=n_users, n_items=n_items)


# Recorded runs


def network_of(run: GoldenRun, impl: str) -> NGCFNetwork:
    """Return a network with the recorded graph and initial weights."""
    arrays, config = run.arrays, run.config
    users, items = arrays["interactions"].T
    graph = InteractionGraph.from_arrays(users, items, n_users=int(arrays["n_users"]), n_items=int(arrays["n_items"]))
    network = NGCFNetwork(
        graph,
        config["embedding_dim"],
        config["layer_sizes"],
        P=config["P"],
        Q=config["Q"],
        negative_slope=config["negative_slope"],
        impl=impl,
    ).double()
    network.load_state_dict(recorded_weights(run, "before"))
    return network


def recorded_weights(run: GoldenRun, when: str) -> dict[str, Tensor]:
    """Return the weights that were recorded "before" or "after" the run, by the names of this package.

    In the names of the published NGCF code, "gc" is the first term of the layer and "bi" the second.
    """
    stored = {key.removeprefix(f"{when}/"): value for key, value in run.arrays.items() if key.startswith(f"{when}/")}
    tables = [stored["embedding_dict.user_emb"], stored["embedding_dict.item_emb"]]
    weights = {"embedding": np.concatenate(tables)}
    for layer, (term, name) in itertools.product(range(len(run.config["layer_sizes"])), ((1, "gc"), (2, "bi"))):
        weights[f"layers.{layer}.weight_{term}"] = stored[f"weight_dict.W_{name}_{layer}"]
        weights[f"layers.{layer}.bias_{term}"] = stored[f"weight_dict.b_{name}_{layer}"][0]
    return {name: torch.from_numpy(value.copy()) for name, value in weights.items()}


@pytest.mark.needs_shared
@pytest.mark.skipif(not golden_names("ngcf_"), reason="shared/golden is missing next to this checkout")
@implementations("ngcf_layer")
@pytest.mark.parametrize("name", golden_names("ngcf_") or ["absent"])
def test_training_equals_the_recorded_run(name: str, impl: str) -> None:
    run = load(name)
    network = network_of(run, impl)
    offsets, neighbors = network.graph.offsets, network.graph.neighbors
    matrix = dense_matrix(offsets, neighbors, run.config["P"])
    np.testing.assert_allclose(matrix.numpy(), run.arrays["propagation"], rtol=0, atol=1e-12)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for step, triples in enumerate(run.arrays["triples"]):
        users, positives, negatives = torch.from_numpy(triples.astype(np.int64)).unbind(1)
        bpr, penalty = network.loss(users, positives, negatives, step=step)
        assert bpr.item() == pytest.approx(run.arrays["bpr_loss"][step], rel=0, abs=1e-9)
        assert run.config["reg"] * penalty.item() == pytest.approx(run.arrays["reg_loss"][step], rel=0, abs=1e-9)
        optimizer.zero_grad()
        (bpr + run.config["reg"] * penalty).backward()
        optimizer.step()
    for key, expected in recorded_weights(run, "after").items():
        torch.testing.assert_close(network.state_dict()[key], expected, rtol=0, atol=1e-9)
    final = network.eval()().detach()
    expected = torch.from_numpy(np.concatenate([run.arrays["user_final"], run.arrays["item_final"]]))
    torch.testing.assert_close(final, expected, rtol=0, atol=1e-9)


# Dense formulas


def dense(graph: GraphIndices, matrix: str, dropout: float = 0.0, seed: int = 0, step: int = 0) -> Tensor:
    """Return a propagation matrix in dense form. The suffix "+I" of its name adds the identity."""
    out = dense_matrix(graph.offsets, graph.neighbors, matrix.removesuffix("+I"), dropout, seed, step)
    return out + torch.eye(graph.n_nodes, dtype=torch.float64) if matrix.endswith("+I") else out


def leaky(x: Tensor, slope: float) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def unit_rows(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)


def message_dropout_mask(p: float, seed: int, step: int, layer: int, shape: torch.Size) -> Tensor:
    """Return the factors of message dropout: 0, or 1 / (1 - p) where a unit is kept."""
    keep = bernoulli_keep(p, seed=seed, stream=MESSAGE_STREAM + layer, step=step, lanes=shape[0], units=shape[1])
    return torch.from_numpy(keep).double() / (1 - p)


matrices = st.sampled_from(PROPAGATION_MATRICES)
# n_users, n_items, n_draws and seed of random_graph
graphs = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 25), st.integers(0, 10**6))


@impls
@settings(max_examples=max_examples(60), deadline=None)
@given(
    graph=graphs,
    P=matrices,
    Q=matrices,
    activation=st.sampled_from(["sum", "per_term"]),
    node_dropout=st.sampled_from([0.0, 0.3]),
    message_dropout=st.sampled_from([0.0, 0.4]),
    normalize=st.booleans(),
    training=st.booleans(),
    step=st.integers(0, 2**32 - 1),
    seed=st.integers(0, 2**31),
)
def test_ngcf_layer_equals_the_dense_formula(
    impl: str,
    graph: tuple[int, int, int, int],
    P: str,
    Q: str,
    activation: str,
    node_dropout: float,
    message_dropout: float,
    normalize: bool,
    training: bool,
    step: int,
    seed: int,
) -> None:
    layer = NGCFLayer(
        random_graph(*graph),
        5,
        3,
        P=P,
        Q=Q,
        activation=activation,
        node_dropout=node_dropout,
        message_dropout=message_dropout,
        normalize=normalize,
        seed=seed,
        layer=2,
        impl=impl,
    ).double()
    layer.train(training)
    generator = torch.Generator().manual_seed(seed)
    E = torch.randn(layer.graph.n_nodes, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    dropout = {"dropout": node_dropout, "seed": seed, "step": step} if training else {}
    first = dense(layer.graph, P, **dropout) @ E @ layer.weight_1 + layer.bias_1
    second = (dense(layer.graph, Q, **dropout) @ E * E) @ layer.weight_2 + layer.bias_2
    expected = leaky(first + second, 0.2) if activation == "sum" else leaky(first, 0.2) + leaky(second, 0.2)
    if training:
        expected = expected * message_dropout_mask(message_dropout, seed, step, 2, expected.shape)
    if normalize:
        expected = unit_rows(expected)
    out = layer(E, step=step)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    grad_out = torch.randn(out.shape, dtype=torch.float64, generator=generator)
    inputs = [E, *layer.parameters()]
    grads = torch.autograd.grad(out, inputs, grad_out)
    expected_grads = torch.autograd.grad(expected, inputs, grad_out)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-10)


def dense_ngcf(network: NGCFNetwork, node_dropout: float, message_dropout: float, seed: int, step: int) -> Tensor:
    """Return the final embeddings of an NGCF network with the default matrices, by dense matrix products."""
    E = network.embedding
    outputs: list[Tensor] = [E]
    L = dense(network.graph, "symmetric", node_dropout, seed, step)
    for index, layer in enumerate(network.layers):
        first = (L @ E + E) @ layer.weight_1 + layer.bias_1
        second = (L @ E * E) @ layer.weight_2 + layer.bias_2
        E = leaky(first + second, 0.2) * message_dropout_mask(message_dropout, seed, step, index, first.shape)
        outputs.append(unit_rows(E))
        E = outputs[-1] if network.normalize_messages else E
    return torch.cat(outputs, 1)


@impls
@settings(max_examples=max_examples(20), deadline=None)
@given(graph=graphs, normalize_messages=st.booleans(), step=st.integers(0, 1000))
def test_ngcf_equals_the_dense_formula(
    impl: str, graph: tuple[int, int, int, int], normalize_messages: bool, step: int
) -> None:
    """Compare final embeddings, loss and gradients in training mode, with node and message dropout."""
    network = NGCFNetwork(
        random_graph(*graph),
        4,
        [5, 3],
        node_dropout=0.2,
        message_dropout=0.1,
        normalize_messages=normalize_messages,
        seed=step + 1,
        impl=impl,
    ).double()
    final = dense_ngcf(network, node_dropout=0.2, message_dropout=0.1, seed=step + 1, step=step)
    torch.testing.assert_close(network(step=step), final, rtol=0, atol=1e-10)
    assert_loss_equals_formula(network, final, final, step)


@impls
@settings(max_examples=max_examples(40), deadline=None)
@given(graph=graphs, matrix=matrices, n_layers=st.integers(0, 4), step=st.integers(0, 1000))
def test_lightgcn_equals_the_dense_formula(
    impl: str, graph: tuple[int, int, int, int], matrix: str, n_layers: int, step: int
) -> None:
    network = LightGCNNetwork(
        random_graph(*graph), 4, n_layers, matrix=matrix, node_dropout=0.2, seed=step, impl=impl
    ).double()
    L = dense(network.graph, matrix, 0.2, step, step)
    powers = [torch.linalg.matrix_power(L, k) @ network.embedding for k in range(n_layers + 1)]
    final = torch.stack(powers).mean(0)
    scale = max(1.0, float(final.detach().abs().max()))
    torch.testing.assert_close(network(step=step), final, rtol=0, atol=1e-10 * scale)
    assert_loss_equals_formula(network, final, network.embedding, step, atol=1e-10 * scale**2)


def assert_loss_equals_formula(network: Any, final: Tensor, penalized: Tensor, step: int, atol: float = 1e-10) -> None:
    """Compare `network.loss` and its gradients with the formulas of the BPR loss and the penalty, for 7 random triples.

    `final` are the embeddings that give the scores, `penalized` those whose squared norm is the penalty.
    """
    generator = torch.Generator().manual_seed(step)
    users = torch.randint(network.n_users, (7,), generator=generator)
    positives, negatives = torch.randint(network.n_items, (2, 7), generator=generator)
    nodes = (users, network.n_users + positives, network.n_users + negatives)
    user, positive, negative = (final[rows] for rows in nodes)
    bpr = -torch.log(torch.sigmoid((user * positive).sum(1) - (user * negative).sum(1))).mean()
    penalty = sum((penalized[rows] ** 2).sum() for rows in nodes) / (2 * 7)
    parameters = list(network.parameters())
    for ours, expected in zip(network.loss(users, positives, negatives, step=step), (bpr, penalty), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=atol)
        grads = torch.autograd.grad(ours, parameters, retain_graph=True, allow_unused=True)
        expected_grads = torch.autograd.grad(expected, parameters, retain_graph=True, allow_unused=True)
        for grad, expected_grad in zip(grads, expected_grads, strict=True):
            assert (grad is None) == (expected_grad is None)
            if grad is not None and expected_grad is not None:
                torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=atol)


@impls
@pytest.mark.parametrize("always_select", [False, True])
@pytest.mark.parametrize("name", ["ngcf", "ngcf normalized", "lightgcn"])
@settings(max_examples=max_examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    graph=st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 30), st.integers(0, 10**6)),
    P=matrices,
    batch_size=st.integers(1, 5),
    dropout=st.sampled_from([0.0, 0.3]),
)
def test_only_needed_gives_the_same_loss_and_gradients(
    impl: str,
    name: str,
    always_select: bool,
    graph: tuple[int, int, int, int],
    P: str,
    batch_size: int,
    dropout: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With `only_needed`, a layer is computed only for the nodes that the loss needs, or for all if it needs most.

    With `always_select`, a layer is computed only for the needed nodes, even if most nodes are needed.
    """
    if always_select:  # raises the limits on the fraction of needed nodes above 1, so that they are never reached
        monkeypatch.setattr("gru4rec_fast.nn.graph_networks._MAX_SELECTED", 2.0)
        monkeypatch.setattr("gru4rec_fast.nn.graph_networks._MAX_SEARCHED", 2.0)
    options: dict[str, Any] = {"node_dropout": dropout, "seed": 5, "impl": impl}
    network: Any
    if name == "lightgcn":
        network = LightGCNNetwork(random_graph(*graph), 4, 3, matrix=P, **options).double()
    else:
        normalize = name != "ngcf"
        network = NGCFNetwork(
            random_graph(*graph), 4, [5, 3], P=P, message_dropout=dropout, normalize_messages=normalize, **options
        ).double()
    generator = torch.Generator().manual_seed(graph[3])
    users = torch.randint(network.n_users, (batch_size,), generator=generator)
    positives, negatives = torch.randint(network.n_items, (2, batch_size), generator=generator)
    parameters = list(network.parameters())
    results = []
    for only_needed in (False, True):
        network.only_needed = only_needed
        bpr, penalty = network.loss(users, positives, negatives, step=7)
        results.append((bpr, penalty, *torch.autograd.grad(bpr + 0.1 * penalty, parameters)))
    for of_all_nodes, of_needed_nodes in zip(*results, strict=True):
        scale = max(1.0, float(of_all_nodes.detach().abs().max()))
        torch.testing.assert_close(of_needed_nodes, of_all_nodes, rtol=1e-11, atol=1e-12 * scale)
    rows = users.unique()
    selected, expected = network(step=7, rows=rows), network(step=7)[rows]
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(selected, expected, rtol=1e-12, atol=1e-12 * scale)


@pytest.mark.skipif(_backend.resolve("auto", "ngcf_layer", "cpu") != "native", reason="the reference may synchronize")
@pytest.mark.parametrize("network_class", [NGCFNetwork, LightGCNNetwork])
def test_training_step_for_all_nodes_does_not_synchronize(network_class: Any) -> None:
    network = network_class(random_graph(30, 40, 200, seed=0), 8, node_dropout=0.1, only_needed=False)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    users, items = torch.arange(20), torch.arange(20, 40)
    with SyncDetector() as synchronizations:
        bpr, penalty = network.loss(users, items, items.flip(0), step=3)
        (bpr + penalty).backward()
        optimizer.step()
    assert synchronizations.seen == []
    network.only_needed = True  # finding the needed nodes synchronizes
    with SyncDetector() as synchronizations:
        network.loss(users, items, items.flip(0), step=3)
    assert synchronizations.seen


def test_neighborhoods_are_the_nodes_that_each_layer_needs() -> None:
    """The graph is the path u0 - i0 - u1 - i1 - u2 - i2, and has a user u3 and an item i3 without edges.

    Nodes 0 to 3 are the users, nodes 4 to 7 the items.
    """
    graph = GraphIndices(InteractionGraph.from_arrays([0, 1, 1, 2, 2], [0, 0, 1, 1, 2], n_users=4, n_items=4))
    assert graph.with_neighbors(torch.tensor([0])).tolist() == [0, 4]
    assert graph.with_neighbors(torch.tensor([0, 4])).tolist() == [0, 1, 4]
    assert graph.with_neighbors(torch.tensor([3, 5])).tolist() == [1, 2, 3, 5]
    assert graph.with_neighbors(torch.tensor([], dtype=torch.int64)).tolist() == []
    network = LightGCNNetwork(graph, 4, 3)

    def neighborhoods(rows: list[int]) -> list[list[int] | None]:
        return [nodes if nodes is None else nodes.tolist() for nodes in network.neighborhoods(torch.tensor(rows))]

    assert neighborhoods([0]) == [[0, 1, 4, 5], [0, 1, 4], [0, 4], [0]]
    assert neighborhoods([1, 5]) == [None, None, [1, 2, 4, 5], [1, 5]]  # too many neighbors: computed for all nodes
    assert network.neighborhoods(None) == [None] * 4


@impls
@pytest.mark.parametrize("matrix", PROPAGATION_MATRICES)
def test_laplacian_propagation_equals_the_dense_product(impl: str, matrix: str) -> None:
    module = LaplacianPropagation(random_graph(5, 6, 14, seed=0), matrix, dropout=0.5, seed=3, impl=impl)
    E = torch.randn(11, 4, dtype=torch.float64)
    expected = dense(module.graph, matrix, dropout=0.5, seed=3, step=8) @ E
    torch.testing.assert_close(module(E, step=8), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(module.eval()(E), dense(module.graph, matrix) @ E, rtol=0, atol=1e-12)
    assert list(module.parameters()) == [] and [*module.state_dict()] == ["step", "dropout_seed"]


@impls
@pytest.mark.parametrize("network_class", [NGCFNetwork, LightGCNNetwork])
def test_low_precision_is_within_rounding(impl: str, network_class: Any) -> None:
    """A float32 network and one propagation in bfloat16 differ from float64 only by rounding."""
    graph = random_graph(40, 60, 400, seed=1)
    network = network_class(graph, 32, seed=1, impl=impl).eval()
    single = network().detach()
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), network.double()().detach(), rtol=0, atol=5e-6)
    half = LaplacianPropagation(graph, impl=impl)(network.embedding.detach().bfloat16())
    full = LaplacianPropagation(graph, impl=impl)(network.embedding.detach().bfloat16().double())
    torch.testing.assert_close(half.double(), full, rtol=2**-8, atol=1e-6)


@impls
def test_gradcheck(impl: str) -> None:
    layer = NGCFLayer(random_graph(4, 5, 11, seed=0), 3, 2, node_dropout=0.2, message_dropout=0.2, seed=1, impl=impl)
    layer = layer.double()
    E = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,), {"step": 4})

    assert torch.autograd.gradcheck(run, (E, *layer.parameters()))


@impls
def test_loss_compiles_to_one_graph(impl: str) -> None:
    network = NGCFNetwork(
        random_graph(6, 7, 20, seed=0), 4, [4], node_dropout=0.2, message_dropout=0.2, seed=1, impl=impl
    ).double()
    users, items = torch.tensor([0, 1, 5]), torch.tensor([2, 0, 6])

    def step_loss() -> Tensor:
        bpr, penalty = network.loss(users, items, items.flip(0), step=3)
        return bpr + penalty

    expected = torch.autograd.grad(step_loss(), list(network.parameters()))
    compiled = torch.compile(step_loss, fullgraph=True, backend=compile_backend(impl == "native"))
    grads = torch.autograd.grad(compiled(), list(network.parameters()))
    for grad, expected_grad in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("only_needed", [True, False])
@pytest.mark.parametrize("network_class", [NGCFNetwork, LightGCNNetwork])
def test_a_sparse_gradient_of_the_embedding_equals_the_dense_one(network_class: type, only_needed: bool) -> None:
    graph = random_graph(60, 70, 80, seed=0)
    layers = {"layer_sizes": [4]} if network_class is NGCFNetwork else {"n_layers": 1}
    grads = []
    for sparse in (False, True):
        network = network_class(graph, 4, **layers, only_needed=only_needed, sparse=sparse, seed=1).double()
        bpr, penalty = network.loss(torch.tensor([3, 3]), torch.tensor([5, 6]), torch.tensor([7, 5]))
        (bpr + 0.1 * penalty).backward()
        grads.append(network.embedding.grad)
    dense_grad, sparse_grad = grads
    assert not dense_grad.is_sparse and sparse_grad.is_sparse
    torch.testing.assert_close(sparse_grad.to_dense(), dense_grad, rtol=1e-12, atol=1e-15)
    n_rows = len(sparse_grad.coalesce()._indices()[0])
    assert (n_rows < 40) == only_needed  # the graph has 130 nodes


def test_layers_share_the_indices_of_the_graph() -> None:
    graph = random_graph(6, 7, 20, seed=0)
    network = NGCFNetwork(graph, 4, [4, 4])
    assert all(layer.graph is network.graph for layer in network.layers)
    assert network.graph.neighbors.data_ptr() == graph.neighbors.ctypes.data
    assert "neighbors" not in str(list(network.state_dict()))


def test_initial_weights_are_normal_in_lightgcn_and_xavier_uniform_in_ngcf() -> None:
    graph = random_graph(300, 50, 2000, seed=0)
    lightgcn = LightGCNNetwork(graph, 64, seed=4)
    assert lightgcn.embedding.std().item() == pytest.approx(0.1, rel=0.02)
    assert torch.equal(lightgcn.embedding, LightGCNNetwork(graph, 64, seed=4).embedding)
    assert not torch.equal(lightgcn.embedding, LightGCNNetwork(graph, 64, seed=5).embedding)
    network = NGCFNetwork(graph, 64, [32], seed=4)
    layer = network.layers[0]
    # The bound of Xavier's uniform distribution is sqrt(6 / (rows + columns)). A bias counts as one row.
    for tensor, bound in (
        (network.embedding[:300], (6 / 364) ** 0.5),
        (network.embedding[300:], (6 / 114) ** 0.5),
        (layer.weight_1, (6 / 96) ** 0.5),
        (layer.weight_2, (6 / 96) ** 0.5),
        (layer.bias_1, (6 / 33) ** 0.5),
        (layer.bias_2, (6 / 33) ** 0.5),
    ):
        assert 0.9 * bound < tensor.abs().max().item() <= bound
        if tensor.numel() > 1000:
            assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"P": "laplacian"}, r"P='laplacian': choose one of symmetric, .*plain\+I"),
        ({"Q": "norm+2I"}, r"Q='norm\+2I'"),
        ({"activation": "relu"}, "activation='relu': choose one of sum, per_term"),
        ({"node_dropout": 1.0}, "node_dropout=1.0"),
        ({"message_dropout": -0.5}, "message_dropout=-0.5"),
        ({"layer_sizes": [4, 0]}, "out_features=0"),
        ({"embedding_dim": 0}, "embedding_dim=0"),
    ],
)
def test_error_names_the_argument_of_ngcf(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NGCFNetwork(random_graph(2, 2, 3, seed=0), **arguments)


def test_error_names_the_argument_of_other_modules() -> None:
    graph = random_graph(2, 2, 3, seed=0)
    with pytest.raises(ValueError, match="dropout=2"):
        LaplacianPropagation(graph, dropout=2)
    with pytest.raises(ValueError, match="matrix='x'"):
        LaplacianPropagation(graph, "x")
    with pytest.raises(ValueError, match="n_layers=-1"):
        LightGCNNetwork(graph, 4, -1)
    with pytest.raises(ValueError, match=r"offsets must be int64 \[n_nodes \+ 1\] .*, not \[5\] and \[3, 2\]"):
        LaplacianPropagation(graph)(torch.zeros(3, 2))
