"""Modules with dropout count their steps: in loops, resumed, with activation checkpointing and torch.compile."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from native import compile_backend
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from gru4rec_fast import InteractionGraph, _backend
from gru4rec_fast.nn import LaplacianPropagation, LightGCNNetwork, NGCFLayer, NGCFNetwork, SessionGRU, SessionNetwork

needs_native = pytest.mark.skipif(_backend.resolve("auto", "gru", "cpu") != "native", reason="no native kernels")
impls = pytest.mark.parametrize("impl", ["reference", pytest.param("native", marks=needs_native)])
GRAPH = InteractionGraph.from_arrays(np.arange(40) % 8, np.arange(40) % 7, n_users=8, n_items=9)
ITEMS = torch.tensor([[1, 4], [0, 2], [3, 3]])  # 3 steps of 2 lanes
X = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(1))
E = torch.randn(17, 6, generator=torch.Generator().manual_seed(2))

# For each module: (make, call, number of steps that one call takes).
Module = tuple[Callable[..., Any], Callable[..., Tensor], int]
MODULES: dict[str, Module] = {
    "gru": (
        lambda **options: SessionGRU(6, [5, 4], dropout=0.5, **options),
        lambda module, x=X, **step: module(x, module.initial_state(2), **step)[0],
        3,
    ),
    "session network": (
        lambda **options: SessionNetwork(9, [5, 4], dropout_p_embed=0.5, dropout_p_hidden=0.5, **options),
        lambda module, **step: module(ITEMS, module.initial_state(2), **step)[0],
        3,
    ),
    "propagation": (
        lambda **options: LaplacianPropagation(GRAPH, dropout=0.5, **options),
        lambda module, x=E, **step: module(x, **step),
        1,
    ),
    "ngcf layer": (
        lambda **options: NGCFLayer(GRAPH, 6, 5, message_dropout=0.5, node_dropout=0.5, **options),
        lambda module, x=E, **step: module(x, **step),
        1,
    ),
    "ngcf": (
        lambda **options: NGCFNetwork(GRAPH, 6, [5, 4], message_dropout=0.5, node_dropout=0.5, **options),
        lambda module, **step: module(**step),
        1,
    ),
    "lightgcn": (
        lambda **options: LightGCNNetwork(GRAPH, 6, node_dropout=0.5, **options),
        lambda module, **step: module(**step),
        1,
    ),
}
modules = pytest.mark.parametrize("name", MODULES)


@impls
@modules
def test_calls_without_step_take_the_next_steps(name: str, impl: str) -> None:
    make, call, steps = MODULES[name]
    module = make(seed=3, impl=impl)
    outputs = [call(module) for _ in range(3)]
    assert not torch.equal(outputs[0], outputs[1])
    for index, output in enumerate(outputs):
        assert torch.equal(output, call(module, step=index * steps))
        assert torch.equal(output, call(module, step=torch.tensor(index * steps)))
    assert int(module.step) == 3 * steps  # calls with a step do not count


@modules
def test_eval_mode_neither_draws_nor_counts(name: str) -> None:
    make, call, _ = MODULES[name]
    module = make(seed=3)
    generator_state = torch.random.get_rng_state()
    assert torch.equal(call(module.eval()), call(module))
    assert int(module.step) == 0
    assert torch.equal(generator_state, torch.random.get_rng_state())


def test_a_module_without_dropout_neither_draws_nor_counts() -> None:
    network = SessionNetwork(9, [5], seed=3)
    generator_state = torch.random.get_rng_state()
    network(ITEMS, network.initial_state(2))
    assert int(network.step) == 0
    assert torch.equal(generator_state, torch.random.get_rng_state())


@modules
def test_only_the_outermost_module_counts(name: str) -> None:
    module = MODULES[name][0](seed=3)
    buffers = [key for key in nn.Sequential(module).state_dict() if key.endswith(("step", "dropout_seed"))]
    assert buffers == ["0.step", "0.dropout_seed"]


def test_a_layer_of_a_network_needs_a_step() -> None:
    network = SessionNetwork(9, [5], embedding="separate", embedding_dim=6, dropout_p_hidden=0.5, seed=3)
    with pytest.raises(ValueError, match=r"SessionGRU is a layer of a network.* pass step="):
        network.gru(X, network.initial_state(2))
    network.gru(X, network.initial_state(2), step=0)


@modules
def test_a_resumed_module_draws_the_masks_of_the_interrupted_one(name: str) -> None:
    make, call, _ = MODULES[name]
    module = make()  # with a drawn seed
    call(module)
    saved = copy.deepcopy(module.state_dict())
    resumed = make()
    assert resumed.seed != module.seed
    resumed.load_state_dict(saved)
    assert resumed.seed == module.seed
    for _ in range(2):
        assert torch.equal(call(resumed), call(module))


def test_an_integer_seed_is_not_replaced_by_that_of_a_state_dict() -> None:
    make, _, _ = MODULES["session network"]
    chosen, other = make(seed=1), make(seed=2)
    weights = other.state_dict()
    chosen.load_state_dict(weights)
    assert chosen.seed == chosen.gru.seed == 1 and int(chosen.dropout_seed) == 1
    assert int(weights["dropout_seed"]) == 2


@modules
def test_state_dicts_without_a_step_count_can_be_loaded(name: str) -> None:
    make, call, _ = MODULES[name]
    module, old = make(), make(seed=5)
    call(module)
    seed = module.seed
    weights = {key: value for key, value in old.state_dict().items() if key not in ("step", "dropout_seed")}
    module.load_state_dict(weights, strict=True)
    assert int(module.step) == 0 and module.seed == seed and int(module.dropout_seed) == seed
    wrapped = nn.Sequential(make())
    wrapped.load_state_dict({f"0.{key}": value for key, value in weights.items()}, strict=True)


@modules
def test_torchs_generator_seeds_modules(name: str) -> None:
    make, call, _ = MODULES[name]
    torch.manual_seed(7)
    first, second = make(), make()
    torch.manual_seed(7)
    repeated = make()
    assert first.seed == repeated.seed != second.seed
    assert torch.equal(call(first), call(repeated))
    assert not torch.equal(call(first), call(second))


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_an_error(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed={seed}: must be in"):
        SessionGRU(6, [5], seed=seed)


# Activation checkpointing

checkpointed_modules = pytest.mark.parametrize("name", ["gru", "propagation", "ngcf layer"])


@impls
@checkpointed_modules
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_draws_the_same_masks_again(name: str, reentrant: bool, impl: str) -> None:
    """Three calls precede the backward pass. Their gradients equal those of calls with explicit steps."""
    make, call, steps = MODULES[name]
    module = make(seed=3, impl=impl)
    base = X if name == "gru" else E
    inputs, expected_inputs = (base.clone().requires_grad_() for _ in range(2))
    coefficients = torch.rand_like(call(module, step=0))
    total = sum(
        (index + 1) * (coefficients * checkpoint(lambda x: call(module, x=x), inputs, use_reentrant=reentrant)).sum()
        for index in range(3)
    )
    total.backward()
    assert int(module.step) == 3 * steps
    grads = [parameter.grad for parameter in module.parameters()]
    module.zero_grad()
    expected = sum(
        (index + 1) * (coefficients * call(module, x=expected_inputs, step=index * steps)).sum() for index in range(3)
    )
    expected.backward()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(inputs.grad, expected_inputs.grad)
    torch.testing.assert_close(grads, [parameter.grad for parameter in module.parameters()])


@checkpointed_modules
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_without_the_state_of_the_generator_is_an_error(name: str, reentrant: bool) -> None:
    make, call, _ = MODULES[name]
    module = make(seed=3)
    inputs = (X if name == "gru" else E).clone().requires_grad_()
    options = {"use_reentrant": reentrant, "preserve_rng_state": False}
    output = checkpoint(lambda x: call(module, x=x), inputs, **options)
    with pytest.raises(RuntimeError, match="keep preserve_rng_state=True"):
        output.sum().backward()


def test_the_number_of_remembered_calls_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gru4rec_fast.nn.step_counter._MAX_REMEMBERED", 4)
    make, call, _ = MODULES["propagation"]
    module = make(seed=3)
    inputs = E.clone().requires_grad_()
    outputs = [checkpoint(lambda x: call(module, x=x), inputs, use_reentrant=False) for _ in range(5)]
    outputs[-1].sum().backward()
    with pytest.raises(RuntimeError, match="run at most 4 calls"):
        outputs[0].sum().backward()


# torch.compile


@impls
@modules
def test_a_compiled_module_counts_without_compiling_again(name: str, impl: str) -> None:
    make, call, steps = MODULES[name]
    module = make(seed=3, impl=impl)
    expected = copy.deepcopy(module)
    counter = CompileCounterWithBackend(
        compile_backend(use_inductor=impl == "native" and name in ("gru", "ngcf layer"))
    )
    compiled = torch.compile(lambda: call(module), fullgraph=True, backend=counter)
    for index in range(4):
        # The sparse gradients of a SessionNetwork cannot be traced.
        with torch.set_grad_enabled(name != "session network"):
            output, expected_output = compiled(), call(expected, step=index * steps)
        torch.testing.assert_close(output, expected_output)
        for result in (output, expected_output):
            if result.requires_grad:
                result.sum().backward()
    assert int(module.step) == 4 * steps
    assert counter.frame_count == 1
    for parameter, expected_parameter in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected_parameter.grad)
