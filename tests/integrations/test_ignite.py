"""integrations.ignite, with the real PyTorch-Ignite."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from recorded_memory import assert_nothing_is_recorded, calls

pytest.importorskip("ignite", reason="PyTorch-Ignite is not installed: pip install pytorch-ignite")

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, TerminateOnNan
from ignite.metrics import RunningAverage
from markov import markov_store
from test_estimator import as_table

from gru4rec_fast import GRU4Rec
from gru4rec_fast.evaluation import evaluate_sessions
from gru4rec_fast.integrations.ignite import MemoryHandler, create_session_evaluator, create_session_trainer
from gru4rec_fast.profiling import LeakDetector, MemoryProfiler, phase

pytestmark = pytest.mark.usefixtures("native_library")
STORE, VALIDATION = markov_store(), markov_store(seed=1)
PARAMETERS = {"layers": (16,), "batch_size": 8, "n_sample": 32, "seed": 0, "dropout_p_embed": 0.2, "momentum": 0.3}
EPOCH = 124  # mini-batches in an epoch of STORE


def make_trainer(updates_per_step: int = 10, **changed: Any) -> Any:
    return create_session_trainer(STORE, PARAMETERS | changed, updates_per_step=updates_per_step)


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def state_of(trainer: Any) -> dict[str, Any]:
    runner = trainer.runner
    return {"trainer": trainer, "network": trainer.network, "optimizer": runner.optimizer, "runner": runner}


@pytest.mark.parametrize("changed", [
    {}, {"accumulate": 3, "bptt": 2}, {"shuffle": True}, {"lr_scheduler": "cosine", "n_epochs": 3}, {"fused": False},
], ids=str)  # fmt: skip
def test_training_ends_with_the_weights_of_fit(changed: dict[str, Any]) -> None:
    trainer, outputs, rates = make_trainer(**changed), [], []
    group = trainer.runner.optimizer.param_groups[0]
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: outputs.append(trainer.state.output))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: rates.append(group["lr"]))
    trainer.run(max_epochs=3)
    expected = GRU4Rec(**PARAMETERS | changed | {"n_epochs": 3}).fit(STORE, progress=False)
    assert torch.equal(weights(trainer.network), weights(expected.network))
    last = expected.history[-1]
    assert trainer.state.metrics["loss"] == pytest.approx(last["loss"])
    assert trainer.state.metrics["events"] == last["events"] == STORE.n_targets
    assert sum(output["events"] for output in outputs) == 3 * STORE.n_targets
    assert rates[-1] == last["learning_rate"]


def test_an_iteration_is_a_group_of_updates() -> None:
    for k, n in {1: EPOCH, 32: -(-EPOCH // 32), 1000: 1}.items():
        trainer = make_trainer(updates_per_step=k)
        assert trainer.run(max_epochs=2).iteration == 2 * n


def test_shorter_epochs_of_the_engine_continue_the_sessions() -> None:
    trainer, whole = make_trainer(), make_trainer()
    trainer.run(max_epochs=13, epoch_length=2)  # 13 iterations are an epoch of the sessions
    whole.run(max_epochs=2)
    assert torch.equal(weights(trainer.network), weights(whole.network))


@pytest.mark.parametrize("iteration", [4, 13, 14, 21])
@pytest.mark.parametrize("changed", [{}, {"shuffle": True, "seed": None}, {"fused": False}, {"lr_scheduler": "cosine"}],
                         ids=str)  # fmt: skip
def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, changed: dict[str, Any], iteration: int) -> None:
    torch.manual_seed(1)
    whole = make_trainer(**changed)
    save = Checkpoint(state_of(whole), DiskSaver(tmp_path, require_empty=False))
    # A checkpoint at the end of an epoch is written when the epoch has completed, after the schedule was stepped.
    event = Events.EPOCH_COMPLETED(once=1) if iteration == 13 else Events.ITERATION_COMPLETED(once=iteration)
    whole.add_event_handler(event, save)
    whole.run(max_epochs=3)
    resumed = make_trainer(**changed)  # another seed, if it is drawn
    Checkpoint.load_objects(state_of(resumed), torch.load(save.last_checkpoint, weights_only=True))
    resumed.run(max_epochs=3)
    assert resumed.runner.position.step == whole.runner.position.step
    assert torch.equal(weights(resumed.network), weights(whole.network))


def test_a_state_of_another_seed_or_schedule_is_refused() -> None:
    state = make_trainer().runner.state_dict()
    with pytest.raises(ValueError, match="the state was saved with seed=0, not 1"):
        make_trainer(seed=1).runner.load_state_dict(state)
    with pytest.raises(ValueError, match="the state was saved with another lr_scheduler"):
        make_trainer(lr_scheduler="cosine").runner.load_state_dict(state)


def test_the_evaluator_has_the_metrics_of_the_store() -> None:
    trainer = make_trainer()
    evaluator = create_session_evaluator(trainer.network, cutoffs=(5,))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=5), lambda: evaluator.run([VALIDATION]))
    trainer.run(max_epochs=1)
    assert torch.equal(weights(trainer.network), weights(GRU4Rec(**PARAMETERS | {"n_epochs": 1})
                                                         .fit(STORE, progress=False).network))  # fmt: skip
    metrics = evaluator.run([VALIDATION]).metrics
    assert metrics == evaluate_sessions(trainer.network, VALIDATION, cutoffs=(5,)).metrics
    assert isinstance(evaluator, Engine) and evaluator.state.output.n_targets == VALIDATION.n_targets


def test_metrics_and_handlers_of_ignite_read_the_output() -> None:
    trainer = make_trainer(shuffle=True)
    RunningAverage(output_transform=lambda output: output["loss"]).attach(trainer, "running")
    trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan(lambda output: output["loss"]))
    state = trainer.run(max_epochs=2)
    assert state.epoch == 2 and 0 < state.metrics["running"] < 10


def test_what_the_fused_step_cannot_train_is_trained_by_autograd(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trainer = make_trainer()
    trainer.run(max_epochs=1)
    assert [r.message for r in caplog.records if "trains" in r.message] == ["the fused step trains"]
    trainer = create_session_trainer(STORE, PARAMETERS, sparse=False)
    before = weights(trainer.network)
    trainer.runner.optimizer = torch.optim.Adam(trainer.network.parameters())
    trainer.run(max_epochs=1)
    assert "autograd trains, not the fused step: the step supports exactly SparseAdagrad, not Adam" in caplog.text
    assert not torch.equal(weights(trainer.network), before)


def test_the_examples_on_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "integrations" / "ignite.md").read_text()
    monkeypatch.chdir(tmp_path)
    for name, store in {"train": STORE, "valid": VALIDATION}.items():
        as_table(store).to_csv(f"{name}.tsv", sep="\t", index=False)
    namespace: dict[str, Any] = {}
    epochs = []
    for code in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        assert len(code.splitlines()) < 40
        exec(compile(code, "ignite.md", "exec"), namespace)
        epochs.append(namespace["trainer"].state.epoch)
    assert epochs[0] <= 5 and epochs[1:] == [7, 1]  # the first training may stop early
    assert namespace["evaluator"].state.metrics["recall@20"] > 0.9  # a random order has 20/30
    assert namespace["memory"].profiler.report().phase("iteration", "backward").calls > 0


class PlainTraining:
    """An engine that trains a linear layer by Adam; `fails_at` is an iteration that raises an error."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.layer, self.fails_at = torch.nn.Linear(64, 32), fails_at
        self.optimizer = torch.optim.Adam(self.layer.parameters())
        self.engine = Engine(self.update)

    def update(self, engine: Engine, batch: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        with phase("forward"):
            loss = self.layer(batch).square().mean()
        if engine.state.iteration == self.fails_at:
            raise ZeroDivisionError
        loss.backward()
        self.optimizer.step()

    def attach_memory(self, *evaluators: Engine, **options: Any) -> MemoryHandler:
        memory = MemoryHandler(network=self.layer, optimizer=self.optimizer, **options)
        memory.attach(self.engine, *evaluators)
        return memory


BATCHES = [torch.ones(4, 64) for _ in range(6)]


def test_memory_of_any_module() -> None:
    training = PlainTraining()
    evaluator = Engine(lambda engine, batch: training.layer(batch))
    memory = training.attach_memory(evaluator)
    training.engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(BATCHES))
    training.engine.run(BATCHES, max_epochs=2)
    assert calls(memory) == {"batch": 12, "iteration": 12, "iteration/forward": 12, "evaluation": 2}
    report, size = memory.profiler.report(), 4 * (64 * 32 + 32)
    assert report.tensors["parameters"] == report.tensors["gradients"] == size
    assert report.tensors["optimizer_state"] == 2 * size + 2 * 4  # two moments and the number of steps
    # The iterations keep the gradients and the moments.
    assert 3 * size <= report.phase("iteration").kept_bytes < 4 * size
    assert memory.detector.report().steps == 12
    assert_nothing_is_recorded(memory)
    evaluator.run(BATCHES)  # not within a run of the trainer
    assert calls(memory)["evaluation"] == 2


