"""A power-law graph of 10 million nodes and 100 million interactions: built and propagated once, d=32, beside Gowalla.

    python benchmarks/graph_scale.py --threads 1 --out build/benchmarks/graph_scale.json

Time of the build and of the products, peak resident memory, and time per directed edge beside that of Gowalla's
training graph (shared/data/gowalla; left out where it is not there) in the same run. Processor time is there beside the
clock's, for machines that others use too: edges are compared by it.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gru4rec_fast.data import InteractionGraph
from gru4rec_fast.ops import laplacian_propagation

GOWALLA = Path(__file__).parents[2] / "shared" / "data" / "gowalla" / "train.txt.gz"
CHUNK = 1 << 22


def power_law_nodes(generator: np.random.Generator, n_draws: int, n_nodes: int, exponent: float) -> np.ndarray:
    """int64 [n_draws]: node r (a random permutation away) is drawn with a density that falls as r^-(1 - 1/exponent)."""
    names = generator.permutation(n_nodes).astype(np.int32)  # popular nodes stand anywhere, as in a real log
    drawn = np.empty(n_draws, np.int64)
    for begin in range(0, n_draws, CHUNK):
        part = drawn[begin : begin + CHUNK]
        ranks = (generator.random(len(part)) ** exponent * n_nodes).astype(np.int64)
        part[:] = names[np.minimum(ranks, n_nodes - 1)]
    return drawn


def power_law_graph(n_nodes: int, n_interactions: int, exponent: float = 2.0) -> InteractionGraph:
    """Half users, half items. Interactions drawn twice count once, so a few more are drawn and some are cut off."""
    generator, n_users = np.random.default_rng(0), n_nodes // 2
    n_draws = n_interactions + n_interactions // 20
    users = power_law_nodes(generator, n_draws, n_users, exponent)
    items = power_law_nodes(generator, n_draws, n_nodes - n_users, exponent)
    return InteractionGraph.from_arrays(users, items, n_users=n_users, n_items=n_nodes - n_users)


def peak_gib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measured(graph: InteractionGraph, width: int, repeats: int) -> dict[str, Any]:
    """Seconds of L @ E, once for the first use of the memory and then `repeats` times."""
    offsets, neighbors = graph.structure()
    features = torch.rand(graph.n_nodes, width)
    seconds, busy = [], []
    for _ in range(repeats + 1):
        started, busy_before = time.perf_counter(), time.process_time()
        out = laplacian_propagation(features, offsets, neighbors)
        seconds.append(time.perf_counter() - started)
        busy.append(time.process_time() - busy_before)
    assert torch.isfinite(out).all()
    degrees = np.diff(graph.offsets)
    return {
        "nodes": graph.n_nodes,
        "interactions": graph.n_edges,
        "directed_edges": len(graph.neighbors),
        "largest_degree": int(degrees.max()),
        "median_degree": int(np.median(degrees)),
        "first_s": seconds[0],
        "median_s": float(np.median(seconds[1:])),
        "median_processor_s": float(np.median(busy[1:])),
        "processor_ns_per_directed_edge": float(np.median(busy[1:])) / len(graph.neighbors) * 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10_000_000)
    parser.add_argument("--interactions", type=int, default=100_000_000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    content: dict[str, Any] = {"width": asked.width, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if GOWALLA.exists():
        content["gowalla"] = measured(InteractionGraph.from_text(GOWALLA), asked.width, 7)
    content["before_gib"] = peak_gib()
    started, busy_before = time.perf_counter(), time.process_time()
    graph = power_law_graph(asked.nodes, asked.interactions)
    content["build_s"], content["build_processor_s"] = time.perf_counter() - started, time.process_time() - busy_before
    content["peak_after_build_gib"] = peak_gib()
    content["power_law"] = measured(graph, asked.width, asked.repeats)
    content["peak_gib"] = peak_gib()
    if "gowalla" in content:
        name = "processor_ns_per_directed_edge"
        ratio = content["power_law"][name] / content["gowalla"][name]
        content["time_per_edge_beside_gowalla"] = ratio
    print(json.dumps(content, indent=2))
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
