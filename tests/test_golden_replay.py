"""The package repeats recorded runs of the published GRU4Rec code in float64.

Mini-batches are equal; losses, hidden states, weights and metrics agree to 1e-9.
"""

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
    pytest.skip("shared/golden is missing next to this checkout", allow_module_level=True)


def make_network(run: GoldenRun, impl: str = "auto") -> SessionNetwork:
    """Return a network with the recorded initial weights."""
    config = run.config
    network = SessionNetwork(
        len(run.support),
        config["layers"],
        embedding=run.embedding_mode,
        embedding_dim=config.get("embedding", 0),
        sparse=True,
        dtype=torch.float64,
        impl=impl,
    )
    network.load_state_dict(recorded_weights(run, "before"))
    return network


def recorded_weights(run: GoldenRun, when: str) -> dict[str, torch.Tensor]:
    """Return the weights "before" or "after" the recorded epoch, with the network's parameter names."""
    named = {f"gru.{key}" if key.startswith("layers.") else key: array for key, array in run.weights(when).items()}
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in named.items()}


@pytest.fixture(params=["reference", "native", "fused", "captured"])
def training_impl(request: pytest.FixtureRequest) -> str:
    """Run a test by autograd with reference and native operators, by the fused step, and by the captured step.

    The captured step is the training step for GPUs. Here it runs on the CPU, with reference operators.
    """
    if request.param in ("native", "fused"):
        request.getfixturevalue("native_library")
    return request.param


@pytest.fixture(params=golden_names())
def run(request: pytest.FixtureRequest) -> GoldenRun:
    """Run a test once per recording."""
    return load(request.param)


def load_epoch(run: GoldenRun) -> list[SessionBlock]:
    """Return the blocks of the recorded epoch. A block has one step, which is one mini-batch.

    Without sampled negatives, an epoch ends when fewer than two lanes are live (have a session).
    """
    store = SessionStore.from_arrays(run.items, run.offsets)
    return list(SessionParallelLoader(store, run.config["batch_size"], min_live=1 if run.config["n_sample"] else 2))


def load_recorded_blocks(run: GoldenRun) -> list[SessionBlock]:
    """Return the recorded blocks: all blocks, or in the run xe_logq the blocks in which all lanes are live."""
    return load_epoch(run)[: len(run.losses)]


def test_batches_and_lanes_equal_the_recording(run: GoldenRun) -> None:
    epoch = load_epoch(run)
    for step, block in enumerate(load_recorded_blocks(run)):
        for items, recorded_items in ((block.inputs[0], run.inputs[step]), (block.targets[0], run.targets[step])):
            assert items[items >= 0].tolist() == recorded_items[recorded_items >= 0].tolist()
    # The recording has neither the lanes of the items nor the resets. Both are compared with the lanes and
    # the resets of tests/oracle.
    min_live = 1 if run.config["n_sample"] else 2
    oracle_steps = session_steps(split(run.items, run.offsets), run.config["batch_size"], min_live)
    for block, oracle_step in zip(epoch, oracle_steps, strict=True):
        assert all(np.array_equal(a[0], b) for a, b in zip(block[:3], oracle_step, strict=True))
    if run.name == "xe_logq":
        epoch = [block for block in epoch if block.n_live == [run.config["batch_size"]]]
    assert len(epoch) == len(run.losses)


def test_losses_states_and_final_weights_equal_the_recording(run: GoldenRun, training_impl: str) -> None:
    replay(run, training_impl)


@pytest.mark.skipif(bool(why_not_emulated("gru")), reason=why_not_emulated("gru") or "-")
@pytest.mark.parametrize("emulated_impl", ["emulated", "emulated captured"])
def test_emulated_kernels_equal_the_recording(run: GoldenRun, emulated_impl: str) -> None:
    replay(run, emulated_impl)


def replay(run: GoldenRun, training_impl: str) -> None:
    """Repeat a recorded epoch, and compare the loss and the hidden state of each step, and the final weights."""
    config = run.config
    impl = {"fused": "native", "captured": "reference", "emulated captured": "emulated"}.get(
        training_impl, training_impl
    )
    network = make_network(run, impl)
    criterion = SampledLoss(
        config["loss"],
        batch_size=config["batch_size"],
        elu_param=config.get("elu_param", 0.0),
        bpreg=config.get("bpreg", 1.0),
        logq=config.get("logq", 0.0),
        sample_alpha=config["sample_alpha"],
        support=torch.from_numpy(run.support),
        sparse=True,
        dtype=torch.float64,
        impl=impl,
    )
    optimizer = SparseAdagrad(network.parameters(), config["learning_rate"], config.get("momentum", 0.0), impl=impl)
    step_class = {
        "fused": FusedTrainingStep,
        "captured": CapturedTrainingStep,
        "emulated captured": CapturedTrainingStep,
    }.get(training_impl)
    training_step = step_class(network, criterion, optimizer) if step_class else None
    state = network.initial_state(config["batch_size"])
    for step, block in enumerate(load_recorded_blocks(run)):
        negatives = torch.from_numpy(run.negatives[step : step + 1]) if config["n_sample"] else None
        if training_step:
            loss = training_step.train_block(block.inputs, block.targets, block.reset, negatives, state, step=step)
        else:
            hidden, state = network(block.inputs, state, block.reset)
            table = network.output_weight, network.output_bias
            loss_tensor = criterion(hidden, *table, block.targets, negatives, n_live=block.n_live)
            optimizer.zero_grad()
            loss_tensor.backward()
            optimizer.step()
            state, loss = [layer.detach() for layer in state], loss_tensor.item()
        live = block.inputs[0] >= 0
        sum_of_squares = sum(float(layer[live].square().sum()) for layer in state)
        assert sum_of_squares == pytest.approx(run.hidden_sq_norms[step], rel=TOLERANCE)
        assert loss == pytest.approx(run.losses[step], rel=TOLERANCE)
    for name, recorded in recorded_weights(run, "after").items():
        torch.testing.assert_close(network.state_dict()[name], recorded, rtol=TOLERANCE, atol=TOLERANCE)


def test_metrics_equal_the_recording(run: GoldenRun, impl: str) -> None:
    network = make_network(run, impl)
    network.load_state_dict(recorded_weights(run, "after"))
    offsets = run.evaluated_offsets
    store = SessionStore.from_arrays(run.items[: offsets[-1]], offsets, n_items=len(run.support))
    report = evaluate_sessions(network, store, cutoffs=(5,), ties="standard", batch_size=run.config["batch_size"])
    assert report.n_targets == run.evaluation["n"]
    for name in ("recall@5", "mrr@5"):
        assert report.metrics[name] == pytest.approx(run.evaluation[name], rel=TOLERANCE)
