"""GPU rows of the graph models: L @ E, and training steps of NGCF and LightGCN with 3 layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from bench_graph_training import Model, naive_side
from interleave import Side
from naive_graph import Product
from torch import Tensor
from trainers import graph_runner, runner_side

from gpu.device import Device
from gpu.prepared_folder import PreparedFolder
from gpu.rows import Builder, Row, built_at_first_use
from gpu.workloads import OURS, WORKLOADS, RowName
from gru4rec_fast import NGCF, LightGCN, ops
from gru4rec_fast.data import InteractionGraph, TripleSampler

WIDTH = 64


def power_law_graph(n_nodes: int, n_edges: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return offsets and neighbors of a graph with exactly `n_edges` undirected edges and power-law degrees."""
    generator = torch.Generator(device).manual_seed(0)
    edges = torch.empty(0, dtype=torch.int64, device=device)
    while len(edges) < n_edges:
        ends = (torch.rand(2, n_edges, generator=generator, device=device, dtype=torch.float64) ** 2.5 * n_nodes).long()
        low, high = ends.amin(0), ends.amax(0)
        edges = torch.cat([edges, (low * n_nodes + high)[low < high]]).unique()
    edges = edges[torch.randperm(len(edges), generator=generator, device=device)[:n_edges]]
    low, high = edges // n_nodes, edges % n_nodes
    entries = torch.cat([edges, high * n_nodes + low]).sort().values
    degrees = torch.bincount(entries // n_nodes, minlength=n_nodes)
    return torch.cat([degrees.new_zeros(1), degrees.cumsum(0)]), (entries % n_nodes).int()


def product(name: RowName, device: Device, folder: PreparedFolder) -> Row:
    """Build the row of L @ E, forward or forward and backward, compared with torch's CSR products."""
    backward = name.case == "forward + backward"
    if name.workload == "gowalla":
        structure = folder.graph("gowalla").structure()
    else:
        structure = power_law_graph(device.size(1_000_000, 60), device.size(10_000_000, 200), device.torch)
    offsets, neighbors = (t.to(device.torch) for t in structure)
    n_nodes, entries = len(offsets) - 1, len(neighbors)
    features, grad = torch.randn(2, n_nodes, WIDTH, device=device.torch)
    scale = offsets.diff().clamp(min=1).double() ** -0.5
    rows = torch.repeat_interleave(offsets.diff())
    values = (scale[rows] * scale[neighbors.long()]).float()
    indices = {"": (offsets, neighbors.long()), ", int32": (offsets.int(), neighbors)}
    multiply: dict[str, Callable[[Tensor], Tensor]] = {
        OURS: lambda x: ops.laplacian_propagation(x, offsets, neighbors, impl=device.impl)
    }
    for suffix, arrays in indices.items():
        matrix = torch.sparse_csr_tensor(*arrays, values, (n_nodes, n_nodes), check_invariants=False)
        multiply[WORKLOADS["gowalla"].baseline + suffix] = partial(multiply_symmetric, matrix)
    if backward:
        multiply["torch CSR by autograd"] = lambda x, matrix=matrix: matrix @ x  # type: ignore[misc]

    def side(product: Callable[[Tensor], Tensor]) -> Side:
        if not backward:
            return device.side(torch.no_grad()(lambda: product(features)))
        leaf = features.clone().requires_grad_()
        return device.side(lambda: torch.autograd.grad(product(leaf), leaf, grad))

    # Each entry reads an index, a scale and a row of features, as if no cache held any; each row is written once.
    n_bytes = entries * (WIDTH * 4 + 4 + 4) + n_nodes * WIDTH * 4
    return Row(
        {name: side(product) for name, product in multiply.items()},
        n_bytes=n_bytes * (2 if backward else 1),
        notes=[f"{n_nodes} nodes, {entries} entries"],
    )


def multiply_symmetric(matrix: Tensor, features: Tensor) -> Tensor:
    """Multiply by a symmetric matrix. The backward pass uses the same matrix, so that nothing is transposed."""
    return Product.apply(features, matrix, matrix)  # type: ignore[no-any-return, no-untyped-call]


def step(name: RowName, device: Device, folder: PreparedFolder) -> Row:
    """Build the row of a training step: `fit`, which draws its triples in the measured time, and two other codes."""
    graph = folder.graph("gowalla")
    model: Model = NGCF(adjacency="norm") if name.workload == "ngcf" else LightGCN()
    batch_size = model.batch_size

    @cache
    def triples() -> list[tuple[Tensor, Tensor, Tensor]]:
        sampler = TripleSampler(graph, batch_size, device=device.torch)
        return [sampler.draw(i) for i in range(16)]

    return Row(
        {
            OURS: built_at_first_use(lambda: runner_side(graph_runner(model, graph, device.torch), device.wait)),
            "public": built_at_first_use(lambda: public(device, folder, name.workload, graph, triples())),
            "plain PyTorch, transpose stored": built_at_first_use(
                lambda: naive_side(model, graph, triples(), True, device.torch)
            ),
        },
        unit="mini-batch",
        rounds=7,
        turn_seconds=0.25,
    )


def public(
    device: Device,
    folder: PreparedFolder,
    name: str,
    graph: InteractionGraph,
    triples: list[tuple[Tensor, Tensor, Tensor]],
) -> Side:
    """Return the side of the public code; it trains on the given triples again and again."""
    path = folder.peer(name)
    from peers import graph as peers

    build_step = {"ngcf": peers.ngcf_step, "lightgcn": peers.lightgcn_step}[name]
    train, n_done = build_step(path, graph, len(triples[0][0]), device.torch), 0

    def train_next() -> None:
        nonlocal n_done
        train(*triples[n_done % len(triples)])
        n_done += 1

    return device.host_side(train_next)


BUILDERS: dict[str, Builder] = {"gowalla": product, "power-law": product, "ngcf": step, "lightgcn": step}
