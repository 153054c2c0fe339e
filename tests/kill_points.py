"""Kills a command before each of its file-system calls, in forked processes, and checks what is left.

Run as a script (by tests/test_kill_points.py): `python kill_points.py SCENARIO FOLDER`. The parent process runs no
kernels and reads no log, so that its children can: threads of OpenMP and polars do not survive a fork.
"""

from __future__ import annotations

import builtins
import io
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars
import safetensors.torch
import torch
from run_cli import cli

from gru4rec_fast import GRU4Rec, InteractionGraph, SessionStore, data, evaluation, models
from gru4rec_fast.cli import app
from gru4rec_fast.data import table_reader
from gru4rec_fast.data.sessions import ingest
from gru4rec_fast.data.sessions.preparation import open_prepared
from gru4rec_fast.data.sessions.synthetic import markov_events
from gru4rec_fast.training import Checkpoint, load_checkpoint, save_checkpoint
from gru4rec_fast.training.earlier_training import PREVIOUS, REPORT_FILE, recover_run_folder
from gru4rec_fast.training.folder_lock import lock_folder
from gru4rec_fast.training.run_folder import RunFolder

# Imported here, so that not every forked process imports them.
IMPORTED = (polars, app, data, evaluation, ingest, models, table_reader)
KILLED = 99  # exit code
FORMAT = "gru4rec_fast.Example/1"
CALLS = [(os, name) for name in ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "fsync", "open")]
CALLS += [(builtins, "open"), (io, "open"), (safetensors.torch, "save_file")]


def exit_before_call(root: Path, number: int) -> None:
    """Make this process exit before its file-system call `number` within `root`, counted from 0."""
    n_calls = 0

    def count_or_exit() -> None:
        nonlocal n_calls
        if n_calls == number:
            os._exit(KILLED)
        n_calls += 1

    def interpose(module: Any, name: str) -> None:
        call = getattr(module, name)

        def counted(*arguments: Any, **keywords: Any) -> Any:
            target = arguments[1 if name == "save_file" else 0]
            if isinstance(target, int):
                target = os.readlink(f"/proc/self/fd/{target}")
            if "dir_fd" in keywords or str(target).startswith(str(root)):
                count_or_exit()
                if name == "save_file":
                    Path(target).write_bytes(b"an incomplete file")
                    count_or_exit()
            return call(*arguments, **keywords)

        setattr(module, name, counted)

    for module, name in CALLS:
        interpose(module, name)


def run_in_child(function: Callable[[], None], root: Path, kill_at: int | None = None) -> bool:
    """Run a function in a forked process; return whether it was killed. Other failures are errors."""
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)
            if kill_at is not None:
                exit_before_call(root, kill_at)
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, KILLED), f"exit code {code}, killed before call {kill_at}"
    return code == KILLED


def run_with_all_kills(
    folder: Path, set_up: Callable[[Path], None], act: Callable[[Path], None], check: Callable[[Path], None]
) -> int:
    """Kill `act` before each call, then check what is left and act again. Return the number of kills.

    `check` asserts that the old or the new state is complete, and `act` is called again. In a copy of the folder, `act`
    is called again without a check before it, because `check` may repair the folder. This is done once for each state
    that a kill leaves; the content of temporary folders does not count, because nothing but their removal reads them.
    """
    states = set()
    template, root, copy = folder / "template", folder / "work", folder / "copy"
    template.mkdir(parents=True)
    run_in_child(lambda: set_up(template), template)
    for number in range(10_000):
        for path in (root, copy):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(template, root)
        killed = run_in_child(lambda: act(root), root, number)
        state = describe_state(root)
        if not killed:
            assert len(states) > 1
            return number
        if state in states:
            continue
        states.add(state)
        shutil.copytree(root, copy)

        def check_and_act(path: Path = root) -> None:
            check(path)
            act(path)
            check(path)

        def only_act(path: Path = copy) -> None:
            act(path)
            check(path)
            leftovers = [str(p) for p in path.rglob(".*") if p.name != ".lock"]
            assert not leftovers, leftovers

        run_in_child(check_and_act, root)
        run_in_child(only_act, copy)
    raise AssertionError("the command does not end")


def describe_state(root: Path) -> frozenset[tuple[str, int]]:
    """Return the names and the hashes of the contents of all files, without random numbers and temporary files."""
    state = set()
    for path in root.rglob("*"):
        name, is_temporary, _ = str(path.relative_to(root)).partition(".partial-")
        name = re.sub(r"\.old-\w+", ".old", name)
        state.add((name, hash(path.read_bytes()) if path.is_file() and not is_temporary else 0))
    return frozenset(state)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each file in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


