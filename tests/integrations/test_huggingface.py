"""integrations.huggingface, with the real transformers and accelerate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_memory import assert_nothing_is_recorded, calls

pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers accelerate")
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install transformers accelerate")

import torch
from markov import markov_store
from transformers import Trainer, TrainerCallback, TrainingArguments

from gru4rec_fast import GRU4Rec, SessionStore
from gru4rec_fast.evaluation import evaluate_sessions
from gru4rec_fast.integrations.huggingface import (
    GRU4RecConfig,
    GRU4RecForNextItem,
    MemoryCallback,
    SessionCollator,
    SessionDataset,
    SessionTrainer,
    SessionTrainingArguments,
)
from gru4rec_fast.profiling import LeakDetector, MemoryProfiler, active_profiler

pytestmark = pytest.mark.usefixtures("native_library")
STORE, VALIDATION = markov_store(), markov_store(seed=1)
MODEL = {"layers": [16], "n_sample": 32, "seed": 0, "dropout_p_embed": 0.2}
PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "huggingface.md"


def make_model(**changed: Any) -> GRU4RecForNextItem:
    return GRU4RecForNextItem.from_store(STORE, **MODEL | changed)


def make_arguments(folder: Path, **changed: Any) -> SessionTrainingArguments:
    defaults = {"per_device_train_batch_size": 8, "num_train_epochs": 2, "updates_per_step": 10, "use_cpu": True}
    quiet = {"disable_tqdm": True, "report_to": "none", "save_strategy": "no"}
    return SessionTrainingArguments(str(folder), **defaults | quiet | changed)


def train(folder: Path, resume: Path | None = None, model: Any = None, callbacks: Any = None, **changed: Any) -> Any:
    """Return the trainer of a finished training, with the arguments `changed`."""
    trainer = SessionTrainer(
        model or make_model(),
        make_arguments(folder, **changed),
        train_dataset=STORE,
        eval_dataset=VALIDATION,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def fitted(**parameters: Any) -> GRU4Rec:
    """Return a model that `fit` trained with the parameters of `make_model` and `make_arguments`."""
    return GRU4Rec(**MODEL | {"batch_size": 8, "n_epochs": 2} | parameters).fit(STORE, progress=False)


def assert_equal_weights(network: torch.nn.Module, other: torch.nn.Module, tolerance: float | None = None) -> None:
    for (name, weight), (_, expected) in zip(network.named_parameters(), other.named_parameters(), strict=True):
        if tolerance is None:
            assert torch.equal(weight, expected), name
        else:
            torch.testing.assert_close(weight, expected, rtol=0, atol=tolerance)


CASES = [
    ({}, {}),
    ({"gradient_accumulation_steps": 3, "bptt": 2, "updates_per_step": 4}, {"accumulate": 3, "bptt": 2}),
    ({"train_sampling_strategy": "random", "momentum": 0.3}, {"shuffle": True, "momentum": 0.3}),
    ({"bf16": True}, {"precision": "bf16"}),
]


@pytest.mark.parametrize("arguments,parameters", CASES, ids=str)
def test_fused_training_has_the_bits_of_fit_and_resumes_within_an_epoch(
    tmp_path: Path, arguments: dict[str, Any], parameters: dict[str, Any]
) -> None:
    trainer = train(tmp_path, save_strategy="steps", save_steps=4, logging_steps=4, **arguments)
    model = fitted(**parameters)
    assert_equal_weights(trainer.model.network, model.network)
    assert int(trainer.model.step) == trainer.runner.position.step > 0
    first, last = (tmp_path / f"checkpoint-{step}" for step in (4, trainer.state.global_step // 4 * 4))
    assert first != last
    for checkpoint in (first, last):
        resumed = train(tmp_path / "resumed", checkpoint, make_model(seed=0), **arguments)
        assert_equal_weights(resumed.model.network, model.network)
        assert resumed.state.global_step == trainer.state.global_step


@pytest.mark.parametrize("fused", [True, False])
def test_a_drawn_seed_is_in_the_checkpoint(tmp_path: Path, fused: bool) -> None:
    trainer = train(tmp_path, model=make_model(seed=None), fused=fused, save_strategy="steps", save_steps=8)
    model = make_model(seed=None)
    assert model.config.seed != trainer.model.config.seed
    train(tmp_path / "resumed", tmp_path / "checkpoint-8", model, fused=fused)
    assert_equal_weights(model.network, trainer.model.network)
    assert model.config.seed == trainer.model.config.seed


def test_losses_and_metrics_are_those_of_fit(tmp_path: Path) -> None:
    # An epoch has 124 updates. Trainer averages over its steps, so the means are equal if all steps have 31 updates.
    trainer = train(tmp_path, eval_strategy="epoch", logging_strategy="epoch", updates_per_step=31)
    model = GRU4Rec(**MODEL, batch_size=8, n_epochs=2).fit(STORE, validation=VALIDATION, progress=False)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # Trainer adds the losses of its steps in float32.
    np.testing.assert_allclose(losses, [entry["loss"] for entry in model.history], rtol=1e-6)
    for entry in model.history:
        logged = [log for log in trainer.state.log_history if log["epoch"] == entry["epoch"] and "eval_mrr@20" in log]
        assert {name: logged[0][f"eval_{name}"] for name in entry["validation"]} == entry["validation"]
    assert trainer.evaluate()["eval_recall@20"] == model.evaluate(VALIDATION).metrics["recall@20"]
    several = trainer.evaluate({"a": VALIDATION, "b": STORE}, metric_key_prefix="test")
    assert several["test_a_recall@20"] == model.evaluate(VALIDATION).metrics["recall@20"] != several["test_b_recall@20"]


def test_autograd_trains_as_fit_does_and_resumes(tmp_path: Path) -> None:
    options = {"fused": False, "gradient_accumulation_steps": 2, "bptt": 2}
    trainer = train(tmp_path, save_strategy="steps", save_steps=20, **options)
    assert trainer.state.global_step > 40
    # The two divide the losses in another order, and Adagrad's first steps amplify the rounding errors.
    assert_equal_weights(trainer.model.network, fitted(fused=False, accumulate=2, bptt=2).network, tolerance=1e-4)
    resumed = train(tmp_path / "resumed", tmp_path / "checkpoint-20", **options)
    assert_equal_weights(resumed.model.network, trainer.model.network)


def test_autograd_clips_and_uses_the_optimizers_of_trainer(tmp_path: Path) -> None:
    def norms(**arguments: Any) -> list[float]:
        trainer = train(tmp_path, fused=False, max_steps=20, logging_steps=1, **arguments)
        return [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]

    adam = {"optim": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 0.01}
    dense, sparse = norms(max_grad_norm=0.1), norms(max_grad_norm=0.1, model=make_model_sparse())
    np.testing.assert_allclose(sparse, dense, rtol=1e-3)
    assert norms(max_grad_norm=0.1, **adam) != norms(**adam)


def make_model_sparse() -> GRU4RecForNextItem:
    return GRU4RecForNextItem.from_store(STORE, sparse=True, **MODEL)


def test_schedule_best_model_and_callbacks(tmp_path: Path) -> None:
    rates = []

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])
            control.should_training_stop = state.global_step == 20

    trainer = train(
        tmp_path,
        callbacks=[Stop()],
        lr_scheduler_type="linear",
        eval_strategy="steps",
        eval_steps=5,
        save_strategy="steps",
        save_steps=5,
        load_best_model_at_end=True,
    )
    assert trainer.state.global_step == 20 and rates == sorted(rates, reverse=True) and rates[-1] < 0.05
    logs = [entry["eval_recall@20"] for entry in trainer.state.log_history if "eval_recall@20" in entry]
    assert trainer.state.best_metric == max(logs)
    assert evaluate_sessions(trainer.model.network, VALIDATION).metrics["recall@20"] == max(logs)


REFUSED = [
    ({"max_grad_norm": 1.0}, "max_grad_norm=1.0 is not possible with fused=True: the fused step does not clip"),
    ({"optim": "adamw_torch"}, "optim='adamw_torch' is not possible with fused=True"),
    ({"weight_decay": 0.1}, "weight_decay=0.1 is not possible"),
    ({"fp16": True, "fused": False}, "fp16=True needs a GPU"),
    ({"fp16": True}, "fp16=True is not possible with fused=True"),
    ({"gradient_checkpointing": True}, "activation_checkpointing=True has no meaning"),
    ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 has no meaning .* GRU4RecConfig"),
    ({"dataloader_num_workers": 2}, "dataloader_num_workers=2 has no meaning"),
    ({"ignore_data_skip": True}, "ignore_data_skip=True has no meaning"),
    ({"auto_find_batch_size": True}, "auto_find_batch_size=True has no meaning"),
    ({"train_sampling_strategy": "group_by_length"}, "choose 'sequential' or 'random'"),
    ({"train_sampling_strategy": "random", "fused": False}, "epochs would differ in length"),
    ({"optim_args": "eps=1"}, "optim_args='eps=1': adagrad has the arguments momentum and adagrad_epsilon"),
    ({"optim": "adamw_torch", "fused": False, "momentum": 0.1}, "momentum=0.1 belongs to optim='adagrad'"),
    ({"updates_per_step": 0}, "updates_per_step=0: must be at least 1"),
]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("arguments,message", REFUSED, ids=str)
def test_arguments_without_meaning_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_arguments(tmp_path, **arguments)
    assert "\n" not in str(caught.value)


def test_wrong_inputs_of_the_trainer(tmp_path: Path) -> None:
    arguments = make_arguments(tmp_path, save_strategy="steps", save_steps=4)
    with pytest.raises(TypeError, match="needs SessionTrainingArguments, not TrainingArguments"):
        SessionTrainer(make_model(), TrainingArguments(str(tmp_path)), train_dataset=STORE)
    with pytest.raises(TypeError, match="train_dataset must be a SessionStore, not a list"):
        SessionTrainer(make_model(), arguments, train_dataset=[[1, 2]])
    with pytest.raises(TypeError, match="trains a GRU4RecForNextItem, not a Linear"):
        SessionTrainer(torch.nn.Linear(1, 1), arguments, train_dataset=STORE)
    model = make_model()
    adam = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match="fused=True is not possible: the step supports exactly SparseAdagrad"):
        SessionTrainer(model, arguments, train_dataset=STORE, optimizers=(adam, None)).train()
    train(tmp_path, save_strategy="steps", save_steps=4)
    with pytest.raises(ValueError, match="data="):
        SessionTrainer(make_model(), arguments, train_dataset=VALIDATION).train(str(tmp_path / "checkpoint-4"))
    (tmp_path / "checkpoint-4" / "session_position.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no session_position.safetensors"):
        SessionTrainer(make_model(), arguments, train_dataset=STORE).train(str(tmp_path / "checkpoint-4"))


def test_a_saved_model_is_the_same(tmp_path: Path) -> None:
    model = make_model(seed=None, layers=[8, 16], embedding=4, constrained_embedding=False).eval()
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = GRU4RecForNextItem.from_pretrained(tmp_path)
    assert loaded.network.seed == model.network.seed and not loaded.training
    for (name, tensor), (_, expected) in zip(loaded.state_dict().items(), model.state_dict().items(), strict=True):
        assert torch.equal(tensor, expected), name
    batch = SessionCollator()([SessionDataset(STORE)[index] for index in range(8)])
    with torch.no_grad():
        assert torch.equal(loaded(**batch).loss, model(**batch).loss)


def test_config_refuses_wrong_values() -> None:
    with pytest.raises(ValueError, match="n_items=0: must be at least 1"):
        GRU4RecConfig(n_items=0)
    with pytest.raises(ValueError, match="loss='x': choose one of"):
        GRU4RecConfig(n_items=5, loss="x")
    with pytest.raises(ValueError, match="learning_rate: not of the model; options of training are training arguments"):
        GRU4RecConfig(n_items=5, learning_rate=0.1)
    with pytest.raises(ValueError, match="support must be 5 integers"):
        GRU4RecForNextItem(GRU4RecConfig(n_items=5), [1, 2])


def test_scores_and_loss_do_not_depend_on_padding() -> None:
    model = make_model().eval()
    sessions = [SessionDataset(STORE)[index] for index in range(6)]
    batch = SessionCollator(labels=False)(sessions)
    width = batch["input_ids"].shape[1]
    left = torch.stack([row[row >= 0].new_full((width,), -1) for row in batch["input_ids"]])
    for row, session in zip(left, sessions, strict=True):
        row[width - len(session["input_ids"]) :] = torch.as_tensor(session["input_ids"])
    masked = batch["input_ids"].clamp(min=0)
    with torch.no_grad():
        scores = model(**batch).logits
        assert scores.shape == (6, STORE.n_items)
        torch.testing.assert_close(model(left).logits, scores)
        assert torch.equal(model(masked, attention_mask=batch["attention_mask"]).logits, scores)
        for index, session in enumerate(sessions):
            items = torch.as_tensor(session["input_ids"]).unsqueeze(1)
            hidden, _ = model.network(items)
            expected = hidden[-1, 0] @ model.network.output_weight.T + model.network.output_bias
            torch.testing.assert_close(scores[index], expected)
    with pytest.raises(ValueError, match="a position that is padding has a label"):
        model(torch.tensor([[1, -1]]), labels=torch.tensor([[2, 3]]))


def test_gradient_accumulation_divides_by_the_number_of_events() -> None:
    """With num_items_in_batch, two halves of a batch have the gradient of the whole batch, if no negative is shared."""
    model = make_model(dropout_p_embed=0.0, loss="bpr").train()
    batch = SessionCollator()([SessionDataset(STORE)[index] for index in range(8)])
    n_events = int((batch["labels"] >= 0).sum())
    parts = [model({**batch}["input_ids"], labels=batch["labels"], num_items_in_batch=n).loss for n in (None, n_events)]
    mean, divided = parts
    assert 0.5 < (mean / divided).item() < 2  # other negatives, the same scale
    model.eval()
    assert torch.equal(model(**batch).loss, model(**batch, num_items_in_batch=n_events).loss)
    torch.testing.assert_close(model(**batch, num_items_in_batch=2 * n_events).loss * 2, model(**batch).loss)


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}], ids=str)
def test_plain_trainer_trains_padded_batches(tmp_path: Path, options: dict[str, Any]) -> None:
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=4,
        per_device_train_batch_size=16,
        learning_rate=0.01,
        save_strategy="steps",
        save_steps=20,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        logging_steps=10,
        **options,
    )

    def make_trainer() -> Trainer:
        return Trainer(
            make_model(),
            arguments,
            data_collator=SessionCollator(max_length=10),
            train_dataset=SessionDataset(STORE),
            eval_dataset=SessionDataset(VALIDATION),
        )

    trainer = make_trainer()
    before = evaluate_sessions(trainer.model.network, VALIDATION).metrics["recall@20"]
    loss = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < loss
    assert evaluate_sessions(trainer.model.network, VALIDATION).metrics["recall@20"] > before
    assert all(np.isfinite(log["grad_norm"]) for log in trainer.state.log_history if "grad_norm" in log)
    if not options:
        resumed = make_trainer()
        resumed.train(str(tmp_path / "checkpoint-20"))
        assert_equal_weights(resumed.model.network, trainer.model.network)


def test_sessions_are_padded_and_cut() -> None:
    store = SessionStore.from_arrays([0, 1, 2, 3, 4, 5, 6], [0, 1, 3, 7])
    dataset = SessionDataset(store)
    assert [dataset[index]["input_ids"].tolist() for index in range(len(dataset))] == [[1, 2], [3, 4, 5, 6]]
    batch = SessionCollator(max_length=2)([dataset[0], dataset[1]])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[1, -1], [4, 5]],
        "attention_mask": [[1, 0], [1, 1]],
        "labels": [[2, -100], [5, 6]],
    }
    assert SessionCollator(labels=False)([dataset[0]])["input_ids"].tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="a session has 1 events; it needs at least 2"):
        SessionCollator()([{"input_ids": [3]}])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_page(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[number]
    assert len(code.splitlines()) < 40
    monkeypatch.chdir(tmp_path)
    for name, store in (("train", STORE), ("valid", VALIDATION)):
        sessions = np.repeat(np.arange(store.n_sessions), np.diff(store.offsets))
        rows = zip(sessions, store.vocabulary.ids[store.items], range(store.n_events), strict=True)
        lines = ["SessionId\tItemId\tTime", *(f"{session}\t{item}\t{time}" for session, item, time in rows)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    exec(compile(code, str(PAGE), "exec"), {})


class PlainModel(torch.nn.Module):
    """A linear layer; with `fails`, its forward pass raises an error."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.layer, self.fails = torch.nn.Linear(64, 32), fails

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.fails:
            raise ZeroDivisionError
        return {"loss": (self.layer(features) - labels).square().mean()}


