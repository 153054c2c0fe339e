"""Measure the training by several processes: speed, bytes and time of the exchange, and their model.

    torchrun --nproc-per-node 2 benchmarks/ranks.py
    torchrun --nproc-per-node 2 benchmarks/ranks.py --layers 512 --batch-size 512 --json build/benchmarks/ranks.json
    torchrun --nproc-per-node 2 benchmarks/ranks.py --model NGCF --graph train.txt --layers 64 --batch-size 1024

Each process has one thread. In turns, all processes train together, and process 0 trains alone; the medians are
printed. The log of GRU4Rec is synthetic: sessions of 2 to 9 events, items by Zipf's law. NGCF and LightGCN have three
layers. "predicted" are the milliseconds of an update on other numbers of processes, by the model of
docs/distributed.md; exchanges of graph models are all taken as sums, which are the dearer ones.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from machine import describe_machine

from gru4rec_fast import NGCF, InteractionGraph, LightGCN, SessionStore
from gru4rec_fast.distributed import Ranks
from gru4rec_fast.models import GRU4RecParameters, build_session_network, build_session_runner
from gru4rec_fast.models.builders import build_graph_runner
from gru4rec_fast.models.parameters import LANES
from gru4rec_fast.training import GraphEpochRunner, SessionEpochRunner
from gru4rec_fast.training.progress import make_progress

# A cluster for the prediction: bytes per second of a process's network card, and seconds per message.
BANDWIDTH, LATENCY = 3e9, 20e-6


def make_store(n_sessions: int, n_items: int) -> SessionStore:
    """Return random sessions of items whose frequencies follow Zipf's law."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 10, n_sessions)
    weights = 1 / np.arange(1, n_items + 1)
    items = rng.choice(n_items, lengths.sum(), p=weights / weights.sum())
    return SessionStore.from_arrays(items, np.cumsum([0, *lengths]), n_items=n_items)


def make_runner(
    options: argparse.Namespace, data: SessionStore | InteractionGraph
) -> SessionEpochRunner | GraphEpochRunner:
    """Return a runner with the options of the command line."""
    if isinstance(data, InteractionGraph):
        parameters = {"embedding_dim": options.layers, "batch_size": options.batch_size, "seed": 0}
        if options.model == "NGCF":
            model: NGCF | LightGCN = NGCF(layer_sizes=(options.layers,) * 3, **parameters)
        else:
            model = LightGCN(n_layers=3, **parameters)
        return build_graph_runner(model, model.build_network(data), data)
    p = GRU4RecParameters(
        layers=(options.layers,),
        batch_size=options.batch_size,
        n_sample=options.n_sample,
        lanes=options.lanes,
        logq=1.0,
        seed=0,
    )
    return build_session_runner(p, build_session_network(p, data.n_items), data)


def timed_updates(runner: SessionEpochRunner | GraphEpochRunner, updates: int) -> float:
    """Make some updates; return the mean seconds of one."""
    started = time.perf_counter()
    if isinstance(runner, GraphEpochRunner):
        runner.sampler.n_batches = updates  # an epoch
        runner.run_epoch(make_progress(False, "triples"), lambda: None)
        runner.start_next_epoch()
    elif runner.run_updates(updates).finished:
        raise ValueError("the log is too short: increase --sessions")
    return (time.perf_counter() - started) / updates


def measure(options: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """Return the figures of one configuration."""
    is_graph = options.model != "GRU4Rec"
    data = InteractionGraph.from_text(options.graph) if is_graph else make_store(options.sessions, options.items)
    together, alone = make_runner(options, data), make_runner(options, data)
    together.join(ranks)
    for runner in (together, alone):
        timed_updates(runner, 5)
    before = ranks.n_bytes
    seconds: dict[str, list[float]] = {"together": [], "alone": []}
    for _ in range(options.turns):
        dist.barrier()
        seconds["together"].append(timed_updates(together, options.updates))
        dist.barrier()
        if ranks.is_first:
            seconds["alone"].append(timed_updates(alone, options.updates))
    n_bytes = (ranks.n_bytes - before) // (options.turns * options.updates)
    exchange = []
    buffer = torch.zeros(n_bytes // 4)
    for _ in range(20):
        dist.barrier()
        started = time.perf_counter()
        ranks.sum_(buffer)
        exchange.append(time.perf_counter() - started)
    together_ms, alone_ms = (1e3 * median(seconds[side] or [0.0]) for side in ("together", "alone"))
    return {
        "model": options.model,
        "processes": ranks.size,
        "layers": options.layers,
        "batch_size": options.batch_size,
        **({} if is_graph else {"n_sample": options.n_sample, "lanes": options.lanes}),
        "bytes_per_update": n_bytes,
        "alone_ms": alone_ms,
        "together_ms": together_ms,
        "exchange_ms": 1e3 * median(exchange),
        "speed": alone_ms / together_ms,
    }


def predict(figures: dict[str, Any], n: int) -> float:
    """Return the milliseconds of an update by n processes of a cluster.

    With W processes here, together = own / W + every + exchange and alone = own + every: `own` is the work on lanes,
    which is shared out, and `every` the work that each process does. A ring all-reduce moves 2 (n - 1) / n of the bytes
    and sends 2 (n - 1) messages.
    """
    w, alone = figures["processes"], figures["alone_ms"]
    own = max(0.0, (alone - (figures["together_ms"] - figures["exchange_ms"])) * w / (w - 1))
    seconds = 2 * (n - 1) * (figures["bytes_per_update"] / n / BANDWIDTH + LATENCY)
    return own / n + max(0.0, alone - own) + 1e3 * seconds


def main() -> None:
    """Print the figures of one configuration as a table, and write them as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=("GRU4Rec", "NGCF", "LightGCN"), default="GRU4Rec")
    parser.add_argument("--graph", type=Path, help="file of interactions for NGCF and LightGCN")
    parser.add_argument("--layers", type=int, default=100, help="width of the layers")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--n-sample", type=int, default=2048)
    parser.add_argument("--lanes", choices=LANES, default=LANES[0])
    parser.add_argument("--items", type=int, default=40_000)
    parser.add_argument("--sessions", type=int, default=300_000)
    parser.add_argument("--updates", type=int, default=30, help="updates in a turn")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--json", type=Path, help="file for the figures, to which this run is appended as one line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with Ranks() as ranks:
        figures = measure(options, ranks)
        if not ranks.is_first:
            return
    print(
        *(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items())
    )
    print("predicted", *(f"{n}: {predict(figures, n):.3g} ms" for n in (1, 8, 64, 512)))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        with options.json.open("a") as file:
            file.write(json.dumps(figures | {"machine": describe_machine()}) + "\n")


if __name__ == "__main__":
    main()
