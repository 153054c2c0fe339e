"""A resumed training ends with the same bits as one that was not stopped. A checkpoint of other data is an error."""

from dataclasses import replace
from pathlib import Path
from typing import Any

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

from gru4rec_fast.training import CheckpointError, TrainingInterrupted, load_checkpoint, save_checkpoint
from gru4rec_fast.training.checkpoint import convert_progress
from gru4rec_fast.training.progress import PlainProgress

pytestmark = pytest.mark.usefixtures(no_pictures.__name__, fused_and_autograd.__name__)


def assert_equal_last_checkpoints(folder: Path, other_folder: Path) -> None:
    """Assert that last.safetensors of both folders has the same weights, optimizer state and history."""
    ours, theirs = (load_checkpoint(each / "last.safetensors", FORMAT) for each in (folder, other_folder))
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in ours.tensors.items():
        assert torch.equal(tensor, theirs.tensors[name]), name
    assert without_seconds(ours.progress["history"]) == without_seconds(theirs.progress["history"])
    assert ours.progress["schedule"] == theirs.progress["schedule"]
    assert ours.progress["early_stopping"] == theirs.progress["early_stopping"]


# Arguments of make_trainer, by the name of a test case.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.3},
    "dropout": {"dropout": 0.3},
    "shuffle": {"shuffle": True},
    "two layers": {"layers": (10, 6), "momentum": 0.2},
    "separate": {"embedding": "separate"},
    "one-hot": {"embedding": "none"},
    "in-batch negatives only": {"n_sample": 0},
    "step": {"lr_scheduler": "step", "lr_scheduler_options": {"step_size": 1, "gamma": 0.5}},
    "schedule per update": {
        "lr_scheduler": "OneCycleLR",
        "lr_scheduler_options": {"max_lr": 0.2, "total_steps": 200, "interval": "update"},
        "momentum": 0.1,
    },
    "plateau": {"lr_scheduler": "plateau", "lr_scheduler_options": {"patience": 0}, "monitor": "loss"},
    "blocks": {"bptt": 4, "layers": (10, 6), "dropout": 0.2},
    "accumulation": {"bptt": 2, "accumulate": 3},
    "everything": {
        "layers": (10, 6), "momentum": 0.2, "dropout": 0.2, "shuffle": True, "bptt": 3, "accumulate": 2,
        "lr_scheduler": "cosine",
    },
    "a torch optimizer": {"embedding": "separate", "make_optimizer": lambda p: torch.optim.Adagrad(p, lr=0.05)},
}  # fmt: skip


