"""Compare `estimate_memory` with the measured peak memory of ten trainings, each in a process of its own.

    python benchmarks/bench_memory_estimate.py [NAME ...]

A process measures the peak resident memory of a `fit` (GRU4Rec: an epoch of a short log, with validation; graph models:
a few mini-batches) and of an `evaluate`. Before, it imports the package, runs a small training of the same kind, which
loads the kernels, and makes the data; the memory then in use is subtracted. The goal is a ratio of estimate and
measurement within 15 %. Each process needs up to 2 GiB.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from typing import Any

import numpy as np

from gru4rec_fast import NGCF, GRU4Rec, LightGCN
from gru4rec_fast.data import InteractionGraph, SessionStore
from gru4rec_fast.models import estimate_memory
from gru4rec_fast.profiling import PeakMemory
from gru4rec_fast.training import Callback, Trainer
from gru4rec_fast.training.callbacks import StepRecord

GOAL = 0.15
N_STEPS = 3  # mini-batches of graph models
# Class, hyper-parameters, and sizes of the data: items; for graph models also users and edges.
CONFIGURATIONS: dict[str, tuple[Any, dict[str, Any], dict[str, int]]] = {
    "gru4rec": (GRU4Rec, {"layers": [100], "logq": 1.0}, {"n_items": 1_000_000}),
    "gru4rec_momentum": (GRU4Rec, {"layers": [256], "momentum": 0.3}, {"n_items": 300_000}),
    "gru4rec_separate": (
        GRU4Rec,
        {"layers": [128], "constrained_embedding": False, "embedding": 96, "bptt": 4, "accumulate": 2},
        {"n_items": 400_000},
    ),
    "gru4rec_one_hot": (GRU4Rec, {"layers": [100], "constrained_embedding": False}, {"n_items": 250_000}),
    "gru4rec_large_batch": (
        GRU4Rec,
        {"layers": [512, 512], "batch_size": 512, "n_sample": 8192, "bptt": 8, "dropout_p_hidden": 0.2},
        {"n_items": 60_000},
    ),
    "gru4rec_autograd": (GRU4Rec, {"layers": [128], "fused": False, "bptt": 4}, {"n_items": 400_000}),
    "ngcf": (NGCF, {}, {"n_items": 120_000, "n_users": 200_000, "n_edges": 3_000_000}),
    "ngcf_all_nodes": (
        NGCF,
        {"only_needed": False, "layer_sizes": (64, 32), "adjacency": "norm/mean"},
        {"n_items": 100_000, "n_users": 200_000, "n_edges": 2_000_000},
    ),
    "lightgcn": (LightGCN, {}, {"n_items": 200_000, "n_users": 400_000, "n_edges": 4_000_000}),
    "lightgcn_all_nodes": (
        LightGCN,
        {"only_needed": False, "embedding_dim": 128, "n_layers": 2},
        {"n_items": 150_000, "n_users": 250_000, "n_edges": 2_000_000},
    ),
}


class StopAfter(Callback):
    """Stops a training after `steps` mini-batches of an epoch."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, trainer: Trainer, record: StepRecord) -> None:
        if record.mini_batches and trainer.position.mini_batches >= self.steps:
            trainer.stop()


def make_data(kind: str, sizes: dict[str, int], seed: int) -> Any:
    """Return a store or a graph, whose items (and users) follow a power law."""
    rng = np.random.default_rng(seed)
    n_events = sizes.get("n_edges", 20_000 if seed == 0 else 4_000)
    items = (rng.random(n_events) ** 2 * sizes["n_items"]).astype(np.int64)
    if kind == "GRU4Rec":
        return SessionStore.from_arrays(items, np.arange(0, n_events + 1, 5), n_items=sizes["n_items"])
    users = (rng.random(n_events) ** 1.5 * sizes["n_users"]).astype(np.int64)
    graph_sizes = {name: sizes[name] for name in ("n_users", "n_items")}
    return InteractionGraph.from_arrays(rng.permutation(sizes["n_users"])[users], items, **graph_sizes)


def trim() -> None:
    """Return freed memory to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def measure(name: str) -> None:
    """Print, as JSON, the estimates and the measurements of a configuration."""
    cls, parameters, sizes = CONFIGURATIONS[name]
    parameters = {**parameters, "n_epochs": 1, "seed": 0}
    small = {name: min(size, 2_000) for name, size in sizes.items()}
    cls(**parameters).fit(
        make_data(cls.__name__, small, 0), validation=make_data(cls.__name__, small, 1), progress=False
    )
    train = make_data(cls.__name__, sizes, 0)
    held_out = make_data(cls.__name__, sizes | ({"n_edges": 20_000} if "n_edges" in sizes else {}), 1)
    model = cls(**parameters)
    trim()
    fit_peak = PeakMemory()
    callbacks = [] if cls is GRU4Rec else [StopAfter(N_STEPS)]
    model.fit(train, validation=held_out if cls is GRU4Rec else None, callbacks=callbacks, progress=False)
    fit_bytes = fit_peak.bytes
    model.network.zero_grad()  # `fit` keeps the gradients of a graph model's last step; a loaded model has none
    trim()
    evaluate_peak = PeakMemory()
    model.evaluate(held_out)
    evaluate_bytes = evaluate_peak.bytes + evaluate_peak.baseline - fit_peak.baseline
    estimate = estimate_memory(model, **sizes)
    fit_estimate = estimate.peak if cls is GRU4Rec else estimate.training
    print(json.dumps({"fit": [fit_estimate, fit_bytes], "evaluate": [estimate.evaluating, evaluate_bytes]}))


def main(names: list[str]) -> int:
    """Measure each configuration in a child process; return the number of ratios beyond the goal."""
    n_beyond = 0
    print(f"{'configuration':24}{'call':10}{'estimate':>12}{'measured':>12}{'ratio':>8}")
    for name in names or CONFIGURATIONS:
        command = [sys.executable, __file__, "--measure", name]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        for call, (estimate, measured) in json.loads(output.splitlines()[-1]).items():
            ratio = estimate / measured
            n_beyond += abs(ratio - 1) > GOAL
            sizes = f"{estimate / 2**20:8.0f} MiB{measured / 2**20:8.0f} MiB"
            print(f"{name:24}{call:10}{sizes}{ratio:8.2f}", flush=True)
    return n_beyond


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2])
    else:
        sys.exit(main(sys.argv[1:]))
