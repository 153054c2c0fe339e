"""gru4rec-fast: results, files and help of every command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from run_cli import SMALL, CommandResult, cli, write_logs

from gru4rec_fast import GRU4Rec, build_info
from gru4rec_fast.cli import main
from gru4rec_fast.cli.registry import PARAMETERS
from gru4rec_fast.data import SessionStore
from gru4rec_fast.models import GRU4RecParameters

COMMANDS = ("demo", "prepare", "train", "evaluate", "recommend", "info")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with train.tsv and test.tsv."""
    folder = tmp_path_factory.mktemp("logs")
    write_logs(folder)
    return folder


@pytest.fixture(scope="module")
def run_folder(logs: Path) -> Path:
    """Train a model and return the run folder."""
    ran = train(logs, "-ps", SMALL, "--out", logs / "run", "--json", logs / "run.json", "--cutoffs", "20,5")
    assert ran.exit_code == 0, ran.stderr
    return logs / "run"


def train(logs: Path, *arguments: str | Path) -> CommandResult:
    return cli("train", logs / "train.tsv", "--test", logs / "test.tsv", "--threads", "1", *arguments)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    ran = cli(command, "--help")
    assert ran.exit_code == 0
    assert f"Example: gru4rec-fast {command}" in " ".join(ran.stdout.split())
    assert not ran.control_characters()


def test_help_lists_the_commands() -> None:
    assert cli().stdout == cli("--help").stdout
    assert all(f" {command} " in cli().stdout for command in COMMANDS)


def test_pyproject_installs_the_command() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"gru4rec-fast": f"{main.__module__}:{main.__name__}"}


def help_by_option(monkeypatch: pytest.MonkeyPatch, command: str) -> dict[str, str]:
    """Return the help of each option of a command, in one line."""
    monkeypatch.setenv("COLUMNS", "2000")
    lines = [line.strip("│ ") for line in cli(command, "--help").stdout.splitlines() if line.startswith("│")]
    return {line.split()[0]: " ".join(line.split()) for line in lines}


def test_help_of_train_shows_every_parameter_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    options = help_by_option(monkeypatch, "train")
    for model, cls in PARAMETERS.items():
        for name, value in cls().to_dict().items():
            text = options[f"--{name.replace('_', '-')}"]
            n_models = sum(name in other.names() for other in PARAMETERS.values())
            if n_models < len(PARAMETERS):  # then the help names the models that have the parameter
                assert re.search(rf"\b{model}\b[a-z0-9, ]*: ", text), text
            if value not in (None, False):
                default = re.escape("/".join(map(str, value)) if isinstance(value, list) else str(value))
                assert re.search(rf"Default: ({default}\.$|.*\b{default} \([a-z0-9, ]*{model})", text), (name, text)
            elif value is False:
                assert "Default" not in text
    assert "Default: 64 (gru4rec), 1024 (ngcf), 2048 (lightgcn)." in options["--batch-size"]
    assert "Default: 1 (gru4rec), 10 (ngcf, lightgcn)." in options["--evaluate-every"]
    assert "--lr-scheduler NAME Learning-rate schedule: " in options["--lr-scheduler"]


def test_help_needs_no_torch() -> None:
    code = f"import sys; sys.path[:] = {sys.path!r}\nfrom gru4rec_fast.cli import main\n"
    code += "assert main(['train', '--help']) == 0\nassert not {'torch', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--layer-sizes" in done.stdout, done.stderr


def test_train_writes_a_report(logs: Path, run_folder: Path) -> None:
    report = read_json(run_folder / "report.json")
    assert report == read_json(logs / "run.json")
    assert {"recall@20", "mrr@20", "recall@5", "mrr@5"} <= set(report["metrics"])
    assert 0.6 < report["metrics"]["recall@20"] < 1
    assert [epoch["epoch"] for epoch in report["epochs"]] == [1, 2]
    for epoch in report["epochs"]:
        assert epoch["events"] == SessionStore.from_events(logs / "train.tsv").n_targets
        assert epoch["mini_batches"] >= epoch["events"] / 8
        assert epoch["seconds"] > 0 and epoch["loss"] > 0
    assert report["peak_memory_bytes"] > 0
    # The training ran with --threads 1.
    assert report["build"] == build_info() | {"threads": report["build"]["threads"]}
    assert report["evaluation"]["n_targets"] == SessionStore.from_events(logs / "test.tsv").n_targets
    assert report["data"]["train"]["n_sessions"] == 500
    names = {"model.safetensors", "last.safetensors", "curves.csv", "report.json"}
    assert names <= {path.name for path in run_folder.iterdir()}


