"""Benchmark GRU4Rec training steps of four published settings.

    pytest benchmarks/bench_training.py --peer official=PATH [--threads 1]

A unit of work is one mini-batch, including making its session batch and drawing its negatives. The official code is
GRU4Rec_PyTorch_Official, by GRU4Rec's author. Sides (the implementations compared):

    official         the loop of the official `fit`
    naive            plain PyTorch (naive_pytorch.py)
    torch.compile    naive, compiled
    reference        `GRU4Rec.fit` of this package in pure PyTorch
    autograd         `GRU4Rec.fit` with native operators and autograd
    fused            `GRU4Rec.fit` with the C++ training step, which is the default
    fused bf16       fused, with matrix products in bfloat16

The real logs are read from ../shared/data. The synthetic logs have as many events and items as the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from interleave import Side, timed
from machine import Shape, rate_shares
from naive_pytorch import SETTINGS, NaiveTraining, Setting
from session_logs import SessionLogs
from trainers import estimator_side, gru_runner

from gru4rec_fast import ops
from gru4rec_fast.data import SessionParallelLoader, SessionStore

# Goals: smallest allowed ratio, time of the official code / time of this package.
GOALS = {
    "xe-100": {"fused": 10.0},
    "xe-480": {"fused": 5.0, "fused bf16": 8.0},
    "bprmax-224": {"fused": 8.0},
    "bprmax-512": {"fused": 4.0, "fused bf16": 7.0},
}


def build_sides(
    setting: Setting, store: SessionStore, official: Any, make_frame: Callable[[], Any] | None
) -> dict[str, Side]:
    """Return the sides by name, without the official code if its checkout or the data frame is missing.

    official: a peers.official.OfficialGRU4Rec or None. make_frame: returns the log as a data frame, which the official
    code reads, or is None.
    """
    sides: dict[str, Side] = {}
    if official is not None and make_frame is not None:
        sides["official"] = official.training(make_frame(), **setting.parameters())
    sides["naive"] = timed(NaiveTraining(store, setting).step)
    sides["torch.compile"] = timed(NaiveTraining(store, setting, compiled=True).step)
    variants: dict[str, dict[str, Any]] = {
        "reference": {"impl": "reference"},
        "autograd": {"fused": False},
        "fused": {},
        "fused bf16": {"precision": "bf16"},
    }
    return sides | {name: estimator_side(store, setting.parameters() | options) for name, options in variants.items()}


def count_distinct_rows(store: SessionStore, setting: Setting) -> tuple[int, int]:
    """Return the mean numbers, per mini-batch, of distinct negatives and of item rows that the mini-batch updates."""
    blocks = list(zip(range(50), SessionParallelLoader(store, setting.batch_size), strict=False))
    sampler = ops.build_alias_table(torch.tensor(store.support), setting.sample_alpha)
    negatives, _ = ops.negative_sampling(sampler, setting.n_sample, seed=0, step=0, steps=len(blocks))
    n_negatives = [len(step_negatives.unique()) for step_negatives in negatives]
    n_rows = [len(torch.cat([b.inputs[0], b.targets[0], negatives[i]]).unique()) for i, b in blocks]
    return sum(n_negatives) // len(n_negatives), sum(n_rows) // len(n_rows)


def list_products(setting: Setting, n_columns: int) -> list[Shape]:
    """Return the shapes of a mini-batch's matrix products: scores, inputs and states of the GRU, two gradients of each.

    n_columns: number of items that are scored, targets and distinct negatives.
    """
    b, h = setting.batch_size, setting.width
    gates: list[Shape] = [(b, 3 * h, h), (b, h, 3 * h), (3 * h, h, b)]
    return [(b, n_columns, h), (b, h, n_columns), (n_columns, h, b), *gates, *gates]


def count_step_bytes(setting: Setting, n_rows: int) -> int:
    """Return the bytes of float32 weights and optimizer state that an update reads and writes.

    The update covers `n_rows` rows of the item table with their biases, and all weights and biases of the GRU.
    """
    arrays = 3 if setting.momentum else 2  # weights and accumulator; velocity with momentum
    return 2 * 4 * arrays * (n_rows * (setting.width + 1) + 6 * setting.width * (setting.width + 1))


@pytest.mark.parametrize("log", ["real", "synthetic"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_training_steps(compare: Any, logs: SessionLogs, official: Any, setting: Setting, log: str) -> None:
    is_real = log == "real"
    store = logs.store(setting.log) if is_real else logs.synthetic(setting.log)
    sides = build_sides(setting, store, official, (lambda: logs.frame(setting.log)) if is_real else None)
    # The sides "fused" and "fused bf16" are compared with the other implementations even if they have no goal.
    goals: dict[str, dict[str, float]] = {"fused": {}, "fused bf16": {}}
    goals |= {name: {"official": goal} for name, goal in GOALS[setting.name].items()}
    row = f"training, {setting.name}, {setting.log if is_real else 'synthetic log'}"
    seconds = compare(sides, row=row, unit="mini-batch", goals=goals)
    n_negatives, n_rows = count_distinct_rows(store, setting)
    shapes = list_products(setting, setting.batch_size + n_negatives)
    n_bytes = count_step_bytes(setting, n_rows)
    compare.note(
        why_not_fused=gru_runner(store, setting.parameters()).why_not_fused,
        # each side's rates as fractions of this machine's rates of matrix products and of copying
        limits={name: rate_shares(figures["median"], shapes, n_bytes) for name, figures in seconds.items()},
        distinct={"negatives": n_negatives, "rows": n_rows},
    )
