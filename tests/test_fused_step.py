"""The fused training step: equal to autograd, can be interrupted, and names the reason if it cannot train."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markov import markov_store
from memory_growth import needs_plain_allocator, needs_statm
from native import threads
from small_trainer import FORMAT, call_at_block, make_trainer, no_pictures, press_ctrl_c, weights, without_seconds
from without_memory import run_without_memory

from gru4rec_fast import GRU4Rec, ops
from gru4rec_fast.data import SessionParallelLoader, SessionStore
from gru4rec_fast.nn import SampledLoss, SessionGRU, SessionNetwork
from gru4rec_fast.ops.sampled_loss import LOSSES
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.training import SessionEpochRunner, TrainingInterrupted, load_checkpoint
from gru4rec_fast.training.fused_step import FusedTrainingStep, why_not_fused
from gru4rec_fast.training.progress import SilentProgress

pytestmark = pytest.mark.usefixtures("native_library", no_pictures.__name__)

STORE = markov_store(n_sessions=70, n_items=40)
MODES: dict[str, dict[str, Any]] = {
    "constrained": {},
    "separate": {"constrained_embedding": False, "embedding": 9},
    "one-hot": {"constrained_embedding": False},
}
CASES: dict[str, dict[str, Any]] = {  # parameters of `fit`
    **{f"{loss}-{mode}": {"loss": loss, **options} for loss in LOSSES for mode, options in MODES.items()},
    **{f"reset-before-{mode}": {"gru_form": "reset_before", **options} for mode, options in MODES.items()},
    **{f"two-layers-{mode}": {"layers": [11, 7], "bptt": 3, **options} for mode, options in MODES.items()},
    **{f"accumulate-{mode}": {"accumulate": 3, "bptt": 2, **options} for mode, options in MODES.items()},
    "logq-smoothing-hits": {"logq": 1.0, "label_smoothing": 0.1, "mask_accidental_hits": True},
    "in-batch negatives only": {"n_sample": 0},
    "more negatives than items": {"n_sample": 300, "sample_alpha": 1.0},
    "one lane": {"batch_size": 1},
    "more lanes than sessions": {"batch_size": 100},
    "schedule": {"lr_scheduler": "ExponentialLR", "lr_scheduler_options": {"gamma": 0.99, "interval": "update"}},
    "shuffle": {"shuffle": True},
}


def fit(store: SessionStore = STORE, **changed: Any) -> GRU4Rec:
    """Return a model trained for two epochs, by default in float64 with dropout and momentum."""
    small = {"layers": [8], "batch_size": 6, "n_sample": 20, "n_epochs": 2, "seed": 3, "dtype": "float64",
             "dropout_p_embed": 0.2, "dropout_p_hidden": 0.1, "momentum": 0.3, "learning_rate": 0.1}  # fmt: skip
    return GRU4Rec(**small | changed).fit(store, progress=False)


def fit_only_by(fused: bool, **changed: Any) -> GRU4Rec:
    """Return the result of `fit` by the fused step or by autograd. Fails if the model is trained by the other way."""
    with pytest.MonkeyPatch.context() as patch:
        forbidden = "_run_autograd" if fused else "_run_fused"
        patch.setattr(SessionEpochRunner, forbidden, lambda *_: pytest.fail(f"trained by {forbidden}"))
        return fit(**changed, fused=fused)


@pytest.mark.parametrize("case", CASES)
def test_the_fused_step_equals_autograd(case: str) -> None:
    """Compare all weights and losses after two epochs.

    At the end of an epoch, some lanes (the sessions of a mini-batch) are empty, because no session is left for them.
    """
    fused, autograd = fit_only_by(fused=True, **CASES[case]), fit_only_by(fused=False, **CASES[case])
    assert fused.network is not None and autograd.network is not None
    for (name, weight), expected in zip(fused.network.named_parameters(), autograd.network.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-9, atol=1e-9, msg=name)
    for record, expected in zip(without_seconds(fused.history), without_seconds(autograd.history), strict=True):
        assert record.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-9)
        assert record == expected


@pytest.mark.parametrize("first_is_fused", [True, False])
def test_a_training_switches_between_fused_step_and_autograd_within_an_epoch(
    tmp_path: Path, first_is_fused: bool
) -> None:
    """Stop after a checkpoint within an epoch, and resume from it with the other implementation."""
    uninterrupted = make_trainer(dtype=torch.float64, momentum=0.2, dropout=0.1, fused=first_is_fused)
    uninterrupted.run()
    first = make_trainer(
        out=tmp_path, dtype=torch.float64, momentum=0.2, dropout=0.1, fused=first_is_fused, checkpoint_every=7
    )
    between_updates = first._between_updates

    def stop_after_a_checkpoint(*arguments: Any) -> Any:
        limit = between_updates(*arguments)
        if first._saved_at_step:
            raise _Stopped
        return limit

    first._between_updates = stop_after_a_checkpoint  # type: ignore[method-assign]
    with pytest.raises(_Stopped):
        first.run()
    assert 0 < first.position.mini_batches < uninterrupted.history[0]["mini_batches"]
    second = make_trainer(out=tmp_path, dtype=torch.float64, momentum=0.2, dropout=0.1, fused=not first_is_fused)
    assert (first.runner.why_not_fused is None) == first_is_fused
    assert (second.runner.why_not_fused is None) != first_is_fused
    second.run(load_checkpoint(tmp_path / "last.safetensors", FORMAT))
    for (name, weight), expected in zip(weights(second).items(), weights(uninterrupted).values(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-9, atol=1e-9, msg=name)


class _Stopped(Exception):
    """Stops a training in place of a crash."""


@pytest.mark.parametrize("interval", [1, 7])
def test_checkpoints_are_written_at_the_requested_steps(tmp_path: Path, interval: int) -> None:
    trainer = make_trainer(out=tmp_path, n_epochs=1, checkpoint_every=interval)
    steps: list[int] = []
    save = trainer._save_last
    trainer._save_last = lambda: steps.append(trainer.position.step) or save()  # type: ignore[func-returns-value, method-assign]
    last_step = trainer.run()[0]["mini_batches"]
    *regular, at_end = steps  # steps at which a checkpoint was written: every `interval` steps, and at the end
    assert regular == list(range(interval, regular[-1] + 1, interval)) and regular[-1] > last_step - interval - 1
    assert at_end == last_step


@pytest.mark.parametrize(
    "options",
    [
        *({"loss": loss} for loss in LOSSES),
        {"logq": 1.0, "label_smoothing": 0.1, "mask_accidental_hits": True},
        {"steps": 3, "layers": [8, 7]},
        {"steps": 2, "accumulate": 3},
        {"embedding": "separate", "embedding_dim": 9},
        {"embedding": "none"},
    ],
    ids=str,
)
def test_tiles_of_the_loss_do_not_change_the_result(options: dict[str, Any]) -> None:
    """At the end of the epoch there are dead lanes; a loss in 100 tiles has one lane per tile."""
    first, *others = (train_in_tiles(n_tiles, **options) for n_tiles in (1, 2, 3, 100))
    for other in others:
        for tensor, expected in zip(other, first, strict=True):
            torch.testing.assert_close(tensor, expected, rtol=1e-10, atol=1e-10)


def train_in_tiles(n_tiles: int, steps: int = 1, accumulate: int = 1, **options: Any) -> list[torch.Tensor]:
    """Return losses, weights and hidden states after an epoch in float64. `options` are those of network and loss."""
    shape = {name: options.pop(name) for name in ("embedding", "embedding_dim") if name in options}
    network = SessionNetwork(
        STORE.n_items, options.pop("layers", [8]), seed=0, sparse=True, dtype=torch.float64, **shape
    )
    support = torch.from_numpy(STORE.support)
    criterion = SampledLoss(batch_size=6, sparse=True, dtype=torch.float64, **{"support": support} | options)
    optimizer = SparseAdagrad(network.parameters(), 0.1, 0.3)
    step = FusedTrainingStep(network, criterion, optimizer, steps=steps, accumulate=accumulate)
    step.n_tiles = n_tiles
    hidden = network.initial_state(6)
    epoch = step.start_epoch(SessionParallelLoader(STORE, 6, steps), ops.build_alias_table(support, 0.5), 20, seed=1)
    blocks, finished = epoch.run(10**6, hidden, step=0)
    assert finished
    losses = torch.tensor([block.loss for block in blocks], dtype=torch.float64)
    return [losses, *(parameter.detach() for parameter in network.parameters()), *hidden]


def test_a_number_of_tiles_below_1_is_an_error() -> None:
    step, inputs = FusedTrainingStep(*make_modules()), torch.tensor([[0, 1]])
    step.n_tiles = 0
    with pytest.raises(ValueError, match="n_tiles=0: must be positive"):
        step.train_block(inputs, inputs, inputs > 0, None, [torch.zeros(2, 8)], step=0)


@needs_statm
@needs_plain_allocator
def test_an_update_without_enough_memory_has_not_begun() -> None:
    """Each allocation of an update fails in turn, in a process whose memory is limited."""
    assert run_without_memory("fused_step").endswith("trained in tiles\n")


def test_bf16_is_close_to_float32_but_not_equal() -> None:
    """bfloat16 has 8 significant bits: the losses of an epoch agree within 1 %, and the weights are not equal."""
    full, bf16 = fit(dtype="float32", layers=[32]), fit(dtype="float32", layers=[32], precision="bf16")
    assert bf16.history[-1]["loss"] == pytest.approx(full.history[-1]["loss"], rel=1e-2)
    assert not torch.equal(bf16.network.output.weight, full.network.output.weight)
    assert {p.dtype for p in bf16.network.parameters()} == {torch.float32}


def test_bf16_rounds_the_hidden_states_before_scoring() -> None:
    """The weights are exact in bf16, so that the hidden states are the only rounded inputs of the scores."""
    network, criterion, optimizer = make_modules(layers=[16], exact_in_bf16=True)
    step = FusedTrainingStep(network, criterion, optimizer, precision="bf16")
    inputs, targets, negatives = (torch.tensor([row]) for row in ([3, 5, 7, 9], [4, 6, 8, 10], [1, 1, 2, 30]))
    reset = torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        hidden, _ = network(inputs, network.initial_state(4), reset)
        items = torch.cat([targets[0], negatives[0]])
        rows, bias = network.output_weight[items], network.output_bias[items]
        expected = ops.sampled_loss(hidden[0].bfloat16().float(), rows, bias, batch_size=4, impl="reference").item()
        unrounded = ops.sampled_loss(hidden[0], rows, bias, batch_size=4, impl="reference").item()
    loss = step.train_block(inputs, targets, reset, negatives, network.initial_state(4), step=0)
    assert abs(loss - expected) < abs(unrounded - expected) / 4


def make_modules(
    layers: list[int] | None = None, exact_in_bf16: bool = False, **changed: Any
) -> tuple[SessionNetwork, SampledLoss, SparseAdagrad]:
    """Return a network, a loss and an optimizer. With `exact_in_bf16`, bfloat16 can represent all weights."""
    network = SessionNetwork(40, layers or [8], **{"seed": 0, "sparse": True, **changed})
    if exact_in_bf16:
        for parameter in network.parameters():
            parameter.data = (8 * parameter.data).bfloat16().float()
    return network, SampledLoss(batch_size=4, sparse=True), SparseAdagrad(network.parameters(), 0.1)


class _Subclass(SessionNetwork):
    """A network that the fused step rejects, because a subclass may compute something else."""


def make_unsupported_modules(unsupported: str) -> tuple[Any, Any, Any]:
    """Return a network, a loss and an optimizer, one of which the fused step does not support."""
    network, criterion, optimizer = make_modules(dtype=torch.float16 if unsupported == "dtype" else None)
    if unsupported == "network":
        network = _Subclass(40, [8])
    elif unsupported == "optimizer":
        return network, criterion, torch.optim.SGD(network.parameters(), 0.1)
    elif unsupported == "frozen":
        network.gru.layers[0].weight_hh.requires_grad_(False)
    elif unsupported == "bias":
        network.gru = SessionGRU(8, [8], bias=False)
        optimizer = SparseAdagrad(network.parameters(), 0.1)
    elif unsupported == "hooks":
        network.gru.register_forward_hook(lambda *_: None)
    elif unsupported == "parameter hook":
        network.output.weight.register_hook(lambda grad: grad)
    elif unsupported == "weight decay":
        optimizer.param_groups[0]["weight_decay"] = 0.1
    elif unsupported == "optimizer hook":
        optimizer.register_step_post_hook(lambda *_: None)
    elif unsupported == "parametrized":
        torch.nn.utils.parametrizations.weight_norm(network.gru.layers[0], "weight_hh")
    elif unsupported == "tied":
        network = SessionNetwork(40, [8], embedding="separate", embedding_dim=8)
        network.embedding.weight = network.output.weight
        optimizer = SparseAdagrad(network.parameters(), 0.1)
    elif unsupported == "impl":
        network.gru.layers[0].impl = "reference"
    elif unsupported == "groups":
        optimizer = SparseAdagrad([{"params": [p]} for p in network.parameters()], 0.1)
    return network, criterion, optimizer


@pytest.mark.parametrize(
    ("unsupported", "reason"),
    [
        ("network", "exactly SessionNetwork, not _Subclass"),
        ("optimizer", "exactly SparseAdagrad, not SGD"),
        ("frozen", r"gru\.layers\.0\.weight_hh is frozen"),
        ("bias", "neither bias=False nor batch_first=True"),
        ("hooks", "there are hooks on a module, a parameter or the optimizer"),
        ("parameter hook", "there are hooks"),
        ("optimizer hook", "there are hooks"),
        ("parametrized", "the step does not support a module of class ParametrizedSessionGRULayer"),
        ("tied", "a weight is not exactly an nn.Parameter, or is used twice"),
        ("impl", "impl='reference' was requested"),
        ("groups", "one parameter group"),
        ("weight decay", "neither weight_decay nor maximize"),
        ("dtype", r"float32 and float64 on the CPU; \S+ is torch\.float16"),
    ],
)
def test_the_reason_why_the_fused_step_cannot_train_is_named(unsupported: str, reason: str) -> None:
    assert why_not_fused(*make_modules()) is None
    with pytest.raises(ValueError, match=rf"no fused training step: .*{reason}"):
        FusedTrainingStep(*make_unsupported_modules(unsupported))


class _RecordedProgress(SilentProgress):
    """Progress that records the lines it is given, and counts the calls of `advance`."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.n_advances = 0

    def say(self, line: str) -> None:
        self.lines.append(line)

    def advance(self, events: int, loss: float | None) -> None:
        self.n_advances += 1