@pytest.mark.parametrize("stop_in_block", [1, 7, "last of epoch 1", "first of epoch 2"])
@pytest.mark.parametrize("case", CASES)
def test_resuming_ends_with_the_same_bits(tmp_path: Path, case: str, stop_in_block: int | str):
    whole = make_trainer(out=tmp_path / "whole", **CASES[case])
    blocks_per_epoch = -(-whole.run()[0]["mini_batches"] // CASES[case].get("bptt", 1))
    named_blocks = {"last of epoch 1": blocks_per_epoch, "first of epoch 2": blocks_per_epoch + 1}

    stopped = make_trainer(out=tmp_path / "parts", **CASES[case])
    call_at_block(stopped, int(named_blocks.get(str(stop_in_block), stop_in_block)), press_ctrl_c)
    with pytest.raises(TrainingInterrupted):
        stopped.run()
    resumed = make_trainer(out=tmp_path / "parts", **CASES[case])
    initial = weights(resumed)
    resumed.run(load_checkpoint(tmp_path / "parts" / "last.safetensors", FORMAT))
    assert any(not torch.equal(initial[name], tensor) for name, tensor in weights(resumed).items())
    assert_equal_last_checkpoints(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_training_is_resumed_for_more_epochs(tmp_path: Path):
    make_trainer(out=tmp_path / "whole", n_epochs=3, dropout=0.2, shuffle=True).run()
    make_trainer(out=tmp_path / "parts", n_epochs=1, dropout=0.2, shuffle=True).run()
    for epochs in (2, 3, 3):  # the last resume has nothing left to train
        checkpoint = load_checkpoint(tmp_path / "parts" / "last.safetensors", FORMAT)
        make_trainer(out=tmp_path / "parts", n_epochs=epochs, dropout=0.2, shuffle=True).run(checkpoint)
    assert_equal_last_checkpoints(tmp_path / "whole", tmp_path / "parts")


def test_a_checkpoint_of_version_0_1_is_resumed(tmp_path: Path):
    """Convert a current checkpoint to the old layout, then resume from it."""
    schedule: dict[str, Any] = {"lr_scheduler": "step", "lr_scheduler_options": {"step_size": 1, "gamma": 0.5}}
    make_trainer(out=tmp_path / "whole", **schedule).run()
    stopped = make_trainer(out=tmp_path / "parts", **schedule)
    call_at_block(stopped, 7, press_ctrl_c)
    with pytest.raises(TrainingInterrupted):
        stopped.run()
    path = tmp_path / "parts" / "last.safetensors"
    current = load_checkpoint(path, FORMAT)
    place = {"summed" if name == "loss_count" else name: value for name, value in current.progress["position"].items()}
    optimizer = current.progress["optimizer"]
    progress = {name: value for name, value in current.progress.items() if name != "position"}
    progress |= {"place": place, "optimizer": {"groups": optimizer["groups"], "numbers": optimizer["scalars"]}}
    old = FORMAT.replace("/2", "/1")
    save_checkpoint(path, replace(current, format=old, progress=progress))
    with pytest.raises(CheckpointError, match="of layout version 1; this gru4rec_fast reads version 2"):
        load_checkpoint(path, FORMAT)
    convert = {old: lambda checkpoint: replace(checkpoint, progress=convert_progress(checkpoint.progress))}
    checkpoint = load_checkpoint(path, FORMAT, convert=convert)
    assert checkpoint.format == FORMAT
    make_trainer(out=tmp_path / "parts", **schedule).run(checkpoint)
    assert_equal_last_checkpoints(tmp_path / "whole", tmp_path / "parts")


def test_a_checkpoint_of_another_training_is_an_error(tmp_path: Path):
    make_trainer(out=tmp_path, validate=lambda: {"recall@20": 0.5}).run()
    last, best = (load_checkpoint(tmp_path / f"{name}.safetensors", FORMAT) for name in ("last", "best"))
    with pytest.raises(CheckpointError, match="has a model but no training state"):
        make_trainer().run(best)
    with pytest.raises(CheckpointError, match=r"trained on other data: {'sessions': 60.*not {'sessions': 61"):
        make_trainer(store=markov_store(n_sessions=61)).run(last)
    with pytest.raises(CheckpointError, match="another lr_scheduler"):
        make_trainer(lr_scheduler="step").run(last)


def test_a_cosine_schedule_of_default_length_is_not_resumed_with_other_n_epochs(tmp_path: Path):
    cosine: dict[str, Any] = {"lr_scheduler": "cosine", "n_epochs": 2}
    make_trainer(out=tmp_path, **cosine).run()
    last = load_checkpoint(tmp_path / "last.safetensors", FORMAT)
    with pytest.raises(
        CheckpointError, match=r"T_max was not given, .* n_epochs has changed .*: resume with n_epochs=2, or .*'T_max'"
    ):
        make_trainer(**{**cosine, "n_epochs": 4}).run(last)
    explicit = {**cosine, "lr_scheduler_options": {"T_max": 4}}
    make_trainer(out=tmp_path, **explicit).run()
    resumed = make_trainer(**{**explicit, "n_epochs": 4}).run(load_checkpoint(tmp_path / "last.safetensors", FORMAT))
    rates = [record["learning_rate"] for record in resumed]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 4


def test_resuming_a_finished_training_prints_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_trainer(out=tmp_path).run()
    last = load_checkpoint(tmp_path / "last.safetensors", FORMAT)
    assert len(make_trainer(out=tmp_path, progress=PlainProgress()).run(last)) == 2
    expected = "nothing left to train: epoch 2 of n_epochs=2 is finished; to continue, increase n_epochs\n"
    assert capsys.readouterr().err == expected


def test_resuming_a_training_that_stopped_early_prints_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options: dict[str, Any] = {"out": tmp_path, "n_epochs": 9, "patience": 1, "min_delta": 100.0, "monitor": "loss"}
    make_trainer(**options).run()
    make_trainer(**options, progress=PlainProgress()).run(load_checkpoint(tmp_path / "last.safetensors", FORMAT))
    expected = "nothing left to train: stopped after epoch 2 of n_epochs=9; best loss in epoch 1, patience=1\n"
    assert capsys.readouterr().err == expected


def test_the_fingerprint_is_computed_once_and_only_for_checkpoints(tmp_path: Path):
    calls: list[int] = []

    def fingerprint() -> str:
        calls.append(1)
        return "this log"

    make_trainer(n_epochs=1, fingerprint=fingerprint).run()
    assert not calls, "computed although no checkpoint was written"
    make_trainer(out=tmp_path, fingerprint=fingerprint).run()
    assert len(calls) == 1
    last = load_checkpoint(tmp_path / "last.safetensors", FORMAT)
    with pytest.raises(CheckpointError, match=r"trained on other data: .*this log.*another log"):
        make_trainer(fingerprint=lambda: "another log").run(last)