def train_plain(
    folder: Path, memory: MemoryCallback, model: PlainModel, n_evaluation_sets: int = 1, **changed: Any
) -> None:
    """Train on 24 examples in batches of 4."""
    quiet = {"disable_tqdm": True, "report_to": "none", "save_strategy": "no", "use_cpu": True}
    defaults = {"per_device_train_batch_size": 4, "num_train_epochs": 2}
    data = [{"features": torch.ones(64), "labels": torch.zeros(32)} for _ in range(24)]
    arguments = TrainingArguments(str(folder), **quiet | defaults | changed)
    held_out = data[:4] if n_evaluation_sets == 1 else {str(number): data[:4] for number in range(n_evaluation_sets)}
    Trainer(model, arguments, train_dataset=data, eval_dataset=held_out, callbacks=[memory]).train()


@pytest.mark.parametrize("evaluation,n_evaluations", [
    ({"eval_strategy": "epoch"}, 2), ({"eval_strategy": "steps", "eval_steps": 2}, 3),
    ({"eval_strategy": "epoch", "eval_on_start": True}, 3),
], ids=str)  # fmt: skip
def test_memory_of_any_module(tmp_path: Path, evaluation: dict[str, Any], n_evaluations: int) -> None:
    memory, model = MemoryCallback(), PlainModel()
    train_plain(tmp_path, memory, model, gradient_accumulation_steps=2, **evaluation)
    # 6 batches in each of 2 epochs, an update every 2 batches
    assert calls(memory) == {"forward_backward": 12, "update": 6, "evaluation": n_evaluations}
    report, size = memory.profiler.report(), 4 * (64 * 32 + 32)
    assert report.tensors["parameters"] == report.tensors["gradients"] == size
    assert report.tensors["optimizer_state"] == 2 * size + 2 * 4  # two moments and the number of steps
    # The gradients are freed after each update, in no phase. The first update allocates the moments.
    assert 6 * size <= report.phase("forward_backward").kept_bytes < 7 * size
    assert 2 * size <= report.phase("update").kept_bytes < 3 * size
    assert memory.detector.report().steps == 6
    assert_nothing_is_recorded(memory)