def test_options_string_and_file_have_the_same_effect(logs: Path, tmp_path: Path) -> None:
    values = {"loss": "bpr-max", "layers": [8, 4], "batch_size": 16, "n_sample": 8, "constrained_embedding": False}
    values |= {"embedding": "layersize", "n_epochs": 1, "seed": 3, "elu_param": 1, "momentum": 0.1, "bpreg": 0.5}
    text = {name: "/".join(map(str, value)) if name == "layers" else str(value) for name, value in values.items()}
    (tmp_path / "values.json").write_text(json.dumps(values))
    toml = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    (tmp_path / "values.toml").write_text("\n".join(["[parameters]", *toml]))
    arguments_by_form = {
        "options": [word for name, value in text.items() for word in (f"--{name.replace('_', '-')}", value)],
        "string": ["-ps", ",".join(f"{name}={value}" for name, value in text.items())],
        "json": ["--params", tmp_path / "values.json"],
        "toml": ["--params", tmp_path / "values.toml"],
    }
    reports = {}
    for form, arguments in arguments_by_form.items():
        ran = train(logs, *arguments, "--json", tmp_path / "report.json")
        assert ran.exit_code == 0, ran.stderr
        reports[form] = read_json(tmp_path / "report.json")
    assert reports["options"]["parameters"] == GRU4RecParameters.create(values).to_dict()
    for report in reports.values():
        assert report["parameters"] == reports["options"]["parameters"]
        assert report["metrics"] == reports["options"]["metrics"]