# A checkpoint that replaces another one.


def save(path: Path, epoch: int) -> None:
    save_checkpoint(path, Checkpoint(FORMAT, progress={"epoch": epoch}, tensors={"model.x": torch.full((9,), epoch)}))


def check_save(root: Path) -> None:
    checkpoint = load_checkpoint(root / "a.safetensors", FORMAT)
    assert checkpoint.progress["epoch"] in (1, 2)
    assert checkpoint.tensors["model.x"].tolist() == [checkpoint.progress["epoch"]] * 9


# The first checkpoints of a training in the folder of an earlier training.


def train_run_folder(path: Path, epoch: int, finish: bool = False) -> None:
    network = torch.nn.Linear(2, 2)
    folder = RunFolder(path, Checkpoint(FORMAT, {"training": epoch}))
    with lock_folder(path):
        folder.prepare()
        folder.save_best(network, [])
        folder.save_last(network, {}, {"epoch": epoch})
        folder.write_csv([{"epoch": epoch, "loss": 1.0}])
        folder.save_model(network, [], is_best_selected=epoch == 2)
        folder.close()
        if finish:
            (path / REPORT_FILE).write_text(f"report of {epoch}")


def set_up_run_folder(root: Path) -> None:
    train_run_folder(root / "run", 0)
    train_run_folder(root / "run", 1, finish=True)
    (root / "run" / PREVIOUS / "notes.txt").write_text("mine")
    shutil.copytree(root / "run", root / "expected")


def check_run_folder(root: Path) -> None:
    run, expected = root / "run", root / "expected"
    epoch = load_checkpoint(run / "last.safetensors", FORMAT).progress["epoch"]
    recover_run_folder(run)  # as `evaluate RUN` does
    previous = contents(run / PREVIOUS)
    assert previous.pop("notes.txt") == b"mine"
    if epoch == 1:
        assert contents(run) == contents(expected)
        assert previous.keys() == contents(expected / PREVIOUS).keys() - {"notes.txt"}
        assert load_checkpoint(run / PREVIOUS / "last.safetensors", FORMAT).progress["epoch"] == 0
    else:
        assert epoch == 2
        previous_epoch = load_checkpoint(run / PREVIOUS / "last.safetensors", FORMAT).progress["epoch"]
        # Training 2 is the previous one if it ran again after the kill.
        assert previous == contents(expected) if previous_epoch == 1 else previous_epoch == 2


# A store that replaces another one; a preparation that replaces one with other parts.


def write_store(root: Path, item: int) -> None:
    SessionStore.from_arrays([0, item], [0, 2]).save(root / "store")


def check_store(root: Path) -> None:
    assert SessionStore.open(root / "store").n_items in (2, 3)
    # A folder that the user deletes does not come back.
    copy = root.with_name("deleted")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root, copy)
    shutil.rmtree(copy / "store")
    try:
        SessionStore.open(copy / "store")
    except FileNotFoundError:
        return
    raise AssertionError("the deleted store came back")


def log_path(root: Path, options: tuple[str, ...]) -> Path:
    """Return the path of the log that is prepared with these options."""
    return root / f"log{len(options)}.tsv"


def prepare(root: Path, *options: str) -> None:
    result = cli("prepare", log_path(root, options), root / "data", *options)
    assert result.exit_code == 0, result.stderr


def write_log(path: Path, names: tuple[str, ...], n_sessions: int) -> None:
    events = markov_events(n_sessions, 20, seed=1)
    columns = [events[name] for name in ("SessionId", "ItemId", "Time")[: len(names)]]
    rows = ["\t".join(map(str, row)) for row in zip(*(column.tolist() for column in columns), strict=True)]
    path.write_text("\n".join(["\t".join(names), *rows]) + "\n")


ALL_PARTS, PARTS = {"train", "test", "train_tr", "train_valid"}, {"train", "test"}
SPLIT = ("--split", "fraction=0.3")
SPLITS = (*SPLIT, "--validation-split", "fraction=0.3")


def set_up_prepare(root: Path, names: tuple[str, ...], options: tuple[str, ...]) -> None:
    write_log(log_path(root, options + SPLITS), names, 40)
    write_log(log_path(root, options + SPLIT), names, 30)
    prepare(root, *options, *SPLITS)


def check_prepared_log(root: Path) -> None:
    train_store, parts = SessionStore.open(root / "data" / "train"), open_prepared(root / "data")
    n_sessions = train_store.n_sessions + parts["test"].n_sessions
    assert (parts.keys(), n_sessions > 30) in ((ALL_PARTS, True), (PARTS, False)), (parts, n_sessions)


