"""The captured training step equals training by autograd, on CPU tensors, where the step runs without a CUDA graph.

The tests run the operators of the step by their references and by the emulated CUDA kernels. tests/test_cuda.py
captures the step in a CUDA graph on a GPU. A block is `steps` consecutive mini-batches; `accumulate` blocks make an
update. A lane is a row of the mini-batch, which processes one session after another.
"""

from __future__ import annotations

import math
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

# Options of each case that differ from the defaults in `TrainingSetup`.
CASES: dict[str, dict[str, Any]] = {
    "cross-entropy, logq": {"logq": 1.0, "momentum": 0.3, "dropout": 0.2},
    "bpr-max": {"loss": "bpr-max", "elu_param": 0.5, "bpreg": 1.5, "dropout": 0.3},
    "two layers, separate, reset before": {"layers": [9, 7], "embedding": "separate", "form": "reset_before"},
    "accidental hits": {"loss": "top1-max", "mask_accidental_hits": True, "n_sample": 90},
    "in-batch negatives only": {"n_sample": 0, "loss": "bpr"},
    "one-hot": {"embedding": "none", "layers": [8, 6], "dropout": 0.2, "momentum": 0.3},
    "backpropagation through three steps": {"steps": 3, "dropout": 0.2, "momentum": 0.3, "logq": 1.0},
    "three blocks an update": {"accumulate": 3, "loss": "bpr-max"},
    "two blocks of two steps, separate": {"steps": 2, "accumulate": 2, "embedding": "separate", "dropout": 0.2},
    "four steps, in-batch negatives only": {"steps": 4, "accumulate": 2, "n_sample": 0, "loss": "top1"},
    "one lane": {"lanes": 1},
    "more lanes than sessions": {"lanes": 50},
}


def impl_of(family: str, impl: str) -> str:
    """Return `impl`, or "reference" if `impl` is "emulated" and this family of operators cannot be emulated."""
    return "reference" if impl == "emulated" and why_not_emulated(family) else impl


class TrainingSetup:
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
            dtype=options["dtype"], impl=impl_of("dropout", impl),
        )  # fmt: skip
        for layer in self.network.gru.layers:
            layer.impl = impl_of("gru", impl)
        loss = {name: options[name] for name in ("loss", "elu_param", "bpreg", "logq", "mask_accidental_hits")}
        self.criterion = SampledLoss(
            **loss, batch_size=lanes, sample_alpha=0.5, support=SUPPORT, dtype=options["dtype"],
            impl=impl_of("sampled_loss", impl),
        )  # fmt: skip
        self.optimizer = SparseAdagrad(
            self.network.parameters(), 0.1, options["momentum"], impl=impl_of("training_step", impl)
        )
        self.loader = SessionParallelLoader(
            STORE, lanes, self.steps, min_live=1 if self.n_sample else 2,
            impl=impl_of("session_batch", impl),
        )  # fmt: skip
        self.sampler = ops.build_alias_table(SUPPORT, 0.5, impl="reference") if self.n_sample else None

    def start_epoch(self, **options: Any) -> CapturedEpoch:
        modules = (self.network, self.criterion, self.optimizer)
        step = CapturedTrainingStep(*modules, steps=self.steps, accumulate=self.accumulate, **options)
        return step.start_epoch(self.loader, self.sampler, self.n_sample, SEED)

    def weights(self) -> list[Tensor]:
        return [weight.detach() for weight in self.network.parameters()]


def train_by_autograd(setup: TrainingSetup, rates: Sequence[float] = ()) -> list[tuple[float, int, int]]:
    """Train an epoch by autograd; return loss, number of steps and number of events of each block.

    With accumulate=1, update i has the learning rate rates[i % len(rates)].
    """
    network, optimizer, outcomes = setup.network, setup.optimizer, []
    hidden = network.initial_state(setup.loader.n_lanes)
    step, n_accumulated = 0, 0

    def update() -> None:
        if rates:
            optimizer.param_groups[0]["lr"] = rates[(len(outcomes) - 1) % len(rates)]
        for weight in network.parameters():
            if weight.grad is not None:
                weight.grad /= n_accumulated
        optimizer.step()
        optimizer.zero_grad()

    for block in setup.loader:
        negatives, steps = None, len(block.n_live)
        if setup.sampler is not None:
            options = {"seed": SEED, "step": step, "steps": steps, "impl": "reference"}
            negatives, _ = ops.negative_sampling(setup.sampler, setup.n_sample, **options)
        output, hidden = network(block.inputs, hidden, block.reset, step=step)
        table = network.output_weight, network.output_bias
        loss = setup.criterion(output, *table, block.targets, negatives, n_live=block.n_live)
        loss.backward()
        hidden = [state.detach() for state in hidden]
        outcomes.append((loss.item(), steps, block.n_events))
        step, n_accumulated = step + steps, n_accumulated + 1
        if n_accumulated == setup.accumulate:
            update()
            n_accumulated = 0
    if n_accumulated:
        update()
    return outcomes


