"""Benchmark training steps of NGCF and LightGCN with 3 layers on Gowalla.

    pytest benchmarks/bench_graph_training.py --peer ngcf=PATH --peer lightgcn=PATH [--threads 2]

A unit of work is one mini-batch (1024 triples of user, item and negative item for NGCF, 2048 for LightGCN) with Adam.
Sides (the implementations compared):

    public                      the public code (peers/graph.py)
    naive                       plain PyTorch (naive_graph.py): a stored CSR matrix and autograd
    naive, transpose stored     naive, with a second matrix for the backward pass
    ours                        the training of this package's `fit`
    everything                  ours, but it computes the embeddings of all nodes (only_needed=False)

This package samples triples within the measured time. The other implementations get triples that were sampled before.
Gowalla is read from ../shared/data. If it does not exist, a power-law graph of about the same size is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interleave import Side
from naive_graph import NaiveLightGCN, NaiveNGCF
from torch import Tensor
from trainers import graph_runner, runner_side

from gru4rec_fast import NGCF, LightGCN
from gru4rec_fast.data import InteractionGraph, TripleSampler

GOWALLA = Path(__file__).parents[2] / "shared" / "data" / "gowalla" / "train.txt.gz"
# Goals: smallest allowed ratio, time of the public code / time of this package.
GOALS = {"ngcf": 20.0, "lightgcn": 10.0}
Model = NGCF | LightGCN


@pytest.fixture(scope="module")
def graph() -> InteractionGraph:
    if GOWALLA.exists():
        return InteractionGraph.from_text(GOWALLA)
    # A cubed uniform number: nodes with a low index have most of the edges.
    draws = np.random.default_rng(0).random((1_000_000, 2)) ** 3 * (30_000, 40_000)
    return InteractionGraph.from_arrays(*draws.astype(np.int64).T, n_users=30_000, n_items=40_000)


def timed_steps(step: Callable[[int], Any]) -> Side:
    """Return the side (interleave.Side: runs n steps, returns the seconds per step) that calls step(0), step(1), ..."""
    n_done = 0

    def run(n: int) -> float:
        nonlocal n_done
        started = time.perf_counter()
        for _ in range(n):
            step(n_done)
            n_done += 1
        return (time.perf_counter() - started) / n

    return run


def naive_side(
    model: Model,
    graph: InteractionGraph,
    triples: list[tuple[Tensor, Tensor, Tensor]],
    transpose: bool,
    device: torch.device | str = "cpu",
) -> Side:
    """Return the side that trains the network of naive_graph.py.

    triples: mini-batches on the device, used in rotation. transpose: store the transposed matrix for the backward pass.
    """
    weights = {name: value.detach().to(device) for name, value in model.build_network(graph).state_dict().items()}
    network: NaiveNGCF | NaiveLightGCN = (
        NaiveNGCF(graph, weights, adjacency=model.adjacency, transpose=transpose)
        if isinstance(model, NGCF)
        else NaiveLightGCN(graph, weights, transpose=transpose)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=model.learning_rate)

    def step(i: int) -> float:
        loss = network.loss(*triples[i % len(triples)], model.reg_weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return timed_steps(step)


@pytest.mark.parametrize("name", ["ngcf", "lightgcn"])
def test_training_steps(compare: Any, request: pytest.FixtureRequest, graph: InteractionGraph, name: str) -> None:
    def make_model(**parameters: Any) -> Model:
        # The public code of NGCF has the Laplacian matrix "norm".
        return NGCF(adjacency="norm", seed=0, **parameters) if name == "ngcf" else LightGCN(seed=0, **parameters)

    sampler = TripleSampler(graph, make_model().batch_size, seed=0)
    triples = [sampler.draw(i) for i in range(16)]
    sides: dict[str, Side] = {}
    paths = dict(peer.split("=", 1) for peer in request.config.getoption("--peer"))
    if name in paths:
        from peers import graph as peers

        build_step = {"ngcf": peers.ngcf_step, "lightgcn": peers.lightgcn_step}[name]
        public_step = build_step(paths[name], graph, sampler.batch_size)
        sides["public"] = timed_steps(lambda i: public_step(*triples[i % len(triples)]))
    sides["naive"] = naive_side(make_model(), graph, triples, transpose=False)
    sides["naive, transpose stored"] = naive_side(make_model(), graph, triples, transpose=True)
    sides["everything"] = runner_side(graph_runner(make_model(only_needed=False), graph))
    sides["ours"] = runner_side(graph_runner(make_model(), graph))
    compare(sides, row=f"{name} on {'Gowalla' if GOWALLA.exists() else 'a power-law graph'}", unit="mini-batch",
            goals={"ours": {"public": GOALS[name]}})  # fmt: skip