def test_autograd_that_was_not_requested_is_announced() -> None:
    progress = _RecordedProgress()
    trainer = make_trainer(n_epochs=1, progress=progress)
    trainer.network.register_forward_hook(lambda *_: None)
    trainer.run()
    (line,) = progress.lines
    assert line.startswith("training by autograd, not by the fused step: there are hooks on a module")
    for arguments in ({"fused": False}, {"impl": "reference"}, {}):
        progress = _RecordedProgress()
        make_trainer(n_epochs=1, progress=progress, **arguments).run()
        assert progress.lines == []


def test_bf16_without_the_fused_step_is_an_error() -> None:
    trainer = make_trainer(precision="bf16")
    trainer.network.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"precision='bf16' needs the fused training step, which cannot train this: "):
        trainer.run()
    for parameters in ({"fused": False}, {"dtype": "float64"}, {"impl": "reference"}):
        with pytest.raises(ValueError, match="precision='bf16' belongs to the fused step in float32"):
            GRU4Rec(precision="bf16", **parameters)


def long_trainer(**arguments: Any) -> Any:
    """Return a trainer whose epoch takes many seconds. It has 128 lanes."""
    store = markov_store(n_sessions=60_000, n_items=3000)
    return make_trainer(store=store, layers=(320,), n_sample=4096, lanes=128, n_epochs=1, **arguments)