def test_options_override_the_string_and_the_string_overrides_the_file(logs: Path, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("layers = [4]\nn_sample = 4\nbatch_size = 4\nn_epochs = 1\n")
    ran = train(
        logs, "--params", tmp_path / "p.toml", "-ps", "layers=8,n_sample=8", "--layers", "16", "--shuffle",
        "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.stderr
    result = read_json(tmp_path / "r.json")["parameters"]
    assert (result["layers"], result["n_sample"], result["batch_size"], result["shuffle"]) == ([16], 8, 4, True)


def test_an_option_with_the_default_value_overrides_the_string(logs: Path, tmp_path: Path) -> None:
    ran = train(logs, "-ps", f"{SMALL},bpreg=2,momentum=0.3", "--momentum", "0.0", "--json", tmp_path / "r.json")
    assert ran.exit_code == 0, ran.stderr
    result = read_json(tmp_path / "r.json")["parameters"]
    assert (result["momentum"], result["bpreg"]) == (0.0, 2.0)


def test_validation_selects_the_epoch_that_is_tested(logs: Path, tmp_path: Path) -> None:
    arguments = ["-ps", SMALL, "--n-epochs", "4", "--validation", logs / "test.tsv", "--monitor", "mrr@20"]
    ran = train(logs, *arguments, "--json", tmp_path / "r.json")
    assert ran.exit_code == 0, ran.stderr
    report = read_json(tmp_path / "r.json")
    measured = [epoch["validation"]["mrr@20"] for epoch in report["epochs"]]
    assert report["model_of_epoch"] == 1 + int(np.argmax(measured))
    assert report["metrics"]["mrr@20"] == max(measured)  # the validation sessions are the test sessions here
    assert f"best epoch by mrr@20 is {report['model_of_epoch']} of 4" in ran.stderr

    ran = cli("train", logs / "train.tsv", "--threads", "1", *arguments, "--json", tmp_path / "u.json")
    assert ran.exit_code == 0, ran.stderr
    assert read_json(tmp_path / "u.json")["metrics"]["mrr@20"] == max(measured)


def test_resuming_without_validation_saves_the_last_model(logs: Path, tmp_path: Path) -> None:
    """Only epoch 1 was validated, so it is not known to be the best."""
    arguments = ["-ps", SMALL, "--out", tmp_path / "run"]
    assert train(logs, *arguments, "--n-epochs", "1", "--validation", logs / "test.tsv").exit_code == 0
    ran = train(logs, *arguments, "--n-epochs", "3", "--resume")
    assert ran.exit_code == 0, ran.stderr
    assert read_json(tmp_path / "run/report.json")["model_of_epoch"] == 3
    model, latest = (GRU4Rec.load(tmp_path / "run" / f"{name}.safetensors") for name in ("model", "last"))
    assert model.history == latest.history and len(model.history) == 3


def test_files_of_an_earlier_training_move_to_previous(logs: Path, tmp_path: Path) -> None:
    """They move to previous/ when the first checkpoint of the new training is complete, and stay if there is none."""

    def files(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    arguments = ["-ps", SMALL, "--n-epochs", "1", "--out", tmp_path / "run"]
    assert train(logs, *arguments, "--validation", logs / "test.tsv").exit_code == 0
    first = files(tmp_path / "run")
    assert {"model.safetensors", "last.safetensors", "best.safetensors", "report.json", "curves.csv"} <= set(first)
    assert train(logs, *arguments, "--learning-rate", "1e38").exit_code == 3  # the loss became infinite or NaN
    assert files(tmp_path / "run") == first
    second = train(logs, *arguments, "--seed", "5")
    assert second.exit_code == 0, second.stderr
    assert f"{tmp_path / 'run'} has the files of an earlier training" in second.stderr
    assert files(tmp_path / "run/previous") == first
    assert set(files(tmp_path / "run")) == set(first) - {"best.safetensors"}
    assert read_json(tmp_path / "run/report.json")["parameters"]["seed"] == 5


def test_resuming_a_finished_training_prints_a_note(run_folder: Path, logs: Path, tmp_path: Path) -> None:
    arguments = ["-ps", SMALL, "--n-epochs", "1", "--out", tmp_path / "run"]
    assert train(logs, *arguments).exit_code == 0
    again = train(logs, *arguments, "--resume")
    assert again.exit_code == 0
    assert (
        "nothing left to train: epoch 1 of n_epochs=1 is finished; to continue, increase n_epochs"
        in again.stderr.splitlines()
    )


def test_training_prints_plain_lines_to_a_pipe(run_folder: Path, logs: Path) -> None:
    ran = train(logs, "-ps", SMALL, "--baselines")
    assert ran.exit_code == 0
    assert not ran.control_characters()
    assert ran.stderr.count("epoch ") == 2
    assert ran.stdout.split()[:4] == ["metric", "model", "popularity", "random"]


def test_a_warning_counts_the_skipped_sessions(tmp_path: Path) -> None:
    rows = ["SessionId,ItemId,Time", "9,1,0", *(f"{session},{item},{item}" for session in (1, 2, 3) for item in (1, 2))]
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    ran = cli("train", tmp_path / "log.csv", "-ps", "layers=4,batch_size=2,n_sample=2,n_epochs=1")
    assert ran.exit_code == 0, ran.stderr
    assert "warning: 1 of 4 sessions have fewer than two events and are skipped" in ran.stderr.splitlines()


def test_evaluate_gives_the_metrics_of_train(logs: Path, run_folder: Path, tmp_path: Path) -> None:
    ran = cli("evaluate", run_folder, logs / "test.tsv", "--cutoffs", "5,20", "--baselines", "--json", tmp_path / "e")
    assert ran.exit_code == 0, ran.stderr
    result, trained = read_json(tmp_path / "e"), read_json(run_folder / "report.json")
    assert result["metrics"] == trained["metrics"]
    assert result["metrics"]["mrr@20"] > result["baselines"]["popularity"]["mrr@20"]
    assert set(result["baselines"]) == {"popularity", "random"}
    table = {line.split()[0]: line.split()[1:] for line in ran.stdout.splitlines()}
    assert table["recall@20"][0] == f"{trained['metrics']['recall@20']:.4f}"


def test_evaluate_prints_the_ties_option(logs: Path, run_folder: Path) -> None:
    for mode in ("standard", "median"):
        assert f"{mode} ties" in cli("evaluate", run_folder, logs / "test.tsv", "--ties", mode).stdout


def test_recommend_for_the_sessions_of_a_log(logs: Path, run_folder: Path, tmp_path: Path) -> None:
    ran = cli("recommend", run_folder / "model.safetensors", logs / "test.tsv", "--k", "3", "--exclude-seen")
    assert ran.exit_code == 0, ran.stderr
    header, *rows = [line.split("\t") for line in ran.stdout.splitlines()]
    assert header == ["SessionId", "Rank", "ItemId", "Score"]
    store = SessionStore.from_events(logs / "test.tsv")
    sessions = np.split(store.vocabulary.ids[store.items], store.offsets[1:-1])
    expected = GRU4Rec.load(run_folder / "model.safetensors").recommend(sessions, 3, exclude_seen=True)
    assert [row[0] for row in rows] == [str(session) for session in store.session_ids for _ in range(3)]
    assert [row[1] for row in rows] == ["1", "2", "3"] * store.n_sessions
    assert [int(row[2]) for row in rows] == expected.items.ravel().tolist()
    np.testing.assert_allclose([float(row[3]) for row in rows], expected.scores.ravel(), rtol=1e-5)


def test_a_session_with_fewer_than_k_items_left_gets_fewer_rows(run_folder: Path, tmp_path: Path) -> None:
    ids = GRU4Rec.load(run_folder / "model.safetensors").vocabulary.ids.tolist()
    sessions = [{"session": name, "items": ids[:n]} for name, n in (("few", 58), ("many", 2), ("all", 60))]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, sessions)))
    arguments = ["--k", "5", "--exclude-seen", "--out"]
    ran = cli("recommend", run_folder, tmp_path / "in.jsonl", *arguments, tmp_path / "out.jsonl")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stderr == "sessions with fewer than 5 items left to recommend: 2\n"
    answers = {line["session"]: line for line in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    assert {name: len(answer["items"]) for name, answer in answers.items()} == {"few": 2, "many": 5, "all": 0}
    assert set(answers["few"]["items"]) == set(ids[58:]) and len(answers["few"]["scores"]) == 2
    assert cli("recommend", run_folder, tmp_path / "in.jsonl", *arguments, tmp_path / "out.tsv").exit_code == 0
    rows = [line.split("\t")[:2] for line in (tmp_path / "out.tsv").read_text().splitlines()[1:]]
    assert rows == [["few", "1"], ["few", "2"], *(["many", str(rank)] for rank in range(1, 6))]


def test_recommend_only_the_items_of_a_file(logs: Path, run_folder: Path, tmp_path: Path) -> None:
    ids = GRU4Rec.load(run_folder / "model.safetensors").vocabulary.ids[[7, 3]].tolist()
    (tmp_path / "items.txt").write_text(f"{ids[0]}\n\n{ids[1]}\n")
    arguments = ["recommend", run_folder, logs / "test.tsv", "--k", "3", "--candidates", tmp_path / "items.txt"]
    ran = cli(*arguments)
    assert ran.exit_code == 0, ran.stderr
    rows = [line.split("\t") for line in ran.stdout.splitlines()[1:]]
    assert len(rows) == 2 * 100 and {int(row[2]) for row in rows} == {*ids}
    (tmp_path / "items.txt").write_text(f"{ids[0]}\n-5\n")
    assert (
        "line 2: the model was not trained on item -5 (a line is one id); --skip-unknown" in cli(*arguments).error_line
    )
    ran = cli(*arguments, "--skip-unknown")
    assert len(ran.stdout.splitlines()) == 101 and "skipped: 1 unknown item\n" in ran.stderr


def test_evaluate_and_recommend_pass_on_impl(logs: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impls: list[str] = []
    load = GRU4Rec.load

    def load_and_record(*arguments: Any, **others: Any) -> GRU4Rec:
        impls.append(others["impl"])
        return load(*arguments, **others)

    monkeypatch.setattr(GRU4Rec, "load", load_and_record)
    for impl in ([], ["--impl", "reference"]):
        assert cli("evaluate", run_folder, logs / "test.tsv", *impl).exit_code == 0
        assert cli("recommend", run_folder, logs / "test.tsv", "--k", "2", *impl).exit_code == 0
    assert impls == ["auto", "auto", "reference", "reference"]
    assert "gru4rec-fast info" in " ".join(cli("evaluate", "--help").stdout.split())


def test_recommend_for_sessions_in_json_lines(logs: Path, run_folder: Path, tmp_path: Path) -> None:
    ids = GRU4Rec.load(run_folder / "model.safetensors").vocabulary.ids[:3].tolist()
    sessions = [
        {"session": "one event", "items": ids[:1]},
        {"session": "b", "items": [*ids, -1]},
        {"session": "c", "items": [-1]},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, sessions)) + "\n\n")
    failed = cli("recommend", run_folder, tmp_path / "in.jsonl", "--k", "2")
    assert failed.exit_code == 2 and "session 'b': the model was not trained on item -1" in failed.error_line
    arguments = ["--k", "2", "--skip-unknown", "--out", tmp_path / "out.jsonl"]
    ran = cli("recommend", run_folder, tmp_path / "in.jsonl", *arguments)
    assert ran.exit_code == 0, ran.stderr
    assert ran.stderr == "skipped: 2 events of unknown items, 1 session without a known item\n"
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    expected = GRU4Rec.load(run_folder / "model.safetensors").recommend([ids[:1], ids], 2)
    assert [answer["session"] for answer in answers] == ["one event", "b"]
    assert [answer["items"] for answer in answers] == expected.items.tolist()
    np.testing.assert_allclose([answer["scores"] for answer in answers], expected.scores, rtol=1e-6)


