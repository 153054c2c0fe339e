"""Benchmark sparse_update: an optimizer step on the rows with gradients, compared with torch.optim's sparse gradients.

    pytest benchmarks/bench_sparse_update.py --benchmark-group-by=param:rule,param:shape

Shapes are number of row gradients x width x number of items. The indices follow a power law, so that some rows have
many gradients. torch.optim.Adagrad computes other values (it adds epsilon outside the square root and has no momentum),
so only speed is compared. `side` is the implementation that is measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gru4rec_fast import ops

SHAPES = [(2080, 100, 2933), (2096, 480, 43097), (2128, 224, 2933), (2304, 512, 43097)]
OPTIONS: dict[str, dict[str, Any]] = {
    "sparse_adagrad_": {"lr": 0.05},
    "sparse_adam_": {"lr": 0.05, "step": 10},
}
TORCH_OPTIMIZERS = {
    "sparse_adagrad_": torch.optim.Adagrad,
    "sparse_adam_": torch.optim.SparseAdam,
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rule", OPTIONS)
@pytest.mark.parametrize("side", ["torch.optim", "reference", "native"])
def test_update(benchmark: Any, shape: tuple[int, int, int], rule: str, side: str) -> None:
    n_gradients, width, catalogue = shape
    index = torch.from_numpy(np.random.default_rng(0).zipf(1.3, n_gradients).clip(1, catalogue) - 1)
    grad = torch.randn(n_gradients, width)
    table = torch.nn.Parameter(torch.randn(catalogue, width))
    if side == "torch.optim":
        optimizer = TORCH_OPTIMIZERS[rule]([table], lr=0.05)
        table.grad = torch.sparse_coo_tensor(index.unsqueeze(0), grad, table.shape, check_invariants=False)
        benchmark(optimizer.step)
    else:
        state: list[torch.Tensor | None] = [torch.zeros(catalogue, width)]
        state.append(torch.zeros(catalogue, width) if rule == "sparse_adam_" else None)  # None: no momentum

        def ours() -> None:
            with torch.no_grad():
                getattr(ops, rule)(table, *state, index, grad, **OPTIONS[rule], impl=side)

        benchmark(ours)
    assert torch.isfinite(table).all()