def check_prepared_interactions(root: Path) -> None:
    graph = InteractionGraph.open(root / "data" / "train")
    names = {path.name for path in (root / "data").iterdir() if path.is_dir()}
    assert (names, graph.n_users > 30) in ((ALL_PARTS, True), (PARTS, False)), (names, graph)


# The command train, in the folder of an earlier training, and evaluate.

TRAIN = "layers=4,batch_size=8,n_sample=4,n_epochs=1"


def train(root: Path, *options: str, epochs: str = "2") -> None:
    arguments = (
        "train",
        root / "log.tsv",
        "-ps",
        TRAIN,
        "--n-epochs",
        epochs,
        "--out",
        root / "run",
        "--monitor",
        "loss",
    )
    result = cli(*arguments, *options)
    assert result.exit_code == 0, result.stderr


def set_up_training(root: Path) -> None:
    write_log(root / "log.tsv", ("SessionId", "ItemId", "Time"), 30)
    train(root, epochs="1")


def check_training(root: Path) -> None:
    result = cli("evaluate", root / "run", root / "log.tsv")
    if result.exit_code and "which a training writes when it has ended: continue it" in result.stderr:
        copy = root.with_name("resumed")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(root, copy)
        train(copy, "--resume")
        result = cli("evaluate", copy / "run", copy / "log.tsv")
    assert result.exit_code == 0, result.stderr


SESSION_COLUMNS, USER_COLUMNS = ("SessionId", "ItemId", "Time"), ("UserId", "ItemId")
SCENARIOS: dict[str, Any] = {
    "save": (lambda r: save(r / "a.safetensors", 1), lambda r: save(r / "a.safetensors", 2), check_save),
    "previous": (set_up_run_folder, lambda r: train_run_folder(r / "run", 2), check_run_folder),
    "store": (lambda r: write_store(r, 1), lambda r: write_store(r, 2), check_store),
    "prepare": (lambda r: set_up_prepare(r, SESSION_COLUMNS, ()), lambda r: prepare(r, *SPLIT), check_prepared_log),
    "interactions": (
        lambda r: set_up_prepare(r, USER_COLUMNS, ("--interactions",)),
        lambda r: prepare(r, "--interactions", *SPLIT),
        check_prepared_interactions,
    ),
    "train": (set_up_training, train, check_training),
}


def kill_at_random(folder: Path, n_kills: int = 50) -> int:
    """Kill a training at random moments and resume it. Compare the result with that of an uninterrupted training."""
    store = SessionStore.from_arrays(*_sessions())
    parameters = {"layers": [8], "batch_size": 8, "n_sample": 8, "n_epochs": 4, "seed": 1, "dropout_p_hidden": 0.2}

    def fit(out: Path) -> None:
        resume = (out / "last.safetensors").exists()
        GRU4Rec(**parameters, monitor="loss").fit(store, out=out, resume=resume, checkpoint_every=7, progress=False)

    started = time.monotonic()
    run_in_child(lambda: fit(folder / "expected"), folder)
    seconds = time.monotonic() - started
    expected = [load_checkpoint(folder / "expected" / name, "gru4rec_fast.GRU4Rec/2") for name in NAMES]
    generator, kills = random.Random(1), 0
    while kills < n_kills:
        out, finished = folder / "killed", False
        shutil.rmtree(out, ignore_errors=True)
        while not finished:
            pid = os.fork()
            if pid == 0:
                torch.set_num_threads(1)
                fit(out)
                os._exit(0)
            time.sleep(generator.uniform(0, seconds))
            os.kill(pid, signal.SIGKILL)
            finished = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            kills += not finished
        for name, checkpoint in zip(NAMES, expected, strict=True):
            saved = load_checkpoint(out / name, "gru4rec_fast.GRU4Rec/2").tensors
            assert saved.keys() == checkpoint.tensors.keys()
            assert all(torch.equal(tensor, saved[key]) for key, tensor in checkpoint.tensors.items()), name
    return kills


NAMES = ("last.safetensors", "best.safetensors", "model.safetensors")


def _sessions() -> tuple[list[int], list[int]]:
    generator = random.Random(0)
    lengths = [generator.randint(2, 8) for _ in range(400)]
    items = [generator.randrange(40) for _ in range(sum(lengths))]
    return items, [sum(lengths[:i]) for i in range(len(lengths) + 1)]


if __name__ == "__main__":
    name, path = sys.argv[1], Path(sys.argv[2]).resolve()
    print(kill_at_random(path) if name == "random" else run_with_all_kills(path, *SCENARIOS[name]))