STRING_LOG = "SessionId,ItemId,Time\n" + "".join(
    f"{s},{i},{t}\n" for s in range(6) for t, i in enumerate(["x7", 1, 2, 3])
)


def test_the_ids_of_the_model_decide_how_a_later_file_is_read(tmp_path: Path) -> None:
    """A log of 1, 2, 3 alone has integer ids, but the model's ids are strings."""
    (tmp_path / "train.csv").write_text(STRING_LOG)
    ran = cli("train", tmp_path / "train.csv", "-ps", "layers=4,batch_size=2,n_epochs=1", "--out", tmp_path / "run")
    assert ran.exit_code == 0, ran.stderr
    (tmp_path / "log.csv").write_text("SessionId,ItemId,Time\n1,1,0\n1,2,1\n2,3,2\n2,1,3\n")
    (tmp_path / "log.jsonl").write_text('{"session": 1, "items": [1, 2]}\n{"session": 2, "items": ["3", "1"]}\n')
    model = GRU4Rec.load(tmp_path / "run/model.safetensors")
    expected = model.recommend([["1", "2"], ["3", "1"]], 2).items.ravel().tolist()
    for name in ("log.csv", "log.jsonl"):
        ran = cli("recommend", tmp_path / "run", tmp_path / name, "--k", "2")
        assert ran.exit_code == 0, ran.stderr
        assert [line.split("\t")[2] for line in ran.stdout.splitlines()[1:]] == expected
    (tmp_path / "blanks.jsonl").write_text('{"session": 1, "items": ["1", " x7 "]}\n')
    failed = cli("recommend", tmp_path / "run", tmp_path / "blanks.jsonl").error_line
    assert "not trained on item ' x7 '; it was trained on 'x7', without blanks around it; --skip-unknown" in failed
    ran = cli("evaluate", tmp_path / "run", tmp_path / "log.csv", "--json", tmp_path / "e.json")
    assert ran.exit_code == 0 and read_json(tmp_path / "e.json")["n_targets"] == 2
    assert model.evaluate(tmp_path / "log.csv").n_targets == 2
    table = {"SessionId": [1, 1, 2, 2], "ItemId": [1, 2, 3, 1], "Time": [0, 1, 2, 3]}
    assert model.evaluate(table).n_targets == 2
    assert model.evaluate({**table, "ItemId": ["1", "2", "3", "1"]}).n_targets == 2


