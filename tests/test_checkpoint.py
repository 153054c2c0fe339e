"""Checkpoint files: saving and loading, atomic replacement, and errors for damaged or other files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gru4rec_fast.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint

FORMAT = "gru4rec_fast.Example/1"


def make_checkpoint(seed: int = 0, size: int = 100) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "model.weight": torch.randn(size, size, generator=generator).T,  # not contiguous
        "model.bias": torch.randn(size, generator=generator, dtype=torch.float64),
        "ids": torch.arange(5),
        "mask": torch.tensor([True, False]),
        "step": torch.tensor(3.0),
        "nothing": torch.empty(0, 4),
    }
    return Checkpoint(FORMAT, {"layers": [8, 4], "loss": "bpr-max"}, {"epoch": 2, "best": float("inf")}, tensors)


def test_a_loaded_checkpoint_equals_the_saved_one(tmp_path: Path):
    path = save_checkpoint(tmp_path / "new" / "folder" / "model.safetensors", make_checkpoint())
    loaded = load_checkpoint(path, FORMAT)
    assert (loaded.config, loaded.progress) == (make_checkpoint().config, make_checkpoint().progress)
    assert loaded.tensors.keys() == make_checkpoint().tensors.keys()
    for name, tensor in make_checkpoint().tensors.items():
        assert torch.equal(loaded.tensors[name], tensor) and loaded.tensors[name].dtype == tensor.dtype
    assert set(loaded.group("model.")) == {"weight", "bias"}
    assert os.listdir(path.parent) == ["model.safetensors"]
    other = tmp_path / "any file"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode, "the permissions do not follow the umask"


def test_a_missing_file_or_a_folder_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*missing\.safetensors"):
        load_checkpoint(tmp_path / "missing.safetensors", FORMAT)
    with pytest.raises(FileNotFoundError, match="is a folder; it has no files of a training"):
        load_checkpoint(tmp_path, FORMAT)
    for name in ("model.safetensors", "best.safetensors", "curves.csv"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=r"give one of its files: best\.safetensors, model\.safetensors$"):
        load_checkpoint(tmp_path, FORMAT)


@pytest.mark.parametrize("n_bytes", [0, 4, 100, -1])  # -1: all bytes but the last
def test_a_truncated_file_is_an_error(tmp_path: Path, n_bytes: int):
    path = save_checkpoint(tmp_path / "model.safetensors", make_checkpoint())
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or not a checkpoint"):
        load_checkpoint(path, FORMAT)


def test_a_file_that_is_not_a_checkpoint_is_an_error(tmp_path: Path):
    text = tmp_path / "log.csv"
    text.write_text("SessionId\tItemId\tTime\n" * 50)
    with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
        load_checkpoint(text, FORMAT)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.ones(2)}, foreign)
    with pytest.raises(CheckpointError, match="not a checkpoint of gru4rec_fast"):
        load_checkpoint(foreign, FORMAT)


def test_a_header_that_is_nested_too_deeply_is_an_error(tmp_path: Path):
    header = {"format": FORMAT, "config": "[" * 99_999, "progress": "{}"}
    save_file({"x": torch.ones(2)}, tmp_path / "deep.safetensors", metadata=header)
    with pytest.raises(CheckpointError, match=r"deep\.safetensors is truncated or not .* nested too deeply"):
        load_checkpoint(tmp_path / "deep.safetensors", FORMAT)


def test_another_model_or_another_layout_version_is_an_error(tmp_path: Path):
    path = save_checkpoint(tmp_path / "model.safetensors", make_checkpoint())
    with pytest.raises(CheckpointError, match=r"a checkpoint of gru4rec_fast\.Example, not of gru4rec_fast\.NGCF"):
        load_checkpoint(path, "gru4rec_fast.NGCF/1")
    with pytest.raises(CheckpointError, match="layout version 1; this gru4rec_fast reads version 2"):
        load_checkpoint(path, "gru4rec_fast.Example/2")


def test_values_that_cannot_be_stored_are_refused_before_writing(tmp_path: Path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(tmp_path / "model.safetensors", Checkpoint(FORMAT, {"x": object()}))
    with pytest.raises(TypeError, match=r"dense tensors only, not model\.weight"):
        save_checkpoint(tmp_path / "a", Checkpoint(FORMAT, tensors={"model.weight": torch.eye(2).to_sparse()}))
    assert os.listdir(tmp_path) == []


def test_a_failing_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = save_checkpoint(tmp_path / "model.safetensors", make_checkpoint(seed=0))

    def fail(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=r"could not write .*model\.safetensors.*No space left.*is unchanged"):
        save_checkpoint(path, make_checkpoint(seed=1))
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert torch.equal(
        load_checkpoint(path, FORMAT).tensors["model.weight"], make_checkpoint(seed=0).tensors["model.weight"]
    )


@pytest.mark.skipif(os.name != "posix", reason="limits the file size with setrlimit")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path):
    """Save in a process that cannot write files of more than 100 kB, so that writing fails half-way."""
    path = save_checkpoint(tmp_path / "model.safetensors", make_checkpoint(size=10))
    code = (
        "import resource, sys, torch\n"
        "from gru4rec_fast.training.checkpoint import Checkpoint, save_checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"try: save_checkpoint(sys.argv[1], Checkpoint({FORMAT!r}, tensors={{'x': torch.ones(1000, 1000)}}))\n"
        "except OSError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    message = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert message.count("\n") == 1 and "could not write the checkpoint" in message and "File too large" in message
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert torch.equal(load_checkpoint(path, FORMAT).tensors["ids"], torch.arange(5))


def test_an_interrupt_while_saving_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "model.safetensors", make_checkpoint())
    assert os.listdir(tmp_path) == []
