"""Benchmark target_rank and top_k over the whole catalogue, compared with a plain PyTorch computation.

    pytest benchmarks/bench_ranking.py --benchmark-group-by=func,param:case

A query is a hidden state. The plain computation stores the scores of all queries and items, as evaluation code usually
does. The log diginetica has about 43,000 items, and 100 is a published hidden size for this log. `side` is the
implementation that is measured.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gru4rec_fast.ops import target_rank, top_k

CASES = {  # number of queries, number of items, hidden size
    "1 query": (1, 43_000, 100),  # a recommendation for one user
    "512 queries": (512, 43_000, 100),  # one call of an evaluation on the CPU
    "8192 queries": (8192, 43_000, 100),  # one call of an evaluation on a GPU
    "large catalogue": (512, 1_000_000, 64),
}
cases = pytest.mark.parametrize("case", CASES)
sides = pytest.mark.parametrize("side", ["plain", "reference", "native"])


def make_inputs(case: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states, item weights, item biases and targets."""
    torch.manual_seed(0)
    n, n_items, width = CASES[case]
    return torch.randn(n, width), torch.randn(n_items, width), torch.randn(n_items), torch.randint(n_items, (n,))


@cases
@sides
@torch.no_grad()
def test_target_rank(benchmark: Any, case: str, side: str) -> None:
    hidden, weight, bias, targets = make_inputs(case)

    def plain() -> tuple[Tensor, Tensor]:
        scores = torch.addmm(bias, hidden, weight.T)
        target_scores = scores.gather(1, targets[:, None])
        return (scores > target_scores).sum(1), (scores == target_scores).sum(1) - 1

    def ours() -> tuple[Tensor, Tensor]:
        return target_rank(hidden, weight, bias, targets, impl=side)

    greater, _ = benchmark.pedantic(plain if side == "plain" else ours, rounds=7, warmup_rounds=1)
    assert greater.shape == targets.shape


@cases
@sides
@torch.no_grad()
def test_top_k(benchmark: Any, case: str, side: str) -> None:
    hidden, weight, bias, targets = make_inputs(case)

    def plain() -> tuple[Tensor, Tensor]:
        return tuple(torch.addmm(bias, hidden, weight.T).topk(20))

    def ours() -> tuple[Tensor, Tensor]:
        return top_k(hidden, weight, bias, 20, impl=side)

    _, items = benchmark.pedantic(plain if side == "plain" else ours, rounds=7, warmup_rounds=1)
    assert items.shape == (len(targets), 20)