def test_recommended_ids_with_separators_and_quotes_can_be_read_again(tmp_path: Path) -> None:
    items = ["a\tb", 'in"ch', '"q"', "two\nlines", "c\r\nd", "x,y", "7"]
    sessions = [f's\t{i}\n"' for i in range(4) for _ in items]
    frame = pl.DataFrame({"SessionId": sessions, "ItemId": items * 4, "Time": range(28)})
    model = GRU4Rec(layers=[4], batch_size=2, n_epochs=1).fit(frame, progress=False)
    model.save(tmp_path / "m.safetensors")
    frame.write_parquet(tmp_path / "log.parquet")
    arguments = ["recommend", tmp_path / "m.safetensors", tmp_path / "log.parquet", "--k", "7", "--out"]
    assert cli(*arguments, tmp_path / "out.tsv").exit_code == 0
    store = SessionStore.from_events(tmp_path / "out.tsv", time_key="Rank")
    assert sorted(store.vocabulary.ids.tolist()) == sorted(items)
    assert sorted(store.session_ids.tolist()) == sorted(set(sessions)) and store.n_events == 4 * 7
    table = pd.read_csv(tmp_path / "out.tsv", sep="\t", dtype=str)
    assert sorted(table["ItemId"].unique()) == sorted(items)
    # The ids of the data come back from `recommend` and are accepted by it.
    best = model.recommend([frame["ItemId"].to_list()[:3], ["7"]], 3)
    assert set(best.items.ravel().tolist()) <= set(items)
    model.recommend(best.items.tolist(), 2)


