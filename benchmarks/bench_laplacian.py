"""laplacian: L @ E against torch's sparse CSR and COO products, which store the values.

    pytest benchmarks/bench_laplacian.py --benchmark-group-by=func,param:case

"gowalla" is the training graph of shared/data/gowalla where that is there; "power_law" a synthetic graph of the same
size whose degrees follow a power law. Forward, and forward with backward; dropout is left out, since torch has no
counterpart that neither stores nor rebuilds a matrix.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gru4rec_fast.data import InteractionGraph
from gru4rec_fast.ops import laplacian

GOWALLA = Path(__file__).parents[2] / "shared" / "data" / "gowalla" / "train.txt.gz"
WIDTH = 64
CASES = ["gowalla", "power_law"]
cases = pytest.mark.parametrize("case", CASES)
sides = pytest.mark.parametrize("side", ["csr", "coo", "reference", "native"])


def structure(case: str) -> tuple[Tensor, Tensor]:
    """Offsets and int32 neighbours."""
    if case == "gowalla":
        if not GOWALLA.exists():
            pytest.skip(f"{GOWALLA} is not there")
        return InteractionGraph.from_text(GOWALLA).structure()
    draws = torch.rand(1_000_000, 2, generator=torch.Generator().manual_seed(0)) ** 3
    users, items = (draws[:, 0] * 30_000).long(), (draws[:, 1] * 40_000).long()
    return InteractionGraph.from_arrays(users.numpy(), items.numpy(), n_users=30_000, n_items=40_000).structure()


def product(case: str, side: str) -> tuple[Any, Tensor]:
    """A function of features, and features."""
    offsets, neighbours = structure(case)
    n_nodes = len(offsets) - 1
    features = torch.randn(n_nodes, WIDTH, generator=torch.Generator().manual_seed(1))
    if side in ("reference", "native"):
        return lambda x: laplacian(x, offsets, neighbours, impl=side), features
    scale = offsets.diff().clamp(min=1) ** -0.5
    rows = torch.repeat_interleave(offsets.diff())
    values = scale[rows] * scale[neighbours.long()]
    if side == "csr":
        matrix = torch.sparse_csr_tensor(offsets, neighbours.long(), values, (n_nodes, n_nodes))
    else:
        matrix = torch.sparse_coo_tensor(
            torch.stack([rows, neighbours.long()]), values, (n_nodes, n_nodes), is_coalesced=True
        )
    return lambda x: matrix @ x, features


@cases
@sides
@torch.no_grad()
def test_forward(benchmark: Any, case: str, side: str) -> None:
    multiply, features = product(case, side)
    out = benchmark.pedantic(multiply, (features,), rounds=7, warmup_rounds=1)
    assert out.shape == features.shape


@cases
@sides
def test_forward_and_backward(benchmark: Any, case: str, side: str) -> None:
    multiply, features = product(case, side)
    features.requires_grad_()

    def step() -> None:
        features.grad = None
        multiply(features).sum().backward()

    benchmark.pedantic(step, rounds=7, warmup_rounds=1)
    assert features.grad is not None
