"""The captured training step, compared with autograd, on CPU tensors and without a graph.

It runs by the reference operators and by the emulated CUDA kernels; tests/test_cuda.py captures it on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from markov import markov_store
from native import why_not_emulated
from sync_detector import SyncDetector
from torch import Tensor

from gru4rec_fast import ops
from gru4rec_fast.data import SessionParallelLoader
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.training.captured_step import CapturedEpoch, CapturedTrainingStep, why_not_captured

STORE = markov_store(n_sessions=23, n_items=40)
SUPPORT = torch.from_numpy(STORE.support)
SEED = 5

CASES: dict[str, dict[str, Any]] = {
    "cross-entropy, logq": {"logq": 1.0, "momentum": 0.3, "dropout": 0.2},
    "bpr-max": {"loss": "bpr-max", "elu_param": 0.5, "bpreg": 1.5, "dropout": 0.3},
    "two layers, separate, reset before": {"layers": [9, 7], "embedding": "separate", "form": "reset_before"},
    "accidental hits": {"loss": "top1-max", "mask_accidental_hits": True, "n_sample": 90},
    "in-batch negatives only": {"n_sample": 0, "loss": "bpr"},
    "one-hot": {"embedding": "none", "layers": [8, 6], "dropout": 0.2, "momentum": 0.3},
    "through three steps": {"steps": 3, "dropout": 0.2, "momentum": 0.3, "logq": 1.0},
    "three blocks an update": {"accumulate": 3, "loss": "bpr-max"},
    "two blocks of two steps, separate": {"steps": 2, "accumulate": 2, "embedding": "separate", "dropout": 0.2},
    "through steps, in-batch negatives only": {"steps": 4, "accumulate": 2, "n_sample": 0, "loss": "top1"},
    "one lane": {"lanes": 1},
    "more lanes than sessions": {"lanes": 50},
}


def family_or_reference(family: str, impl: str) -> str:
    """Return "emulated" for families with CUDA kernels, else "reference"."""
    return "reference" if impl == "emulated" and why_not_emulated(family) else impl


class Parts:
    """Network, loss, optimizer, loader and sampler of a case; float64 unless the case has another dtype."""

    def __init__(self, impl: str, case: dict[str, Any]) -> None:
        options = {
            "layers": [8], "embedding": "constrained", "form": "reset_after", "dropout": 0.0, "loss": "cross-entropy",
            "logq": 0.0, "elu_param": 0.0, "bpreg": 1.0, "mask_accidental_hits": False, "momentum": 0.0, "lanes": 6,
            "n_sample": 11, "steps": 1, "accumulate": 1, "dtype": torch.float64,
        } | case  # fmt: skip
        self.n_sample, lanes = options["n_sample"], options["lanes"]
        self.steps, self.accumulate = options["steps"], options["accumulate"]
        self.network = SessionNetwork(
            STORE.n_items, options["layers"], embedding=options["embedding"], embedding_dim=5, seed=3,
            gru_form=options["form"], dropout_p_embed=options["dropout"], dropout_p_hidden=options["dropout"],
            dtype=options["dtype"], impl=family_or_reference("dropout", impl),
        )  # fmt: skip
        for layer in self.network.gru.layers:
            layer.impl = family_or_reference("gru", impl)
        loss = {name: options[name] for name in ("loss", "elu_param", "bpreg", "logq", "mask_accidental_hits")}
        self.criterion = SampledLoss(
            **loss, batch_size=lanes, sample_alpha=0.5, support=SUPPORT, dtype=options["dtype"],
            impl=family_or_reference("sampled_loss", impl),
        )  # fmt: skip
        self.optimizer = SparseAdagrad(
            self.network.parameters(), 0.1, options["momentum"], impl=family_or_reference("training_step", impl)
        )
        self.loader = SessionParallelLoader(
            STORE, lanes, self.steps, min_live=1 if self.n_sample else 2,
            impl=family_or_reference("session_batch", impl),
        )  # fmt: skip
        self.sampler = ops.build_alias_table(SUPPORT, 0.5, impl="reference") if self.n_sample else None

    def start_epoch(self, **options: Any) -> CapturedEpoch:
        parts = (self.network, self.criterion, self.optimizer)
        step = CapturedTrainingStep(*parts, steps=self.steps, accumulate=self.accumulate, **options)
        return step.start_epoch(self.loader, self.sampler, self.n_sample, SEED)

    def weights(self) -> list[Tensor]:
        return [weight.detach() for weight in self.network.parameters()]


def by_autograd(parts: Parts, rates: Sequence[float] = ()) -> list[tuple[float, int, int]]:
    """Train an epoch by autograd; return loss, steps and events of each block. `rates` are cycled learning rates."""
    network, optimizer, outcomes = parts.network, parts.optimizer, []
    hidden = network.initial_state(parts.loader.n_lanes)
    step, pending = 0, 0

    def update() -> None:
        if rates:
            optimizer.param_groups[0]["lr"] = rates[(len(outcomes) - 1) % len(rates)]
        for weight in network.parameters():
            if weight.grad is not None:
                weight.grad /= pending
        optimizer.step()
        optimizer.zero_grad()

    for block in parts.loader:
        negatives, steps = None, len(block.n_live)
        if parts.sampler is not None:
            options = {"seed": SEED, "step": step, "steps": steps, "impl": "reference"}
            negatives = ops.negative_sampling(parts.sampler, parts.n_sample, **options)[0]
        output, hidden = network(block.inputs, hidden, block.reset, step=step)
        table = network.output_weight, network.output_bias
        loss = parts.criterion(output, *table, block.targets, negatives, n_live=block.n_live)
        loss.backward()
        hidden = [state.detach() for state in hidden]
        outcomes.append((loss.item(), steps, block.n_events))
        step, pending = step + steps, pending + 1
        if pending == parts.accumulate:
            update()
            pending = 0
    if pending:
        update()
    return outcomes


@pytest.mark.parametrize("impl", ["reference", "emulated"])
@pytest.mark.parametrize("case", CASES)
def test_it_trains_what_autograd_trains(case: str, impl: str) -> None:
    """Compare all weights and losses of an epoch, in calls and graphs of several lengths; lanes die towards its end."""
    if impl == "emulated" and (reason := why_not_emulated("training_step")):
        pytest.skip(reason)
    theirs, ours = Parts("reference", CASES[case]), Parts(impl, CASES[case])
    expected = by_autograd(theirs)
    epoch, outcomes, finished, updates = ours.start_epoch(steps_per_graph=4), [], False, 1
    hidden = ours.network.initial_state(ours.loader.n_lanes)
    while not finished:
        blocks, finished = epoch.run(updates, hidden, step=sum(block[1] for block in outcomes))
        outcomes += [tuple(block) for block in blocks]
        updates += 2
    assert [block[1:] for block in outcomes] == [block[1:] for block in expected]
    losses = [[block[0] for block in blocks] for blocks in (outcomes, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    torch.testing.assert_close(ours.weights(), theirs.weights(), rtol=1e-9, atol=1e-9)
    assert epoch.run(5, hidden, step=len(outcomes)) == ([], True)
    assert ours.loader.state_dict() == theirs.loader.state_dict()


@pytest.mark.skipif(bool(why_not_emulated("training_step")), reason=why_not_emulated("training_step") or "-")
@pytest.mark.parametrize("case", [case for case in CASES if "lane" not in case])
def test_a_step_does_not_synchronize(case: str) -> None:
    """Drawing and training do not synchronize; the detector finds a synchronization that is there."""
    parts = Parts("emulated", CASES[case])
    epoch, hidden = parts.start_epoch(steps_per_graph=4), parts.network.initial_state(6)
    epoch.run(1, hidden, step=0)
    with SyncDetector(copies=True) as waits:
        epoch._step.prepare()
        captured = epoch.next_updates(1, 6)
        captured.fill(*epoch.draw(captured.shape.mini_batches, 1), 1)
        captured.run(hidden)
    assert waits.seen == []
    with SyncDetector(copies=True) as waits:
        torch.where(captured.n_live > 0, captured.n_live, -1)
        captured.losses[0].item()
    assert waits.seen == ["aten.scalar_tensor.default", "aten._local_scalar_dense.default"]


def losses_by_schedule(parts: Parts, rates: Sequence[float], n: int) -> list[float]:
    """Return the losses of `n` updates, one per call; half way, save and load the optimizer's state."""
    epoch, hidden, losses = parts.start_epoch(), parts.network.initial_state(6), []
    for step in range(n):
        if step == n // 2:
            parts.optimizer.load_state_dict(parts.optimizer.state_dict())
        parts.optimizer.param_groups[0]["lr"] = rates[step % len(rates)]
        losses += [block.loss for block in epoch.run(1, hidden, step=step)[0]]
    return losses


