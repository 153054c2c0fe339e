"""Errors of gru4rec-fast have messages of one line and documented exit codes, and do not lose or change files."""

from __future__ import annotations

import builtins
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cli import SMALL, cli, start, write_logs
from safetensors.torch import load_file

from gru4rec_fast import SessionStore
from gru4rec_fast.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with train.tsv, test.tsv, a trained model in run/, and files with errors."""
    folder = tmp_path_factory.mktemp("errors")
    write_logs(folder)
    (folder / "empty.tsv").write_text("")
    (folder / "log.parquet").write_text("x")
    SessionStore.from_arrays([0, 1], [0, 2]).save(folder / "store.out")
    (folder / "bad_time.tsv").write_text("SessionId\tItemId\tTime\n1\t2\tnoon-ish\n")
    (folder / "one_event_sessions.tsv").write_text("SessionId\tItemId\tTime\n1\t2\t3\n2\t2\t3\n")
    (folder / "bad.jsonl").write_text('{"session": 1, "items": [1]}\n{"session": 2}\n')
    (folder / "strings.jsonl").write_text('{"session": 1, "items": ["a"]}\n')
    (folder / "bad.toml").write_text("layers = [")
    (folder / "unknown.toml").write_text("learning_rat = 0.1\n")
    (folder / "truncated.safetensors").write_bytes(b"\x10\x00\x00")
    ran = cli("train", folder / "train.tsv", "-ps", SMALL, "--out", folder / "run")
    assert ran.exit_code == 0, ran.stderr
    return folder


# Command, arguments, and a part of the error message. File names are replaced by paths in the fixture `folder`.
WRONG_COMMANDS = [
    ("", "nosuch", "No such command 'nosuch'"),
    ("train", "", "Missing argument"),
    ("train", "train.tsv --layer 10", "--layers"),
    ("train", "train.tsv -ps layer=10", "GRU4Rec has no parameter 'layer'; did you mean 'layers'"),
    ("train", "train.tsv -ps layers", "'layers' is not name=value"),
    ("train", "train.tsv -ps layers=10,layers=20", "'layers' is given twice"),
    ("train", "train.tsv --params unknown.toml", "did you mean 'learning_rate'?"),
    ("train", "train.tsv --params bad.toml", "bad.toml"),
    ("train", "train.tsv --params none.toml", "none.toml: No such file"),
    ("train", "train.tsv --layers 0", "layers=[0]"),
    ("train", "train.tsv --layers ten", "layers='ten': must be sizes"),
    ("train", "train.tsv --batch-size 0", "batch_size=0: must be at least 1"),
    ("train", "train.tsv --n-epochs many", "n_epochs='many': must be a whole number"),
    ("train", "train.tsv --loss hinge", "loss='hinge': choose one of cross-entropy"),
    ("train", "train.tsv --impl fast", "impl='fast': choose one of auto, native, reference"),
    ("train", "train.tsv --device abacus", "device='abacus'"),
    ("train", "none.tsv --device meta", "device='meta': choose 'cpu'"),
    ("train", "none.tsv --monitor recal@20", "monitor='recal@20': choose 'loss', or recall, mrr"),
    ("train", "none.tsv --resume --out nowhere", "no checkpoint at"),
    ("train", 'none.tsv --lr-scheduler-options {"gamma":0.5}', "give the lr_scheduler they belong to"),
    ("train", "train.tsv --threads 0", "--threads"),
    ("train", "train.tsv --cutoffs 5,x", "--cutoffs 5,x: give whole numbers"),
    ("train", "train.tsv --cutoffs 0", "each at least 1"),
    ("train", "train.tsv --ties lucky", "--ties lucky: choose one of"),
    ("train", "train.tsv --targets first", "--targets first: choose one of next, last, remaining"),
    ("train", "train.tsv --by age", "--by age: choose one of popularity, length, position"),
    ("train", "train.tsv --negatives-by popularity", "--negatives-by and --negatives-seed are for --negatives"),
    ("train", "train.tsv --negatives 5 --negatives-by age", "--negatives-by age: choose one of uniform, popularity"),
    ("evaluate", "none test.tsv --per-session out.csv", "out.csv: the values of sessions or users are in a .parquet"),
    ("train", "train.tsv --resume", "--resume needs --out"),
    ("train", "none.tsv --checkpoint-every 5", "--checkpoint-every needs --out"),
    ("train", "none.tsv --cutoffs 5", "--cutoffs is for the evaluation of the trained model: give --test"),
    ("train", "none.tsv --user-key Who", "--user-key has no effect on log files of sessions"),
    ("train", "store.out --time-key When", "--time-key has no effect on prepared sessions"),
    ("train", "store.out --test none.tsv --time-key When", "none.tsv: there is no such file"),
    ("train", "train.tsv --patience 2", "give validation="),
    ("train", "none.tsv", "none.tsv: there is no such file"),
    ("train", "empty.tsv", "empty.tsv is empty"),
    ("train", "bad_time.tsv", "noon-ish"),
    ("train", "one_event_sessions.tsv", "none of the 2 sessions has two events"),
    ("train", "train.tsv --item-key Product", "no column 'Product'"),
    ("train", "run", "run is no session store"),
    ("train", "train.tsv --resume --out nowhere", "nowhere/last.safetensors"),
    ("train", "train.tsv --out test.tsv", "test.tsv: File exists"),
    ("evaluate", "none.safetensors test.tsv", "none.safetensors"),
    ("evaluate", "truncated.safetensors test.tsv", "truncated.safetensors is truncated or not a checkpoint"),
    ("evaluate", "run none.tsv", "none.tsv: there is no such file"),
    ("evaluate", "run test.tsv --batch-size 0", "batch_size=0"),
    ("evaluate", "run none.tsv --user-key Who", "--user-key has no effect on log files of sessions"),
    ("evaluate", "run store.out --separator ;", "--separator has no effect on prepared sessions"),
    ("evaluate", "run none.tsv --device meta", "device='meta': choose 'cpu'"),
    ("evaluate", "run none.tsv --impl fast", "impl='fast': choose one of auto, native, reference"),
    ("recommend", "run test.tsv --k 0", "k=0: choose 1 to 60"),
    ("recommend", "run test.tsv --k 61", "k=61: choose 1 to 60"),
    ("recommend", "run bad.jsonl", "bad.jsonl, line 2"),
    ("recommend", "run strings.jsonl", "same catalogue?"),
    ("recommend", "run none.jsonl", "none.jsonl: No such file"),
    ("recommend", "run none.tsv --user-key Who", "--user-key has no effect on log files of sessions"),
    ("recommend", "run bad.jsonl --time-key When", "--time-key has no effect on sessions that are not read from a log"),
    ("recommend", "run bad.jsonl --session-key Who", "bad.jsonl, line 2"),  # has an effect on the header of the result
    ("recommend", "run bad.jsonl --session-key Who --out none.jsonl", "--session-key has no effect"),
    ("prepare", "train.tsv data.out --split someday", "split 'someday': choose last-day"),
    ("prepare", "train.tsv data.out --split last-day --time-unit days", "time_unit='days'"),
    ("prepare", "none.tsv data.out --split fraction=0.2 --time-unit ms", "--time-unit is for splits by days"),
    ("prepare", "none.tsv data.out --time-unit ms", "--time-unit is for splits by days"),
    ("prepare", "none.tsv data.out --seed 1", "--seed is for --interactions"),
    ("prepare", "none.tsv data.out --user-key Who", "--user-key has no effect on log files of sessions"),
    (
        "prepare",
        "none.tsv data.out --session-gap 5 --session-key Who",
        "--session-key has no effect on log",
    ),
    ("prepare", "train.tsv data.out --session-gap 0", "session_gap=0.0: give a positive number"),
    ("prepare", "train.tsv data.out --session-gap 5", "no column 'UserId'"),
    ("prepare", "train.tsv data.out --session-gap x", "Invalid value for '--session-gap'"),
    (
        "prepare",
        "train.tsv data.out --columns SessionId,ItemId,Time",
        "train.tsv, line 1 (split at '\\t'): this is a",
    ),
    ("prepare", "train.tsv data.out --columns a,b", "this is a header with the names of the columns"),
    ("prepare", "train.tsv data.out --encoding klingon", "encoding='klingon': there is no such text encoding"),
    (
        "prepare",
        "train.tsv data.out --time-format %Y",
        "not of the form time_format='%Y'",
    ),
    ("prepare", "train.tsv data.out --time-format %H", "time_format='%H' has no year"),
    ("prepare", "train.tsv data.out --time-of-day-key Clock", "no column 'Clock'"),
    ("prepare", "log.parquet data.out --encoding latin-1", "encoding='latin-1' has no effect on"),
    ("prepare", "none.tsv data.out --k-core 5", "--k-core is for --interactions"),
    ("prepare", "none.tsv data.out --min-rating 3", "--min-rating has no effect on log files of sessions"),
    ("train", "none.tsv --rating-key stars", "--rating-key has no effect on log files of sessions"),
    ("train", "store.out --columns a,b", "--columns has no effect on prepared sessions"),
    ("prepare", "log.parquet data.out --separator ;", "separator=';' has no effect on"),
    ("prepare", "train.tsv data.out --min-item-support 99999", "no session is left"),
    ("prepare", "train.tsv run", "run exists and holds no data written by gru4rec_fast"),
    ("demo", "--sessions 1", "--sessions"),
]


def _is_file_name(word: str) -> bool:
    return word in ("run", "nowhere") or Path(word).suffix in (
        ".tsv",
        ".parquet",
        ".toml",
        ".jsonl",
        ".safetensors",
        ".out",
    )


@pytest.mark.parametrize(
    ("command", "arguments", "message"), WRONG_COMMANDS, ids=[" ".join(case[:2]) for case in WRONG_COMMANDS]
)
def test_wrong_arguments_and_files_are_an_error_of_one_line(
    folder: Path, command: str, arguments: str, message: str
) -> None:
    files = sorted(folder.iterdir())
    words = [folder / word if _is_file_name(word) else word for word in [command, *arguments.split()] if word]
    ran = cli(*words)
    assert ran.exit_code == 2
    assert message in ran.error_line
    assert sorted(folder.iterdir()) == files


def test_a_json_file_that_is_a_folder_is_an_error_before_training(folder: Path) -> None:
    ran = cli("train", folder / "train.tsv", "-ps", SMALL, "--json", folder)
    assert ran.exit_code == 2 and "is a folder" in ran.error_line and "epoch" not in ran.stderr


def test_a_json_file_that_cannot_be_written_is_an_error_before_training(folder: Path) -> None:
    ran = cli("train", folder / "none.tsv", "--json", "/proc/report.json")
    assert ran.exit_code == 2 and ran.error_line.startswith("error: /proc/report.json cannot be written: ")


def test_a_folder_that_another_training_is_writing_to_is_an_error(folder: Path, tmp_path: Path) -> None:
    command = [folder / "train.tsv", "-ps", SMALL, "--n-epochs", "10000", "--threads", "1", "--out", tmp_path / "run"]
    process = start("train", *command)
    assert process.stderr is not None
    assert any(line.startswith("epoch 1/") for line in iter(process.stderr.readline, ""))
    for resume in ([], ["--resume"]):
        ran = cli("train", *command, *resume)
        assert ran.exit_code == 2 and f"another training is writing to {tmp_path / 'run'}" in ran.error_line
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.splitlines()[-1].endswith("resume with the same out folder: run the same command with --resume")

    unfinished = cli("evaluate", tmp_path / "run", folder / "test.tsv")
    assert unfinished.exit_code == 2
    assert "a training writes when it has ended: continue it (train ... --resume), or give " in unfinished.error_line
    assert cli("evaluate", tmp_path / "run/last.safetensors", folder / "test.tsv").exit_code == 0


def test_debug_raises_the_exception(folder: Path) -> None:
    for arguments in (["--debug", "evaluate"], ["evaluate", "--debug"]):
        with pytest.raises(FileNotFoundError):
            main([*arguments, str(folder / "none.safetensors"), str(folder / "test.tsv")])


def test_an_unexpected_exception_is_raised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("gru4rec_fast.build_info", broken)
    with pytest.raises(KeyError, match="a bug"):
        cli("info")


def test_divergence_has_its_own_exit_code(folder: Path) -> None:
    ran = cli("train", folder / "train.tsv", "-ps", SMALL, "--learning-rate", "1e38", "--out", folder / "diverged")
    assert ran.exit_code == 3
    assert not (folder / "diverged").exists(), "there was nothing to save"
    assert "the loss is" in ran.error_line and "epoch 1" in ran.error_line


def test_arithmetic_errors_other_than_divergence_have_the_exit_code_of_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ZeroDivisionError("division by zero"), OverflowError("too large")):

        def broken(error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("gru4rec_fast.build_info", broken)
        ran = cli("info")
        assert ran.exit_code == 2 and ran.error_line == f"error: {error}"


def test_ctrl_c_saves_and_resume_gives_the_same_bits(folder: Path, tmp_path: Path) -> None:
    common = ["train", folder / "train.tsv", "-ps", SMALL, "--threads", "1"]
    process = start(*common, "--n-epochs", "10000", "--out", tmp_path / "run")
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    assert any(line.startswith("epoch 1/10000") for line in lines)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == "" and "Traceback" not in err
    assert err.splitlines()[-1].startswith("interrupted: training interrupted")
    assert err.splitlines()[-1].endswith("resume with the same out folder: run the same command with --resume")

    # With n_epochs=1 the resumed command does not train, and writes a report of the finished epochs, which are counted.
    done = cli(*common, "--n-epochs", "1", "--out", tmp_path / "run", "--resume")
    assert done.exit_code == 0, done.stderr
    n_epochs = len(json.loads((tmp_path / "run/report.json").read_text())["epochs"]) + 2
    resumed = cli(*common, "--n-epochs", str(n_epochs), "--out", tmp_path / "run", "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    uninterrupted = cli(*common, "--n-epochs", str(n_epochs), "--out", tmp_path / "uninterrupted")
    assert uninterrupted.exit_code == 0, uninterrupted.stderr
    losses = [
        [epoch["loss"] for epoch in json.loads((tmp_path / name / "report.json").read_text())["epochs"]]
        for name in ("run", "uninterrupted")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == n_epochs
    resumed_model, uninterrupted_model = (
        load_file(tmp_path / name / "model.safetensors") for name in ("run", "uninterrupted")
    )
    assert resumed_model.keys() == uninterrupted_model.keys()
    assert all(torch.equal(resumed_model[name], tensor) for name, tensor in uninterrupted_model.items())


def test_a_closed_pipe_prints_no_error(folder: Path) -> None:
    process = start("recommend", folder / "run", folder / "train.tsv", "--k", "60")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("SessionId")
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 1
    assert err.splitlines() == [f"{folder / 'train.tsv'}: 500 sessions, 3,149 events, 60 items"]


def test_a_process_prints_plain_text_and_returns_the_exit_code(folder: Path, tmp_path: Path) -> None:
    """Output to a pipe has no control characters, and the process returns the exit code."""
    logs = [folder / "train.tsv", "--test", folder / "test.tsv"]
    process = start("train", *logs, "-ps", SMALL, "--json", tmp_path / "r.json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert set(out + err) <= {"\n", *map(chr, range(32, 127))}
    assert json.loads((tmp_path / "r.json").read_text())["metrics"]["recall@20"] > 0.5
    process = start("evaluate", folder / "none.safetensors", folder / "test.tsv")
    assert process.communicate(timeout=120)[1].startswith("error: ")
    assert process.returncode == 2


def test_importing_the_command_line_imports_no_heavy_module() -> None:
    code = f"import sys; sys.path[:] = {sys.path!r}\nimport gru4rec_fast.cli\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"typer", "rich", "torch", "numpy"} & set(done.stdout.split())


def test_ctrl_c_while_torch_is_imported_ends_the_command() -> None:
    """C++ code of torch suppresses a KeyboardInterrupt in modules that it imports; this finder does the same."""
    code = """
import contextlib, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
from gru4rec_fast.cli import main
sys.exit(main(["info"]))
"""
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_during_the_imports_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    original = builtins.__import__

    def interrupted_import(name: str, *arguments: Any) -> Any:
        if name == "gru4rec_fast.cli.app":
            raise KeyboardInterrupt
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", interrupted_import)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