def test_an_epoch_reports_progress_lets_threads_run_and_stops_at_ctrl_c(tmp_path: Path) -> None:
    """Another thread waits for four C++ calls, then sends Ctrl-C. The training ends before the epoch does."""
    progress = _RecordedProgress()
    trainer = long_trainer(out=tmp_path, progress=progress)
    n_sleeps = [0]  # number of sleeps of 1 ms in the other thread during the training

    def press_after_four_calls() -> None:
        while not progress.n_advances:  # `advance` is called after each C++ call
            time.sleep(0.01)
        first = progress.n_advances
        # It waits for C++ calls, not for a fixed time: a C++ call takes many times longer with a sanitizer.
        while progress.n_advances < first + 4:
            n_sleeps[0] += 1
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press_after_four_calls)
    with threads(1):
        thread.start()
        with pytest.raises(TrainingInterrupted, match=r"in epoch 1, after mini-batch \d+ \(step"):
            trainer.run()
        thread.join()
    # At least 10 sleeps must fit into each of the four C++ calls, on average.
    assert n_sleeps[0] > 4 * 10, "the interpreter lock was not released: the other thread ran only between C++ calls"
    assert (
        load_checkpoint(tmp_path / "last.safetensors", FORMAT).progress["position"]["step"] == trainer.position.step > 0
    )


