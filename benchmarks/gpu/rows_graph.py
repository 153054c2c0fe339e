"""Build the GPU benchmarks of the graph models: L @ E, and training steps of NGCF and LightGCN with 3 layers.

L is the normalized adjacency matrix D^-1/2 A D^-1/2 and E the features of all nodes. A row compares several
implementations, called sides, at one workload.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from bench_graph_training import Model, naive_side
from interleave import Side
from naive_graph import ProductWithTranspose
from torch import Tensor
from trainers import graph_runner, runner_side

from gpu.device import Device
from gpu.prepared_folder import PreparedFolder
from gpu.rows import Builder, Row, built_at_first_use
from gpu.workloads import OURS, WORKLOADS, RowName
from gru4rec_fast import NGCF, LightGCN, ops
from gru4rec_fast.data import InteractionGraph, TripleSampler

WIDTH = 64  # number of features per node


def power_law_graph(n_nodes: int, n_edges: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return offsets and neighbors (CSR) of a graph with `n_edges` undirected edges and power-law degrees."""
    generator = torch.Generator(device).manual_seed(0)
    # An edge is stored as the number low * n_nodes + high, where low < high are its nodes.
    edges = torch.empty(0, dtype=torch.int64, device=device)
    while len(edges) < n_edges:
        ends = (torch.rand(2, n_edges, generator=generator, device=device, dtype=torch.float64) ** 2.5 * n_nodes).long()
        low, high = ends.amin(0), ends.amax(0)
        edges = torch.cat([edges, (low * n_nodes + high)[low < high]]).unique()
    edges = edges[torch.randperm(len(edges), generator=generator, device=device)[:n_edges]]
    low, high = edges // n_nodes, edges % n_nodes
    entries = torch.cat([edges, high * n_nodes + low]).sort().values  # nonzeros of A, as row * n_nodes + column
    degrees = torch.bincount(entries // n_nodes, minlength=n_nodes)
    return torch.cat([degrees.new_zeros(1), degrees.cumsum(0)]), (entries % n_nodes).int()


def propagation_row(name: RowName, device: Device, folder: PreparedFolder) -> Row:
    """Build the row of L @ E, forward or forward and backward, compared with sparse CSR products of torch."""
    backward = name.case == "forward + backward"
    if name.workload == "gowalla":
        structure = folder.graph("gowalla").structure()
    else:
        structure = power_law_graph(
            n_nodes=device.size(1_000_000, 60),
            n_edges=device.size(10_000_000, 200),
            device=device.torch_device,
        )
    offsets, neighbors = (t.to(device.torch_device) for t in structure)
    n_nodes, n_entries = len(offsets) - 1, len(neighbors)
    features, grad = torch.randn(2, n_nodes, WIDTH, device=device.torch_device)
    scale = offsets.diff().clamp(min=1).double() ** -0.5
    rows = torch.repeat_interleave(offsets.diff())
    values = (scale[rows] * scale[neighbors.long()]).float()
    # The CSR matrices with int64 and with int32 indices. The keys are suffixes of the names of the sides.
    structures = {"": (offsets, neighbors.long()), ", int32": (offsets.int(), neighbors)}
    multiplications: dict[str, Callable[[Tensor], Tensor]] = {
        OURS: lambda x: ops.laplacian_propagation(x, offsets, neighbors, impl=device.impl)
    }
    for suffix, structure in structures.items():
        matrix = torch.sparse_csr_tensor(*structure, values, (n_nodes, n_nodes), check_invariants=False)
        multiplications[WORKLOADS["gowalla"].baseline + suffix] = partial(multiply_symmetric, matrix)
    if backward:  # with the last matrix above, which has int32 indices
        multiplications["torch CSR by autograd"] = lambda x, matrix=matrix: matrix @ x  # type: ignore[misc]

    def make_side(multiply: Callable[[Tensor], Tensor]) -> Side:
        if not backward:
            return device.side(torch.no_grad()(lambda: multiply(features)))
        leaf = features.clone().requires_grad_()
        return device.side(lambda: torch.autograd.grad(multiply(leaf), leaf, grad))

    # Without caches, each nonzero of L reads an index, a scale and the features of a node. The result is written once.
    n_bytes = n_entries * (WIDTH * 4 + 4 + 4) + n_nodes * WIDTH * 4
    return Row(
        {side: make_side(multiply) for side, multiply in multiplications.items()},
        n_bytes=n_bytes * (2 if backward else 1),
        notes=[f"{n_nodes} nodes, {n_entries} entries"],
    )


def multiply_symmetric(matrix: Tensor, features: Tensor) -> Tensor:
    """Multiply a symmetric matrix by features. The backward pass uses the same matrix; autograd would transpose it."""
    return ProductWithTranspose.apply(features, matrix, matrix)  # type: ignore[no-any-return, no-untyped-call]


def training_step_row(name: RowName, device: Device, folder: PreparedFolder) -> Row:
    """Build the row of a training step: the step of `fit`, the public code, and plain PyTorch.

    Only `fit` samples its triples (user, item, negative item) within the measured time.
    """
    graph = folder.graph("gowalla")
    model: Model = NGCF(adjacency="norm", seed=0) if name.workload == "ngcf" else LightGCN(seed=0)
    batch_size = model.batch_size

    @cache
    def triples() -> list[tuple[Tensor, Tensor, Tensor]]:
        sampler = TripleSampler(graph, batch_size, seed=0, device=device.torch_device)
        return [sampler.draw(i) for i in range(16)]

    return Row(
        {
            OURS: built_at_first_use(lambda: runner_side(graph_runner(model, graph, device.torch_device), device.wait)),
            "public": built_at_first_use(lambda: public_code_side(device, folder, name.workload, graph, triples())),
            "plain PyTorch, transpose stored": built_at_first_use(
                lambda: naive_side(model, graph, triples(), transpose=True, device=device.torch_device)
            ),
        },
        unit="mini-batch",
        rounds=7,
        turn_seconds=0.25,
    )


def public_code_side(
    device: Device,
    folder: PreparedFolder,
    name: str,
    graph: InteractionGraph,
    triples: list[tuple[Tensor, Tensor, Tensor]],
) -> Side:
    """Return the side that trains with the public code.

    name: "ngcf" or "lightgcn". triples: mini-batches on the device, used in rotation.
    """
    path = folder.peer(name)
    from peers import graph as peers

    build_step = {"ngcf": peers.ngcf_step, "lightgcn": peers.lightgcn_step}[name]
    batch_size = len(triples[0][0])
    train, n_done = build_step(path, graph, batch_size, device.torch_device), 0

    def train_next() -> None:
        nonlocal n_done
        train(*triples[n_done % len(triples)])
        n_done += 1

    return device.host_side(train_next)


BUILDERS: dict[str, Builder] = {
    "gowalla": propagation_row,
    "power-law": propagation_row,
    "ngcf": training_step_row,
    "lightgcn": training_step_row,
}