def test_memory_of_a_loader_of_unknown_length() -> None:
    training = PlainTraining()
    memory = training.attach_memory()

    @training.engine.on(Events.EPOCH_COMPLETED)
    def have_a_phase() -> None:
        with phase("own"):
            pass

    training.engine.run(iter(BATCHES), max_epochs=1)  # its end is found when there is no further batch
    assert calls(memory) == {"batch": 7, "iteration": 6, "iteration/forward": 6, "own": 1}


@pytest.mark.parametrize("fused", [True, False])
def test_memory_of_gru4rec_has_the_phases_of_fit(fused: bool) -> None:
    trainer, memory = make_trainer(fused=fused), MemoryHandler()
    evaluator = create_session_evaluator(trainer.network)
    memory.attach(trainer, evaluator)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([VALIDATION]))
    trainer.run(max_epochs=1)
    model = GRU4Rec(**PARAMETERS, n_epochs=1, fused=fused)
    with MemoryProfiler() as profiler:
        model.fit(STORE, validation=VALIDATION, progress=False)
    assert torch.equal(weights(trainer.network), weights(model.network))
    phases = profiler.report().phases[1:]
    assert "update" in calls(memory)
    if fused:  # the two call the fused step with other numbers of updates
        assert calls(memory).keys() == {"/".join(phase.path) for phase in phases}
    else:
        assert calls(memory) == {"/".join(phase.path): phase.calls for phase in phases}
    tensors = memory.profiler.report().tensors
    assert tensors["parameters"] == sum(4 * parameter.numel() for parameter in trainer.network.parameters())
    assert tensors["optimizer_state"] == 2 * tensors["parameters"]  # accumulator and momentum
    assert memory.detector.report().steps == 13