def test_ctrl_c_during_a_call_without_a_trainer_raises_keyboard_interrupt() -> None:
    trainer = long_trainer()
    epoch, network = trainer.runner.start_fused_epoch(), trainer.network
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with threads(1), pytest.raises(KeyboardInterrupt):
        epoch.run(10**9, network.initial_state(128), step=0)  # more updates than it can make before Ctrl-C
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_autograd_detects_that_weights_have_changed() -> None:
    """Backward through an autograd graph that was recorded before the step is an error."""
    network, criterion, optimizer = make_modules()
    squares = (network.output.weight * network.output.weight).sum()
    inputs = torch.tensor([[1, 2, 3, 4]])
    fused = FusedTrainingStep(network, criterion, optimizer)
    fused.train_block(inputs, inputs + 1, torch.ones(1, 4, dtype=torch.bool), None, network.initial_state(4), step=0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


@pytest.mark.parametrize("steps", [1, 2])
def test_a_nan_loss_updates_nothing(steps: int) -> None:
    """A block with a NaN loss changes neither weights nor hidden state, and the next update does not include it.

    A block holds the items of `steps` steps. The NaN comes from item 7, in the last step.
    """
    network, criterion, optimizer = make_modules()
    network.output.bias.data[7] = float("nan")
    initial_weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    state, reset = network.initial_state(4), torch.ones(steps, 4, dtype=torch.bool)
    nan_block = torch.tensor([[20, 21, 22, 23]] * (steps - 1) + [[1, 2, 3, 7]])
    fused = FusedTrainingStep(network, criterion, optimizer, steps=steps)
    loss = fused.train_block(nan_block, nan_block, reset, None, state, step=0)
    assert np.isnan(loss) and not any(layer.any() for layer in state)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter.nan_to_num(), initial_weights[name].nan_to_num()), name
    next_block = torch.tensor([[10, 11, 12, 13]] * steps)
    assert np.isfinite(fused.train_block(next_block, next_block, reset, None, state, step=steps))
    assert torch.equal(network.output.weight[20:24], initial_weights["output.weight"][20:24])
    assert not torch.equal(network.output.weight[10:14], initial_weights["output.weight"][10:14])


