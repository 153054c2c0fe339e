"""A small trainer for the tests, and functions that interrupt it."""

import signal
from typing import Any

import pytest
import torch
from markov import markov_store

from gru4rec_fast import ops
from gru4rec_fast.data import SessionParallelLoader
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.training import Schedule, SessionEpochRunner, Trainer, TrainerOptions, run_folder

STORE = markov_store(n_sessions=60)

LANES = 8

FORMAT = "gru4rec_fast.SessionNetwork/2"

RUNNER_ARGUMENTS = ("sampler", "accumulate", "seed", "fused", "precision", "fingerprint", "memory", "impl")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not draw curves, which would take most of the time of these tests."""
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
    """Return a trainer over the module's store.

    `arguments` are those of SessionEpochRunner, TrainerOptions and Trainer, and lr_scheduler and lr_scheduler_options.
    """
    arguments = {"seed": 3} | DEFAULTS | arguments
    runner_arguments = {name: arguments.pop(name) for name in RUNNER_ARGUMENTS if name in arguments}
    fields = [name for name in TrainerOptions.__dataclass_fields__ if name in arguments]
    options = TrainerOptions(**{"n_epochs": 2} | {name: arguments.pop(name) for name in fields})
    scheduler, scheduler_options = (arguments.pop(f"lr_scheduler{suffix}", None) for suffix in ("", "_options"))
    network = SessionNetwork(
        store.n_items, list(layers), embedding=embedding, embedding_dim=7, seed=3,
        dropout_p_embed=dropout, dropout_p_hidden=dropout, dtype=dtype,
    )  # fmt: skip
    loader = SessionParallelLoader(store, lanes, bptt, shuffle=shuffle, seed=3, min_live=1 if n_sample else 2)
    support = torch.from_numpy(store.support)
    parameters = network.parameters()
    trained_by = optimizer(parameters) if optimizer else SparseAdagrad(parameters, learning_rate, momentum)
    schedule = None
    if scheduler is not None:
        maximize = "validate" in arguments and options.monitor != "loss"
        schedule = Schedule(trained_by, scheduler, scheduler_options, n_epochs=options.n_epochs, maximize=maximize)
    sampler = ops.build_alias_table(support, 0.5) if n_sample else None
    runner = SessionEpochRunner(
        network,
        loader,
        criterion=SampledLoss(batch_size=lanes, logq=1.0, support=support, dtype=dtype),
        optimizer=trained_by,
        n_sample=n_sample,
        schedule=schedule,
        **{"sampler": sampler} | runner_arguments,
    )
    return Trainer(runner, options, **arguments)


def at_block(trainer: Trainer, block_number: int, act: Any) -> None:
    """Call `act` before the trainer processes a block, counted from 1 over the whole run.

    With the fused step: before the update that has this block.
    """
    runner, n_blocks = trainer.runner, [0]
    backpropagate, start_fused_epoch = runner.backpropagate, runner.start_fused_epoch

    def count(blocks: int) -> None:
        n_blocks[0] += blocks
        if n_blocks[0] - blocks < block_number <= n_blocks[0]:
            act()

    def counted(*arguments: Any) -> None:
        count(1)
        backpropagate(*arguments)

    def start() -> Any:
        epoch = start_fused_epoch()
        run = epoch.run

        def one_update(updates: int, *arguments: Any, **keywords: Any) -> Any:
            count(runner.accumulate)
            return run(1, *arguments, **keywords)

        epoch.run = one_update
        return epoch

    runner.backpropagate, runner.start_fused_epoch = counted, start


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.network.named_parameters()}


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]
