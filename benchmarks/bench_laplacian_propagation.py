"""Benchmark laplacian_propagation (L @ E), compared with torch's products of sparse CSR and COO matrices.

L is the normalized adjacency matrix D^-1/2 A D^-1/2 of a graph. E holds the features of all nodes, with width 64.

    pytest benchmarks/bench_laplacian_propagation.py [--threads 2]

"Gowalla" is the training graph of ../shared/data/gowalla (skipped if it does not exist); "power law" is a synthetic
graph of about the same size, whose degrees follow a power law. The benchmark measures the forward pass alone, and the
forward and backward pass. There is no node dropout, since torch would need a new matrix per step.

The results include the bytes read and written per second, as a fraction of the machine's copy bandwidth. The count of
bytes has one row of E for each nonzero of L. Most of these rows are in a cache, so the fraction can exceed 100 %. A
side is one of the implementations compared.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interleave import Side, timed
from machine import rate_shares
from torch import Tensor

from gru4rec_fast.data import InteractionGraph
from gru4rec_fast.ops import laplacian_propagation

GOWALLA = Path(__file__).parents[2] / "shared" / "data" / "gowalla" / "train.txt.gz"
WIDTH = 64
# Goals: smallest allowed ratio, time of torch's CSR or COO product / time of this package.
GOALS = {"forward": {"csr": 1.3}, "forward + backward": {"csr": 7.0, "coo": 13.0}}


def load_structure(case: str) -> tuple[Tensor, Tensor]:
    """Return offsets and int32 neighbors (CSR) of the graph "Gowalla" or "power law"."""
    if case == "Gowalla":
        if not GOWALLA.exists():
            pytest.skip(f"{GOWALLA} does not exist")
        return InteractionGraph.from_text(GOWALLA).structure()
    # A cubed uniform number: nodes with a low index have most of the edges.
    draws = torch.rand(1_000_000, 2, generator=torch.Generator().manual_seed(0)) ** 3
    users, items = (draws[:, 0] * 30_000).long(), (draws[:, 1] * 40_000).long()
    return InteractionGraph.from_arrays(users.numpy(), items.numpy(), n_users=30_000, n_items=40_000).structure()


def make_products(offsets: Tensor, neighbors: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return, for each side, the function that multiplies L by features."""
    n_nodes = len(offsets) - 1
    scale = offsets.diff().clamp(min=1) ** -0.5
    rows, columns = torch.repeat_interleave(offsets.diff()), neighbors.long()
    values = scale[rows] * scale[columns]
    csr = torch.sparse_csr_tensor(offsets, columns, values, (n_nodes, n_nodes))
    coo = torch.sparse_coo_tensor(torch.stack([rows, columns]), values, (n_nodes, n_nodes), is_coalesced=True)
    return {
        "csr": lambda x: csr @ x,
        "coo": lambda x: coo @ x,
        "reference": lambda x: laplacian_propagation(x, offsets, neighbors, impl="reference"),
        "native": lambda x: laplacian_propagation(x, offsets, neighbors, impl="native"),
    }


def forward_side(multiply: Callable[[Tensor], Tensor], features: Tensor) -> Side:
    """Return the side that runs the forward pass."""

    @torch.no_grad()
    def step() -> None:
        multiply(features)

    return timed(step)


def forward_and_backward_side(multiply: Callable[[Tensor], Tensor], features: Tensor, grad: Tensor) -> Side:
    """Return the side that runs the forward pass and computes the gradient of the features."""
    features = features.clone().requires_grad_()

    def step() -> None:
        torch.autograd.grad(multiply(features), features, grad)

    return timed(step)


@pytest.mark.parametrize("passes", GOALS)
@pytest.mark.parametrize("case", ["Gowalla", "power law"])
def test_product(compare: Any, case: str, passes: str) -> None:
    offsets, neighbors = load_structure(case)
    features, grad = torch.randn(2, len(offsets) - 1, WIDTH, generator=torch.Generator().manual_seed(1))
    sides = {
        name: forward_side(multiply, features)
        if passes == "forward"
        else forward_and_backward_side(multiply, features, grad)
        for name, multiply in make_products(offsets, neighbors).items()
    }
    seconds = compare(sides, row=f"L @ E, {case}, {passes}", unit="product", goals={"native": GOALS[passes]})
    rows_read = len(neighbors) * (1 if passes == "forward" else 2)
    n_bytes = (rows_read + 2 * len(features)) * WIDTH * features.element_size()
    compare.note(limits={side: rate_shares(figures["median"], n_bytes=n_bytes) for side, figures in seconds.items()})