@pytest.mark.parametrize("form", ["reset_after", "reset_before"])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_nan_state_before_a_reset_does_not_change_the_update(steps: int, form: str) -> None:
    weights = []
    for value in (torch.nan, 0.0):
        network, criterion, optimizer = make_modules(gru_form=form, seed=0)
        state = [torch.full_like(layer, value) for layer in network.initial_state(4)]
        inputs = torch.tensor([[1, 2, 3, 4]] * steps)
        reset = torch.zeros(steps, 4, dtype=torch.bool)
        reset[0] = True
        fused = FusedTrainingStep(network, criterion, optimizer, steps=steps)
        assert np.isfinite(fused.train_block(inputs, inputs + 1, reset, None, state, step=0))
        weights.append([parameter.detach() for parameter in network.parameters()])
    assert all(torch.equal(with_nan, with_zero) for with_nan, with_zero in zip(*weights, strict=True))


def test_each_step_uses_the_current_optimizer_state_and_mode() -> None:
    """Switch momentum on, load optimizer state, switch to eval mode. The next step must equal autograd each time."""
    inputs, reset = torch.tensor([[1, 2, 3, 4]]), torch.ones(1, 4, dtype=torch.bool)
    final_weights = []  # two state dicts: that of the fused step, and that of autograd
    for fused in (True, False):
        network, criterion, optimizer = make_modules(dropout_p_hidden=0.3, dtype=torch.float64)
        step = FusedTrainingStep(network, criterion, optimizer)
        state = network.initial_state(4)
        for i in range(4):
            if i == 1:
                optimizer.param_groups[0]["momentum"] = 0.5
            elif i == 2:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            elif i == 3:
                network.eval()
            if fused:
                step.train_block(inputs, inputs + i, reset, None, state, step=i)
            else:
                hidden, new_state = network(inputs, state, reset, step=i)
                optimizer.zero_grad()
                criterion(hidden, network.output_weight, network.output_bias, inputs + i).backward()
                optimizer.step()
                state = [layer.detach() for layer in new_state]
        final_weights.append(network.state_dict())
    for name, weight in final_weights[0].items():
        torch.testing.assert_close(weight, final_weights[1][name], rtol=1e-9, atol=1e-9, msg=name)


