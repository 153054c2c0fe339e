"""sparse_adagrad: one update of the touched rows, native and reference against torch.optim.Adagrad with a
sparse gradient.

    pytest benchmarks/bench_sparse_update.py --benchmark-group-by=param:shape

Shapes are touched rows x width x catalogue; indices follow a power law, so rows repeat. torch.optim.Adagrad has epsilon
outside the root and no momentum; it is there for its speed only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gru4rec_fast.ops import sparse_adagrad

SHAPES = [(2080, 100, 2933), (2096, 480, 43097), (2128, 224, 2933), (2304, 512, 43097)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("side", ["torch.optim.Adagrad", "reference", "native"])
def test_update(benchmark: Any, shape: tuple[int, int, int], side: str) -> None:
    touched, width, catalogue = shape
    index = torch.from_numpy(np.random.default_rng(0).zipf(1.3, touched).clip(1, catalogue) - 1)
    grad = torch.randn(touched, width)
    table = torch.nn.Parameter(torch.randn(catalogue, width))
    table.grad = torch.sparse_coo_tensor(index.unsqueeze(0), grad, table.shape, check_invariants=False)
    accumulator, optimizer = torch.zeros(catalogue, width), torch.optim.Adagrad([table], lr=0.05)

    def ours() -> None:
        with torch.no_grad():
            sparse_adagrad(table, accumulator, None, index, grad, lr=0.05, impl=side)

    benchmark(optimizer.step if side == "torch.optim.Adagrad" else ours)
    assert torch.isfinite(table).all()