def test_memory_of_several_evaluation_sets(tmp_path: Path) -> None:
    memory = MemoryCallback()
    train_plain(
        tmp_path, memory, PlainModel(), n_evaluation_sets=3, eval_strategy="epoch", per_device_eval_batch_size=1
    )
    assert calls(memory) == {"forward_backward": 12, "update": 12, "evaluation": 2 * 3}
    assert_nothing_is_recorded(memory)


@pytest.mark.parametrize("fused", [True, False])
def test_memory_of_the_session_trainer(tmp_path: Path, fused: bool) -> None:
    memory = MemoryCallback()
    trainer = train(tmp_path, callbacks=[memory], fused=fused, eval_strategy="epoch", num_train_epochs=1)
    assert_equal_weights(trainer.model.network, train(tmp_path, fused=fused, num_train_epochs=1).model.network)
    n_steps = trainer.state.global_step
    if fused:  # the phases of the fused step
        with MemoryProfiler() as profiler:
            GRU4Rec(**MODEL, batch_size=8, n_epochs=1).fit(STORE, validation=VALIDATION, progress=False)
        assert "update" in calls(memory)
        assert calls(memory).keys() == {"/".join(phase.path) for phase in profiler.report().phases[1:]}
    else:
        assert calls(memory) == {"forward_backward": n_steps, "update": n_steps, "evaluation": 1}
    tensors = memory.profiler.report().tensors
    assert tensors["parameters"] == sum(4 * parameter.numel() for parameter in trainer.model.parameters())
    assert tensors["optimizer_state"] == tensors["parameters"]  # the accumulator
    assert memory.detector.report().steps == n_steps


