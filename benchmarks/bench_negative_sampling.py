"""Benchmark building an alias table, and negative_sampling compared with torch.multinomial.

    pytest benchmarks/bench_negative_sampling.py --benchmark-group-by=func,param:n_items

The support of an item is its number of occurrences in the training log. It follows Zipf's law, as in real logs, so that
look-ups hit the cache as often as in training. 2048 negatives per step are the published default; one call samples them
for 1 or for 64 steps. `side` is the implementation that is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gru4rec_fast.ops import build_alias_table, negative_sampling

with_both_catalogues = pytest.mark.parametrize("n_items", [43_000, 1_000_000])


def zipf_support(n_items: int) -> Tensor:
    """Return supports proportional to 1 / rank, in random order, since a real catalogue is not sorted by popularity."""
    return ((1e6 / torch.arange(1, n_items + 1)).long() + 1)[torch.randperm(n_items)]


@with_both_catalogues
@pytest.mark.parametrize("impl", ["reference", "native"])
def test_build(benchmark: Any, n_items: int, impl: str) -> None:
    torch.manual_seed(0)
    support = zipf_support(n_items)
    table = benchmark.pedantic(lambda: build_alias_table(support, 0.5, impl=impl), rounds=3, warmup_rounds=1)
    assert table.n_items == n_items


@with_both_catalogues
@pytest.mark.parametrize("steps", [1, 64])
@pytest.mark.parametrize("side", ["multinomial", "reference", "native"])
def test_draw(benchmark: Any, n_items: int, steps: int, side: str) -> None:
    torch.manual_seed(0)
    support, n = zipf_support(n_items), 2048
    table = build_alias_table(support, 0.5)
    weight, log_prob = support.double().sqrt(), table.log_prob

    def multinomial() -> tuple[Tensor, Tensor]:
        items = torch.multinomial(weight, steps * n, replacement=True).view(steps, n)
        return items, log_prob[items]

    draw: Callable[[], tuple[Tensor, Tensor]] = (
        multinomial
        if side == "multinomial"
        else (lambda: negative_sampling(table, n, seed=1, step=0, steps=steps, impl=side))
    )
    items, _ = benchmark(draw)
    assert items.shape == (steps, n)
