"""Run the test cases and timed workloads of tools/compare_builds.py with the package of one environment.

    python build_cases.py describe                                                     print the versions as JSON
    python build_cases.py run RESULTS --impl native [--only TEXT] [--keep FOLDER]      run the cases
    python build_cases.py serve                                                        time workloads on request

compare_builds.py starts this file in the environments of two versions of the package. A case calls the public API with
inputs from fixed seeds and returns tensors. RESULTS gets one JSON line per case, with a hash of each tensor or with the
error. Only the functions from `load_implementation` to `own_product` depend on the version of the package. All other
code must run unchanged with both versions.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import itertools
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gru4rec_fast import NGCF, GRU4Rec, InteractionGraph, LightGCN, SessionStore, build_info, ops, optim

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
INTEGERS, FLOATS, WITH_BF16 = (torch.int32, torch.int64), (F32, F64), (F32, F64, BF16)
BOOLEANS = (False, True)
OPERATOR_IMPLS, MODEL_IMPLS = ("native", "reference", "emulated"), ("native", "reference")


def load_implementation(name: str) -> str:
    """Return the value of the argument `impl` for an implementation. Load the emulator for "emulated"."""
    if name != "emulated":
        return name
    from gru4rec_fast import _backend

    if hasattr(_backend, "emulation"):  # up to 0.1.0, the package itself loads the emulator
        _backend.emulation()
        return "emulated"
    sys.path.insert(0, str(Path(__file__).parent))
    import cuda_emulator

    cuda_emulator.register()
    cuda_emulator.load()
    return "emulated"


def step_operator(name: str, impl: str) -> Callable[..., Any]:
    """Return an operator of ops/training_step.py, by the name that it had up to 0.1.0."""
    from gru4rec_fast.ops.training_step import step_operator

    if name != "step_gather" and hasattr(ops, "sparse_adam_"):  # newer than 0.1.0
        name = {"step_settle": "step_store_losses"}.get(name, name) + "_"
    return step_operator(name, impl, torch.device("cpu"))


def operator(name: str) -> Callable[..., Any]:
    """Return the function of ops with this name, or with the name that it had up to 0.1.0."""
    old_name = "laplacian" if name == "laplacian_propagation" else name.removesuffix("_")
    return getattr(ops, name if hasattr(ops, name) else old_name)


def graph_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a graph model, renamed if the package is of version 0.1.0 or older."""
    old_names = {"sample_by": "draw", "message_dropout": "mess_dropout", "normalize_messages": "normalise_messages"}
    return (
        parameters
        if hasattr(ops, "sparse_adam_")
        else {old_names.get(name, name): value for name, value in parameters.items()}
    )


