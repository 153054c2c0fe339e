"""Helpers for tests that build a small trainer, and call a function before it processes a certain block.

A block is a tensor of `bptt` mini-batches, through which one backward pass goes.
"""

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

STORE = markov_store(n_sessions=60)  # sessions of the default trainer
LANES = 8  # sessions processed in parallel
FORMAT = "gru4rec_fast.SessionNetwork/2"  # name of the format and version of its layout, in checkpoints
# Arguments of make_trainer that are passed on to SessionEpochRunner.
RUNNER_ARGUMENTS = ("sampler", "accumulate", "seed", "fused", "precision", "fingerprint", "impl")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not draw curves, which would take most of the time of these tests."""
    monkeypatch.setattr(run_folder, "write_curves", lambda *_: None)


# Default values for `**arguments` of make_trainer; the fixture `fused_and_autograd` sets them.
DEFAULTS: dict[str, Any] = {}


@pytest.fixture(params=["fused", "autograd"])
def fused_and_autograd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test twice: with the fused step in all trainers, and with autograd."""
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
    make_optimizer: Any = None,
    **arguments: Any,
) -> Trainer:
    """Return a trainer of a GRU4Rec network, by default with the sessions of STORE.

    make_optimizer: function that takes the parameters and returns an optimizer; None uses SparseAdagrad. `arguments`
    are passed on to SessionEpochRunner, TrainerOptions or Trainer, depending on the name; `lr_scheduler` and
    `lr_scheduler_options` are as in the estimators.
    """
    arguments = {"seed": 3} | DEFAULTS | arguments
    runner_arguments = {name: arguments.pop(name) for name in RUNNER_ARGUMENTS if name in arguments}
    fields = [name for name in TrainerOptions.__dataclass_fields__ if name in arguments]
    options = TrainerOptions(**{"n_epochs": 2} | {name: arguments.pop(name) for name in fields})
    scheduler, scheduler_options = (arguments.pop(f"lr_scheduler{suffix}", None) for suffix in ("", "_options"))
    network = SessionNetwork(
        store.n_items, list(layers), embedding=embedding, embedding_dim=7, seed=3,
        dropout_p_embed=dropout, dropout_p_hidden=dropout, sparse=True, dtype=dtype,
    )  # fmt: skip
    loader = SessionParallelLoader(store, lanes, bptt, shuffle=shuffle, seed=3, min_live=1 if n_sample else 2)
    support = torch.from_numpy(store.support)
    parameters = network.parameters()
    optimizer = make_optimizer(parameters) if make_optimizer else SparseAdagrad(parameters, learning_rate, momentum)
    schedule = None
    if scheduler is not None:
        maximize = "validate" in arguments and options.monitor != "loss"
        schedule = Schedule(optimizer, scheduler, scheduler_options, n_epochs=options.n_epochs, maximize=maximize)
    sampler = ops.build_alias_table(support, 0.5) if n_sample else None
    runner = SessionEpochRunner(
        network,
        loader,
        criterion=SampledLoss(batch_size=lanes, logq=1.0, support=support, sparse=True, dtype=dtype),
        optimizer=optimizer,
        n_sample=n_sample,
        schedule=schedule,
        **{"sampler": sampler} | runner_arguments,
    )
    return Trainer(runner, options, **arguments)


def call_at_block(trainer: Trainer, block_number: int, act: Any) -> None:
    """Make a trainer call `act` before it processes this block. Blocks are numbered from 1, over all epochs.

    With the fused step, `act` is called before the whole update that contains this block.
    """
    runner = trainer.runner
    backpropagate, start_fused_epoch = runner.backpropagate, runner.start_fused_epoch
    n_blocks = 0

    def count(new_blocks: int) -> None:
        nonlocal n_blocks
        n_blocks += new_blocks
        if n_blocks - new_blocks < block_number <= n_blocks:
            act()

    def count_and_backpropagate(*arguments: Any) -> Any:
        count(1)
        return backpropagate(*arguments)

    def start_counting_epoch() -> Any:
        epoch = start_fused_epoch()
        run = epoch.run

        def run_one_update(updates: int, *arguments: Any, **keywords: Any) -> Any:
            """Make one update per call, whatever number is requested, so that each update is counted."""
            count(runner.accumulate)
            return run(1, *arguments, **keywords)

        epoch.run = run_one_update
        return epoch

    runner.backpropagate, runner.start_fused_epoch = count_and_backpropagate, start_counting_epoch


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return copies of the weights, by parameter name."""
    return {name: p.detach().clone() for name, p in trainer.network.named_parameters()}


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a history without the times of the epochs, which differ between equal trainings."""
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]
