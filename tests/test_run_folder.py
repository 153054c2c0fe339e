"""The run folder: the files of an earlier training are moved, and a second training at the same time is refused."""

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
from gru4rec_fast.training.earlier_training import PREVIOUS, RUN_FILES
from gru4rec_fast.training.folder_lock import lock_folder
from gru4rec_fast.training.run_folder import RunFolder, checkpoint_to_resume

FORMAT = "gru4rec_fast.Example/1"
NETWORK = torch.nn.Linear(2, 2)


def make_run_folder(path: Path) -> RunFolder:
    return RunFolder(path, Checkpoint(FORMAT))


def write_epoch(folder: RunFolder, epoch: int) -> None:
    """Write the checkpoint and the table of losses, as a training does after an epoch."""
    folder.save_last(NETWORK, {}, {"epoch": epoch})
    folder.write_csv([{"epoch": epoch, "loss": 1.0}])


def write_finished_training(path: Path, epoch: int = 1) -> None:
    """Write the files of a finished `gru4rec-fast train`."""
    write_epoch(make_run_folder(path), epoch)
    for name in ("model.safetensors", "report.json"):
        (path / name).write_text(f"{name} of {epoch}")


def file_contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each file in a folder, by name. Subfolders are left out."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def saved_epoch(path: Path) -> int:
    """Return the epoch of the last checkpoint in a folder."""
    return load_checkpoint(path / "last.safetensors", FORMAT).progress["epoch"]


def test_the_first_checkpoint_moves_all_files_of_an_earlier_training(tmp_path: Path):
    write_finished_training(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    earlier = file_contents(tmp_path)
    folder = make_run_folder(tmp_path)
    assert folder.has_earlier_training
    folder.write_curves([{"epoch": 1, "loss": 2.0}])  # writes nothing: this training has no checkpoint yet
    assert file_contents(tmp_path) == earlier
    write_epoch(folder, 7)
    assert not folder.has_earlier_training
    assert sorted(file_contents(tmp_path)) == ["curves.csv", "last.safetensors", "notes.txt"]
    assert saved_epoch(tmp_path) == 7
    del earlier["notes.txt"]
    assert file_contents(tmp_path / PREVIOUS) == earlier
    write_epoch(folder, 8)
    assert saved_epoch(tmp_path) == 8 and saved_epoch(tmp_path / PREVIOUS) == 1


def test_previous_only_has_the_files_of_the_last_earlier_training(tmp_path: Path):
    write_finished_training(tmp_path, 1)
    for epoch in (2, 3):
        write_epoch(make_run_folder(tmp_path), epoch)
    assert sorted(file_contents(tmp_path / PREVIOUS)) == ["curves.csv", "last.safetensors"], (
        "previous still has files of the first training"
    )
    assert saved_epoch(tmp_path / PREVIOUS) == 2


def test_a_first_checkpoint_that_fails_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_finished_training(tmp_path)
    earlier = file_contents(tmp_path)

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left on device"):
        make_run_folder(tmp_path).save_last(NETWORK, {}, {})
    assert file_contents(tmp_path) == earlier and not (tmp_path / PREVIOUS).exists()


def test_resuming_in_the_same_folder_moves_nothing(tmp_path: Path):
    write_finished_training(tmp_path)
    folder = make_run_folder(tmp_path)
    folder.continue_from(tmp_path / "last.safetensors")
    assert not folder.has_earlier_training
    write_epoch(folder, 2)
    assert not (tmp_path / PREVIOUS).exists()
    assert set(file_contents(tmp_path)) == {"last.safetensors", "curves.csv", "report.json"}


def test_resuming_from_another_folder_moves_the_files_in_the_output_folder(tmp_path: Path):
    write_finished_training(tmp_path / "output", 1)
    write_finished_training(tmp_path / "other", 2)
    folder = make_run_folder(tmp_path / "output")
    folder.continue_from(tmp_path / "other" / "last.safetensors")
    assert folder.last_saved == tmp_path / "other" / "last.safetensors"
    write_epoch(folder, 3)
    assert [saved_epoch(tmp_path / name) for name in ("output", "output/previous", "other")] == [3, 1, 2]


def test_run_files_has_the_names_of_all_files_that_are_written(tmp_path: Path):
    pytest.importorskip("matplotlib")
    folder = make_run_folder(tmp_path)
    write_epoch(folder, 1)
    folder.save_best(NETWORK, [])
    folder.save_model(NETWORK, [], is_best_selected=True)
    folder.write_curves([{"epoch": 1, "loss": 1.0}])
    assert set(file_contents(tmp_path)) | {"report.json"} == set(RUN_FILES)


def test_the_model_is_the_best_one_if_there_is_one_else_the_last(tmp_path: Path):
    folder = make_run_folder(tmp_path)
    folder.save_model(NETWORK, [], is_best_selected=False)
    assert file_contents(tmp_path) == {}  # nothing was trained
    write_epoch(folder, 1)
    for is_best_selected in (False, True):
        folder.save_model(NETWORK, [{"epoch": 1}], is_best_selected=is_best_selected)
        model = load_checkpoint(tmp_path / "model.safetensors", FORMAT)
        assert model.progress == {"history": [{"epoch": 1}]} and set(model.tensors) == {"model.weight", "model.bias"}
    folder.save_best(torch.nn.Linear(2, 2), [])
    folder.save_model(NETWORK, [], is_best_selected=True)
    contents = file_contents(tmp_path)
    assert contents["model.safetensors"] == contents["best.safetensors"]
    resumed = make_run_folder(tmp_path)
    resumed.continue_from(tmp_path / "last.safetensors")
    resumed.save_model(NETWORK, [], is_best_selected=False)  # nothing is left to train
    assert file_contents(tmp_path) == contents
    write_epoch(resumed, 2)
    assert not (tmp_path / "model.safetensors").exists()  # it was of epoch 1


def test_temporary_files_of_version_0_1_are_removed(tmp_path: Path):
    for name in (".last.safetensors.123.tmp", ".report.json.7.tmp", ".notes.123.tmp", ".last.safetensors.tmp"):
        (tmp_path / name).touch()
    with lock_folder(tmp_path):
        make_run_folder(tmp_path).prepare()
    assert sorted(os.listdir(tmp_path)) == [".last.safetensors.tmp", ".notes.123.tmp"]


def test_resuming_without_a_checkpoint_is_an_error(tmp_path: Path):
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint at .*last\.safetensors: that folder has no training to resume"
    ):
        checkpoint_to_resume(tmp_path)