def next_items(model: GRU4Rec, sessions: list[list[int]], k: int, exclude_seen: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the items and scores of GRU4Rec.recommend."""
    options: dict[str, Any] = {"exclude_seen": exclude_seen}
    if "exclude_seen" not in inspect.signature(model.recommend).parameters:  # up to 0.1.0
        options = {"exclude": "session" if exclude_seen else None}
    items, scores = model.recommend(sessions, k, **options)[:2]
    return items, scores


def own_product(*arguments: Any) -> Tensor:
    """Call the package's own matrix product, product(a, b, add_to, precision, by_blocks)."""
    build_info()  # loads the library
    return torch.ops.gru4rec_fast_private.product(*arguments)


class Inapplicable(Exception):
    """The function of a family raises this error if a combination of values is not a case."""


@dataclass(frozen=True)
class Family:
    """A family of cases: a function, and the values of its arguments. Each combination of values is a case.

    run: called as run(impl, large=..., **values); returns the tensors to compare. impls: the implementations that the
    family has. sizes: values of `large`, which selects large or small inputs. axes: values of each further argument.
    """

    run: Callable[..., list[Tensor]]
    impls: tuple[str, ...]
    sizes: tuple[bool, ...]
    axes: dict[str, tuple[Any, ...]]

    def cases(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the name and the arguments of each case."""
        for large, *values in itertools.product(self.sizes, *self.axes.values()):
            named = dict(zip(self.axes, values, strict=True))
            texts = [
                str(value).removeprefix("torch.") if name == "dtype" else f"{name}={value}"
                for name, value in named.items()
            ]
            yield " ".join(["large" if large else "small", *texts]), {"large": large, **named}


FAMILIES: dict[str, Family] = {}


def family(
    name: str = "", impls: tuple[str, ...] = OPERATOR_IMPLS, sizes: tuple[bool, ...] = BOOLEANS, **axes: tuple[Any, ...]
) -> Any:
    """Return a decorator that registers a function as a family of cases. See `Family` for the arguments.

    name: name of the family; by default the name of the function.
    """

    def register(run: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
        FAMILIES[name or run.__name__] = Family(run, impls, sizes, axes)
        return run

    return register


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    # Sampled in float64, so that all data types get the same values up to rounding.
    return torch.randn(shape, generator=seeded(seed), dtype=F64).to(dtype)


def randint(low: int, high: int, shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(low, high, shape, generator=seeded(seed))


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor | None) -> list[Tensor]:
    """Return the output of a function and the gradients of its inputs, for a random gradient of the output."""
    leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    output.backward(randn(tuple(output.shape), output.dtype, 99))
    return [output, *(leaf.grad for leaf in leaves if leaf is not None and leaf.grad is not None)]


def random_log(n_sessions: int, n_items: int, seed: int = 3) -> SessionStore:
    """Return a random log: Zipf's law for the items, sessions of at least 2 events, 5 on average."""
    rng = np.random.default_rng(seed)
    lengths = 1 + rng.geometric(1 / 4, n_sessions)
    popularity = 1 / np.arange(1, n_items + 1)
    items = rng.choice(n_items, lengths.sum(), p=popularity / popularity.sum())
    return SessionStore.from_arrays(items, np.concatenate([[0], lengths.cumsum()]), n_items=n_items)


def random_graph(n_users: int, n_items: int, n_edges: int) -> InteractionGraph:
    """Return a graph of random interactions, in which items with low indices are more popular."""
    rng = np.random.default_rng(5)
    users, items = rng.integers(0, n_users, n_edges), (rng.random(n_edges) ** 2 * n_items).astype(np.int64)
    return InteractionGraph.from_arrays(users, items, n_users=n_users, n_items=n_items)


# Operators ------------------------------------------------------------------------------------------------------------


@family(dtype=INTEGERS, shuffled=BOOLEANS)
def session_batch(impl: str, large: bool, dtype: torch.dtype, shuffled: bool) -> list[Tensor]:
    store, lanes, steps = random_log(2000 if large else 12, 50), 64 if large else 5, 40 if large else 4
    order = torch.randperm(store.n_sessions, generator=seeded(0)) if shuffled else None
    items, offsets, state = (
        torch.tensor(store.items).to(dtype),
        torch.tensor(store.offsets),
        ops.session_batch_state(lanes),
    )
    blocks = [ops.session_batch(items, offsets, order, *state, steps, impl=impl) for _ in range(3)]
    return [tensor for block in blocks for tensor in block] + list(state)


@family(impls=MODEL_IMPLS, alpha=(0.0, 0.75, 1.0))
def build_alias_table(impl: str, large: bool, alpha: float) -> list[Tensor]:
    table = ops.build_alias_table(torch.from_numpy(random_log(3000, 4000 if large else 30).support), alpha, impl=impl)
    return [table.threshold, table.alias, table.log_prob]


@family(alpha=(0.0, 0.75))
def negative_sampling(impl: str, large: bool, alpha: float) -> list[Tensor]:
    table = ops.AliasTable(*build_alias_table("reference", large, alpha), alpha)
    return list(ops.negative_sampling(table, 4099 if large else 37, seed=11, step=5, steps=3, impl=impl))


@family(dtype=(*WITH_BF16, torch.float16), p=(0.0, 0.3))
def dropout_mask(impl: str, large: bool, dtype: torch.dtype, p: float) -> list[Tensor]:
    shape = (5, 64, 101) if large else (3, 5, 7)
    return [ops.dropout_mask(*shape, p, seed=7, stream=2, step=9, dtype=dtype, impl=impl)]


@family(dtype=FLOATS, form=("reset_after", "reset_before"), masked=BOOLEANS)
def gru(impl: str, large: bool, dtype: torch.dtype, form: str, masked: bool) -> list[Tensor]:
    steps, lanes, hidden = (5, 67, 100) if large else (3, 5, 19)
    shapes = [(steps, lanes, 3 * hidden), (lanes, hidden), (3 * hidden, hidden), (3 * hidden,)]
    inputs: list[Tensor | None] = [randn(shape, dtype, seed) / 4 for seed, shape in enumerate(shapes)]
    if form == "reset_before":
        inputs[3] = None
    reset = torch.rand(steps, lanes, generator=seeded(5)) < 0.3 if masked else None
    mask = (randn((steps, lanes, hidden), dtype, 6) > -1).to(dtype) * 1.25 if masked else None
    return with_gradients(lambda *leaves: ops.gru(*leaves, reset, mask, form, impl=impl), *inputs)


LOSSES = ("cross-entropy", "bpr-max", "top1", "top1-max", "bpr")


@family(dtype=WITH_BF16, loss=LOSSES, options=("none", "all", "own targets only"))
def sampled_loss(impl: str, large: bool, dtype: torch.dtype, loss: str, options: str) -> list[Tensor]:
    m, n, hidden = (67, 1003, 100) if large else (6, 21, 13)  # hidden states, sampled negatives, units
    sum_dtype = F32 if dtype == BF16 else dtype  # dtype of biases, log_q and counts
    leaves = [randn((m, hidden), dtype, 1), randn((m + n, hidden), dtype, 2) / 3, randn((m + n,), sum_dtype, 3)]
    arguments: dict[str, Any] = {"loss": loss, "impl": impl}
    if options != "none":
        arguments |= {"in_batch": options == "all", "batch_size": m + 2.0, "live": torch.arange(m) % 5 != 2}
        arguments |= {"log_q": randn((m + n,), sum_dtype, 4).abs(), "ids": randint(0, m + n // 2, (m + n,), 5)}
        arguments |= {"count": randint(1, 4, (n,), 6).to(sum_dtype), "elu_param": 0.0, "bpreg": 1.7}
        arguments |= {"label_smoothing": 0.1} if loss == "cross-entropy" else {}
    return with_gradients(lambda *inputs: ops.sampled_loss(*inputs, **arguments), *leaves)


def sparse_update(
    name: str, n_state: int, impl: str, large: bool, dtype: torch.dtype, width: int, option: float
) -> list[Tensor]:
    """Update rows of a table with the operator `name`; return the table and its state.

    n_state: number of state tensors. option: the step of Adam, or the momentum of Adagrad. Without momentum, the last
    state tensor is passed as None.
    """
    rows, n = (5000, 4000) if large else (13, 20)
    table, *state = (randn((rows, width), dtype, seed).abs() for seed in range(1 + n_state))
    passed_state = [None if option == 0 and tensor is state[-1] else tensor for tensor in state]
    index, grad = randint(-1, rows // 2, (n,), 8), randn((n, width), dtype, 9)
    options = {"step": option} if name == "sparse_adam_" else {"momentum": option}
    operator(name)(table, *passed_state, index, grad, lr=0.1, impl=impl, **options)
    return [table, *state]


family("sparse_adagrad_", dtype=FLOATS, width=(1, 7, 100), option=(0.0, 0.3))(
    partial(sparse_update, "sparse_adagrad_", 2)
)
family("sparse_adam_", dtype=FLOATS, width=(1, 7, 100), option=(1, 7))(partial(sparse_update, "sparse_adam_", 2))


def ranking_inputs(large: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, weights and biases."""
    queries, items, hidden = (70, 3001, 100) if large else (5, 37, 13)
    weight = randn((items, hidden), dtype, 2)
    weight[items // 2 :] = weight[: items - items // 2].clone()  # pairs of equal rows, whose scores tie
    return randn((queries, hidden), dtype, 1), weight, randn((items,), dtype, 3).round()


@family(dtype=FLOATS, biased=BOOLEANS)
def target_rank(impl: str, large: bool, dtype: torch.dtype, biased: bool) -> list[Tensor]:
    hidden, weight, bias = ranking_inputs(large, dtype)
    targets = randint(0, len(weight), (len(hidden),), 4)
    return list(ops.target_rank(hidden, weight, bias if biased else None, targets, impl=impl))


@family(dtype=FLOATS, k=(1, 20), exclude=BOOLEANS)
def top_k(impl: str, large: bool, dtype: torch.dtype, k: int, exclude: bool) -> list[Tensor]:
    hidden, weight, bias = ranking_inputs(large, dtype)
    excluded = randint(-1, len(weight), (len(hidden), 9), 4) if exclude else None
    return list(ops.top_k(hidden, weight, bias, k, excluded, impl=impl))


def graph_of_size(large: bool, impl: str) -> InteractionGraph:
    """Return a small or a large random graph."""
    if not large:
        return random_graph(9, 14, 40)
    return random_graph(60, 90, 700) if impl == "emulated" else random_graph(700, 900, 15_000)  # emulation is slow


def node_subset(graph: InteractionGraph, nodes: str) -> dict[str, Tensor | None]:
    """Return the arguments `rows` and `columns` of a graph operator: indices of some nodes, or None for all nodes.

    nodes: a value of NODES, which names the arguments that select some nodes.
    """
    index = torch.arange(graph.n_nodes)
    selected = index[index % 3 != 0]
    return {
        "rows": None if nodes == "all" else selected[::2],
        "columns": selected if nodes == "rows and columns" else None,
    }


NODES = ("all", "rows", "rows and columns")
MATRICES = ("symmetric", "mean", "norm", "plain")


@family(dtype=WITH_BF16, matrix=MATRICES, nodes=NODES, dropout=(0.0, 0.2))
def laplacian_propagation(
    impl: str, large: bool, dtype: torch.dtype, matrix: str, nodes: str, dropout: float
) -> list[Tensor]:
    graph = graph_of_size(large, impl)
    options = {
        **node_subset(graph, nodes),
        "dropout": dropout,
        "seed": 3,
        "step": 4,
        "transposed": dropout > 0,
        "impl": impl,
    }
    n_columns = graph.n_nodes if options["columns"] is None else len(options["columns"])
    features = randn((n_columns, 65 if large else 7), dtype, 1)
    return with_gradients(
        lambda x: operator("laplacian_propagation")(x, *graph.structure(), matrix, **options), features
    )


@family(
    dtype=WITH_BF16, P=("symmetric+I", "norm"), Q=("symmetric", "plain"), activation=("sum", "per_term"), nodes=NODES,
    dropout=(0.0, 0.2),
)  # fmt: skip
def ngcf_layer(impl: str, large: bool, dtype: torch.dtype, nodes: str, dropout: float, **options: Any) -> list[Tensor]:
    graph, (width, out) = graph_of_size(large, impl), (48, 65) if large else (7, 5)
    options |= {**node_subset(graph, nodes), "node_dropout": dropout, "message_dropout": dropout, "impl": impl}
    n_columns = graph.n_nodes if options["columns"] is None else len(options["columns"])
    shapes = [(n_columns, width), (width, out), (out,), (width, out), (out,)]
    leaves = [randn(shape, dtype, seed) / 2 for seed, shape in enumerate(shapes)]
    options |= {"seed": 3, "step": 4, "layer": 1}
    return with_gradients(lambda x, *rest: ops.ngcf_layer(x, *graph.structure(), *rest, **options), *leaves)


@family(dtype=INTEGERS, by_interaction=BOOLEANS)
def bpr_triples(impl: str, large: bool, dtype: torch.dtype, by_interaction: bool) -> list[Tensor]:
    graph = graph_of_size(large, impl)
    offsets, neighbors = graph.structure()
    degrees = offsets[: graph.n_users + 1].diff()
    users = ((degrees > 0) & (degrees < graph.n_items)).nonzero()[:, 0]
    starts = torch.cat([degrees.new_zeros(1), degrees[users].cumsum(0)]) if by_interaction else None
    options = {"n_users": graph.n_users, "n_items": graph.n_items, "starts": starts, "seed": 3, "step": 4, "impl": impl}
    return [ops.bpr_triples(offsets, neighbors.to(dtype), users, 5001 if large else 33, **options)]


@family(impls=("reference", "emulated"), dtype=FLOATS, operator=("gather", "gather bf16", "settle", "apply", "rows"))
def training_step(impl: str, large: bool, dtype: torch.dtype, operator: str) -> list[Tensor]:
    """Call the operators of the captured training step, which have no native CPU kernels."""
    if operator == "gather bf16" and dtype != F32:
        raise Inapplicable
    rows, width, lanes, n = (3000, 100, 64, 1000) if large else (11, 12, 5, 7)
    call = step_operator(f"step_{operator.split()[0]}", impl)
    enabled = torch.tensor(True)
    hyperparameters = torch.tensor([0.1, 0.3, 1e-6], dtype=F64)  # learning rate, momentum, eps
    if operator.startswith("gather"):
        inputs, items = randint(-1, rows, (2, lanes), 1), randint(-1, rows, (2, lanes + n), 2)
        table, mask = randn((rows, width), dtype, 3), randn((2, lanes, width), dtype, 4)
        biases = randn((rows,), dtype, 5), randn((rows,), dtype, 6)
        return list(call(table, inputs, mask, table, *biases, items, lanes, 0.5, 0.75, operator.endswith("bf16")))
    if operator == "settle":
        results = [torch.tensor(False), torch.empty(9, dtype=dtype), torch.tensor(False)]  # stopped, losses, enabled
        call(randn((9, 1), dtype, 1), torch.arange(9) < 7, *results)
        return results
    if operator == "apply":
        # weights, accumulators, velocities, gradients, hidden states, outputs
        shapes = [(3 * width, width), (1,), (width,)]
        lists = [[randn(shape, dtype, 10 * i + j).abs() for j, shape in enumerate(shapes)] for i in range(6)]
        call(*lists, enabled, hyperparameters)
        return [tensor for tensors in lists for tensor in tensors]
    # weight, accumulator and velocity of the table [rows, width] and of the bias [rows]
    tables = [randn((rows, width)[:dim], dtype, seed).abs() for seed, dim in enumerate((2, 2, 2, 1, 1, 1))]
    grads = randn((lanes, width), dtype, 8), None, randn((n, width + 4), dtype, 9)
    row_indices, order = randint(-1, rows, (lanes + n,), 7).sort(stable=True)
    call(*tables, row_indices, order, *grads, enabled, hyperparameters)
    return tables


@family(impls=("native",), dtype=FLOATS, layout=("nn", "nt", "tn", "tt"), precision=("full", "bf16"))
def product(impl: str, large: bool, dtype: torch.dtype, layout: str, precision: str) -> list[Tensor]:
    m, n, k = (48, 1500, 100) if large else (5, 33, 31)
    a = randn((m, k), dtype, 1) if layout[0] == "n" else randn((k, m), dtype, 1).T
    b = randn((k, n), dtype, 2) if layout[1] == "n" else randn((n, k), dtype, 2).T
    addend = randn((m, n), dtype, 3)
    options = ((None, False), (None, True), (addend, False))  # add_to, by_blocks
    return [own_product(a, b, add_to, precision, by_blocks) for add_to, by_blocks in options]


def run_optimizer(name: str, impl: str, large: bool, dtype: torch.dtype, sparse: bool) -> list[Tensor]:
    rows, width = (3000, 64) if large else (20, 7)
    table = torch.nn.Parameter(randn((rows, width), dtype, 1))
    optimizer = getattr(optim, name)([table], lr=0.1, impl=impl)
    for step in range(3):
        values, index = randn((rows // 2, width), dtype, step), randint(0, rows, (1, rows // 2), step)
        grad = torch.sparse_coo_tensor(index, values, (rows, width))
        table.grad = grad if sparse else grad.to_dense()
        optimizer.step()
    return [table]


for _name in ("SparseAdagrad", "SparseAdam"):
    family(f"optim.{_name}", MODEL_IMPLS, dtype=FLOATS, sparse=BOOLEANS)(partial(run_optimizer, _name))


# Models ---------------------------------------------------------------------------------------------------------------

# Published hyper-parameters of GRU4Rec, as in benchmarks/naive_pytorch.py. A name has the loss and the hidden units.
SETTINGS: dict[str, dict[str, Any]] = {
    "xe-100": {"layers": [100], "batch_size": 32, "sample_alpha": 0.75, "learning_rate": 0.1, "dropout_p_embed": 0.1,
               "logq": 1.0},
    "xe-480": {"layers": [480], "batch_size": 48, "sample_alpha": 0.2, "learning_rate": 0.07, "dropout_p_hidden": 0.2,
               "logq": 1.0},
    "bprmax-224": {"layers": [224], "loss": "bpr-max", "batch_size": 80, "sample_alpha": 0.4, "learning_rate": 0.05,
                   "dropout_p_embed": 0.5, "dropout_p_hidden": 0.05, "momentum": 0.4, "bpreg": 1.95, "elu_param": 0.5},
    "bprmax-512": {"layers": [512], "loss": "bpr-max", "batch_size": 128, "sample_alpha": 0.3, "learning_rate": 0.05,
                   "dropout_p_embed": 0.5, "dropout_p_hidden": 0.3, "momentum": 0.15, "bpreg": 0.9, "elu_param": 1.0},
}  # fmt: skip
# Parameters of GRU4Rec that select how a training step runs: as one C++ call ("fused"), with autograd, or fused with
# matrix products in bfloat16.
WAYS: dict[str, dict[str, Any]] = {"fused": {}, "autograd": {"fused": False}, "bf16": {"precision": "bf16"}}


def results_of(model: Any) -> list[Tensor]:
    """Return the loss of each epoch and the weights of a trained model, sorted by name."""
    weights = {name: weight.detach() for name, weight in model.network.named_parameters()}
    return [
        torch.tensor([record["loss"] for record in model.history], dtype=F64),
        *(weights[name] for name in sorted(weights)),
    ]


@family("training row", ("native",), sizes=(True,), setting=tuple(SETTINGS), way=tuple(WAYS), steps=(20, 200))
def training_row(impl: str, large: bool, setting: str, way: str, steps: int) -> list[Tensor]:
    """Train with a published setting, a "training row": 200 steps with the CPU's largest instruction set, else 20."""
    if (steps == 200) != (build_info()["simd"] == build_info()["simd_detected"]):
        raise Inapplicable
    parameters = SETTINGS[setting]
    store = random_log(steps * parameters["batch_size"] // 8 + 50, 3000)  # 2 epochs; 4 targets per session on average
    model = GRU4Rec(**parameters, **WAYS[way], n_sample=2048, n_epochs=2, seed=1, impl=impl).fit(store, progress=False)
    n_steps = sum(record["mini_batches"] for record in model.history)
    if n_steps < steps:
        raise AssertionError(f"{n_steps} steps instead of {steps}")
    return results_of(model)


# Hyper-parameters of small GRU4Rec models, by name.
SMALL_MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers": {
        "layers": [13, 9],
        "momentum": 0.2,
        "dropout_p_embed": 0.2,
        "dropout_p_hidden": 0.2,
        "shuffle": True,
    },
    "through steps": {"bptt": 4, "accumulate": 2, "dropout_p_hidden": 0.2},
    "separate": {"constrained_embedding": False, "embedding": 7, "gru_form": "reset_before"},
    "one-hot": {"constrained_embedding": False, "momentum": 0.1, "lr_scheduler": "cosine"},
    "smoothed": {"label_smoothing": 0.1, "mask_accidental_hits": True, "logq": 0.5},
    "in-batch": {"n_sample": 0, "loss": "top1-max"},
    "top1": {"loss": "top1"},
    "bpr": {"loss": "bpr"},
}
SMALL_MODEL_AXES = {"way": tuple(WAYS), "dtype": FLOATS}


def small_model(impl: str, way: str, dtype: torch.dtype, options: str, n_epochs: int = 2) -> GRU4Rec:
    """Return a GRU4Rec to train. `way` is a key of WAYS, `options` a key of SMALL_MODELS."""
    if (impl == "reference" and way != "autograd") or (way == "bf16" and dtype != F32):
        raise Inapplicable
    parameters = {"layers": [13], "batch_size": 7, "n_sample": 50, "seed": 2, **SMALL_MODELS[options], **WAYS[way]}
    return GRU4Rec(**parameters, dtype=str(dtype).removeprefix("torch."), n_epochs=n_epochs, impl=impl)


@family(impls=MODEL_IMPLS, sizes=(False,), **SMALL_MODEL_AXES, options=tuple(SMALL_MODELS))
def training(impl: str, large: bool, **case: Any) -> list[Tensor]:
    """Train a small model. `case` has the arguments of small_model."""
    return results_of(small_model(impl, **case).fit(random_log(60, 80), progress=False))


@family(impls=MODEL_IMPLS, sizes=(False,), **SMALL_MODEL_AXES, options=("two layers", "through steps"))
def resume(impl: str, large: bool, **case: Any) -> list[Tensor]:
    """Train one epoch, then resume with a new model and train two more epochs."""
    log = random_log(60, 80)
    with tempfile.TemporaryDirectory() as out:
        small_model(impl, **case, n_epochs=1).fit(log, out=out, progress=False)
        return results_of(small_model(impl, **case, n_epochs=3).fit(log, out=out, resume=True, progress=False))


def values_of(metrics: dict[str, float]) -> Tensor:
    """Return the values of metrics, sorted by name."""
    return torch.tensor([metrics[name] for name in sorted(metrics)], dtype=F64)


@family(impls=MODEL_IMPLS, sizes=(False,), **SMALL_MODEL_AXES, options=("plain",))
def evaluation(impl: str, large: bool, **case: Any) -> list[Tensor]:
    log, test = random_log(60, 80), random_log(100, 80, seed=8)
    model = small_model(impl, **case, n_epochs=1).fit(log, progress=False)
    ties = ("conservative", "standard", "median")
    metrics = [values_of(model.evaluate(test, cutoffs=(1, 5, 20), ties=rule).metrics) for rule in ties]
    lists = [next_items(model, [[1, 2, 3], [5], [7, 1]], 10, exclude_seen) for exclude_seen in BOOLEANS]
    return metrics + [torch.from_numpy(array) for items_and_scores in lists for array in items_and_scores]


GRAPH_MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "NGCF": (NGCF, {"layer_sizes": [24, 16]}),
    "NGCF per term": (NGCF, {"activation": "per_term", "adjacency": "norm", "only_needed": False}),
    "NGCF normalized": (NGCF, {"adjacency": "mean+I/mean", "normalize_messages": True}),
    "LightGCN": (LightGCN, {"n_layers": 2, "node_dropout": 0.1}),
    "LightGCN reordered": (LightGCN, {"reorder": True, "sample_by": "interactions"}),
}


@family("graph training", MODEL_IMPLS, model=tuple(GRAPH_MODELS), dtype=FLOATS)
def graph_training(impl: str, large: bool, model: str, dtype: torch.dtype) -> list[Tensor]:
    graph = random_graph(500, 600, 6000) if large else random_graph(12, 17, 60)
    estimator, options = GRAPH_MODELS[model]
    options = options | {"embedding_dim": 32 if large else 5, "batch_size": 512 if large else 16, "n_epochs": 2}
    options = graph_parameters(options)
    fitted = estimator(**options, dtype=str(dtype).removeprefix("torch."), seed=4, impl=impl).fit(graph, progress=False)
    lists = *fitted.recommend(range(5), k=3)[:2], *fitted.similar_items(range(5), k=3)[:2]  # items and scores
    metrics = fitted.evaluate(random_graph(graph.n_users, graph.n_items, 200), cutoffs=(5, 20)).metrics
    return [*results_of(fitted), *fitted.embeddings(), *map(torch.from_numpy, lists), values_of(metrics)]


# Timed workloads ------------------------------------------------------------------------------------------------------

# A function that runs n units of work and returns the seconds per unit.
TimedWorkload = Callable[[int], float]


def make_epoch_workload(setting: str, **options: Any) -> TimedWorkload:
    """Return a function that trains two epochs of about 50 mini-batches and times the second one; it ignores n."""
    store = random_log(50 * SETTINGS[setting]["batch_size"] // 4, 20_000)

    def run(n: int) -> float:
        model = GRU4Rec(**SETTINGS[setting], **options, n_sample=2048, n_epochs=2, seed=0, impl="native").fit(
            store, progress=False
        )
        return model.history[-1]["seconds"] / model.history[-1]["mini_batches"]

    return run


def make_workload(function: Callable[..., Any], *shapes: tuple[int, ...], backward: bool = True) -> TimedWorkload:
    """Return a function that times n calls of `function` on random tensors of these shapes.

    backward: also run the backward pass of each call.
    """
    leaves = [randn(shape, F32, seed).requires_grad_(backward) for seed, shape in enumerate(shapes)]

    def run(n: int) -> float:
        started = time.perf_counter()
        for _ in range(n):
            output = function(*leaves)
            if backward:
                output.sum().backward()
        return (time.perf_counter() - started) / n

    return run


def make_graph_operator_workload(operator: Callable[..., Tensor], *shapes: tuple[int, ...]) -> TimedWorkload:
    """Return a function that times a graph operator. shapes: of its weights, after the features."""
    structure = random_graph(3000, 4000, 100_000).structure()
    return make_workload(lambda x, *rest: operator(x, *structure, *rest, impl="native"), (7000, 64), *shapes)


def make_target_rank_workload() -> TimedWorkload:
    targets = torch.arange(64)
    call = partial(ops.target_rank, impl="native")
    return make_workload(
        lambda hidden, weight: call(hidden, weight, None, targets), (64, 100), (20_000, 100), backward=False
    )


def make_sparse_adagrad_workload() -> TimedWorkload:
    index, accumulator = randint(0, 20_000, (2128,), 1), torch.ones(20_000, 224)
    call = partial(operator("sparse_adagrad_"), lr=0.01, impl="native")
    return make_workload(lambda w, g: call(w, accumulator, None, index, g), (20_000, 224), (2128, 224), backward=False)


def make_session_batch_workload() -> TimedWorkload:
    store = random_log(20_000, 5000)
    log, call = (
        (torch.tensor(store.items), torch.tensor(store.offsets), None),
        partial(ops.session_batch, impl="native"),
    )
    return make_workload(lambda: call(*log, *ops.session_batch_state(128), 400), backward=False)


def make_negative_sampling_workload() -> TimedWorkload:
    table = ops.build_alias_table(torch.from_numpy(random_log(20_000, 20_000).support), 0.5, impl="native")
    draw = partial(ops.negative_sampling, seed=0, step=0, steps=10, impl="native")
    return make_workload(lambda: draw(table, 2048), backward=False)


# Functions that make the inputs and return the timed workload. Sizes of "gru" and "sampled_loss": 80 lanes (sessions in
# parallel), 224 units, 2048 negatives, so 80 + 2048 = 2128 rows of the output table.
TIMED_WORKLOADS: dict[str, Callable[[], TimedWorkload]] = {
    **{f"{setting} fused": partial(make_epoch_workload, setting) for setting in SETTINGS},
    "xe-100 autograd": partial(make_epoch_workload, "xe-100", fused=False),
    "gru": partial(make_workload, partial(ops.gru, impl="native"), (1, 80, 672), (80, 224), (672, 224), (672,)),
    "sampled_loss": partial(make_workload, partial(ops.sampled_loss, impl="native"), (80, 224), (2128, 224), (2128,)),
    "target_rank": make_target_rank_workload,
    "laplacian_propagation": lambda: make_graph_operator_workload(operator("laplacian_propagation")),
    "ngcf_layer": partial(make_graph_operator_workload, ops.ngcf_layer, (64, 64), (64,), (64, 64), (64,)),
    "sparse_adagrad_": make_sparse_adagrad_workload,
    "session_batch": make_session_batch_workload,
    "negative_sampling": make_negative_sampling_workload,
}


# Commands -------------------------------------------------------------------------------------------------------------


def digest(tensor: Tensor) -> str:
    """Return a hash of the dtype, the shape and the bytes of a tensor."""
    tensor = tensor.detach().contiguous()
    header = f"{tensor.dtype} {[*tensor.shape]} ".encode()
    return hashlib.sha256(header + tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def run_case(name: str, run: Callable[[], list[Tensor]], keep_folder: Path | None) -> dict[str, Any]:
    """Run a case and return a record with its name, and either the error or the processor time and the digests.

    keep_folder: folder where the tensors are saved, or None.
    """
    started = time.process_time()
    try:
        tensors = run()
        if not sum(tensor.numel() for tensor in tensors):
            raise AssertionError("returned nothing to compare")
    except Inapplicable:
        raise
    except Exception as error:  # recorded: the other build may raise the same error
        return {"name": name, "error": f"{type(error).__name__}: {error}"}
    seconds = round(time.process_time() - started, 3)
    if keep_folder is not None:
        torch.save(
            [tensor.detach() for tensor in tensors], keep_folder / f"{hashlib.sha256(name.encode()).hexdigest()}.pt"
        )
    return {"name": name, "seconds": seconds, "digests": [digest(tensor) for tensor in tensors]}


def run_cases(impl: str, only: list[str], keep_folder: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the records of the cases whose names contain a text of `only` (all cases if `only` is empty).

    A family without cases yields a record with an error.
    """
    instruction_set = f"-{build_info()['simd']}" if impl == "native" else ""
    for threads in (1, 2) if impl != "emulated" else (1,):
        torch.set_num_threads(threads)
        for name, family_of_cases in FAMILIES.items():
            if impl not in family_of_cases.impls:
                continue
            prefix, has_cases = f"{name}/{impl}{instruction_set}/threads={threads}", False
            for description, values in family_of_cases.cases():
                case = f"{prefix}/{description}"
                try:
                    if not only or any(text in case for text in only):
                        yield run_case(
                            case,
                            lambda run=family_of_cases.run, v=values: run(load_implementation(impl), **v),
                            keep_folder,
                        )
                    has_cases = True
                except Inapplicable:
                    continue
            if not has_cases:
                yield {"name": prefix, "error": "there are no cases"}


def serve() -> None:
    """Read lines {"workload": name, "n": units, "threads": threads}; print the seconds per unit for each line."""
    answers, sys.stdout = sys.stdout, sys.stderr  # other output must not be read as an answer
    name = ""
    run: TimedWorkload  # times the workload `name`
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request["threads"])
        if request["workload"] != name:
            name, run = request["workload"], TIMED_WORKLOADS[request["workload"]]()
        print(run(request["n"]), file=answers, flush=True)


def describe() -> dict[str, Any]:
    """Return the versions and the instruction set of the build, and the names of the timed workloads."""
    info = build_info()
    versions = {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "package": str(Path(inspect.getfile(ops)).parents[1]),
    }
    return (
        versions
        | {name: info[name] for name in ("version", "simd_detected", "why_not")}
        | {"workloads": list(TIMED_WORKLOADS)}
    )


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("describe", "run", "serve"))
    parser.add_argument("results", nargs="?", type=Path)
    parser.add_argument("--impl", default="native")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "describe":
        print(json.dumps(describe()))
    elif arguments.command == "serve":
        serve()
    else:
        with arguments.results.open("w") as file:
            for record in run_cases(arguments.impl, arguments.only, arguments.keep):
                print(json.dumps(record), file=file, flush=True)


if __name__ == "__main__":
    main()
