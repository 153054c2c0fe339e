"""Callbacks: when they are called and with what, how they stop a training, and what an error in one leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markov import markov_store
from small_trainer import (
    FORMAT,
    call_at_block,
    fused_and_autograd,
    make_trainer,
    no_pictures,
    press_ctrl_c,
    weights,
    without_seconds,
)

from gru4rec_fast import NGCF, GRU4Rec, InteractionGraph, LightGCN
from gru4rec_fast.training import Callback, StepRecord, Trainer, TrainingDiverged, TrainingInterrupted, load_checkpoint

pytestmark = pytest.mark.usefixtures(no_pictures.__name__, fused_and_autograd.__name__)
EVENTS = ("on_fit_start", "on_step_end", "on_checkpoint", "on_epoch_end", "on_fit_end")


class Recorder(Callback):
    """Records all calls as (name of the method, argument). If given, act(name, argument, trainer) is called, too."""

    def __init__(self, act: Callable[[str, Any, Trainer], None] | None = None) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.act = act

    def _record(self, event: str, argument: Any, trainer: Trainer) -> None:
        self.calls.append((event, argument))
        if self.act:
            self.act(event, argument, trainer)

    def on_fit_start(self, trainer: Trainer) -> None:
        self._record("on_fit_start", None, trainer)

    def on_step_end(self, trainer: Trainer, record: StepRecord) -> None:
        self._record("on_step_end", record, trainer)

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        assert path.exists()
        self._record("on_checkpoint", path.name, trainer)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        assert record is trainer.history[-1]
        self._record("on_epoch_end", record, trainer)

    def on_fit_end(self, trainer: Trainer, error: BaseException | None) -> None:
        self._record("on_fit_end", error, trainer)

    def arguments(self, event: str) -> list[Any]:
        return [argument for name, argument in self.calls if name == event]

    @property
    def steps(self) -> list[StepRecord]:
        return self.arguments("on_step_end")


def stop_at(event: str, number: int = 1) -> Recorder:
    """Return a Recorder that stops the training at the call `number` of an event."""

    def act(name: str, _argument: Any, trainer: Trainer) -> None:
        if name == event and len(recorder.arguments(event)) == number:
            trainer.stop()

    recorder = Recorder(act)
    return recorder


def fail_at(event: str, number: int = 1) -> Recorder:
    """Return a Recorder that raises an ArithmeticError at the call `number` of an event."""

    def act(name: str, _argument: Any, _trainer: Trainer) -> None:
        if name == event and len(recorder.arguments(event)) == number:
            raise ArithmeticError(event)

    recorder = Recorder(act)
    return recorder


def falling_recall(trainer_history: list[Any]) -> dict[str, float]:
    """Return a metric that is best in epoch 1."""
    return {"recall@20": 1 / (1 + len(trainer_history))}


def resume(out: Path, **arguments: Any) -> Trainer:
    """Return a trainer that has finished the training in the folder."""
    trainer = make_trainer(out=out, **arguments)
    trainer.run(load_checkpoint(out / "last.safetensors", FORMAT))
    return trainer


def assert_equal_results(trainer: Trainer, expected: Trainer) -> None:
    """Assert that two trainings have the same history, without seconds, and the same weights to the bit."""
    assert without_seconds(trainer.history) == without_seconds(expected.history)
    for name, tensor in weights(trainer).items():
        assert torch.equal(tensor, weights(expected)[name]), name


def test_order_of_events(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = make_trainer(
        out=tmp_path, callbacks=[recorder], n_epochs=2, validate=lambda: falling_recall(trainer.history)
    )
    trainer.run()
    calls = [
        (name, argument if isinstance(argument, str) else None)
        for name, argument in recorder.calls
        if name != "on_step_end"
    ]
    assert calls == [
        ("on_fit_start", None),
        ("on_checkpoint", "last.safetensors"),
        ("on_checkpoint", "best.safetensors"),
        ("on_epoch_end", None),
        ("on_checkpoint", "last.safetensors"),
        ("on_epoch_end", None),
        ("on_checkpoint", "model.safetensors"),
        ("on_fit_end", None),
    ]
    names = [name for name, _ in recorder.calls]
    assert names.index("on_step_end") == 1
    assert names[names.index("on_epoch_end") + 1] == "on_step_end", "the next epoch has no step"


@pytest.mark.parametrize("accumulate", [1, 3])
def test_step_records_add_up_to_the_epochs(accumulate: int) -> None:
    recorder = Recorder()
    trainer = make_trainer(callbacks=[recorder], bptt=2, accumulate=accumulate)
    trainer.run()
    step = 0
    for step_record in recorder.steps:
        step += step_record.mini_batches
        assert step_record.step == step and step_record.mini_batches >= 1
    for epoch in trainer.history:
        steps = [record for record in recorder.steps if record.epoch == epoch["epoch"]]
        assert len(steps) >= 2
        assert sum(record.events for record in steps) == epoch["events"]
        assert sum(record.mini_batches for record in steps) == epoch["mini_batches"]
        # Losses are differences of sums in float64.
        mean = sum(record.loss * record.mini_batches for record in steps) / epoch["mini_batches"]
        assert mean == pytest.approx(epoch["loss"], rel=1e-12)


def test_step_records_have_the_learning_rate_of_the_next_update() -> None:
    options = {"lr_scheduler": "step", "lr_scheduler_options": {"step_size": 5, "gamma": 0.5, "interval": "update"}}
    recorder = Recorder(
        lambda name, record, trainer: (
            rates.append(trainer.optimizer.param_groups[0]["lr"]) if name == "on_step_end" else None
        )
    )
    rates: list[float] = []
    make_trainer(callbacks=[recorder], n_epochs=1, **options).run()
    assert [record.learning_rate for record in recorder.steps] == rates
    assert rates[3:6] == [0.1, 0.05, 0.05]


def test_without_the_fused_step_a_record_is_one_update() -> None:
    recorder = Recorder()
    trainer = make_trainer(callbacks=[recorder], n_epochs=1, fused=False, bptt=2)
    trainer.run()
    assert {record.mini_batches for record in recorder.steps[:-1]} == {2}


def test_losses_that_are_read_in_groups_are_reported_when_they_are_read() -> None:
    recorder = Recorder()
    trainer = make_trainer(callbacks=[recorder], n_epochs=1, fused=False)
    trainer.runner._losses._group_size = 4  # type: ignore[attr-defined]  # 64 on a GPU
    trainer.run()
    losses = [record.loss for record in recorder.steps[:8]]
    ungrouped = Recorder()
    make_trainer(callbacks=[ungrouped], n_epochs=1, fused=False).run()
    expected = np.array([record.loss for record in ungrouped.steps[:8]])
    assert [loss is None for loss in losses] == [True, True, True, False] * 2
    np.testing.assert_allclose([losses[3], losses[7]], [expected[:4].mean(), expected[4:].mean()], rtol=1e-12)


def test_callbacks_do_not_change_the_training(tmp_path: Path) -> None:
    with_callbacks = make_trainer(callbacks=[Recorder(), Callback()], dropout=0.2, momentum=0.1)
    without = make_trainer(dropout=0.2, momentum=0.1)
    with_callbacks.run(), without.run()
    assert_equal_results(with_callbacks, without)


def test_stop_within_an_epoch_saves_and_resumes_to_the_bit(tmp_path: Path) -> None:
    recorder = stop_at("on_step_end", 2)
    trainer = make_trainer(out=tmp_path, callbacks=[recorder], dropout=0.1)
    assert trainer.run() == [] and len(recorder.steps) == 2
    step = recorder.steps[-1].step
    saved = load_checkpoint(tmp_path / "last.safetensors", FORMAT)
    assert saved.progress["position"]["mini_batches"] == step > 1
    assert recorder.arguments("on_checkpoint") == ["last.safetensors", "model.safetensors"]
    assert recorder.calls[-1] == ("on_fit_end", None)
    model = load_checkpoint(tmp_path / "model.safetensors", FORMAT)
    for name, tensor in weights(trainer).items():
        assert torch.equal(model.tensors[f"model.{name}"], tensor)

    resumed_recorder = Recorder()
    resumed = resume(tmp_path, callbacks=[resumed_recorder], dropout=0.1)
    assert resumed_recorder.steps[0].step == step + resumed_recorder.steps[0].mini_batches
    assert step + sum(record.mini_batches for record in resumed_recorder.steps) == resumed.position.step
    uninterrupted = make_trainer(dropout=0.1)
    uninterrupted.run()
    assert_equal_results(resumed, uninterrupted)
    trainer.run()  # the same object can continue as well
    assert_equal_results(trainer, uninterrupted)


def test_stop_after_an_epoch_writes_the_best_model(tmp_path: Path) -> None:
    recorder = stop_at("on_epoch_end", 2)
    trainer = make_trainer(
        out=tmp_path, callbacks=[recorder], n_epochs=5, validate=lambda: falling_recall(trainer.history)
    )
    assert len(trainer.run()) == 2 and recorder.arguments("on_fit_end") == [None]
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "best.safetensors").read_bytes()
    assert len(resume(tmp_path, n_epochs=3, validate=lambda: {"recall@20": 0.1}).history) == 3


def test_stop_before_the_first_update_trains_and_writes_nothing(tmp_path: Path) -> None:
    recorder = stop_at("on_fit_start")
    trainer = make_trainer(out=tmp_path, callbacks=[recorder])
    initial_weights = weights(trainer)
    assert trainer.run() == []
    assert all(torch.equal(tensor, initial_weights[name]) for name, tensor in weights(trainer).items())
    assert [name for name, _ in recorder.calls] == ["on_fit_start", "on_fit_end"]
    assert not list(tmp_path.glob("*.*"))


def test_stop_at_a_checkpoint_within_an_epoch(tmp_path: Path) -> None:
    recorder = stop_at("on_checkpoint")
    trainer = make_trainer(out=tmp_path, callbacks=[recorder], checkpoint_every=5)
    trainer.run()
    assert trainer.position.mini_batches == 5 and trainer.history == []


def test_a_stop_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    from gru4rec_fast.training.progress import PlainProgress

    make_trainer(callbacks=[stop_at("on_step_end")], progress=PlainProgress()).run()
    message = "a callback stopped the training in epoch 1, after mini-batch 1 (step 1 of the training)"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("event", "number"), [("on_step_end", 2), ("on_checkpoint", 2), ("on_epoch_end", 1), ("on_fit_end", 1)]
)
def test_an_error_in_a_callback_is_raised_and_the_folder_can_be_resumed(
    tmp_path: Path, event: str, number: int
) -> None:
    first, failing, last = Recorder(), fail_at(event, number), Recorder()
    trainer = make_trainer(out=tmp_path, callbacks=[first, failing, last], checkpoint_every=1)
    with pytest.raises(ArithmeticError, match=event) as caught:
        trainer.run()
    assert first.arguments("on_fit_end") == [caught.value]
    # Callbacks end in reverse order, so the last one ended before the error in `on_fit_end` of the failing one.
    assert last.arguments("on_fit_end") == [None if event == "on_fit_end" else caught.value]
    uninterrupted = make_trainer()
    uninterrupted.run()
    assert_equal_results(resume(tmp_path), uninterrupted)


def test_an_error_before_the_first_checkpoint_restores_the_earlier_training(tmp_path: Path) -> None:
    make_trainer(out=tmp_path, n_epochs=1).run()
    checkpoint = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(ArithmeticError):
        make_trainer(out=tmp_path, callbacks=[fail_at("on_step_end")]).run()
    assert (tmp_path / "last.safetensors").read_bytes() == checkpoint


def test_an_error_in_on_fit_start_ends_the_callbacks_that_have_started() -> None:
    first, failing, last = Recorder(), fail_at("on_fit_start"), Recorder()
    with pytest.raises(ArithmeticError) as caught:
        make_trainer(callbacks=[first, failing, last]).run()
    assert [name for name, _ in first.calls] == ["on_fit_start", "on_fit_end"]
    assert first.calls[-1][1] is caught.value
    assert [name for name, _ in failing.calls] == ["on_fit_start"] and last.calls == []


def test_on_fit_end_gets_ctrl_c_and_divergence(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = make_trainer(out=tmp_path, callbacks=[recorder])
    call_at_block(trainer, 4, press_ctrl_c)
    with pytest.raises(TrainingInterrupted) as caught:
        trainer.run()
    assert recorder.arguments("on_fit_end") == [caught.value]
    assert recorder.steps[-1].step == 4 and recorder.arguments("on_checkpoint") == ["last.safetensors"]

    recorder = Recorder()
    trainer = make_trainer(callbacks=[recorder])
    call_at_block(trainer, 3, lambda: trainer.network.output.bias.data.fill_(float("nan")))
    with pytest.raises(TrainingDiverged, match="training stopped"):
        trainer.run()
    (error,) = recorder.arguments("on_fit_end")
    assert isinstance(error, TrainingDiverged) and "training stopped" in str(error)


def test_anything_but_a_list_of_callbacks_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"must be a list of instances of .*Callback, not a Recorder"):
        make_trainer(callbacks=Recorder())
    with pytest.raises(TypeError, match="one of them is the class Recorder"):
        make_trainer(callbacks=[Recorder])
    with pytest.raises(TypeError, match="one of them is a function"):
        GRU4Rec().fit("no such file", callbacks=[lambda trainer: None])


# Every seventh of the 600 pairs of 20 users and 30 items; validation has other pairs.
GRAPH, OTHER_GRAPH = (InteractionGraph.from_arrays(*np.divmod(np.arange(first, 600, 7), 30)) for first in (0, 3))
ESTIMATORS = {
    "GRU4Rec": (
        lambda **p: GRU4Rec(layers=[8], batch_size=8, n_sample=16, seed=0, **p),
        markov_store(60),
        markov_store(60, seed=1),
    ),
    "NGCF": (lambda **p: NGCF(embedding_dim=8, layer_sizes=[8], batch_size=16, seed=0, **p), GRAPH, OTHER_GRAPH),
    "LightGCN": (lambda **p: LightGCN(embedding_dim=8, n_layers=1, batch_size=16, seed=0, **p), GRAPH, OTHER_GRAPH),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_call_callbacks(tmp_path: Path, name: str) -> None:
    make, data, held_out = ESTIMATORS[name]
    recorder = Recorder()
    model = make(n_epochs=2, evaluate_every=1)
    model.fit(data, validation=held_out, out=tmp_path, progress=False, callbacks=[recorder])
    assert {event for event, _ in recorder.calls} == set(EVENTS)
    assert recorder.arguments("on_epoch_end") == model.history and "recall@20" in model.history[0]["validation"]
    assert sum(record.events for record in recorder.steps) == sum(epoch["events"] for epoch in model.history)

    stopped = make(n_epochs=5).fit(data, progress=False, callbacks=[stop_at("on_epoch_end")])
    assert len(stopped.history) == 1 and not stopped.network.training
    assert stopped.history[0]["loss"] == model.history[0]["loss"]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_whose_callback_failed_can_be_resumed_from_its_folder(tmp_path: Path, name: str) -> None:
    make, data, _ = ESTIMATORS[name]
    model = make(n_epochs=3)
    with pytest.raises(ArithmeticError):
        model.fit(data, out=tmp_path, progress=False, callbacks=[fail_at("on_epoch_end", 2)])
    assert len(model.history) == 2
    resumed = make(n_epochs=3).fit(data, out=tmp_path, resume=True, progress=False)
    expected = make(n_epochs=3).fit(data, progress=False)
    assert without_seconds(resumed.history) == without_seconds(expected.history)