def test_memory_after_an_error_and_in_the_next_run() -> None:
    training = PlainTraining(fails_at=3)
    memory = training.attach_memory(detector=LeakDetector(warm_up=3))
    with pytest.raises(ZeroDivisionError):
        training.engine.run(BATCHES, max_epochs=1)
    assert_nothing_is_recorded(memory)
    assert calls(memory) == {"batch": 3, "iteration": 3, "iteration/forward": 3}
    training.fails_at = None
    training.engine.state.max_epochs = None  # a new run
    training.engine.run(BATCHES, max_epochs=1)
    assert calls(memory) == {"batch": 9, "iteration": 9, "iteration/forward": 9}
    with MemoryProfiler(), pytest.raises(RuntimeError, match="a MemoryProfiler records in this thread already"):
        training.engine.run(BATCHES, max_epochs=1)
    assert_nothing_is_recorded(memory)


@pytest.mark.parametrize("is_attached_first", [True, False])
def test_other_handlers_of_errors_are_called(is_attached_first: bool) -> None:
    training, errors = PlainTraining(fails_at=3), []
    if not is_attached_first:
        training.engine.add_event_handler(Events.EXCEPTION_RAISED, errors.append)
    memory = training.attach_memory()
    if is_attached_first:
        training.engine.add_event_handler(Events.EXCEPTION_RAISED, errors.append)
    training.engine.run(BATCHES, max_epochs=2)  # Ignite ignores the error, and begins the next epoch
    assert [type(error) for error in errors] == [ZeroDivisionError]
    assert calls(memory)["iteration"] == 3 + 6
    assert_nothing_is_recorded(memory)


def test_memory_of_a_run_that_is_interrupted_or_terminated() -> None:
    training = PlainTraining()
    memory, engine = training.attach_memory(), training.engine
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.interrupt)
    engine.run(BATCHES, max_epochs=1)
    assert_nothing_is_recorded(memory)
    assert calls(memory)["iteration"] == 2
    engine.run(BATCHES, max_epochs=1)
    assert calls(memory)["iteration"] == 6
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: engine.terminate(skip_completed=True))
    engine.run(BATCHES, max_epochs=1)
    assert calls(memory)["iteration"] == 7
    assert_nothing_is_recorded(memory)
