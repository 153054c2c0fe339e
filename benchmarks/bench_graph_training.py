"""Training steps of NGCF-3 and LightGCN-3 on Gowalla, the sides in turns.

    pytest benchmarks/bench_graph_training.py --peer ngcf=PATH --peer lightgcn=PATH [--threads 2]

A unit is one mini-batch on triples drawn beforehand (1024 for NGCF, 2048 for LightGCN), with Adam. Sides: the public
code (peers/graph.py), `naive` (naive_graph.py: a stored CSR matrix and autograd), `naive, transpose stored` (the same
with a second matrix for the backward pass), `everything` (ours, only_needed=False) and `ours` (what `fit` plays, its
triples included). Gowalla stands beside the checkout (../shared); elsewhere a power-law graph of its size takes its
place.
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
GOALS = {"ngcf": 20.0, "lightgcn": 10.0}
Model = NGCF | LightGCN


@pytest.fixture(scope="module")
def graph() -> InteractionGraph:
    if GOWALLA.exists():
        return InteractionGraph.from_text(GOWALLA)
    draws = np.random.default_rng(0).random((1_000_000, 2)) ** 3 * (30_000, 40_000)
    return InteractionGraph.from_arrays(*draws.astype(np.int64).T, n_users=30_000, n_items=40_000)


def timed(step: Callable[[int], Any]) -> Side:
    """A side from a function that trains on batch number i."""
    done = 0

    def run(n: int) -> float:
        nonlocal done
        started = time.perf_counter()
        for _ in range(n):
            step(done)
            done += 1
        return (time.perf_counter() - started) / n

    return run


def naive(
    model: Model,
    graph: InteractionGraph,
    triples: list[tuple[Tensor, Tensor, Tensor]],
    transpose: bool,
    device: torch.device | str = "cpu",
) -> Side:
    """The steps of naive_graph.py; the triples are on the device."""
    weights = {name: value.detach().to(device) for name, value in model.build_network(graph).state_dict().items()}
    network: NaiveNGCF | NaiveLightGCN = (
        NaiveNGCF(graph, weights, adjacency=model.adjacency, transpose=transpose)
        if isinstance(model, NGCF)
        else NaiveLightGCN(graph, weights, transpose=transpose)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=model.learning_rate)

    def step(number: int) -> float:
        loss = network.loss(*triples[number % len(triples)], model.reg_weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return timed(step)


@pytest.mark.parametrize("name", ["ngcf", "lightgcn"])
def test_steps(compare: Any, request: pytest.FixtureRequest, graph: InteractionGraph, name: str) -> None:
    def model(**parameters: Any) -> Model:
        return NGCF(adjacency="norm", **parameters) if name == "ngcf" else LightGCN(**parameters)

    sampler = TripleSampler(graph, model().batch_size)
    triples = [sampler.draw(number) for number in range(16)]
    sides: dict[str, Side] = {}
    paths = dict(given.split("=", 1) for given in request.config.getoption("--peer"))
    if name in paths:
        from peers import graph as peers

        start = {"ngcf": peers.ngcf_step, "lightgcn": peers.lightgcn_step}[name]
        public = start(paths[name], graph, sampler.batch_size)
        sides["public"] = timed(lambda number: public(*triples[number % len(triples)]))
    sides["naive"] = naive(model(), graph, triples, False)
    sides["naive, transpose stored"] = naive(model(), graph, triples, True)
    sides["everything"] = runner_side(graph_runner(model(only_needed=False), graph))
    sides["ours"] = runner_side(graph_runner(model(), graph))
    compare(sides, row=f"{name} on {'Gowalla' if GOWALLA.exists() else 'a power-law graph'}", unit="mini-batch",
            subjects={"ours": {"public": GOALS[name]}})  # fmt: skip
