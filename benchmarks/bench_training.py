"""Training steps of the four published settings, the sides in turns: goals and limits beside each row.

    pytest benchmarks/bench_training.py --peer official=PATH [--threads 1]

A unit is one mini-batch, its session batch and negatives included. Sides: `official` (its own fit loop), `naive`
(naive_pytorch.py), `torch.compile` of its tensor part, `reference` (the package's pure PyTorch), `operators` (the
package's native operators in a loop of one's own, through autograd), `GRU4Rec` (what `GRU4Rec.fit` plays: the fused
step where there is one) and `GRU4Rec bf16`. The real logs stand beside the checkout (../shared); the synthetic ones, of
their size, run anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from logs import LogShelf
from machine import Shape, limits
from naive_pytorch import SETTINGS, NaiveTraining, Setting
from turns import Side

from gru4rec_fast import ops
from gru4rec_fast.data import SessionParallelLoader, SessionStore
from gru4rec_fast.models.parameters import GRU4RecParameters, parameter_names
from gru4rec_fast.models.parts import build_criterion, build_network, build_trainer
from gru4rec_fast.optim import SparseAdagrad

GOALS = {
    "xe-100": {"GRU4Rec": 10.0},
    "xe-480": {"GRU4Rec": 5.0, "GRU4Rec bf16": 8.0},
    "bprmax-224": {"GRU4Rec": 8.0},
    "bprmax-512": {"GRU4Rec": 4.0, "GRU4Rec bf16": 7.0},
}
CPU = torch.device("cpu")


class _Enough(Exception):
    """Leaves an epoch that is being played."""


def estimator_side(store: SessionStore, setting: Setting, **parameters: Any) -> Side:
    """What `GRU4Rec(...).fit` plays, cut short after n mini-batches."""
    p = GRU4RecParameters.create(setting.parameters() | parameters)
    trainer = build_trainer(p, store, None, CPU, checkpoint_every=None)
    player = trainer.player

    def run(n: int) -> float:
        played = 0

        def stop_when_done() -> None:
            if played + player.place.mini_batches - before >= n:
                raise _Enough

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


def operators_side(store: SessionStore, setting: Setting, impl: str) -> Side:
    """The package's modules in a loop of one's own."""
    p = GRU4RecParameters.create(setting.parameters() | {"impl": impl})
    support = torch.tensor(store.support)
    network, criterion = build_network(p, store.n_items, CPU), build_criterion(p, support)
    optimizer = SparseAdagrad(network.parameters(), p.learning_rate, p.momentum, impl=impl)
    sampler = ops.build_alias_table(support, p.sample_alpha)
    loader = SessionParallelLoader(store, p.batch_size, impl=impl)
    blocks, state, step = iter(loader), network.initial_state(loader.n_lanes), 0

    def one() -> None:
        nonlocal blocks, state, step
        block = next(blocks, None)
        if block is None or block.n_live[0] < loader.n_lanes:  # the others stop at the first dead lane as well
            blocks = iter(loader)
            block = next(blocks)
        negatives, _ = ops.negative_sampling(sampler, p.n_sample, seed=0, step=step, impl=impl)
        hidden, state = network(block.inputs, state, block.reset, step=step, all_live=True)
        loss = criterion(network, hidden, block.targets, negatives, block.n_live)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        state = [layer.detach() for layer in state]
        step += 1
        if not torch.isfinite(loss):
            raise ArithmeticError(f"the loss is {loss.item()}")

    return timed(one)


def timed(step: Callable[[], Any]) -> Side:
    """A side from a function that does one unit of work."""

    def run(n: int) -> float:
        started = time.perf_counter()
        for _ in range(n):
            step()
        return (time.perf_counter() - started) / n

    return run


def sides_of(setting: Setting, store: SessionStore, official: Any, frame: Callable[[], Any] | None) -> dict[str, Side]:
    """Every side that can run here."""
    sides: dict[str, Side] = {}
    if official is not None and frame is not None:
        sides["official"] = official.training(frame(), **setting.parameters())
    sides["naive"] = timed(NaiveTraining(store, setting).step)
    sides["torch.compile"] = timed(NaiveTraining(store, setting, compiled=True).step)
    sides["reference"] = operators_side(store, setting, "reference")
    sides["operators"] = operators_side(store, setting, "auto")
    if "precision" in parameter_names():
        sides["GRU4Rec bf16"] = estimator_side(store, setting, precision="bf16")
    sides["GRU4Rec"] = estimator_side(store, setting)
    return sides


def distinct_rows(store: SessionStore, setting: Setting) -> tuple[int, int]:
    """Mean numbers of distinct negatives, and of distinct rows that a mini-batch touches."""
    blocks = list(zip(range(50), SessionParallelLoader(store, setting.batch_size), strict=False))
    sampler = ops.build_alias_table(torch.tensor(store.support), setting.sample_alpha)
    negatives, _ = ops.negative_sampling(sampler, setting.n_sample, seed=0, step=0, steps=len(blocks))
    drawn = [len(row.unique()) for row in negatives]
    touched = [len(torch.cat([b.inputs[0], b.targets[0], negatives[i]]).unique()) for i, b in blocks]
    return sum(drawn) // len(drawn), sum(touched) // len(touched)


def products(setting: Setting, n_columns: int) -> list[Shape]:
    """The matrix products of one mini-batch: scores, GRU, and both gradients of each."""
    b, h = setting.batch_size, setting.width
    gates: list[Shape] = [(b, 3 * h, h), (b, h, 3 * h), (3 * h, h, b)]
    return [(b, n_columns, h), (b, h, n_columns), (n_columns, h, b), *gates, *gates]


def step_bytes(setting: Setting, n_rows: int) -> int:
    """What the update has to read and write: weights and their moments, of the touched rows and of the GRU."""
    arrays = 3 if setting.momentum else 2
    return 2 * 4 * arrays * (n_rows * (setting.width + 1) + 6 * setting.width * (setting.width + 1))


@pytest.mark.parametrize("log", ["real", "synthetic"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_mini_batches(compare: Any, logs: LogShelf, official: Any, setting: Setting, log: str) -> None:
    real = log == "real"
    store = logs.store(setting.log) if real else logs.synthetic(setting.log)
    sides = sides_of(setting, store, official, (lambda: logs.frame(setting.log)) if real else None)
    goals = {name: {"official": goal} for name, goal in GOALS[setting.name].items()}
    goals = {"operators": {}, "GRU4Rec": {}} | goals
    row = f"training, {setting.name}, {setting.log if real else 'synthetic log'}"
    seconds = compare(sides, row=row, unit="mini-batch", subjects=goals)
    n_negatives, n_rows = distinct_rows(store, setting)
    work = products(setting, setting.batch_size + n_negatives)
    n_bytes = step_bytes(setting, n_rows)
    compare.note(
        limits={name: limits(taken["median"], work, n_bytes) for name, taken in seconds.items()},
        distinct={"negatives": n_negatives, "rows": n_rows},
    )
