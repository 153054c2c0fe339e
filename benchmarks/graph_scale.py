"""Measure time and memory of L @ E on a power-law graph of 10 million nodes and 100 million interactions, width 32.

    python benchmarks/graph_scale.py --threads 1 --out build/benchmarks/graph_scale.json

L is the normalized adjacency matrix D^-1/2 A D^-1/2, E the features of all nodes. The script reports the time to build
the graph, the time of the products and the peak resident memory. It also reports the time per directed edge divided by
the same time on Gowalla's training graph (../shared/data/gowalla), unless that file does not exist. Times per edge are
processor times, which exclude the time that a process waits on a shared machine.
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
CHUNK = 1 << 22  # number of nodes that are sampled at once, which limits the memory


def power_law_nodes(generator: np.random.Generator, n_draws: int, n_nodes: int, exponent: float) -> np.ndarray:
    """Sample nodes, int64 [n_draws]. The node of rank r has a probability proportional to r^-(1 - 1/exponent)."""
    # The order is random, because popular nodes have any index in a real log.
    node_of_rank = generator.permutation(n_nodes).astype(np.int32)
    nodes = np.empty(n_draws, np.int64)
    for start in range(0, n_draws, CHUNK):
        chunk = nodes[start : start + CHUNK]
        ranks = (generator.random(len(chunk)) ** exponent * n_nodes).astype(np.int64)
        chunk[:] = node_of_rank[np.minimum(ranks, n_nodes - 1)]
    return nodes


def power_law_graph(n_nodes: int, n_interactions: int, exponent: float = 2.0) -> InteractionGraph:
    """Return a graph whose degrees follow a power law. Half of the nodes are users, half are items.

    5% more interactions than requested are sampled, because the graph keeps a repeated interaction once.
    """
    generator, n_users = np.random.default_rng(0), n_nodes // 2
    n_draws = n_interactions + n_interactions // 20
    users = power_law_nodes(generator, n_draws, n_users, exponent)
    items = power_law_nodes(generator, n_draws, n_nodes - n_users, exponent)
    return InteractionGraph.from_arrays(users, items, n_users=n_users, n_items=n_nodes - n_users)


def peak_gib() -> float:
    """Return the peak resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_product(graph: InteractionGraph, width: int, repeats: int) -> dict[str, Any]:
    """Time L @ E `repeats` times, and return the times with numbers about the graph.

    A product before them is reported as "first_s"; it includes the page faults of new memory.
    """
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
    """Measure both graphs, print the results as JSON, and write them to the file given by --out, if any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10_000_000)
    parser.add_argument("--interactions", type=int, default=100_000_000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {"width": arguments.width, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if GOWALLA.exists():
        results["gowalla"] = measure_product(InteractionGraph.from_text(GOWALLA), arguments.width, 7)
    results["peak_before_build_gib"] = peak_gib()
    started, processor_started = time.perf_counter(), time.process_time()
    graph = power_law_graph(arguments.nodes, arguments.interactions)
    results["build_s"] = time.perf_counter() - started
    results["build_processor_s"] = time.process_time() - processor_started
    results["peak_after_build_gib"] = peak_gib()
    results["power_law"] = measure_product(graph, arguments.width, arguments.repeats)
    results["peak_gib"] = peak_gib()
    if "gowalla" in results:
        name = "processor_ns_per_directed_edge"
        ratio = results["power_law"][name] / results["gowalla"][name]
        results["time_per_edge_relative_to_gowalla"] = ratio
    print(json.dumps(results, indent=2))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
