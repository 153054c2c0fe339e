"""Recorded runs of the published code, repeated in float64 with loader, network, loss and optimizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import GoldenRun, golden_names, load
from native import why_not_emulated
from oracle import session_steps, split

from gru4rec_fast.data import SessionBlock, SessionParallelLoader, SessionStore
from gru4rec_fast.evaluation import evaluate_sessions
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.training.captured_step import CapturedTrainingStep
from gru4rec_fast.training.fused_step import FusedTrainingStep

TOLERANCE = 1e-9

if not golden_names():
    pytest.skip("shared/golden is not beside this checkout", allow_module_level=True)


def network_of(run: GoldenRun, impl: str = "auto") -> SessionNetwork:
    config = run.config
    network = SessionNetwork(
        len(run.support),
        config["layers"],
        embedding=run.embedding_mode,
        embedding_dim=config.get("embedding", 0),
        dtype=torch.float64,
        impl=impl,
    )
    network.load_state_dict(state_of(run, "before"))
    return network


def state_of(run: GoldenRun, when: str) -> dict[str, torch.Tensor]:
    """Return the recorded weights by the network's parameter names."""
    named = {f"gru.{k}" if k.startswith("layers.") else k: v for k, v in run.weights(when).items()}
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in named.items()}


@pytest.fixture(params=["reference", "native", "fused", "cuda step"])
def way(request: pytest.FixtureRequest) -> str:
    """Add to the ways of conftest.py the captured step, on the CPU by the reference."""
    if request.param in ("native", "fused"):
        request.getfixturevalue("native_library")
    return request.param


@pytest.fixture(params=golden_names())
def run(request: pytest.FixtureRequest) -> GoldenRun:
    return load(request.param)


def epoch_of(run: GoldenRun) -> list[SessionBlock]:
    store = SessionStore.from_arrays(run.items, run.offsets)
    return list(SessionParallelLoader(store, run.config["batch_size"], min_live=1 if run.config["n_sample"] else 2))


def blocks_of(run: GoldenRun) -> list[SessionBlock]:
    """Return the recorded part of the epoch: xe_logq was recorded only while all lanes were live."""
    return epoch_of(run)[: len(run.losses)]


def test_batches_and_lanes_are_exact(run: GoldenRun) -> None:
    epoch = epoch_of(run)
    for step, block in enumerate(blocks_of(run)):
        for ours, recorded in ((block.inputs[0], run.inputs[step]), (block.targets[0], run.targets[step])):
            assert ours[ours >= 0].tolist() == recorded[recorded >= 0].tolist()
    simulated = session_steps(
        split(run.items, run.offsets), run.config["batch_size"], 1 if run.config["n_sample"] else 2
    )
    for block, step in zip(epoch, simulated, strict=True):  # the lanes' sessions, and where new sessions begin
        assert all(np.array_equal(ours[0], theirs) for ours, theirs in zip(block[:3], step, strict=True))
    if run.name == "xe_logq":
        epoch = [block for block in epoch if block.n_live == [run.config["batch_size"]]]
    assert len(epoch) == len(run.losses)


def test_every_loss_state_and_final_weight(run: GoldenRun, way: str) -> None:
    replay(run, way)


@pytest.mark.skipif(bool(why_not_emulated("gru")), reason=why_not_emulated("gru") or "-")
@pytest.mark.parametrize("emulated", ["emulated", "emulated cuda step"])
def test_the_cuda_kernels_replay_it_under_emulation(run: GoldenRun, emulated: str) -> None:
    replay(run, emulated)


def replay(run: GoldenRun, way: str) -> None:
    """Compare losses and states of a recorded epoch step by step, and the final weights."""
    config = run.config
    impl = {"fused": "native", "cuda step": "reference", "emulated cuda step": "emulated"}.get(way, way)
    network = network_of(run, impl)
    criterion = SampledLoss(
        config["loss"],
        batch_size=config["batch_size"],
        elu_param=config.get("elu_param", 0.0),
        bpreg=config.get("bpreg", 1.0),
        logq=config.get("logq", 0.0),
        sample_alpha=config["sample_alpha"],
        support=torch.from_numpy(run.support),
        dtype=torch.float64,
        impl=impl,
    )
    optimizer = SparseAdagrad(network.parameters(), config["learning_rate"], config.get("momentum", 0.0), impl=impl)
    steps = dict.fromkeys(("cuda step", "emulated cuda step"), CapturedTrainingStep) | {"fused": FusedTrainingStep}
    fused = steps[way](network, criterion, optimizer) if way in steps else None
    state = network.initial_state(config["batch_size"])
    for step, block in enumerate(blocks_of(run)):
        negatives = torch.from_numpy(run.negatives[step : step + 1]) if config["n_sample"] else None
        if fused:
            loss = fused.train_block(block.inputs, block.targets, block.reset, negatives, state, step=step)
        else:
            hidden, state = network(block.inputs, state, block.reset)
            table = network.output_weight, network.output_bias
            tracked = criterion(hidden, *table, block.targets, negatives, n_live=block.n_live)
            optimizer.zero_grad()
            tracked.backward()
            optimizer.step()
            state, loss = [layer.detach() for layer in state], tracked.item()
        live = block.inputs[0] >= 0
        squares = sum(float(layer[live].square().sum()) for layer in state)
        assert squares == pytest.approx(run.hidden_sq_norms[step], rel=TOLERANCE)
        assert loss == pytest.approx(run.losses[step], rel=TOLERANCE)
    for name, recorded in state_of(run, "after").items():
        torch.testing.assert_close(network.state_dict()[name], recorded, rtol=TOLERANCE, atol=TOLERANCE)


def test_evaluation(run: GoldenRun, impl: str) -> None:
    network = network_of(run, impl)
    network.load_state_dict(state_of(run, "after"))
    offsets = run.evaluated_offsets
    store = SessionStore.from_arrays(run.items[: offsets[-1]], offsets, n_items=len(run.support))
    report = evaluate_sessions(network, store, cutoffs=(5,), ties="standard", batch_size=run.config["batch_size"])
    assert report.n_targets == run.evaluation["n"]
    for name in ("recall@5", "mrr@5"):
        assert report.metrics[name] == pytest.approx(run.evaluation[name], rel=TOLERANCE)