def test_only_the_constructor_reads_the_options_of_the_criterion() -> None:
    """Options that are changed later have no effect, even if eval mode makes the step create its C++ object again."""
    inputs, reset = torch.tensor([[1, 2, 3, 4]]), torch.ones(1, 4, dtype=torch.bool)
    losses = []
    for label_smoothing in (0.0, 0.5):
        network, criterion, optimizer = make_modules()
        step = FusedTrainingStep(network, criterion, optimizer)
        criterion.label_smoothing = label_smoothing
        network.eval()
        state = network.initial_state(4)
        losses.append([step.train_block(inputs, inputs + 1, reset, None, state, step=i) for i in range(2)])
    assert losses[0] == losses[1]


def test_a_subclass_of_the_loader_is_not_fused_and_other_blocks_are_an_error() -> None:
    """Autograd trains with a subclass of the loader. A loader with another number of steps per block is an error."""

    class Subclass(SessionParallelLoader):
        pass

    trainer = make_trainer(n_epochs=1)
    trainer.runner.loader.__class__ = Subclass
    assert "exactly a SessionParallelLoader, not a Subclass" in str(trainer.runner.why_not_fused)
    network, criterion, optimizer = make_modules()
    loader = SessionParallelLoader(STORE, batch_size=4, steps=3)
    with pytest.raises(ValueError, match="the loader has blocks of 3 steps, the training step has steps=1"):
        FusedTrainingStep(network, criterion, optimizer).start_epoch(loader, sampler=None, n_sample=0, seed=0)


def test_run_continues_an_interrupted_training() -> None:
    """Call `run` again on the same trainer, without a checkpoint."""
    uninterrupted, stopped = make_trainer(dtype=torch.float64), make_trainer(dtype=torch.float64)
    uninterrupted.run()
    call_at_block(stopped, 5, press_ctrl_c)
    with pytest.raises(TrainingInterrupted):
        stopped.run()
    stopped.run()
    assert without_seconds(stopped.history) == without_seconds(uninterrupted.history)
    for (name, weight), expected in zip(weights(stopped).items(), weights(uninterrupted).values(), strict=True):
        assert torch.equal(weight, expected), name


def test_a_checkpoint_can_be_resumed_from_twice(tmp_path: Path) -> None:
    first = make_trainer(out=tmp_path, dtype=torch.float64)
    call_at_block(first, 5, press_ctrl_c)
    with pytest.raises(TrainingInterrupted):
        first.run()
    checkpoint = load_checkpoint(tmp_path / "last.safetensors", FORMAT)
    trainers = [make_trainer(dtype=torch.float64) for _ in range(2)]
    for trainer in trainers:
        trainer.run(checkpoint)
    for (name, weight), expected in zip(weights(trainers[0]).items(), weights(trainers[1]).values(), strict=True):
        assert torch.equal(weight, expected), name


