"""Benchmark sampled_loss: forward and backward of the five losses, native, in pure PyTorch and with torch.compile.

    pytest benchmarks/bench_sampled_loss.py --benchmark-group-by=param:shape,param:loss

Shapes are M targets x N negatives x hidden size H, of published configurations. `side` is the implementation that is
measured: "native" kernels, the "reference" in pure PyTorch, or the reference compiled by "torch.compile".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gru4rec_fast.ops import sampled_loss
from gru4rec_fast.ops.sampled_loss import LOSSES

SHAPES = [(32, 2048, 100), (48, 2048, 480), (80, 2048, 224), (128, 2048, 512)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("side", ["reference", "torch.compile", "native"])
def test_forward_backward(benchmark: Any, shape: tuple[int, int, int], loss: str, side: str) -> None:
    m, n, h = shape
    tensors = [torch.randn(s, requires_grad=True) for s in ((m, h), (m + n, h), (m + n,))]
    impl = "native" if side == "native" else "reference"

    def eager(hidden: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return sampled_loss(hidden * 0.1, rows, bias, loss=loss, elu_param=0.5, impl=impl)

    forward: Callable[..., torch.Tensor] = torch.compile(eager, fullgraph=True) if side == "torch.compile" else eager
    grads = benchmark(lambda: torch.autograd.grad(forward(*tensors), tensors))
    assert all(torch.isfinite(grad).all() for grad in grads)
