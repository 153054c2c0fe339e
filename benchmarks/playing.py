"""What `GRU4Rec.fit` plays, cut into turns."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from turns import Side

from gru4rec_fast.data import SessionStore
from gru4rec_fast.models.parameters import GRU4RecParameters
from gru4rec_fast.models.parts import build_trainer
from gru4rec_fast.training.epoch import EpochPlayer

CPU = torch.device("cpu")


class _Enough(Exception):
    """Leaves an epoch that is being played."""


def player_of(store: SessionStore, parameters: Mapping[str, Any], device: torch.device = CPU) -> EpochPlayer:
    """What `GRU4Rec(**parameters).fit(store)` plays."""
    return build_trainer(GRU4RecParameters.create(parameters), store, None, device, checkpoint_every=None).player


def estimator_side(store: SessionStore, parameters: Mapping[str, Any]) -> Side:
    """What `GRU4Rec(**parameters).fit(store)` plays, n mini-batches at a time."""
    return player_side(player_of(store, parameters))


def player_side(player: EpochPlayer) -> Side:
    """A trainer's player, n mini-batches at a time; each turn begins an epoch's sessions anew."""

    def run(n: int) -> float:
        played = 0

        def stop_when_done() -> int:
            left = n - (played + player.place.mini_batches - before)
            if left <= 0:
                raise _Enough
            return left

        started = time.perf_counter()
        while True:
            before = player.place.mini_batches
            try:
                player.play(stop_when_done)
            except _Enough:
                return (time.perf_counter() - started) / (played + player.place.mini_batches - before)
            played += player.place.mini_batches - before
            player.end_epoch()

    return run
