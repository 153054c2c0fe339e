"""Memory does not grow with the number of training steps or operator calls. Deliberate leaks are detected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_oracle import random_graph
from memory_growth import (
    growth,
    needs_plain_allocator,
    needs_statm,
    quick_garbage_collections,
    resident_bytes,
)
from training_memory import Leak, growth_per_step, in_new_process

from gru4rec_fast import ops

pytestmark = [needs_statm, needs_plain_allocator, pytest.mark.usefixtures("native_library")]

BYTES_PER_STEP = 32  # no Python object that a step could leak takes less
BYTES_PER_CALL = 256  # a leaked tensor takes more than 500 bytes, however small it is


fused_and_slow_autograd = pytest.mark.parametrize(
    "training_impl", ["fused", pytest.param("autograd", marks=pytest.mark.slow)]
)


@fused_and_slow_autograd
def test_training_steps_do_not_leak(training_impl: str) -> None:
    assert in_new_process(growth_per_step, training_impl) < BYTES_PER_STEP


@fused_and_slow_autograd
def test_small_leak_in_training_is_detected(training_impl: str) -> None:
    assert in_new_process(growth_per_step, training_impl, Leak()) > 64 > BYTES_PER_STEP


# Each of the functions `make_*_call` returns a function that calls native operators once.
def make_gru_call() -> Callable[[], object]:
    gate_inputs, state = torch.randn(3, 8, 96, requires_grad=True), torch.randn(8, 32, requires_grad=True)
    weight, bias = torch.randn(96, 32, requires_grad=True), torch.randn(96, requires_grad=True)
    reset, inputs = torch.rand(3, 8) < 0.3, [gate_inputs, state, weight, bias]
    return lambda: torch.autograd.grad(ops.gru(gate_inputs, state, weight, bias, reset, impl="native").sum(), inputs)


def make_loss_call() -> Callable[[], object]:
    hidden, rows = torch.randn(16, 32, requires_grad=True), torch.randn(80, 32, requires_grad=True)
    bias = torch.randn(80, requires_grad=True)
    return lambda: torch.autograd.grad(
        ops.sampled_loss(hidden, rows, bias, loss="bpr-max", batch_size=16, impl="native"), [hidden, rows, bias]
    )


def make_update_call() -> Callable[[], object]:
    table, accumulator, velocity = torch.randn(500, 32), torch.zeros(500, 32), torch.zeros(500, 32)
    index, grad = torch.randint(500, (100,)), torch.randn(100, 32)
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.1, "eps": 1e-6, "impl": "native"}
    return lambda: ops.sparse_adagrad_(table, accumulator, velocity, index, grad, **options)


def make_ranking_call() -> Callable[[], object]:
    hidden, weight, targets = torch.randn(100, 16), torch.randn(300, 16), torch.arange(100)
    return lambda: (
        ops.target_rank(hidden, weight, None, targets, impl="native"),
        ops.top_k(hidden, weight, None, 20, impl="native"),
    )


def make_batch_call() -> Callable[[], object]:
    items, offsets = torch.randint(50, (400,)), torch.arange(0, 401, 4)

    def batch() -> object:
        lanes = torch.full((10,), -1), torch.zeros(10, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        return ops.session_batch(items, offsets, None, *lanes, 30, impl="native")

    return batch


def make_draw_call() -> Callable[[], object]:
    support = torch.randint(1, 99, (400,))

    def draw() -> object:
        table = ops.build_alias_table(support, 0.5, impl="native")
        mask = ops.dropout_mask(2, 8, 32, 0.5, seed=1, stream=2, step=3, impl="native")
        return mask, table, ops.negative_sampling(table, 200, seed=1, step=2, steps=3, impl="native")

    return draw


def make_graph_call() -> Callable[[], object]:
    offsets, neighbors = random_graph(60, 80, 900, seed=1, dtype=torch.int32)
    x, users = torch.randn(140, 16, requires_grad=True), torch.arange(60)[offsets[:61].diff() > 0][:20]
    return lambda: (
        torch.autograd.grad(ops.laplacian_propagation(x, offsets, neighbors, "norm", impl="native").sum(), x),
        ops.bpr_triples(offsets, neighbors, users, 64, n_users=60, n_items=80, seed=1, step=2, impl="native"),
    )


def make_failing_call() -> Callable[[], object]:
    """Return a call that raises an exception within a kernel."""
    hidden, weight = torch.randn(100, 16), torch.full((300, 16), torch.nan)

    def rank_nan() -> None:
        with pytest.raises(ValueError, match="NaN score"):
            ops.top_k(hidden, weight, None, 20, impl="native")

    return rank_nan


CALLS = [
    *(make_gru_call, make_loss_call, make_update_call, make_ranking_call),
    *(make_batch_call, make_draw_call, make_graph_call, make_failing_call),
]


def growth_per_call(call: Callable[[], object]) -> float:
    """Return by how many bytes each call increases the resident size."""
    samples, n_calls = [], 100
    with quick_garbage_collections():
        for _ in range(24):
            for _ in range(n_calls):
                call()
            samples.append(resident_bytes())
    return growth(samples) / n_calls


@pytest.mark.parametrize("make_call", CALLS, ids=lambda make_call: make_call.__name__)
def test_calls_do_not_leak(make_call: Callable[[], Callable[[], object]]) -> None:
    assert growth_per_call(make_call()) < BYTES_PER_CALL


@pytest.mark.parametrize("make_call", CALLS[:2], ids=lambda make_call: make_call.__name__)
def test_leaked_results_of_calls_are_detected(make_call: Callable[[], Callable[[], object]]) -> None:
    call = make_call()
    leaked: list[object] = []
    assert growth_per_call(lambda: leaked.append(call())) >= BYTES_PER_CALL


def test_growth_ignores_a_single_increase() -> None:
    """Allocators request memory in large blocks, so a single increase is not a leak."""
    for increase_at in range(40):
        sizes = [11_000.0 if i >= increase_at else 1000.0 for i in range(40)]
        assert growth(sizes) == 0
        assert growth([size + 8 * i for i, size in enumerate(sizes)]) == 8
