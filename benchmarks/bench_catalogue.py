"""Benchmark a training step through autograd with catalogues of 10^4 to 10^6 items, with sparse and dense gradients.

    pytest benchmarks/bench_catalogue.py --threads 1

With sparse gradients, a step should take the same time for every catalogue, apart from cache misses. Items are drawn by
Zipf's law, as they occur in logs. The sides that are compared differ in the size of the catalogue only. A unit of work
is a mini-batch of 64 lanes (sessions processed in parallel) with 2048 negatives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from interleave import Side, timed
from synthetic import ZIPF_EXPONENT

from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad

SIZES = (10_000, 100_000, 1_000_000)
LANES, NEGATIVES, WIDTH, N_BATCHES = 64, 2048, 100, 64


def draw_items(n_items: int, shape: tuple[int, ...], rng: np.random.Generator) -> torch.Tensor:
    """Return items that follow Zipf's law; the index of an item does not depend on its popularity."""
    cumulative = np.cumsum(np.arange(1, n_items + 1) ** -ZIPF_EXPONENT)
    ranks = np.searchsorted(cumulative, rng.random(shape) * cumulative[-1])
    return torch.from_numpy(rng.permutation(n_items)[ranks])


def step_side(n_items: int, sparse: bool) -> Side:
    """Return the side that trains a network of `n_items` items by autograd."""
    network = SessionNetwork(n_items, [WIDTH], sparse=sparse, seed=0)
    criterion = SampledLoss(batch_size=LANES, sparse=sparse)
    optimizer = SparseAdagrad(network.parameters(), 0.1, momentum=0.1 if sparse else 0.0)
    rng = np.random.default_rng(0)
    items = draw_items(n_items, (N_BATCHES, 1, 2 * LANES + NEGATIVES), rng)
    batches = [batch.split([LANES, LANES, NEGATIVES], dim=1) for batch in items]
    number = 0

    def step() -> None:
        nonlocal number
        inputs, targets, negatives = batches[number % N_BATCHES]
        number += 1
        hidden, _ = network(inputs)
        loss = criterion(hidden, network.output_weight, network.output_bias, targets, negatives, n_live=[LANES])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    for state in optimizer.state.values():
        for tensor in state.values():
            tensor.add_(0)  # writes to all pages, so that no page fault is measured
    return timed(step)


@pytest.mark.parametrize("gradients", ["sparse", "dense"])
def test_step_by_size_of_the_catalogue(compare: Any, gradients: str) -> None:
    sides = {f"{size:,} items": step_side(size, gradients == "sparse") for size in SIZES}
    largest = f"{SIZES[-1]:,} items"  # is compared with the other sizes
    compare(sides, row=f"training step by autograd, {gradients} gradients", unit="mini-batch", goals={largest: {}})
