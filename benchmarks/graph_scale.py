"""Measure time and memory of L @ E on a power-law graph of 10 million nodes and 100 million interactions, width 32.

    python benchmarks/graph_scale.py --threads 1 --out build/benchmarks/graph_scale.json

Reports the time to build the graph, the time of the products, the peak resident memory, and the time per directed edge
relative to Gowalla's training graph in the same run (../shared/data/gowalla; left out if it does not exist). Times per
edge are processor times, which do not count the waiting on a shared machine.
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
    """Draw nodes, int64 [n_draws]: the node of rank r has a probability proportional to r^-(1 - 1/exponent)."""
    node_of_rank = generator.permutation(n_nodes).astype(np.int32)  # popular nodes have any index, as in a real log
    nodes = np.empty(n_draws, np.int64)
    for start in range(0, n_draws, CHUNK):
        chunk = nodes[start : start + CHUNK]
        ranks = (generator.random(len(chunk)) ** exponent * n_nodes).astype(np.int64)
        chunk[:] = node_of_rank[np.minimum(ranks, n_nodes - 1)]
    return nodes


def power_law_graph(n_nodes: int, n_interactions: int, exponent: float = 2.0) -> InteractionGraph:
    """Return a graph of half users, half items. 5% more interactions are drawn, because repeated ones count once."""
    generator, n_users = np.random.default_rng(0), n_nodes // 2
    n_draws = n_interactions + n_interactions // 20
    users = power_law_nodes(generator, n_draws, n_users, exponent)
    items = power_law_nodes(generator, n_draws, n_nodes - n_users, exponent)
    return InteractionGraph.from_arrays(users, items, n_users=n_users, n_items=n_nodes - n_users)


def peak_gib() -> float:
    """Return the peak resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_product(graph: InteractionGraph, width: int, repeats: int) -> dict[str, Any]:
    """Time L @ E: once including the page faults of new memory, then `repeats` times."""
    offsets, neighbors = graph.structure()
    features = torch.rand(graph.n_nodes, width)
    seconds, processor_seconds = [], []
    for _ in range(repeats + 1):
        started, processor_started = time.perf_counter(), time.process_time()
        out = laplacian_propagation(features, offsets, neighbors)
        seconds.append(time.perf_counter() - started)
        processor_seconds.append(time.process_time() - processor_started)
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
        "median_processor_s": float(np.median(processor_seconds[1:])),
        "processor_ns_per_directed_edge": float(np.median(processor_seconds[1:])) / len(graph.neighbors) * 1e9,
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
        content["gowalla"] = measure_product(InteractionGraph.from_text(GOWALLA), asked.width, 7)
    content["before_gib"] = peak_gib()
    started, processor_started = time.perf_counter(), time.process_time()
    graph = power_law_graph(asked.nodes, asked.interactions)
    content["build_s"] = time.perf_counter() - started
    content["build_processor_s"] = time.process_time() - processor_started
    content["peak_after_build_gib"] = peak_gib()
    content["power_law"] = measure_product(graph, asked.width, asked.repeats)
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
