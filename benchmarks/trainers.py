"""Time the training loop of `fit`, for GRU4Rec and the graph models, as sides of a comparison.

A side (interleave.Side) is a function that runs n units of work, here mini-batches, and returns the seconds per unit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from interleave import Side

from gru4rec_fast import NGCF, LightGCN
from gru4rec_fast.data import InteractionGraph, SessionStore
from gru4rec_fast.models.builders import build_graph_runner, build_session_network, build_session_runner
from gru4rec_fast.models.parameters import GRU4RecParameters
from gru4rec_fast.training import EpochRunner, GraphEpochRunner, SessionEpochRunner
from gru4rec_fast.training.progress import SilentProgress

CPU = torch.device("cpu")


class _EnoughSteps(Exception):
    """Raised to leave `run_epoch` after the requested number of mini-batches."""


def gru_runner(store: SessionStore, parameters: Mapping[str, Any], device: torch.device = CPU) -> SessionEpochRunner:
    """Return the object that runs the epochs of `GRU4Rec(**parameters).fit(store)`."""
    p = GRU4RecParameters.create({"seed": 0, **parameters, "device": str(device)})
    return build_session_runner(p, build_session_network(p, store.n_items), store)


def estimator_side(store: SessionStore, parameters: Mapping[str, Any]) -> Side:
    """Return the side that trains as `GRU4Rec(**parameters).fit(store)` does."""
    return runner_side(gru_runner(store, parameters))


def graph_runner(model: NGCF | LightGCN, graph: InteractionGraph, device: torch.device = CPU) -> GraphEpochRunner:
    """Return the object that runs the epochs of `model.fit(graph)`."""
    model = type(model)(**model.get_params() | {"device": str(device)})
    return build_graph_runner(model, model.build_network(graph), graph)


def runner_side(runner: EpochRunner, synchronize: Callable[[], None] = lambda: None) -> Side:
    """Return the side that trains with a runner. The side starts new epochs as needed.

    synchronize: a function that waits until the device is idle.
    """

    def run(n: int) -> float:
        n_in_finished_epochs = 0

        def n_done() -> int:
            return n_in_finished_epochs + runner.position.mini_batches - n_at_start

        def stop_when_done() -> int:
            """Return how many mini-batches remain, or raise _EnoughSteps. `run_epoch` calls it between mini-batches."""
            if n_done() >= n:
                raise _EnoughSteps
            return n - n_done()

        synchronize()
        started = time.perf_counter()
        while True:
            n_at_start = runner.position.mini_batches
            try:
                runner.run_epoch(SilentProgress(), stop_when_done)
            except _EnoughSteps:
                synchronize()
                return (time.perf_counter() - started) / n_done()
            n_in_finished_epochs = n_done()
            runner.start_next_epoch()

    return run
