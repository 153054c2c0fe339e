"""Benchmark dropout_mask: the mask of one layer for one step, compared with torch's bernoulli_.

    pytest benchmarks/bench_dropout.py --benchmark-group-by=param:shape

Shapes are steps x lanes x units; a lane is one of the sessions processed in parallel. Three shapes are one step of
published configurations; the last is 16 steps of the largest configuration. `side` is the implementation that is
measured. bernoulli_ draws other random numbers, so only its speed can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gru4rec_fast.ops import dropout_mask

P = 0.3  # dropout probability


@pytest.mark.parametrize("shape", [(1, 32, 100), (1, 48, 480), (1, 128, 512), (16, 128, 512)], ids=str)
@pytest.mark.parametrize("side", ["bernoulli", "reference", "native"])
def test_mask(benchmark: Any, shape: tuple[int, int, int], side: str) -> None:
    make_mask: Callable[[], Tensor] = (
        (lambda: torch.empty(shape).bernoulli_(1 - P).div_(1 - P))
        if side == "bernoulli"
        else (lambda: dropout_mask(*shape, P, seed=1, stream=1, step=0, impl=side))
    )
    mask = benchmark(make_mask)
    assert mask.shape == shape and abs(float((mask == 0).float().mean()) - P) < 0.05
