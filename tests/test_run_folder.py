"""The run folder: files of an earlier training are moved, and a concurrent training is refused."""

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from gru4rec_fast.training import Checkpoint, load_checkpoint, save_checkpoint
from gru4rec_fast.training.folder_lock import exclusive
from gru4rec_fast.training.run_folder import PREVIOUS, RUN_FILES, RunFolder, checkpoint_to_resume

FORMAT = "gru4rec_fast.Example/1"
NETWORK = torch.nn.Linear(2, 2)


def a_folder(path: Path) -> RunFolder:
    return RunFolder(path, Checkpoint(FORMAT))


def write(folder: RunFolder, epoch: int) -> None:
    """Write what a training writes after an epoch."""
    folder.save_last(NETWORK, {}, {"epoch": epoch})
    folder.write_csv([{"epoch": epoch, "loss": 1.0}])


def fill(path: Path, epoch: int = 1) -> None:
    """Write the files of a finished training of the command line."""
    write(a_folder(path), epoch)
    for name in ("model.safetensors", "report.json"):
        (path / name).write_text(f"{name} of {epoch}")


def content(path: Path) -> dict[str, bytes]:
    return {name.name: name.read_bytes() for name in path.iterdir() if name.is_file()}


def epoch_in(path: Path) -> int:
    return load_checkpoint(path / "last.safetensors", FORMAT).progress["epoch"]


def test_an_earlier_training_stays_until_the_first_checkpoint_and_is_then_moved_as_a_whole(tmp_path: Path):
    fill(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    earlier = content(tmp_path)
    folder = a_folder(tmp_path)
    assert folder.has_earlier_training
    folder.write_curves([{"epoch": 1, "loss": 2.0}])  # without a checkpoint there is nothing to draw
    assert content(tmp_path) == earlier
    write(folder, 7)
    assert not folder.has_earlier_training
    assert sorted(content(tmp_path)) == ["curves.csv", "last.safetensors", "notes.txt"]
    assert epoch_in(tmp_path) == 7
    del earlier["notes.txt"]
    assert content(tmp_path / PREVIOUS) == earlier
    write(folder, 8)
    assert epoch_in(tmp_path) == 8 and epoch_in(tmp_path / PREVIOUS) == 1


def test_previous_has_the_files_of_one_training(tmp_path: Path):
    fill(tmp_path, 1)
    for epoch in (2, 3):
        write(a_folder(tmp_path), epoch)
    assert sorted(content(tmp_path / PREVIOUS)) == ["curves.csv", "last.safetensors"], "the model of the first is gone"
    assert epoch_in(tmp_path / PREVIOUS) == 2


def test_a_first_checkpoint_that_fails_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(tmp_path)
    earlier = content(tmp_path)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        a_folder(tmp_path).save_last(NETWORK, {}, {})
    assert content(tmp_path) == earlier and not (tmp_path / PREVIOUS).exists()


def test_resuming_in_the_same_folder_moves_nothing(tmp_path: Path):
    fill(tmp_path)
    folder = a_folder(tmp_path)
    folder.continue_from(tmp_path / "last.safetensors")
    assert not folder.has_earlier_training
    write(folder, 2)
    assert not (tmp_path / PREVIOUS).exists()
    assert set(content(tmp_path)) == {"last.safetensors", "curves.csv", "model.safetensors", "report.json"}


def test_resuming_from_another_folder_moves_the_files_of_this_one(tmp_path: Path):
    fill(tmp_path / "here", 1)
    fill(tmp_path / "there", 2)
    folder = a_folder(tmp_path / "here")
    folder.continue_from(tmp_path / "there" / "last.safetensors")
    assert folder.last_saved == tmp_path / "there" / "last.safetensors"
    write(folder, 3)
    assert [epoch_in(tmp_path / name) for name in ("here", "here/previous", "there")] == [3, 1, 2]


def test_every_file_that_is_written_is_known(tmp_path: Path):
    pytest.importorskip("matplotlib")
    folder = a_folder(tmp_path)
    write(folder, 1)
    folder.save_best(NETWORK, [])
    folder.write_curves([{"epoch": 1, "loss": 1.0}])
    assert set(content(tmp_path)) | {"model.safetensors", "report.json"} == set(RUN_FILES)


def test_nothing_to_resume(tmp_path: Path):
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint at .*last\.safetensors: that folder has no training to resume"
    ):
        checkpoint_to_resume(tmp_path)


def test_one_thread_at_a_time_can_lock_a_folder(tmp_path: Path):
    refused: list[str] = []

    def other() -> None:
        try:
            with exclusive(tmp_path):
                refused.append("no")
        except OSError as error:
            refused.append(str(error))

    with exclusive(tmp_path), exclusive(str(tmp_path)):  # nests
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert refused == [f"another training is writing to {tmp_path}: wait for its end, or choose another folder"]
    other()
    assert refused[1:] == ["no"]
    assert os.listdir(tmp_path) == [], "the lock file goes with the lock"


def test_a_folder_that_stays_empty_is_removed_again(tmp_path: Path):
    with exclusive(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="failed"), exclusive(tmp_path / "new"):
        raise ValueError("failed")
    assert not (tmp_path / "new").exists()
    with exclusive(tmp_path / "new"):
        (tmp_path / "new" / "file").touch()
    assert os.listdir(tmp_path / "new") == ["file"]
    with exclusive(None):
        pass


def test_the_lock_ends_with_its_process(tmp_path: Path):
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from gru4rec_fast.training.folder_lock import exclusive\n"
        "with exclusive(sys.argv[1]):\n    print('mine', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "mine\n"
        with pytest.raises(OSError, match=f"another training is writing to {tmp_path}"), exclusive(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert os.listdir(tmp_path) == [".lock"]
    with exclusive(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_lock_file_that_was_removed_meanwhile_is_locked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The previous holder removes the file after we opened it: a lock on this file would exclude nobody."""
    import fcntl

    flock, calls = fcntl.flock, [0]

    def late(stream: object, operation: int) -> None:
        calls[0] += 1
        if calls[0] == 1:
            (tmp_path / ".lock").unlink()
        flock(stream, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", late)
    with exclusive(tmp_path):
        assert calls == [2] and (tmp_path / ".lock").exists()


def test_a_file_system_without_locks_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING, "gru4rec_fast"), exclusive(tmp_path):
        assert "cannot be locked" in caplog.text and str(tmp_path) in caplog.text


def test_before_rename_runs_while_the_old_checkpoint_exists(tmp_path: Path):
    """At that time the new file is complete and the old one is unchanged."""
    path = save_checkpoint(tmp_path / "a", Checkpoint(FORMAT, {"n": 1}))
    seen: list[int] = []
    save_checkpoint(path, Checkpoint(FORMAT, {"n": 2}), lambda: seen.append(load_checkpoint(path, FORMAT).config["n"]))
    assert seen == [1] and load_checkpoint(path, FORMAT).config == {"n": 2}
    assert load_checkpoint(path, FORMAT).path == path
