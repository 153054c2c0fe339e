"""A small trainer for the tests, and what they do to it."""

import signal
from typing import Any

import pytest
import torch
from markov import markov_store

from gru4rec_fast import ops
from gru4rec_fast.data import SessionParallelLoader
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.training import (
    Trainer,
    TrainingOptions,
    run_folder,
)

STORE = markov_store(n_sessions=60)

LANES = 8

FORMAT = "gru4rec_fast.SessionNetwork/1"


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing would take most of the time of these tests."""
    monkeypatch.setattr(run_folder, "write_curves", lambda *_: None)


DEFAULTS: dict[str, Any] = {}  # of arguments of make_trainer


@pytest.fixture(params=["fused", "autograd"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every trainer of the test trains by the fused step, or else by autograd."""
    if request.param == "fused":
        request.getfixturevalue("native_library")
    monkeypatch.setitem(DEFAULTS, "fused", request.param == "fused")
    return request.param


def make_trainer(
    *,
    store: Any = STORE,
    layers: tuple[int, ...] = (12,),
    embedding: str = "constrained",
    momentum: float = 0.0,
    dropout: float = 0.0,
    shuffle: bool = False,
    bptt: int = 1,
    lanes: int = LANES,
    learning_rate: float = 0.1,
    n_sample: int = 16,
    dtype: torch.dtype = torch.float32,
    optimizer: Any = None,
    **arguments: Any,
) -> Trainer:
    """A trainer over the module's store; what is no argument of this function goes to the options or the trainer."""
    arguments = DEFAULTS | arguments
    options = {name: arguments.pop(name) for name in list(arguments) if name in TrainingOptions.__dataclass_fields__}
    network = SessionNetwork(
        store.n_items, list(layers), embedding=embedding, embedding_dim=7, seed=3,
        dropout_p_embed=dropout, dropout_p_hidden=dropout, dtype=dtype,
    )  # fmt: skip
    loader = SessionParallelLoader(store, lanes, bptt, shuffle=shuffle, seed=3, min_live=1 if n_sample else 2)
    support = torch.from_numpy(store.support)
    return Trainer(
        network,
        loader,
        TrainingOptions(**{"n_epochs": 2, "n_sample": n_sample, "seed": 3, **options}),
        criterion=SampledLoss(batch_size=lanes, logq=1.0, support=support, dtype=dtype),
        optimizer=optimizer(network.parameters())
        if optimizer
        else SparseAdagrad(network.parameters(), learning_rate, momentum),
        sampler=ops.build_alias_table(support, 0.5) if n_sample else None,
        **arguments,
    )


def at_block(trainer: Trainer, number: int, act: Any) -> None:
    """Call `act` while the trainer plays its block `number`, counted from 1 over the whole run.

    By the fused step: before the update that this block is part of.
    """
    player, played = trainer.player, [0]
    play, begin = player.play_block, player.begin_fused

    def count(blocks: int) -> None:
        played[0] += blocks
        if played[0] - blocks < number <= played[0]:
            act()

    def counted(*arguments: Any) -> None:
        count(1)
        play(*arguments)

    def begun() -> Any:
        fused = begin()
        run = fused.run

        def one_update(updates: int, *arguments: Any, **keywords: Any) -> Any:
            count(trainer.options.accumulate)
            return run(1, *arguments, **keywords)

        fused.run = one_update
        return fused

    player.play_block, player.begin_fused = counted, begun  # type: ignore[method-assign]


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.network.named_parameters()}


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]