def test_memory_after_an_error_and_in_the_next_training(tmp_path: Path) -> None:
    memory = MemoryCallback(MemoryProfiler(), LeakDetector(warm_up=3))
    with pytest.raises(ZeroDivisionError):
        train_plain(tmp_path, memory, PlainModel(fails=True))
    assert active_profiler() is memory.profiler  # transformers has no event for an error
    memory.close()
    assert_nothing_is_recorded(memory)
    assert calls(memory) == {"forward_backward": 1}
    for next_memory, n_calls in ((memory, 1 + 1 + 12), (MemoryCallback(), 12)):
        with pytest.raises(ZeroDivisionError):
            train_plain(tmp_path, memory, PlainModel(fails=True))
        train_plain(tmp_path, next_memory, PlainModel())  # closes what the failed training left open
        assert_nothing_is_recorded(next_memory)
        assert calls(next_memory) == {"forward_backward": n_calls, "update": 12}


def test_memory_is_recorded_by_one_profiler(tmp_path: Path) -> None:
    memory = MemoryCallback()
    with MemoryProfiler(), pytest.raises(RuntimeError, match="a MemoryProfiler records in this thread already"):
        train_plain(tmp_path, memory, PlainModel())
    assert_nothing_is_recorded(memory)
    arguments = make_arguments(tmp_path)
    trainer = SessionTrainer(make_model(), arguments, train_dataset=STORE, callbacks=[memory])
    trainer.add_callback(MemoryCallback())
    with pytest.raises(RuntimeError, match="a MemoryProfiler records in this thread already"):
        trainer.train()
    memory.close()
    assert_nothing_is_recorded(memory)
