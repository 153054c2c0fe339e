"""Training steps of the four published settings: the package against plain PyTorch, mini-batch by mini-batch.

    pytest benchmarks/bench_training.py --benchmark-group-by=param:setting

A round is 20 mini-batches, the session batches and negatives included. The log is synthetic, of the published size:
GRU4Rec's work per step depends on it only through the catalogue. Sides: `naive` (naive_pytorch.py), `reference` (the
package's pure PyTorch), `auto` (whatever native kernels there are).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from naive_pytorch import SETTINGS, NaiveTraining, Setting
from synthetic import synthetic_store

from gru4rec_fast import ops
from gru4rec_fast.data import SessionParallelLoader, SessionStore
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad

STEPS = 20


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, SessionStore]:
    folder = tmp_path_factory.mktemp("stores")
    return {n: synthetic_store(folder / str(n), 500_000, n) for n in {s.n_items for s in SETTINGS}}


def package_steps(store: SessionStore, setting: Setting, impl: str) -> Callable[[], float]:
    """A function that trains STEPS mini-batches and returns the last loss."""
    support = torch.tensor(store.support).clamp(min=1)
    network = SessionNetwork(
        store.n_items,
        [setting.width],
        dropout_p_embed=setting.dropout_p_embed,
        dropout_p_hidden=setting.dropout_p_hidden,
        impl=impl,
    )
    criterion = SampledLoss(
        setting.loss,
        batch_size=setting.batch_size,
        elu_param=setting.elu_param,
        bpreg=setting.bpreg,
        logq=setting.logq,
        sample_alpha=setting.sample_alpha,
        support=support,
        impl=impl,
    )
    optimizer = SparseAdagrad(network.parameters(), setting.learning_rate, setting.momentum, impl=impl)
    sampler = ops.build_alias_table(support, setting.sample_alpha)
    loader = SessionParallelLoader(store, setting.batch_size, impl=impl)
    blocks, state, step = iter(loader), network.initial_state(loader.n_lanes), 0

    def run() -> float:
        nonlocal blocks, state, step
        for _ in range(STEPS):
            block = next(blocks, None)
            if block is None:
                blocks = iter(loader)
                block = next(blocks)
            negatives, _ = ops.negative_sampling(sampler, setting.n_sample, seed=0, step=step, impl=impl)
            hidden, state = network(block.inputs, state, block.reset, step=step, all_live=True)
            loss = criterion(network, hidden, block.targets, negatives, block.n_live)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            state = [layer.detach() for layer in state]
            step += 1
        return loss.item()

    return run


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
@pytest.mark.parametrize("side", ["naive", "reference", "auto"])
def test_steps(benchmark: Any, stores: dict[int, SessionStore], setting: Setting, side: str) -> None:
    store = stores[setting.n_items]
    if side == "naive":
        training = NaiveTraining(store, setting)
        run = lambda: [training.step() for _ in range(STEPS)][-1]  # noqa: E731
    else:
        run = package_steps(store, setting, side)
    benchmark.extra_info["mini_batches"] = STEPS
    loss = benchmark.pedantic(run, rounds=9, warmup_rounds=2)
    assert 0 < loss < 20
