"""What `fit` plays, of GRU4Rec and of the graph models, cut into turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from interleave import Side

from gru4rec_fast import NGCF, LightGCN
from gru4rec_fast.data import InteractionGraph, SessionStore, TripleSampler
from gru4rec_fast.models.graph_parts import training_options
from gru4rec_fast.models.parameters import GRU4RecParameters
from gru4rec_fast.models.parts import build_trainer
from gru4rec_fast.training.epoch import EpochPlayer
from gru4rec_fast.training.graph_loop import GraphTrainer, TriplePlayer

CPU = torch.device("cpu")


class _Enough(Exception):
    """Leaves an epoch that is being played."""


def player_of(store: SessionStore, parameters: Mapping[str, Any], device: torch.device = CPU) -> EpochPlayer:
    """What `GRU4Rec(**parameters).fit(store)` plays."""
    return build_trainer(GRU4RecParameters.create(parameters), store, None, device, checkpoint_every=None).player


def estimator_side(store: SessionStore, parameters: Mapping[str, Any]) -> Side:
    """What `GRU4Rec(**parameters).fit(store)` plays, n mini-batches at a time."""
    return player_side(player_of(store, parameters))


def graph_player(model: NGCF | LightGCN, graph: InteractionGraph, device: torch.device = CPU) -> TriplePlayer:
    """What `model.fit(graph)` plays on the device."""
    p, network = model.parameters, model.build_network(graph).to(device)
    return GraphTrainer(
        network,
        TripleSampler(graph, p.batch_size, sample_by=p.sample_by, seed=p.seed, device=device, impl=p.impl),
        training_options(p, None),
        optimizer=torch.optim.Adam(network.parameters(), lr=p.learning_rate, fused=True),
    ).player


def player_side(player: EpochPlayer | TriplePlayer, wait: Callable[[], None] = lambda: None) -> Side:
    """A trainer's player, n mini-batches at a time; each turn of GRU4Rec's begins an epoch's sessions anew.

    wait: until the device has done all it was given.
    """

    def run(n: int) -> float:
        played = 0

        def stop_when_done() -> int:
            left = n - (played + player.place.mini_batches - before)
            if left <= 0:
                raise _Enough
            return left

        wait()
        started = time.perf_counter()
        while True:
            before = player.place.mini_batches
            try:
                player.play(stop_when_done)
            except _Enough:
                wait()
                return (time.perf_counter() - started) / (played + player.place.mini_batches - before)
            played += player.place.mini_batches - before
            player.end_epoch()

    return run