@pytest.mark.parametrize("impl", ["reference", "emulated"])
@pytest.mark.parametrize("case", CASES)
def test_the_captured_step_equals_autograd(case: str, impl: str) -> None:
    """Compare all weights and losses of an epoch. Calls of `run` make 1, 3, 5, ... updates, up to 4 steps per graph."""
    if impl == "emulated" and (reason := why_not_emulated("training_step")):
        pytest.skip(reason)
    autograd_setup, captured_setup = TrainingSetup("reference", CASES[case]), TrainingSetup(impl, CASES[case])
    expected = train_by_autograd(autograd_setup)
    epoch, outcomes, finished, updates = captured_setup.start_epoch(steps_per_graph=4), [], False, 1
    hidden = captured_setup.network.initial_state(captured_setup.loader.n_lanes)
    while not finished:
        blocks, finished = epoch.run(updates, hidden, step=sum(block[1] for block in outcomes))
        outcomes += [tuple(block) for block in blocks]
        updates += 2
    assert [block[1:] for block in outcomes] == [block[1:] for block in expected]
    losses = [[block[0] for block in blocks] for blocks in (outcomes, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    torch.testing.assert_close(captured_setup.weights(), autograd_setup.weights(), rtol=1e-9, atol=1e-9)
    assert epoch.run(5, hidden, step=len(outcomes)) == ([], True)
    assert captured_setup.loader.state_dict() == autograd_setup.loader.state_dict()


@pytest.mark.skipif(bool(why_not_emulated("training_step")), reason=why_not_emulated("training_step") or "-")
@pytest.mark.parametrize("case", [case for case in CASES if "lanes" not in CASES[case]])
def test_a_step_does_not_synchronize(case: str) -> None:
    """Drawing and training do not synchronize with the GPU.

    The last lines test that the detector reports operations that do synchronize.
    """
    setup = TrainingSetup("emulated", CASES[case])
    epoch, hidden = setup.start_epoch(steps_per_graph=4), setup.network.initial_state(6)
    epoch.run(1, hidden, step=0)
    with SyncDetector(copies=True) as detector:
        # what epoch.run does, without reading the losses
        epoch._training_step.prepare()
        captured = epoch.next_updates(updates=1, lanes=6)
        captured.fill(*epoch.draw(steps=captured.shape.mini_batches, step=1), first_step=1)
        captured.run(hidden)
    assert detector.seen == []
    with SyncDetector(copies=True) as detector:
        torch.where(captured.n_live > 0, captured.n_live, -1)
        captured.losses[0].item()
    assert detector.seen == ["aten.scalar_tensor.default", "aten._local_scalar_dense.default"]


def losses_by_schedule(setup: TrainingSetup, rates: Sequence[float], n: int) -> list[float]:
    """Return the losses of `n` updates, one per call, with these learning rates in turn.

    Half-way, the optimizer state is reloaded, as when a training resumes.
    """
    epoch, hidden, losses = setup.start_epoch(), setup.network.initial_state(6), []
    for step in range(n):
        if step == n // 2:
            setup.optimizer.load_state_dict(setup.optimizer.state_dict())
        setup.optimizer.param_groups[0]["lr"] = rates[step % len(rates)]
        losses += [block.loss for block in epoch.run(1, hidden, step=step)[0]]
    return losses


def test_the_learning_rate_can_change_between_updates() -> None:
    """The step must copy the learning rate to the device, where a captured graph reads it."""
    case = {"momentum": 0.3}
    expected = train_by_autograd(TrainingSetup("reference", case), rates=[0.3, 0.02, 0.1])
    losses = losses_by_schedule(TrainingSetup("reference", case), [0.3, 0.02, 0.1], len(expected))
    assert losses == pytest.approx([block[0] for block in expected], rel=1e-9)


@pytest.mark.parametrize("impl", ["reference", "emulated"])
def test_bf16_is_close_to_full_precision_but_not_equal(impl: str) -> None:
    """bf16 rounds the inputs of the scores with a relative error of at most 2**-8."""
    if impl == "emulated" and (reason := why_not_emulated("training_step")):
        pytest.skip(reason)
    case = {"dtype": torch.float32, "logq": 1.0, "dropout": 0.2, "layers": [24]}
    full, captured_setup = (TrainingSetup(each, case) for each in ("reference", impl))
    losses = []
    for setup, precision in ((full, "full"), (captured_setup, "bf16")):
        hidden = setup.network.initial_state(6)
        losses.append([block.loss for block in setup.start_epoch(precision=precision).run(12, hidden, step=0)[0]])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2) and losses[1] != losses[0]
    with pytest.raises(ValueError, match="precision='bf16' needs float32 weights, not"):
        TrainingSetup("reference", {}).start_epoch(precision="bf16")


def poison(setup: TrainingSetup, mini_batch: int) -> None:
    """Set to NaN the bias of a target of this mini-batch that is no target earlier.

    Needs n_sample=0, because a sampled negative could be this item.
    """
    targets = [block.targets for block in SessionParallelLoader(STORE, setup.loader.n_lanes)]
    earlier = set(torch.cat(targets[:mini_batch]).flatten().tolist())
    item = next(item for item in targets[mini_batch].flatten().tolist() if item not in earlier)
    with torch.no_grad():
        setup.network.output.bias[item] = torch.nan


def test_a_nan_loss_in_a_later_block_prevents_the_update() -> None:
    """The earlier blocks of the update change the hidden states, as in the fused step on the CPU, but no weight."""
    setup = TrainingSetup("reference", {"n_sample": 0, "loss": "bpr", "steps": 2, "accumulate": 3})
    poison(setup, mini_batch=2)
    block = next(iter(SessionParallelLoader(STORE, 6, steps=2)))
    hidden = setup.network.initial_state(6)
    with torch.no_grad():
        _, expected = setup.network(block.inputs, hidden, block.reset)
    initial = [weight.clone() for weight in setup.weights()]
    blocks, finished = setup.start_epoch().run(1, hidden, step=0)
    assert [block.steps for block in blocks] == [2, 2] and not finished
    assert not math.isnan(blocks[0].loss) and math.isnan(blocks[1].loss)
    torch.testing.assert_close(setup.weights(), initial, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(hidden, expected)


def test_a_nan_loss_updates_nothing() -> None:
    setup = TrainingSetup("reference", {})
    epoch, hidden = setup.start_epoch(steps_per_graph=3), setup.network.initial_state(6)
    assert len(epoch.run(4, hidden, step=0)[0]) == 4
    with torch.no_grad():
        setup.network.output.bias.fill_(torch.nan)
    initial = [tensor.clone() for tensor in (*setup.weights(), *hidden)]
    blocks, finished = epoch.run(7, hidden, step=4)
    assert len(blocks) == 1 and math.isnan(blocks[0].loss) and not finished
    torch.testing.assert_close([*setup.weights(), *hidden], initial, rtol=0, atol=0, equal_nan=True)


def test_start_epoch_continues_from_the_position_of_the_loader() -> None:
    whole, resumed = TrainingSetup("reference", {}), TrainingSetup("reference", {})
    hidden = whole.network.initial_state(6)
    n = len(whole.start_epoch().run(1000, hidden, step=0)[0])
    hidden, done = resumed.network.initial_state(6), 0
    while done < n:
        # The next iteration resumes here instead of starting a new epoch, as after loading a checkpoint.
        resumed.loader.load_state_dict(resumed.loader.state_dict())
        done += len(resumed.start_epoch().run(5, hidden, step=done)[0])
    assert done == n
    torch.testing.assert_close(resumed.weights(), whole.weights(), rtol=0, atol=0)


@pytest.mark.parametrize("shift", [-1, STORE.n_items])
def test_a_damaged_log_is_found_before_training(shift: int) -> None:
    setup = TrainingSetup("reference", {})
    setup.loader.items = setup.loader.items + shift
    with pytest.raises(ValueError, match=r"is damaged: item indices .*; prepare the store again"):
        setup.start_epoch()


def test_why_not_captured_names_the_reason() -> None:
    setup = TrainingSetup("reference", {})
    modules = (setup.network, setup.criterion, setup.optimizer)
    assert why_not_captured(*modules) == "impl='reference' was requested"
    for module in (*setup.network.modules(), setup.criterion, setup.optimizer):
        module.impl = "auto"
    reason = why_not_captured(*modules)
    assert reason is not None and reason.startswith("the step supports float32 and float64 on a GPU; ")
    with pytest.raises(ValueError, match="the loader has blocks of 2 steps"):
        CapturedTrainingStep(*modules).start_epoch(SessionParallelLoader(STORE, 6, steps=2), None, 0, SEED)
