"""Training by `fit`, of GRU4Rec and of the graph models, timed some mini-batches at a time."""

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
from gru4rec_fast.training.progress import Silent

CPU = torch.device("cpu")


class _EnoughSteps(Exception):
    """Raised to leave `run_epoch`."""


def runner_of(store: SessionStore, parameters: Mapping[str, Any], device: torch.device = CPU) -> SessionEpochRunner:
    """Return the epoch runner of `GRU4Rec(**parameters).fit(store)`."""
    p = GRU4RecParameters.create({**parameters, "device": str(device)})
    return build_session_runner(p, build_session_network(p, store.n_items), store)


def estimator_side(store: SessionStore, parameters: Mapping[str, Any]) -> Side:
    """Return a function that trains n mini-batches as `GRU4Rec(**parameters).fit(store)` does."""
    return runner_side(runner_of(store, parameters))


def graph_runner(model: NGCF | LightGCN, graph: InteractionGraph, device: torch.device = CPU) -> GraphEpochRunner:
    """Return the epoch runner of `model.fit(graph)`."""
    model = type(model)(**model.get_params() | {"device": str(device)})
    return build_graph_runner(model, model.build_network(graph), graph)


def runner_side(runner: EpochRunner, synchronize: Callable[[], None] = lambda: None) -> Side:
    """Return a function that trains n mini-batches, over epochs as needed; it returns the seconds per mini-batch.

    synchronize: waits until the device is idle.
    """

    def run(n: int) -> float:
        in_finished_epochs = 0

        def steps_done() -> int:
            return in_finished_epochs + runner.position.mini_batches - at_start

        def stop_when_done() -> int:
            if steps_done() >= n:
                raise _EnoughSteps
            return n - steps_done()

        synchronize()
        started = time.perf_counter()
        while True:
            at_start = runner.position.mini_batches
            try:
                runner.run_epoch(Silent(), stop_when_done)
            except _EnoughSteps:
                synchronize()
                return (time.perf_counter() - started) / steps_done()
            in_finished_epochs = steps_done()
            runner.start_next_epoch()

    return run
