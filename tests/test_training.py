"""Training on sessions: epochs, accumulation, early stopping, files in the run folder, and printed progress."""

import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markov import markov_store
from small_trainer import FORMAT, LANES, STORE, call_at_block, make_trainer, no_pictures, weights

from gru4rec_fast import ops
from gru4rec_fast.data import SessionStore
from gru4rec_fast.profiling import MemoryProfiler
from gru4rec_fast.training import (
    SessionEpochRunner,
    TrainingDiverged,
    load_checkpoint,
    make_progress,
    run_folder,
    write_curves,
)
from gru4rec_fast.training.progress import BarProgress, PlainProgress, SilentProgress

pytestmark = pytest.mark.usefixtures(no_pictures.__name__)


def train_epoch_in_plain_pytorch(bptt: int, accumulate: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train one epoch on the blocks of the loader, and update the weights by torch.optim.Adagrad.

    bptt: mini-batches per block. accumulate: blocks per update. Returns the weights, and for each mini-batch the loss
    of its block.
    """
    trainer = make_trainer(bptt=bptt, dtype=torch.float64)
    network, state, step, losses = trainer.network, trainer.network.initial_state(LANES), 0, []
    optimizer = torch.optim.Adagrad(network.parameters(), lr=0.1, eps=0.0, initial_accumulator_value=1e-6)
    blocks = list(trainer.runner.loader)
    for start in range(0, len(blocks), accumulate):
        group_losses = []
        for block in blocks[start : start + accumulate]:
            steps = len(block.n_live)
            negatives = ops.negative_sampling(trainer.runner.sampler, 16, seed=3, step=step, steps=steps)[0]
            hidden, state = network(block.inputs, state, block.reset, step=step)
            state = [layer.detach() for layer in state]
            table = network.output_weight, network.output_bias
            loss = trainer.runner.criterion(hidden, *table, block.targets, negatives, n_live=block.n_live)
            group_losses.append(loss)
            losses += [loss.item()] * steps
            step += steps
        torch.stack(group_losses).mean().backward()
        for parameter in network.parameters():
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
        optimizer.step()
        optimizer.zero_grad()
    return weights(trainer), losses


@pytest.mark.parametrize(("bptt", "accumulate"), [(1, 1), (4, 1), (1, 5), (3, 4)])
def test_an_epoch_equals_plain_pytorch(bptt: int, accumulate: int):
    trainer = make_trainer(bptt=bptt, accumulate=accumulate, n_epochs=1, dtype=torch.float64)
    (record,) = trainer.run()
    expected, losses = train_epoch_in_plain_pytorch(bptt, accumulate)
    assert record["mini_batches"] == len(losses) == trainer.position.step
    per_update = bptt * accumulate
    assert per_update == 1 or record["mini_batches"] % per_update, "the last update should have fewer mini-batches"
    assert record["events"] == STORE.n_targets
    assert record["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-9)
    for name, tensor in weights(trainer).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-9)


def test_accumulation_equals_bptt_if_no_gradient_flows_between_steps():
    """The weights are set so that no hidden state depends on the previous one. A block has bptt steps."""
    store = markov_store(n_sessions=LANES, longest=5)
    with_bptt, accumulated = (
        make_trainer(store=store, bptt=4, n_epochs=1),
        make_trainer(store=store, accumulate=4, n_epochs=1),
    )
    for trainer in (with_bptt, accumulated):
        with torch.no_grad():
            trainer.network.gru.layers[0].weight_hh.zero_()
            trainer.network.gru.layers[0].bias_ih[12:24] = -1e9  # closes the update gate z: h' = n for any h
            trainer.network.gru.layers[0].weight_hh.requires_grad_(False)
            trainer.network.gru.layers[0].bias_hh.requires_grad_(False)
        trainer.run()
    assert with_bptt.history[0]["loss"] == pytest.approx(accumulated.history[0]["loss"], rel=1e-6)
    for name, tensor in weights(with_bptt).items():
        torch.testing.assert_close(tensor, weights(accumulated)[name], rtol=1e-4, atol=1e-6)


def test_early_stopping_saves_the_best_epoch(tmp_path: Path):
    recalls = [0.1, 0.3, 0.305, 0.2, 0.9]  # with min_delta=0.01, epoch 2 is the best
    weights_by_epoch: list[dict[str, torch.Tensor]] = []

    def validate() -> dict[str, float]:
        assert not trainer.network.training
        weights_by_epoch.append(weights(trainer))
        return {"recall@20": recalls[len(weights_by_epoch) - 1], "mrr@20": 0.0}

    trainer = make_trainer(out=tmp_path, n_epochs=5, patience=2, min_delta=0.01, validate=validate)
    history = trainer.run()
    assert [record["validation"]["recall@20"] for record in history] == recalls[:4]
    assert (trainer.early_stopping.best_epoch, trainer.early_stopping.best) == (2, 0.3)
    best = load_checkpoint(tmp_path / "best.safetensors", FORMAT)
    assert len(best.progress["history"]) == 2
    for name, tensor in weights_by_epoch[1].items():
        assert torch.equal(best.tensors[f"model.{name}"], tensor)
    # `validate` is never called, because the training has stopped. dict() would return no metrics.
    resumed = make_trainer(out=tmp_path, n_epochs=5, patience=2, min_delta=0.01, validate=dict)
    history = resumed.run(load_checkpoint(tmp_path / "last.safetensors", FORMAT))
    assert len(history) == 4, "a training that stopped early trained another epoch when it was resumed"


def test_patience_on_the_training_loss_needs_no_validation(tmp_path: Path):
    trainer = make_trainer(out=tmp_path, n_epochs=9, patience=1, min_delta=100.0, monitor="loss")
    assert len(trainer.run()) == 2
    assert len(load_checkpoint(tmp_path / "best.safetensors", FORMAT).progress["history"]) == 1


def test_plateau_monitors_the_validation_metric():
    metrics = iter([0.5, 0.4, 0.6])
    options = {"lr_scheduler": "plateau", "lr_scheduler_options": {"patience": 0, "factor": 0.1}}
    trainer = make_trainer(n_epochs=3, validate=lambda: {"recall@20": next(metrics)}, **options)
    assert [record["learning_rate"] for record in trainer.run()] == pytest.approx([0.1, 0.1, 0.01])


def test_evaluate_every_validates_every_few_epochs_and_after_the_last():
    """Early stopping counts validations; "plateau" is stepped by validations, other schedules by epochs."""
    metrics = iter([0.5, 0.4, 0.3, 0.6])
    trainer = make_trainer(
        n_epochs=9, evaluate_every=2, patience=2, validate=lambda: {"recall@20": next(metrics)},
        lr_scheduler="plateau", lr_scheduler_options={"patience": 0, "factor": 0.1},
    )  # fmt: skip
    history = trainer.run()
    assert [record["epoch"] for record in history if "validation" in record] == [2, 4, 6] and len(history) == 6
    assert trainer.best_epoch == 2
    assert [record["learning_rate"] for record in history] == pytest.approx([0.1] * 4 + [0.01] * 2)
    history = make_trainer(n_epochs=3, evaluate_every=2, validate=lambda: {"recall@20": 0.5}).run()
    assert ["validation" in record for record in history] == [False, True, True], "the last epoch is always validated"
    trainer = make_trainer(
        n_epochs=3, evaluate_every=3, validate=lambda: {"recall@20": 0.5},
        lr_scheduler="ExponentialLR", lr_scheduler_options={"gamma": 0.5},
    )  # fmt: skip
    assert [record["learning_rate"] for record in trainer.run()] == pytest.approx([0.1, 0.05, 0.025])


def test_checkpoint_every_writes_checkpoints_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = make_trainer(out=tmp_path, n_epochs=1, checkpoint_every=10)
    steps: list[int] = []
    save = trainer.folder.save_last

    def record_step(*arguments: Any) -> Any:
        steps.append(trainer.position.step)
        return save(*arguments)

    monkeypatch.setattr(trainer.folder, "save_last", record_step)
    (record,) = trainer.run()
    last_step = record["mini_batches"]
    assert steps == [*range(10, last_step + 1, 10), last_step]


def test_a_full_disk_ends_the_training_and_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = make_trainer(out=tmp_path)
    replace, targets = os.replace, []

    def fail_at_second_checkpoint(source: Path, target: Path) -> None:
        targets.append(target.name)
        if targets.count("last.safetensors") > 1:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_at_second_checkpoint)
    with pytest.raises(OSError, match=r"could not write the checkpoint .*last\.safetensors.*No space left"):
        trainer.run()
    # The checkpoint after epoch 1; its position is the start of epoch 2.
    assert load_checkpoint(tmp_path / "last.safetensors", FORMAT).progress["position"]["epoch"] == 2


def test_the_next_training_in_a_folder_moves_all_files_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_folder, "write_curves", write_curves)  # undo no_pictures
    make_trainer(out=tmp_path, validate=lambda: {"recall@20": 0.5}).run()
    assert sorted(os.listdir(tmp_path)) == [
        "best.safetensors", "curves.csv", "curves.png", "last.safetensors", "model.safetensors",
    ]  # fmt: skip
    make_trainer(out=tmp_path).run()
    assert not (tmp_path / "best.safetensors").exists(), "the best checkpoint belongs to the earlier training"
    assert len(os.listdir(tmp_path / "previous")) == 5


def test_a_failure_before_the_first_checkpoint_does_not_change_the_files_of_the_earlier_training(tmp_path: Path):
    make_trainer(out=tmp_path, validate=lambda: {"recall@20": 0.5}).run()
    contents = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    with pytest.raises(TrainingDiverged, match="no checkpoint had been written yet"):
        make_trainer(out=tmp_path, learning_rate=1e38).run()
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == contents


def test_a_second_training_in_a_folder_in_use_is_refused(tmp_path: Path):
    trainer, errors = make_trainer(out=tmp_path, n_epochs=1), []

    def train_in_same_folder() -> None:
        with pytest.raises(OSError, match=f"another training is writing to {tmp_path}") as caught:
            make_trainer(out=tmp_path).run()
        errors.append(caught)

    def run_in_thread() -> None:
        thread = threading.Thread(target=train_in_same_folder)
        thread.start()
        thread.join()

    call_at_block(trainer, 3, run_in_thread)
    trainer.run()
    assert errors and len(trainer.history) == 1


def test_a_memory_profiler_has_the_phases_of_the_training():
    with MemoryProfiler() as profiler:
        (record,) = make_trainer(n_epochs=1, fused=False, accumulate=2).run()
    phases = profiler.report().phases[1:]
    blocks = record["mini_batches"]  # with bptt=1, a block is a mini-batch
    updates = -(-blocks // 2)  # an update accumulates 2 blocks
    assert {"/".join(phase.path): phase.calls for phase in phases} == {
        "batch": updates + (blocks % 2 == 0),  # a last call may find no block
        "forward": blocks,
        "loss": blocks,
        "backward": blocks,
        "update": updates,
    }
    assert all(phase.allocated_bytes > 0 and phase.peak_bytes > 0 for phase in phases)


def test_an_epoch_may_have_thousands_of_short_updates():
    # The number of updates per call was doubled after each call, although autograd makes only one per call. It
    # overflowed after 1,024 calls.
    store = SessionStore.from_arrays(np.arange(2600) % 4, np.arange(0, 2601, 2))
    (record,) = make_trainer(store=store, n_epochs=1, lanes=1, fused=False).run()
    assert record["mini_batches"] == 1300


def test_the_global_random_state_is_not_changed():
    rng_state = torch.get_rng_state()
    trainer = make_trainer(dropout=0.5, shuffle=True)
    trainer.run()
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert trainer.peak_memory_bytes >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": None}, "n_sample=16 needs a sampler"),
        ({"patience": 2}, "patience=2 monitors recall@20, which needs validation data"),
        ({"n_epochs": 0}, "n_epochs=0: must be at least 1"),
        ({"evaluate_every": 0}, "evaluate_every=0: must be at least 1"),
        ({"precision": "half"}, "precision='half': choose 'full' or 'bf16'"),
        ({"accumulate": 0}, "accumulate=0: must be at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every=0: must be at least 1"),
        ({"checkpoint_every": 5}, "checkpoint_every=5: give out=, the folder of the checkpoints"),
        ({"lr_scheduler": "warp"}, "lr_scheduler='warp': choose one of step, cosine, plateau"),
    ],
)
def test_wrong_arguments_are_errors(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        if "sampler" in arguments:
            runner = make_trainer().runner
            SessionEpochRunner(
                runner.network, runner.loader, criterion=runner.criterion, optimizer=runner.optimizer, n_sample=16
            )
        else:
            make_trainer(**arguments)


def test_the_error_for_an_unknown_monitor_names_the_metrics():
    with pytest.raises(ValueError, match=r"monitor='recall@7' is not measured; choose one of recall@20, loss"):
        make_trainer(monitor="recall@7", validate=lambda: {"recall@20": 0.1}).run()


def test_one_session_without_negatives_is_an_error():
    with pytest.raises(
        ValueError, match=r"no mini-batch: with n_sample=0 a step needs 2 lanes with a session, and there are 1"
    ):
        make_trainer(store=markov_store(n_sessions=1), n_sample=0).run()


def test_an_earlier_training_in_the_folder_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for _ in range(2):
        make_trainer(out=tmp_path, n_epochs=1, progress=PlainProgress()).run()
    announced = [line for line in capsys.readouterr().err.splitlines() if "earlier training" in line]
    assert announced == [
        f"{tmp_path} has the files of an earlier training; they will be moved to {tmp_path}/previous when the first "
        "checkpoint of this training is written"
    ]


def test_plain_progress_prints_one_line_per_epoch(capsys: pytest.CaptureFixture[str]):
    make_trainer(progress=PlainProgress(), validate=lambda: {"recall@20": 0.25}).run()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(
        r"epoch 1/2  loss \d\.\d{6}  [\d,]+ events in [\d.]+ s  [\d,]+ events/s  recall@20 0\.2500", lines[0]
    )


def test_plain_progress_prints_lines_within_a_long_epoch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(PlainProgress, "interval_s", 0.0)
    make_trainer(n_epochs=1, progress=PlainProgress()).run()
    assert re.search(r"^epoch 1/1  \d+%  loss \d\.\d+  [\d,]+ events/s$", capsys.readouterr().err, re.MULTILINE)


def test_a_progress_bar_is_shown_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert isinstance(make_progress(), PlainProgress)
    assert isinstance(make_progress(False), SilentProgress)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = make_progress()
    assert isinstance(bar, BarProgress)
    monkeypatch.setattr(BarProgress, "interval_s", 0.0)
    make_trainer(progress=bar).run()
    assert "epoch 2/2" in capsys.readouterr().err
