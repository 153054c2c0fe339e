"""Benchmark gru: forward and backward, compared with torch.nn.GRU.

    pytest benchmarks/bench_gru.py --benchmark-group-by=param:shape

Shapes are T steps x B lanes x hidden size H; a lane is one of the sessions processed in parallel. `side` is the
implementation that is measured. torch.nn.GRU does less work than `gru`: it cannot reset the hidden state of a lane
inside the sequence.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gru4rec_fast.ops import gru

SHAPES = [
    (1, 32, 100), (1, 512, 100), (20, 32, 100), (20, 128, 512), (50, 512, 64), (50, 512, 128), (50, 512, 256),
    (50, 2048, 64),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("side", ["torch.nn.GRU", "reference", "native"])
def test_forward_backward(benchmark: Any, shape: tuple[int, int, int], side: str) -> None:
    steps, lanes, hidden = shape
    module = torch.nn.GRU(hidden, hidden)
    x = torch.randn(shape, requires_grad=True)
    state, reset = torch.zeros(lanes, hidden), torch.rand(steps, lanes) < 0.2
    w_ih, w_hh, b_ih, b_hh = module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0, module.bias_hh_l0

    def ours() -> torch.Tensor:
        return gru(torch.nn.functional.linear(x, w_ih, b_ih), state, w_hh, b_hh, reset, impl=side)

    def run() -> tuple[torch.Tensor, ...]:
        output = module(x, state.unsqueeze(0))[0] if side == "torch.nn.GRU" else ours()
        return torch.autograd.grad(output.sum(), [x, w_ih, w_hh, b_ih, b_hh])

    grads = benchmark(run)
    assert all(torch.isfinite(grad).all() for grad in grads)