def test_one_thread_at_a_time_can_lock_a_folder(tmp_path: Path):
    results: list[str] = []

    def try_to_lock() -> None:
        try:
            with lock_folder(tmp_path):
                results.append("locked")
        except OSError as error:
            results.append(str(error))

    with lock_folder(tmp_path), lock_folder(str(tmp_path)):  # the thread that has the lock can lock again
        thread = threading.Thread(target=try_to_lock)
        thread.start()
        thread.join()
    assert results == [f"another training is writing to {tmp_path}: wait for its end, or choose another folder"]
    try_to_lock()
    assert results[1:] == ["locked"]
    assert os.listdir(tmp_path) == [], "the lock file was not removed"


def test_a_folder_that_the_lock_created_is_removed_if_it_is_empty(tmp_path: Path):
    with lock_folder(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="failed"), lock_folder(tmp_path / "new"):
        raise ValueError("failed")
    assert not (tmp_path / "new").exists()
    with lock_folder(tmp_path / "new"):
        (tmp_path / "new" / "file").touch()
    assert os.listdir(tmp_path / "new") == ["file"]
    with lock_folder(None):  # no folder: locks nothing
        pass


def test_a_killed_process_releases_its_lock(tmp_path: Path):
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from gru4rec_fast.training.folder_lock import lock_folder\n"
        "with lock_folder(sys.argv[1]):\n    print('locked', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        with pytest.raises(OSError, match=f"another training is writing to {tmp_path}"), lock_folder(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert os.listdir(tmp_path) == [".lock"]
    with lock_folder(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_lock_file_removed_while_being_locked_is_created_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A lock on a removed file would exclude nobody, so a new file is created and locked."""
    import fcntl

    flock, calls = fcntl.flock, [0]

    def remove_file_at_first_call(stream: object, operation: int) -> None:
        calls[0] += 1
        if calls[0] == 1:
            (tmp_path / ".lock").unlink()
        flock(stream, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", remove_file_at_first_call)
    with lock_folder(tmp_path):
        assert calls == [2] and (tmp_path / ".lock").exists()


def test_a_file_system_without_locks_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING, "gru4rec_fast"), lock_folder(tmp_path):
        assert "cannot be locked" in caplog.text and str(tmp_path) in caplog.text


def test_before_rename_is_called_while_the_old_checkpoint_exists(tmp_path: Path):
    path = save_checkpoint(tmp_path / "a", Checkpoint(FORMAT, {"n": 1}))
    seen: list[int] = []  # n of the checkpoint at `path` when before_rename is called
    save_checkpoint(path, Checkpoint(FORMAT, {"n": 2}), lambda: seen.append(load_checkpoint(path, FORMAT).config["n"]))
    assert seen == [1] and load_checkpoint(path, FORMAT).config == {"n": 2}
    assert load_checkpoint(path, FORMAT).path == path
