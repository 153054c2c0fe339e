"""estimate_memory compared with the bytes of tensors and with the allocations of small steps.

benchmarks/bench_memory_estimate.py measures large trainings.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from run_cli import cli

from gru4rec_fast import NGCF, GRU4Rec, LightGCN
from gru4rec_fast.data import InteractionGraph, SessionStore
from gru4rec_fast.models import GRU4RecParameters, LightGCNParameters, NGCFParameters, estimate_memory
from gru4rec_fast.models.builders import build_graph_runner, build_session_network, build_session_runner
from gru4rec_fast.models.memory_estimate import _estimate_sessions
from gru4rec_fast.profiling import MemoryProfiler, oom_guard
from gru4rec_fast.training.progress import SilentProgress

N_USERS, N_ITEMS, N_EDGES = 1_500, 1_000, 12_000


def tensor_bytes(tensors: Any) -> int:
    """Return the bytes of tensors; scalars, such as the step of Adam, are left out."""
    return sum(tensor.nbytes for tensor in tensors if tensor.dim())


def random_graph() -> InteractionGraph:
    rng = np.random.default_rng(0)
    users, items = rng.integers(N_USERS, size=N_EDGES), rng.integers(N_ITEMS, size=N_EDGES)
    return InteractionGraph.from_arrays(users, items, n_users=N_USERS, n_items=N_ITEMS)


def random_store(n_items: int, n_sessions: int = 60) -> SessionStore:
    items = np.random.default_rng(1).integers(n_items, size=n_sessions * 5)
    return SessionStore.from_arrays(items, np.arange(0, len(items) + 1, 5), n_items=n_items)


@pytest.mark.parametrize(
    "parameters",
    [
        {"layers": [7]},
        {"layers": [7, 5], "momentum": 0.2, "dtype": "float64", "gru_form": "reset_before"},
        {"layers": [7, 5], "constrained_embedding": False, "embedding": 3, "n_sample": 0},
        {"layers": [4, 6], "constrained_embedding": False, "logq": 1.0, "fused": False},
    ],
)
def test_parameters_and_optimizer_of_gru4rec_are_exact(parameters: dict[str, Any]) -> None:
    p = GRU4RecParameters(batch_size=4, seed=0, **parameters)
    store = random_store(50)
    network = build_session_network(p, store.n_items)
    runner = build_session_runner(p, network, store)
    runner.run_epoch(SilentProgress(), lambda: None)
    estimate = estimate_memory(p, store.n_items)
    assert estimate.parameters == tensor_bytes(network.parameters())
    state = [tensor for tensors in runner.optimizer.state.values() for tensor in tensors.values()]
    assert estimate.optimizer == tensor_bytes(state)
    sampler = runner.sampler
    alias = 0 if sampler is None else tensor_bytes([sampler.threshold, sampler.alias, sampler.log_prob])
    assert estimate.ids == alias + tensor_bytes(runner.criterion.buffers()) + 3 * 8 * store.n_items


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cls", [NGCF, LightGCN])
def test_parameters_gradients_and_optimizer_of_graph_models_are_exact(cls: Any, dtype: str) -> None:
    graph, p = random_graph(), cls(embedding_dim=6, batch_size=32, dtype=dtype, seed=0)
    network = p.build_network(graph)
    runner = build_graph_runner(p, network, graph)
    bpr, penalty = network.loss(*runner.sampler.draw(0), step=0)
    (bpr + penalty).backward()
    runner.optimizer.step()
    estimate = estimate_memory(p, N_ITEMS, n_users=N_USERS, n_edges=graph.n_edges)
    assert estimate.parameters == tensor_bytes(network.parameters())
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert estimate.gradients == tensor_bytes(gradients)
    state = [tensor for tensors in runner.optimizer.state.values() for tensor in tensors.values()]
    assert estimate.optimizer == tensor_bytes(state)


def peak_allocation(function: Any) -> int:
    """Return the largest sum of the CPU memory that tensors allocate while the function runs."""
    with MemoryProfiler() as profiler:
        function()
    return profiler.report().phase().peak_bytes


GRAPH_CASES: list[tuple[Any, dict[str, Any]]] = [
    (LightGCN, {"n_layers": 1}),
    (LightGCN, {"n_layers": 3}),
    (NGCF, {"layer_sizes": (64, 64)}),
    (NGCF, {"layer_sizes": (64, 32), "adjacency": "norm/mean"}),
    (NGCF, {"layer_sizes": (128,)}),
    (NGCF, {"layer_sizes": (32, 32, 32), "normalize_messages": True}),
]


@pytest.mark.parametrize(("cls", "parameters"), GRAPH_CASES, ids=str)
def test_activations_and_evaluation_of_graph_models(cls: Any, parameters: dict[str, Any], native_library: None) -> None:
    """Allocations of a step and of the final embeddings are within 15 % of the estimate."""
    graph = random_graph()
    p = cls(batch_size=16, only_needed=False, seed=0, **parameters)
    network = p.build_network(graph)
    runner = build_graph_runner(p, network, graph)

    def step() -> None:
        bpr, penalty = network.loss(*runner.sampler.draw(0), step=0)
        (bpr + penalty).backward()

    step()  # the kernels keep buffers for later calls
    network.zero_grad()
    estimate = estimate_memory(p, N_ITEMS, n_users=N_USERS, n_edges=graph.n_edges)
    # The estimate has the gradient of the step before, which a first step has not; it is as large as the parameters.
    measured = peak_allocation(step)
    expected = estimate.activations + estimate.gradients
    assert measured <= 1.15 * expected and expected <= 1.15 * (measured + estimate.gradients)
    network.eval()
    with torch.no_grad():
        final = peak_allocation(network)
    assert estimate.evaluation >= 0.95 * final


@pytest.mark.parametrize(
    "parameters",
    [
        {"layers": [96, 64], "batch_size": 60, "bptt": 4, "dropout_p_hidden": 0.2},
        {"layers": [96], "batch_size": 240},
    ],
)
@pytest.mark.parametrize("n_parts", [1, 4])
def test_workspace_of_the_fused_step(parameters: dict[str, Any], n_parts: int, native_library: None) -> None:
    """The buffers that the fused step reserves are within 15 % of the estimate, whole or in parts."""
    p = GRU4RecParameters(n_sample=500, seed=0, **parameters)
    store = random_store(4_000, n_sessions=p.batch_size)
    runner = build_session_runner(p, build_session_network(p, store.n_items), store)
    assert runner.why_not_fused is None
    runner.run_updates(1)  # creates the state of the optimizer
    runner.start_next_epoch()
    runner.hidden = None
    with oom_guard(n_parts=n_parts):
        measured = peak_allocation(lambda: runner.run_epoch(SilentProgress(), lambda: None))
    estimate = _estimate_sessions(p, store.n_items, batch_size=512, n_parts=n_parts)
    assert estimate.workspace == pytest.approx(measured, rel=0.15)


def test_sums_and_table() -> None:
    estimate = estimate_memory(GRU4RecParameters(layers=[100]), 1_000)
    held = estimate.parameters + estimate.optimizer + estimate.ids + estimate.workspace
    assert estimate.training == held + estimate.activations and estimate.validating == held + estimate.evaluation
    assert estimate.peak == max(estimate.training, estimate.validating) < 40e6
    assert estimate.evaluating == estimate.parameters + estimate.evaluation
    assert f"{estimate.peak / 2**20:,.1f} MiB" in estimate.table().splitlines()[-1]
    autograd = estimate_memory(GRU4RecParameters(layers=[100], fused=False), 1_000)
    assert autograd.workspace == 0 < autograd.activations


def test_a_budget_chooses_the_batch_size_and_keeps_the_metrics() -> None:
    graph = random_graph()
    model = LightGCN(embedding_dim=8, n_layers=1, n_epochs=1, seed=0).fit(graph, progress=False)
    sizes = {"n_users": N_USERS, "n_edges": graph.n_edges}
    unlimited = estimate_memory(model, N_ITEMS, **sizes)
    assert unlimited.evaluation_batch_size == 1024
    smallest = estimate_memory(model, N_ITEMS, **sizes, batch_size=1).evaluating
    for budget in (unlimited.evaluating, (unlimited.evaluating + smallest) // 2, smallest):
        chosen = estimate_memory(model, N_ITEMS, **sizes, memory_budget=budget)
        assert chosen.evaluating <= budget
        assert chosen == estimate_memory(model, N_ITEMS, **sizes, batch_size=chosen.evaluation_batch_size)
    assert chosen.evaluation_batch_size < 1024
    test = InteractionGraph.from_arrays(np.arange(300), np.arange(300) % 7, n_users=N_USERS, n_items=N_ITEMS)
    reports = [model.evaluate(test, batch_size=e.evaluation_batch_size).metrics for e in (unlimited, chosen)]
    assert reports[0] == reports[1]
    with pytest.raises(ValueError, match=f"memory_budget=1000: an evaluation needs at least {smallest} bytes"):
        estimate_memory(model, N_ITEMS, **sizes, memory_budget=1000)
    sessions = estimate_memory(GRU4Rec(layers=[512]), 1_000, batch_size=1 << 16, memory_budget=60_000_000)
    assert 512 <= sessions.evaluation_batch_size < 1 << 16 and sessions.n_parts == 1

    p = GRU4Rec(batch_size=4096, n_sample=0)
    whole, smallest = (_estimate_sessions(p, 5_000, 512, n_parts).training for n_parts in (1, 4096))
    assert estimate_memory(p, 5_000, memory_budget=whole).n_parts == 1
    chosen = estimate_memory(p, 5_000, memory_budget=whole // 2)
    assert chosen.n_parts == 8 and chosen.training <= whole // 2
    too_little = estimate_memory(p, 5_000, memory_budget=smallest - 1)
    assert (too_little.n_parts, too_little.training) == (4096, smallest)


def test_error_names_the_argument() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"n_items": 0}, "n_items=0: must be at least 1"),
        ({"n_items": 5, "n_users": 3}, "n_users and n_edges are for graph models"),
        ({"n_items": 5, "batch_size": 0}, "batch_size=0: must be at least 1"),
    ]
    for sizes, message in cases:
        with pytest.raises(ValueError, match=message):
            estimate_memory(GRU4RecParameters(), **sizes)
    with pytest.raises(ValueError, match="n_users=0: must be at least 1"):
        estimate_memory(LightGCNParameters(n_layers=0), 5)
    assert estimate_memory(LightGCNParameters(n_layers=0), 5_000, n_users=5_000).peak > 0
    for name in ("n_items", "batch_size", "cutoff", "memory_budget"):
        with pytest.raises(TypeError, match=f"{name}=nan: must be an integer"):
            estimate_memory(GRU4RecParameters(), **{"n_items": 10, name: float("nan")})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="or a model, not dict"):
        estimate_memory({}, 5)  # type: ignore[arg-type]


def test_info_estimate() -> None:
    arguments = ["info", "--estimate", "ngcf", "--n-items", "100", "--n-users", "50", "--n-edges", "900"]
    ran = cli(*arguments, "-ps", "embedding_dim=16,layer_sizes=8", "--json")
    assert ran.exit_code == 0, ran.stderr
    parameters = NGCFParameters(embedding_dim=16, layer_sizes=(8,))
    expected = estimate_memory(parameters, 100, n_users=50, n_edges=900)
    assert json.loads(ran.stdout) == expected.to_dict()
    shown = dict(line.split(maxsplit=1) for line in cli(*arguments).stdout.splitlines())
    assert shown["peak"] == f"{estimate_memory(NGCFParameters(), 100, n_users=50, n_edges=900).peak / 2**20:,.1f} MiB"
    assert "--estimate x: choose one of gru4rec, ngcf, lightgcn" in cli("info", "--estimate", "x").error_line
    assert "also give --estimate MODEL" in cli("info", "--n-items", "5").error_line
    assert "n_items=0: must be at least 1" in cli("info", "--estimate", "gru4rec").error_line
    assert "memory_budget=9: an evaluation needs" in cli(*arguments, "--memory-budget", "9").error_line


def test_numpy_integers_do_not_overflow() -> None:
    p = LightGCNParameters()
    sizes = {"n_items": 10**6, "n_users": 10**6, "n_edges": 5 * 10**8}
    expected = estimate_memory(p, **sizes, batch_size=10**9)
    assert estimate_memory(p, **{k: np.int32(v) for k, v in sizes.items()}, batch_size=np.int32(10**9)) == expected  # type: ignore[arg-type]