def test_a_schedule_changes_the_learning_rate_between_updates() -> None:
    """It changes the device's copy, which a captured graph reads."""
    theirs, ours = Parts("reference", {"momentum": 0.3}), Parts("reference", {"momentum": 0.3})
    expected = by_autograd(theirs, rates=[0.3, 0.02, 0.1])
    losses = losses_by_schedule(ours, [0.3, 0.02, 0.1], len(expected))
    assert losses == pytest.approx([block[0] for block in expected], rel=1e-9)


@pytest.mark.parametrize("impl", ["reference", "emulated"])
def test_bf16_rounds_the_scores_products(impl: str) -> None:
    """Scores have a relative error of at most 2**-8: losses are close to those in full precision, but not equal."""
    if impl == "emulated" and (reason := why_not_emulated("training_step")):
        pytest.skip(reason)
    case = {"dtype": torch.float32, "logq": 1.0, "dropout": 0.2, "layers": [24]}
    full, ours = (Parts(way, case) for way in ("reference", impl))
    losses = []
    for parts, precision in ((full, "full"), (ours, "bf16")):
        hidden = parts.network.initial_state(6)
        losses.append([block.loss for block in parts.start_epoch(precision=precision).run(12, hidden, step=0)[0]])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2) and losses[1] != losses[0]
    with pytest.raises(ValueError, match="precision='bf16' needs float32 weights, not"):
        Parts("reference", {}).start_epoch(precision="bf16")


