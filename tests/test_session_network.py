"""The modules SessionNetwork and SampledLoss: initial weights, embeddings, dropout, gradients of tables, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gru4rec_fast.nn import SampledLoss, SessionNetwork

INPUTS = torch.tensor([[1, 4], [0, 2], [3, 3]])  # items of 3 steps and 2 lanes (sessions in parallel)


@pytest.mark.parametrize("embedding", ["constrained", "separate", "none"])
def test_initial_weights_are_uniform_within_their_bounds(embedding: str) -> None:
    network = SessionNetwork(400, [20, 12], embedding=embedding, embedding_dim=30, seed=3)
    width = {"constrained": 12, "separate": 30, "none": None}[embedding]
    fan_sums = {  # fan_in + fan_out
        "output.weight": 400 + 12,
        "gru.layers.0.weight_hh": 20 + 20,
        "gru.layers.1.weight_ih": 20 + 12,
        "gru.layers.1.weight_hh": 12 + 12,
    }
    if width:
        fan_sums["gru.layers.0.weight_ih"] = width + 20
    if embedding != "constrained":
        fan_sums["embedding.weight"] = 400 + (width or 20)
    for name, parameter in network.named_parameters():
        if "bias" in name:
            assert torch.count_nonzero(parameter) == 0
        else:
            bound = math.sqrt(6 / fan_sums.pop(name))
            assert 0.98 * bound < parameter.abs().max().item() <= bound
            assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not fan_sums


def test_weights_depend_on_the_seed_and_not_on_torchs_generator() -> None:
    rng_state = torch.random.get_rng_state()
    first, second, other = (SessionNetwork(30, [8], seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(rng_state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["output.weight"], other["output.weight"])


def test_with_one_hot_inputs_only_the_first_layer_has_form_reset_before() -> None:
    network = SessionNetwork(30, [8, 6], embedding="none")
    assert [layer.form for layer in network.gru.layers] == ["reset_before", "reset_after"]
    assert network.embedding.weight.shape == (30, 24)  # 3 gates of 8 units
    assert network.gru.layers[0].weight_ih is None


def test_one_call_for_three_steps_equals_three_calls() -> None:
    network = SessionNetwork(5, [8, 6], dropout_p_embed=0.4, dropout_p_hidden=0.3, seed=9).double()
    reset = torch.tensor([[True, True], [False, True], [False, False]])
    hidden_of_block, state_of_block = network(INPUTS, network.initial_state(2), reset, step=11)
    state = network.initial_state(2)
    for t in range(3):
        hidden, state = network(INPUTS[t : t + 1], state, reset[t : t + 1], step=11 + t)
        torch.testing.assert_close(hidden[0], hidden_of_block[t], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, state_of_block, rtol=1e-12, atol=1e-12)


def test_no_dropout_in_evaluation() -> None:
    with_dropout = SessionNetwork(5, [8], dropout_p_embed=0.4, dropout_p_hidden=0.3, seed=1)
    without_dropout = SessionNetwork(5, [8], seed=1)
    state = without_dropout.initial_state(2)
    assert not torch.equal(with_dropout(INPUTS, state)[0], without_dropout(INPUTS, state)[0])
    assert torch.equal(with_dropout.eval()(INPUTS, state)[0], without_dropout(INPUTS, state)[0])


def step_gradients(sparse: bool, **options: Any) -> dict[str, Tensor]:
    """Return the gradient of every parameter, by name, of a step of a network, with padding and repeated items."""
    network = SessionNetwork(40, [8], sparse=sparse, seed=1, **options)
    inputs, targets = torch.tensor([[1, 4], [0, 2], [1, -1]]), torch.tensor([[6, 9], [5, 7], [8, -1]])
    hidden, _ = network(inputs)
    table = network.output_weight, network.output_bias
    SampledLoss(batch_size=2, sparse=sparse)(hidden, *table, targets, torch.tensor([[30], [31], [31]])).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def test_sparse_gradients_have_the_rows_of_the_mini_batch_only() -> None:
    grads = step_gradients(sparse=True, embedding="separate", embedding_dim=4)
    rows = {name: set(grad._indices()[0].tolist()) for name, grad in grads.items() if grad.is_sparse}
    assert rows == {
        "embedding.weight": {0, 1, 2, 4},
        "output.weight": {5, 6, 7, 8, 9, 30, 31},
        "output.bias": {5, 6, 7, 8, 9, 30, 31},
    }


@pytest.mark.parametrize("embedding", ["constrained", "separate", "none"])
def test_gradients_are_dense_by_default_and_equal_the_sparse_ones(embedding: str) -> None:
    dense, sparse = (step_gradients(sparse, embedding=embedding, embedding_dim=4) for sparse in (False, True))
    assert not any(grad.is_sparse for grad in dense.values())
    for name, grad in sparse.items():
        torch.testing.assert_close(dense[name], grad.to_dense() if grad.is_sparse else grad, rtol=1e-6, atol=1e-8)


def test_tables_are_embeddings_that_say_whether_their_gradients_are_sparse() -> None:
    for sparse in (False, True):
        network = SessionNetwork(5, [4], embedding="separate", embedding_dim=3, sparse=sparse)
        for table in (network.output, network.embedding, network.input_table):
            assert isinstance(table, torch.nn.Embedding) and table.sparse is sparse
        assert {*network.state_dict()} >= {"output.weight", "output.bias", "embedding.weight"}


def test_a_state_of_none_is_zero() -> None:
    network = SessionNetwork(5, [8, 6])
    torch.testing.assert_close(network(INPUTS), network(INPUTS, network.initial_state(2)), rtol=0, atol=0)


def test_n_live_is_counted_from_the_targets_if_not_given() -> None:
    network, criterion = SessionNetwork(9, [8]), SampledLoss("bpr-max", batch_size=2)
    inputs, targets = torch.tensor([[1, 2], [3, -1]]), torch.tensor([[4, 5], [6, -1]])
    hidden, _ = network(inputs, network.initial_state(2))
    negatives = torch.tensor([[7, 8], [7, 7]])
    arguments = (hidden, network.output_weight, network.output_bias, targets, negatives)
    assert torch.equal(criterion(*arguments, n_live=[2, 1]), criterion(*arguments))


@pytest.mark.parametrize("sparse", [False, True])
def test_loss_of_an_nn_embedding_equals_the_loss_of_an_output_table(impl: str, sparse: bool) -> None:
    """Without a bias, the loss is the same as with biases of zero."""
    embedding, network = torch.nn.Embedding(9, 8), SessionNetwork(9, [8])
    embedding.load_state_dict({"weight": network.output_weight.detach()})  # the same weights in both
    criterion = SampledLoss("bpr-max", batch_size=2, sparse=sparse, impl=impl)
    hidden, targets = torch.rand(3, 2, 8, generator=torch.Generator().manual_seed(0)), (INPUTS + 1) % 9
    without_bias = criterion(hidden, embedding.weight, None, targets)
    with_bias = criterion(hidden, network.output_weight, network.output_bias, targets)
    without_bias.backward()
    with_bias.backward()
    assert torch.equal(without_bias, with_bias)
    grad, expected = embedding.weight.grad, network.output_weight.grad
    assert grad.is_sparse == expected.is_sparse == sparse
    assert torch.equal(grad.to_dense(), expected.to_dense()) if sparse else torch.equal(grad, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": (3, 8)}, r"hidden must be \[T, B, H\] and targets \[T, B\], not \[3, 8\] and \[3, 2\]"),
        ({"targets": (2, 3)}, r"hidden must be \[T, B, H\] and targets \[T, B\]"),
        ({"weight": (9, 7)}, r"weight must be \[n_items, H\] with H = 8, not \[9, 7\]"),
        ({"bias": (8,)}, r"bias must be \[n_items\] with n_items = 9, not \[8\]"),
        ({"negatives": (5,)}, r"negatives must be \[T, N\] with T = 3, not \[5\]"),
    ],
)
def test_error_names_the_tensor_of_a_wrong_shape(change: dict, message: str) -> None:
    shapes = {"hidden": (3, 2, 8), "weight": (9, 8), "bias": (9,), "targets": (3, 2), "negatives": (3, 5)} | change
    dtypes = {"targets": torch.int64, "negatives": torch.int64}
    tensors = {name: torch.zeros(shape, dtype=dtypes.get(name)) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=message):
        SampledLoss(batch_size=2)(**tensors)


def test_a_module_in_place_of_its_weight_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"weight must be a tensor, such as embedding.weight, not Embedding"):
        SampledLoss(batch_size=2)(torch.zeros(3, 2, 8), torch.nn.Embedding(9, 8), None, INPUTS)


def test_loss_and_gradients_under_autocast_are_float32() -> None:
    network, criterion = SessionNetwork(9, [8, 6]), SampledLoss(batch_size=2)
    targets, negatives = (INPUTS + 1) % 9, torch.tensor([[7, 8]] * 3)
    table = network.output_weight, network.output_bias
    float32_loss = criterion(network(INPUTS, network.initial_state(2))[0], *table, targets, negatives)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, state = network(INPUTS, network.initial_state(2))
        loss = criterion(hidden, *table, targets, negatives)
    loss.backward()
    assert hidden.dtype == state[0].dtype == torch.float32
    assert loss.item() == pytest.approx(float32_loss.item(), rel=0.02)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_items": 0}, "n_items=0"),
        ({"layers": []}, r"layers=\[\]"),
        ({"layers": [4, 0]}, r"layers=\[4, 0\]"),
        ({"embedding": "shared"}, "embedding='shared'"),
        ({"embedding": "separate"}, "embedding_dim=0"),
        ({"gru_form": "lstm"}, "gru_form='lstm'"),
        ({"dropout_p_embed": 1.0}, "dropout_p_embed=1.0"),
        ({"dropout_p_hidden": -0.1}, "dropout_p_hidden=-0.1"),
    ],
)
def test_error_names_the_argument_of_the_network(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SessionNetwork(**({"n_items": 5, "layers": [4]} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "hinge"}, "loss='hinge': choose one of"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"logq": 1.0}, "give support"),
        ({"logq": 1.0, "loss": "bpr-max"}, "belongs to cross-entropy, not to bpr-max"),
        ({"label_smoothing": 0.1, "loss": "top1"}, "label_smoothing=0.1"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
    ],
)
def test_error_names_the_argument_of_the_loss(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampledLoss(**({"batch_size": 4} | change))
