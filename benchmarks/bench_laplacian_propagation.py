"""laplacian_propagation: L @ E against torch's sparse CSR and COO products, which store the values, the sides in turns.

    pytest benchmarks/bench_laplacian_propagation.py [--threads 2]

"Gowalla" is the training graph of shared/data/gowalla where that is there; "power law" a synthetic graph of about that
size whose degrees follow a power law. Forward, and forward with backward from one given gradient, d = 64; dropout is
left out, since torch has no counterpart that neither stores nor rebuilds a matrix. The share of the copy rate counts
every row that an entry reads; most come from caches, so it may pass 100 %.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interleave import Side, timed
from machine import limits
from torch import Tensor

from gru4rec_fast.data import InteractionGraph
from gru4rec_fast.ops import laplacian_propagation

GOWALLA = Path(__file__).parents[2] / "shared" / "data" / "gowalla" / "train.txt.gz"
WIDTH = 64
GOALS = {"forward": {"csr": 1.3}, "forward + backward": {"csr": 7.0, "coo": 13.0}}


def structure(case: str) -> tuple[Tensor, Tensor]:
    """Offsets and int32 neighbors."""
    if case == "Gowalla":
        if not GOWALLA.exists():
            pytest.skip(f"{GOWALLA} is not there")
        return InteractionGraph.from_text(GOWALLA).structure()
    draws = torch.rand(1_000_000, 2, generator=torch.Generator().manual_seed(0)) ** 3
    users, items = (draws[:, 0] * 30_000).long(), (draws[:, 1] * 40_000).long()
    return InteractionGraph.from_arrays(users.numpy(), items.numpy(), n_users=30_000, n_items=40_000).structure()


def products(offsets: Tensor, neighbors: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Each side's product with features."""
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


def forward(multiply: Callable[[Tensor], Tensor], features: Tensor) -> Side:
    @torch.no_grad()
    def step() -> None:
        multiply(features)

    return timed(step)


def forward_and_backward(multiply: Callable[[Tensor], Tensor], features: Tensor, grad: Tensor) -> Side:
    features = features.clone().requires_grad_()

    def step() -> None:
        torch.autograd.grad(multiply(features), features, grad)

    return timed(step)


@pytest.mark.parametrize("what", GOALS)
@pytest.mark.parametrize("case", ["Gowalla", "power law"])
def test_product(compare: Any, case: str, what: str) -> None:
    offsets, neighbors = structure(case)
    features, grad = torch.randn(2, len(offsets) - 1, WIDTH, generator=torch.Generator().manual_seed(1))
    sides = {
        name: forward(multiply, features) if what == "forward" else forward_and_backward(multiply, features, grad)
        for name, multiply in products(offsets, neighbors).items()
    }
    seconds = compare(sides, row=f"L @ E, {case}, {what}", unit="product", subjects={"native": GOALS[what]})
    rows_read = len(neighbors) * (1 if what == "forward" else 2)
    n_bytes = (rows_read + 2 * len(features)) * WIDTH * features.element_size()
    compare.note(limits={side: limits(taken["median"], n_bytes=n_bytes) for side, taken in seconds.items()})