def poison(parts: Parts, mini_batch: int) -> None:
    """Make the bias of a target NaN that first occurs in this mini-batch. For in-batch negatives."""
    targets = [block.targets for block in SessionParallelLoader(STORE, len(parts.loader.start_epoch()[1][0]))]
    earlier = set(torch.cat(targets[:mini_batch]).flatten().tolist())
    item = next(item for item in targets[mini_batch].flatten().tolist() if item not in earlier)
    with torch.no_grad():
        parts.network.output.bias[item] = torch.nan


def test_a_nan_loss_in_a_later_block_prevents_the_update() -> None:
    """Earlier blocks of the update have changed the hidden states, as in the fused step on the CPU, but no weight."""
    parts = Parts("reference", {"n_sample": 0, "loss": "bpr", "steps": 2, "accumulate": 3})
    poison(parts, 2)
    block = next(iter(SessionParallelLoader(STORE, 6, 2)))
    hidden = parts.network.initial_state(6)
    with torch.no_grad():
        expected = parts.network(block.inputs, hidden, block.reset)[1]
    before = [weight.clone() for weight in parts.weights()]
    blocks, finished = parts.start_epoch().run(1, hidden, step=0)
    assert [block.steps for block in blocks] == [2, 2] and not finished
    assert blocks[0].loss == blocks[0].loss and blocks[1].loss != blocks[1].loss
    torch.testing.assert_close(parts.weights(), before, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(hidden, expected)


def test_a_nan_loss_updates_nothing() -> None:
    parts = Parts("reference", {})
    epoch, hidden = parts.start_epoch(steps_per_graph=3), parts.network.initial_state(6)
    assert len(epoch.run(4, hidden, step=0)[0]) == 4
    with torch.no_grad():
        parts.network.output.bias.fill_(torch.nan)
    before = [t.clone() for t in (*parts.weights(), *hidden)]
    blocks, finished = epoch.run(7, hidden, step=4)
    assert len(blocks) == 1 and blocks[0].loss != blocks[0].loss and not finished
    torch.testing.assert_close([*parts.weights(), *hidden], before, rtol=0, atol=0, equal_nan=True)


def test_a_second_epoch_object_continues_from_the_position() -> None:
    """The position is that of the loader."""
    whole, pieces = Parts("reference", {}), Parts("reference", {})
    hidden = whole.network.initial_state(6)
    n = len(whole.start_epoch().run(1000, hidden, step=0)[0])
    hidden, done = pieces.network.initial_state(6), 0
    while done < n:
        pieces.loader.load_state_dict(pieces.loader.state_dict())
        done += len(pieces.start_epoch().run(5, hidden, step=done)[0])
    assert done == n
    torch.testing.assert_close(pieces.weights(), whole.weights(), rtol=0, atol=0)


@pytest.mark.parametrize("shift", [-1, STORE.n_items])
def test_a_damaged_log_is_found_before_training(shift: int) -> None:
    parts = Parts("reference", {})
    parts.loader.items = parts.loader.items + shift
    with pytest.raises(ValueError, match=r"is damaged: item indices .*; prepare the store again"):
        parts.start_epoch()


def test_what_it_cannot_train_is_named() -> None:
    parts = Parts("reference", {})
    trained = (parts.network, parts.criterion, parts.optimizer)
    assert why_not_captured(*trained) == "impl='reference' was requested"
    for part in (*parts.network.modules(), parts.criterion, parts.optimizer):
        part.impl = "auto"
    reason = why_not_captured(*trained)
    assert reason is not None and reason.startswith("it supports float32 and float64 on a GPU; ")
    with pytest.raises(ValueError, match="the loader has blocks of 2 steps"):
        CapturedTrainingStep(*trained).start_epoch(SessionParallelLoader(STORE, 6, 2), None, 0, SEED)