def test_a_call_during_a_call_of_another_thread_is_an_error() -> None:
    trainer = long_trainer()
    epoch, network = trainer.runner.start_fused_epoch(), trainer.network
    with threads(1):
        thread = threading.Thread(target=lambda: epoch.run(300, network.initial_state(128), step=0))
        thread.start()
        time.sleep(0.2)
        with pytest.raises(RuntimeError, match="a FusedTrainingStep is in use by another thread"):
            epoch.run(1, network.initial_state(128), step=0)
        thread.join()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": torch.tensor([[1, 2, 3, 40]])}, "item index 40 is out of range for a catalogue of 40 items"),
        ({"targets": torch.tensor([[1, 2, 3, -1]])}, "item index -1 is out of range"),
        ({"targets": torch.tensor([[1, 2, 3]])}, r"targets must be \[1, 4\]"),
        ({"negatives": torch.tensor([[1, 41]])}, "negative 41 is out of range for a catalogue of 40 items"),
        ({"negatives": torch.tensor([[1], [2]])}, r"negatives must be \[1, 1\]"),
        ({"negatives": torch.tensor([1, 2])}, r"negatives must be \[T, N\], not \[2\]"),
        ({"inputs": torch.zeros(0, 4, dtype=torch.int64)}, r"inputs must be \[T, B\] with T > 0"),
        ({"step": -5}, "step=-5"),
        ({"hidden": []}, "hidden must hold one state per layer, 1, not 0"),
        ({"hidden": [torch.zeros(3, 8)]}, r"hidden must be \[4, 8\]"),
        ({"hidden": [torch.zeros(8, 4).T]}, "hidden must be contiguous"),
        ({"hidden": [torch.zeros(4, 8, dtype=torch.float64)]}, "hidden is Double, not Float"),
    ],
)
def test_a_block_with_a_wrong_argument_is_an_error(change: dict[str, Any], message: str) -> None:
    block = {
        "inputs": torch.tensor([[1, 2, 3, 4]]),
        "targets": torch.tensor([[2, 3, 4, 5]]),
        "reset": torch.ones(1, 4, dtype=torch.bool),
        "negatives": torch.tensor([[6, 7]]),
        "hidden": [torch.zeros(4, 8)],
    }
    with pytest.raises(ValueError, match=message):
        FusedTrainingStep(*make_modules()).train_block(**{"step": 0} | block | change)


def test_weight_decay_that_is_set_later_is_an_error() -> None:
    network, criterion, optimizer = make_modules()
    step, inputs = FusedTrainingStep(network, criterion, optimizer), torch.tensor([[0, 1]])
    optimizer.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(ValueError, match="neither weight_decay nor maximize"):
        step.train_block(inputs, inputs, inputs > 0, None, network.initial_state(2), step=0)


def test_a_criterion_for_another_catalogue_is_an_error() -> None:
    network, _, optimizer = make_modules()
    criterion = SampledLoss(batch_size=4, logq=1.0, support=torch.ones(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"log_support must be \[40\], not \[5\]"):
        FusedTrainingStep(network, criterion, optimizer)


def test_bf16_needs_float32_weights() -> None:
    with pytest.raises(ValueError, match=r"precision='bf16' needs float32 weights, not torch\.float64"):
        FusedTrainingStep(*make_modules(dtype=torch.float64), precision="bf16")


@pytest.mark.parametrize("item", [1000, -1])
def test_an_item_that_is_out_of_range_is_an_error(item: int) -> None:
    store = markov_store(n_sessions=20)
    loader = SessionParallelLoader(store, 4)
    loader.items = loader.items.clone()
    loader.items[30] = item  # an event within the epoch
    network = SessionNetwork(store.n_items, [8])
    fused = FusedTrainingStep(network, SampledLoss(batch_size=4), SparseAdagrad(network.parameters(), 0.1))
    with pytest.raises(ValueError, match=r"the store is damaged: .* 30 items \(.*; prepare the store again"):
        fused.start_epoch(loader, sampler=None, n_sample=0, seed=0).run(1000, network.initial_state(4), step=0)