def test_quote_none_reads_a_file_whose_quotes_are_characters(tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_text('SessionId\tItemId\tTime\tTitle\n1\t2\t3\t"Great" Cats\n1\t5\t4\t"\n')
    ran = cli("prepare", tmp_path / "log.tsv", tmp_path / "data")
    assert "--quote none" in ran.error_line
    ran = cli("prepare", tmp_path / "log.tsv", tmp_path / "data", "--quote", "none")
    assert ran.exit_code == 0 and "2 events" in ran.stdout, ran.stderr


def test_prepare_then_train(logs: Path, tmp_path: Path) -> None:
    ran = cli(
        "prepare", logs / "train.tsv", tmp_path / "data", "--split", "fraction=0.2", "--validation-split", "days=0.05",
        "--min-item-support", "5", "--min-session-length", "3", "--no-remove-duplicates", "--collapse-repeats",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.stderr
    for name in ("train", "test", "train_tr", "train_valid"):
        store = SessionStore.open(tmp_path / "data" / name)
        assert f"{tmp_path / 'data' / name}: {store.n_sessions:,} sessions" in ran.stdout
        assert np.diff(store.offsets).min() >= 3
        is_repeat = store.items[1:] == store.items[:-1]
        session_starts = store.offsets[1:-1]  # an event there may repeat the last item of the previous session
        assert not np.delete(is_repeat, session_starts - 1).any()
    assert SessionStore.open(tmp_path / "data" / "train").support.min() > 0
    ran = cli("train", tmp_path / "data/train", "--test", tmp_path / "data/test", "-ps", SMALL)
    assert ran.exit_code == 0, ran.stderr
    assert "recall@20" in ran.stdout


def test_notes_on_reading_are_printed_once_by_the_command_that_reads_the_log(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(STRING_LOG.replace(",x7,", ", x7,"))
    ran = cli("prepare", tmp_path / "log.csv", tmp_path / "data", "--split", "fraction=0.5")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stderr.splitlines() == [
        f"{tmp_path / 'log.csv'}:",
        "  item ids are strings ('x7' in row 1 is no plain integer)",
        "  6 item ids had blanks around them, which were removed",
    ]
    assert "item ids" not in ran.stdout
    ran = cli("train", tmp_path / "data/train", "--test", tmp_path / "data/test", "-ps", SMALL)
    assert ran.exit_code == 0 and "item ids" not in ran.stderr, ran.stderr
    ran = cli("train", tmp_path / "log.csv", "-ps", SMALL)
    assert ran.exit_code == 0 and ran.stderr.count("item ids had blanks") == 1, ran.stderr


def test_column_names_and_separator_do_not_change_the_training(logs: Path, tmp_path: Path) -> None:
    renamed = (logs / "train.tsv").read_text().replace("SessionId\tItemId\tTime", "visit\tsku\tat").replace("\t", "#")
    (tmp_path / "log.txt").write_text(renamed)
    keys = ["--session-key", "visit", "--item-key", "sku", "--time-key", "at", "--separator", "#"]
    ran = cli("train", tmp_path / "log.txt", "-ps", SMALL, *keys, "--json", tmp_path / "r.json")
    assert ran.exit_code == 0, ran.stderr
    ran = train(logs, "-ps", SMALL, "--separator", "tab", "--json", tmp_path / "expected.json")
    assert ran.exit_code == 0, ran.stderr
    report, expected = (read_json(tmp_path / name) for name in ("r.json", "expected.json"))
    assert [epoch["loss"] for epoch in report["epochs"]] == [epoch["loss"] for epoch in expected["epochs"]]


def test_info_prints_build_info() -> None:
    assert json.loads(cli("info", "--json").stdout) == build_info()
    shown = dict(line.split(maxsplit=1) for line in cli("info").stdout.splitlines())
    assert shown["torch"] == build_info()["torch"]
    assert shown["native_cpu"] == ("yes" if build_info()["native_cpu"] else "no")


def test_version_option_prints_the_version() -> None:
    assert cli("--version").stdout.strip() == build_info()["version"]
