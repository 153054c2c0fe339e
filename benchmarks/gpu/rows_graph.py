"""GPU rows of graphs: L @ E on Gowalla and on a power-law graph, training steps of NGCF-3 and LightGCN-3 on Gowalla."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from bench_graph_training import Model, naive
from interleave import Side
from naive_graph import Product
from torch import Tensor
from trainers import graph_runner, runner_side

from gpu.device import Device
from gpu.folder import Folder
from gpu.rows import Builder, Row, built_at_first_use
from gpu.targets import OURS, TARGETS, RowName
from gru4rec_fast import NGCF, LightGCN, ops
from gru4rec_fast.data import InteractionGraph, TripleSampler

WIDTH = 64


def power_law_graph(n_nodes: int, n_edges: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Offsets and neighbors of a graph of exactly so many edges, listed both ways; degrees fall as a power law."""
    draws = torch.Generator(device).manual_seed(0)
    edges = torch.empty(0, dtype=torch.int64, device=device)
    while len(edges) < n_edges:
        ends = (torch.rand(2, n_edges, generator=draws, device=device, dtype=torch.float64) ** 2.5 * n_nodes).long()
        low, high = ends.amin(0), ends.amax(0)
        edges = torch.cat([edges, (low * n_nodes + high)[low < high]]).unique()
    edges = edges[torch.randperm(len(edges), generator=draws, device=device)[:n_edges]]
    low, high = edges // n_nodes, edges % n_nodes
    entries = torch.cat([edges, high * n_nodes + low]).sort().values
    degrees = torch.bincount(entries // n_nodes, minlength=n_nodes)
    return torch.cat([degrees.new_zeros(1), degrees.cumsum(0)]), (entries % n_nodes).int()


def product(name: RowName, device: Device, folder: Folder) -> Row:
    """The product, or the product and the gradient of the features; torch's matrices hold their values."""
    backward = name.case == "forward + backward"
    if name.target == "gowalla":
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
    for form, given in indices.items():
        matrix = torch.sparse_csr_tensor(*given, values, (n_nodes, n_nodes), check_invariants=False)
        multiply[TARGETS["gowalla"].against + form] = partial(multiply_symmetric, matrix)
    if backward:
        multiply["torch CSR by autograd"] = lambda x, matrix=matrix: matrix @ x  # type: ignore[misc]

    def side(times: Callable[[Tensor], Tensor]) -> Side:
        if not backward:
            return device.side(torch.no_grad()(lambda: times(features)))
        leaf = features.clone().requires_grad_()
        return device.side(lambda: torch.autograd.grad(times(leaf), leaf, grad))

    # Of an entry the row it names, its index and its scale, as if no cache held any; every row of the result once.
    n_bytes = entries * (WIDTH * 4 + 4 + 4) + n_nodes * WIDTH * 4
    return Row(
        {name: side(times) for name, times in multiply.items()},
        n_bytes=n_bytes * (2 if backward else 1),
        notes=[f"{n_nodes} nodes, {entries} entries"],
    )


def multiply_symmetric(matrix: Tensor, features: Tensor) -> Tensor:
    """Multiply by a symmetric matrix; the backward pass takes it as it is, where autograd would transpose it anew."""
    return Product.apply(features, matrix, matrix)  # type: ignore[no-any-return, no-untyped-call]


def step(name: RowName, device: Device, folder: Folder) -> Row:
    """Mini-batches of what `fit` trains, triples included; of the public code and of plain PyTorch on given triples."""
    graph = folder.graph("gowalla")
    model: Model = NGCF(adjacency="norm") if name.target == "ngcf" else LightGCN()
    batch_size = model.batch_size

    @cache
    def triples() -> list[tuple[Tensor, Tensor, Tensor]]:
        sampler = TripleSampler(graph, batch_size, device=device.torch)
        return [sampler.draw(number) for number in range(16)]

    return Row(
        {
            OURS: built_at_first_use(lambda: runner_side(graph_runner(model, graph, device.torch), device.wait)),
            "public": built_at_first_use(lambda: public(device, folder, name.target, graph, triples())),
            "plain PyTorch, transpose stored": built_at_first_use(
                lambda: naive(model, graph, triples(), True, device.torch)
            ),
        },
        unit="mini-batch",
        rounds=7,
        turn_seconds=0.25,
    )


def public(
    device: Device, folder: Folder, name: str, graph: InteractionGraph, triples: list[tuple[Tensor, Tensor, Tensor]]
) -> Side:
    """The public code's own step."""
    path = folder.peer(name)
    from peers import graph as peers

    start = {"ngcf": peers.ngcf_step, "lightgcn": peers.lightgcn_step}[name]
    train, done = start(path, graph, len(triples[0][0]), device.torch), 0

    def train_on_the_next() -> None:
        nonlocal done
        train(*triples[done % len(triples)])
        done += 1

    return device.host_side(train_on_the_next)


BUILDERS: dict[str, Builder] = {"gowalla": product, "power-law": product, "ngcf": step, "lightgcn": step}
