"""gru4rec-fast with graph models: prepare, train, evaluate, recommend, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_cli import CommandResult, cli, write_logs

from gru4rec_fast import NGCF, InteractionGraph, LightGCN
from gru4rec_fast.data.graphs.split import split_interactions

SMALL = "embedding_dim=8,batch_size=64,n_epochs=3,learning_rate=0.02,evaluate_every=1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with log.tsv (40 users, 40 items), its split into train.txt and test.txt, and two run folders.

    User u has items of group u % 4 only. A group is ten items.
    """
    folder = tmp_path_factory.mktemp("graphs")
    rng = np.random.default_rng(0)
    users = rng.integers(40, size=1200)
    items = (users % 4) * 10 + rng.integers(10, size=1200)
    rows = [f"u{user}\ti{item}" for user, item in zip(users, items, strict=True)]
    (folder / "log.tsv").write_text("\n".join(["Who\tWhat", *rows]) + "\n")
    graph = InteractionGraph.from_arrays(users, items, n_users=40, n_items=40)
    for name, part in zip(("train", "test"), split_interactions(graph, 0.3), strict=True):
        lists = [" ".join(map(str, [user, *part.items_of(user)])) for user in range(40)]
        (folder / f"{name}.txt").write_text("\n".join(lists) + "\n")
    for model in ("ngcf", "lightgcn"):
        ran = train(folder, "--model", model, "-ps", SMALL, "--out", folder / f"run_{model}", "--cutoffs", "5,20")
        assert ran.exit_code == 0, ran.stderr
    return folder


def train(folder: Path, *arguments: str | Path) -> CommandResult:
    return cli("train", folder / "train.txt", "--test", folder / "test.txt", "--threads", "1", *arguments)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize(("name", "estimator"), [("ngcf", NGCF), ("lightgcn", LightGCN)])
def test_evaluate_gives_the_metrics_of_train(folder: Path, tmp_path: Path, name: str, estimator: Any) -> None:
    report = read_json(folder / f"run_{name}" / "report.json")
    assert set(report["metrics"]) == {
        f"{m}@{k}" for m in ("recall", "mrr", "ndcg", "map", "precision", "hitrate") for k in (5, 20)
    }
    assert [epoch["epoch"] for epoch in report["epochs"]] == [1, 2, 3]
    train_graph = InteractionGraph.from_text(folder / "train.txt")
    data = report["data"]["train"]
    assert (data["n_users"], data["n_items"], data["n_edges"]) == (40, 40, train_graph.n_edges)
    assert report["parameters"]["embedding_dim"] == 8

    model = estimator.load(folder / f"run_{name}" / "model.safetensors")
    assert model.evaluate(folder / "test.txt", cutoffs=(5, 20)).metrics == report["metrics"]
    ran = cli(
        "evaluate", folder / f"run_{name}", folder / "test.txt", "--cutoffs", "5,20", "--json", tmp_path / "e.json"
    )
    assert ran.exit_code == 0, ran.stderr
    assert read_json(tmp_path / "e.json")["metrics"] == report["metrics"]
    assert ["recall@20", f"{report['metrics']['recall@20']:.4f}"] in [line.split() for line in ran.stdout.splitlines()]


def test_options_set_the_parameters(folder: Path, tmp_path: Path) -> None:
    options = "--layer-sizes 8/4 --adjacency norm --message-dropout 0.2 --reg-weight 0.5 --sample-by interactions"
    options += " --normalize-messages --only-needed False --n-epochs 1 --seed 4"
    ran = train(folder, "--model", "ngcf", "-ps", SMALL, *options.split(), "--json", tmp_path / "r.json")
    assert ran.exit_code == 0, ran.stderr
    expected = {"layer_sizes": [8, 4], "adjacency": "norm", "message_dropout": 0.2, "reg_weight": 0.5, "n_epochs": 1}
    expected |= {"sample_by": "interactions", "normalize_messages": True, "only_needed": False, "seed": 4}
    expected |= {"embedding_dim": 8}  # from SMALL
    assert read_json(tmp_path / "r.json")["parameters"].items() >= expected.items()


def test_the_best_epoch_is_tested_also_after_resume(folder: Path, tmp_path: Path) -> None:
    arguments = ["--model", "lightgcn", "-ps", SMALL, "--validation", folder / "test.txt"]
    ran = train(folder, *arguments, "--json", tmp_path / "whole.json")
    assert ran.exit_code == 0, ran.stderr
    whole = read_json(tmp_path / "whole.json")
    measured = [epoch["validation"]["recall@20"] for epoch in whole["epochs"]]
    assert whole["model_of_epoch"] == 1 + int(np.argmax(measured))
    assert whole["metrics"]["recall@20"] == max(measured)

    run = [*arguments, "--out", tmp_path / "run"]
    assert train(folder, *run, "--n-epochs", "1").exit_code == 0
    ran = train(folder, *run, "--resume", "--json", tmp_path / "resumed.json")
    assert ran.exit_code == 0, ran.stderr
    resumed = read_json(tmp_path / "resumed.json")
    assert resumed["metrics"] == whole["metrics"] and len(resumed["epochs"]) == 3


def test_recommend_for_the_users_of_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text("7\n\n12\n3\n")
    ran = cli("recommend", folder / "run_lightgcn", tmp_path / "users.txt", "--k", "4", "--exclude-seen")
    assert ran.exit_code == 0, ran.stderr
    header, *rows = [line.split("\t") for line in ran.stdout.splitlines()]
    assert header == ["UserId", "Rank", "ItemId", "Score"]
    model = LightGCN.load(folder / "run_lightgcn/model.safetensors")
    best = model.recommend([7, 12, 3], k=4)
    assert [int(row[2]) for row in rows] == best.items.ravel().tolist()
    assert [row[0] for row in rows] == ["7"] * 4 + ["12"] * 4 + ["3"] * 4
    np.testing.assert_allclose([float(row[3]) for row in rows], best.scores.ravel(), rtol=1e-5)
    without_option = cli("recommend", folder / "run_lightgcn", tmp_path / "users.txt", "--k", "4")
    assert without_option.exit_code == 0 and without_option.stdout == ran.stdout
    ran = cli("recommend", folder / "run_lightgcn", tmp_path / "users.txt", "--k", "40", "--no-exclude-seen")
    assert ran.exit_code == 0 and len(ran.stdout.splitlines()) == 1 + 3 * 40

    out = tmp_path / "all.jsonl"
    ran = cli("recommend", folder / "run_lightgcn", tmp_path / "users.txt", "--k", "40", "--exclude-seen", "--out", out)
    assert ran.exit_code == 0 and "users with fewer than 40 items left to recommend: 3" in ran.stderr
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    train_graph = InteractionGraph.from_text(folder / "train.txt")
    assert [answer["user"] for answer in answers] == [7, 12, 3]
    for answer in answers:
        assert len(answer["items"]) == 40 - len(train_graph.items_of(answer["user"]))

    (tmp_path / "users.txt").write_text("7\n12\n", encoding="utf-8-sig")
    ran = cli("recommend", folder / "run_lightgcn", tmp_path / "users.txt", "--k", "1")
    assert ran.exit_code == 0 and [line.split("\t")[0] for line in ran.stdout.splitlines()] == ["UserId", "7", "12"]

    (tmp_path / "users.txt").write_text("7\n777\n")
    ran = cli("recommend", folder / "run_lightgcn", tmp_path / "users.txt", "--skip-unknown", "--k", "2")
    assert ran.exit_code == 0 and "skipped: 1 unknown user\n" in ran.stderr and len(ran.stdout.splitlines()) == 3


def test_user_ids_in_a_file_are_parsed_like_the_ids_of_the_model(folder: Path, tmp_path: Path) -> None:
    """007 and +7 are not user 7; a lone carriage return ends a line; 7 is the user "7" of a model with string ids."""
    for text in ("007", "+7", "1_0"):
        (tmp_path / "users.txt").write_text(f"7\n{text}\n")
        ran = cli("recommend", folder / "run_lightgcn", tmp_path / "users.txt")
        assert ran.exit_code == 2 and "users.txt, line 2: " in ran.error_line
    (tmp_path / "users.txt").write_bytes(b"7\r12\r")
    ran = cli("recommend", folder / "run_lightgcn", tmp_path / "users.txt", "--k", "1")
    assert ran.exit_code == 0 and [line.split("\t")[0] for line in ran.stdout.splitlines()] == ["UserId", "7", "12"]
    table = {"UserId": [*"7788", "x"], "ItemId": [*"12323"]}
    model = LightGCN(embedding_dim=4, n_epochs=1, batch_size=4).fit(table, progress=False)
    model.save(tmp_path / "m.safetensors")
    (tmp_path / "users.txt").write_text("7\n8\n")
    ran = cli("recommend", tmp_path / "m.safetensors", tmp_path / "users.txt", "--k", "1")
    assert ran.exit_code == 0 and [line.split("\t")[0] for line in ran.stdout.splitlines()[1:]] == ["7", "8"]
    assert set(model.recommend(["7", "8"], 1).items.ravel().tolist()) <= {"1", "2", "3"}
    (tmp_path / "test.txt").write_text("7 3\n8 1\n")
    assert model.evaluate(tmp_path / "test.txt").n_targets == 2


def test_prepare_splits_interactions_per_user(folder: Path, tmp_path: Path) -> None:
    keys = ["--user-key", "Who", "--item-key", "What"]
    ran = cli("prepare", folder / "log.tsv", tmp_path, "--interactions", *keys, "--split", "fraction=0.25",
              "--validation-split", "fraction=0.5", "--seed", "3")  # fmt: skip
    assert ran.exit_code == 0, ran.stderr
    whole = InteractionGraph.from_table(folder / "log.tsv", user_key="Who", item_key="What")
    parts = {name: InteractionGraph.open(tmp_path / name) for name in ("train", "test", "train_tr", "train_valid")}
    for graph, remaining_name, held_out_name, fraction in (
        (whole, "train", "test", 0.25),
        (parts["train"], "train_tr", "train_valid", 0.5),
    ):
        for user in range(graph.n_users):
            remaining, held_out = parts[remaining_name].items_of(user), parts[held_out_name].items_of(user)
            assert sorted([*remaining, *held_out]) == graph.items_of(user).tolist()
            assert len(held_out) == int(fraction * len(graph.items_of(user)))
    ran = cli("train", tmp_path / "train_tr", "--model", "lightgcn", "-ps", SMALL, "--validation",
              tmp_path / "train_valid", "--test", tmp_path / "test", "--threads", "1")  # fmt: skip
    assert ran.exit_code == 0 and "recall@20" in ran.stdout, ran.stderr


def test_preparing_again_with_fewer_parts_leaves_no_part_of_the_first_run(folder: Path, tmp_path: Path) -> None:
    """A train_tr of the first run could contain interactions of the new test part."""
    keys = ["--user-key", "Who", "--item-key", "What"]
    command = ["prepare", folder / "log.tsv", tmp_path / "data", "--interactions", *keys, "--split", "fraction=0.25"]
    assert cli(*command, "--validation-split", "fraction=0.2").exit_code == 0
    parts = {path.name for path in (tmp_path / "data").iterdir() if path.is_dir()}
    assert parts == {"train", "test", "train_tr", "train_valid"}
    ran = cli(*command)
    assert ran.exit_code == 0, ran.stderr
    assert {path.name for path in (tmp_path / "data").iterdir() if path.is_dir()} == {"train", "test"}


# Command line and a part of the error message. File names are replaced by paths in the fixture `folder`.
WRONG_COMMANDS = [
    ("train train.txt --model svd", "--model svd: choose one of gru4rec, ngcf, lightgcn"),
    ("train train.txt --model ngcf -ps layers=10", "NGCF has no parameter 'layers'; did you mean"),
    ("train train.txt --model ngcf -ps layer_size=10", "did you mean 'layer_sizes'"),
    ("train train.txt --model lightgcn --layer-sizes 8", "LightGCN has no parameter 'layer_sizes'"),
    ("train train.txt --reg-weight 1", "GRU4Rec has no parameter 'reg_weight'"),
    ("train none.txt --model ngcf --monitor auc@20", "monitor='auc@20': choose 'loss', or recall, mrr"),
    ("train none.txt --model ngcf", "none.txt: there is no such file"),
    ("train none.txt --model ngcf --targets last", "--targets is for sessions"),
    ("train log.tsv --model ngcf", "give the name of the column of users by user_key=... (--user-key ...)"),
    ("train empty.txt --model ngcf", "empty.txt is empty"),
    ("train sessions/train --model ngcf", "train is no interaction graph: its meta.json states"),
    ("evaluate run_lightgcn test.txt --baselines", "--baselines is for sessions"),
    (
        "evaluate run_lightgcn log.tsv --user-key Who --item-key What",
        "holds no interactions; dropped: 1,200 interactions of unknown users",
    ),
    ("recommend run_lightgcn users.txt --k 41", "k=41: choose 1 to 40"),
    ("recommend run_lightgcn strangers.txt", "line 2: the model was not trained on user 99"),
    ("recommend run_lightgcn words.txt", "line 1: 'bob' is no user id; the model's ids are integers"),
    ("recommend run_lightgcn empty.txt", "has no user id"),
    ("prepare log.tsv out --interactions --user-key Who --item-key What --split last-day", "no column 'Time'"),
    ("prepare log.tsv out --interactions --split someday", "split 'someday': choose last-day"),
    ("prepare train.txt out --interactions --split last-event", "no column 'UserId'"),  # read as a table
    ("prepare sessions/train out --interactions --split last-event", "is no interaction graph"),
    ("prepare train.txt out --interactions --split fraction=0.5,windows=2,window-days=3", "cannot be split by windows"),
    (
        "prepare log.tsv out --interactions --split last-event --seed 1",
        "--seed is for --split and --valid",
    ),
    ("prepare log.tsv out --interactions --split last-event --time-unit ms", "--time-unit is for splits by days"),
    (
        "prepare log.tsv out --interactions --user-key Who --item-key What --split fraction=2",
        "must be between 0 and 1",
    ),
    ("prepare log.tsv out --interactions --collapse-repeats", "--collapse-repeats is for session logs"),
    ("prepare log.tsv out --interactions --no-remove-duplicates", "--no-remove-duplicates is for session logs"),
    ("prepare log.tsv out --interactions --time-unit ms", "--time-unit is for splits by days"),
    ("prepare log.tsv out --interactions --seed 1", "--seed is for --split and --validation-split"),
    ("prepare log.tsv out --interactions --time-key When", "--time-key has no effect on log files of interactions"),
    ("prepare log.tsv out --interactions --session-gap 5", "--session-gap has no effect on log files of interactions"),
    ("prepare log.tsv out --interactions --time-format %Y", "--time-format has no effect on log files of interactions"),
    ("prepare log.tsv out --interactions --rating-key x", "--rating-key has no effect on log files of interactions"),
    ("prepare log.tsv out --interactions --user-key Who --item-key What --k-core 0", "k=0: the k of a k-core is"),
    ("prepare train.txt out --interactions --k-core 999", "k=999: no interaction is left"),
    ("prepare train.txt out --interactions --min-rating 3", "no column 'UserId'"),  # read as a table
    ("train train.txt --model ngcf --columns a,b", "but columns=... (--columns) has 2 names"),  # read as a table
    ("train log.tsv --model ngcf --encoding utf-16", "log.tsv"),
    ("prepare none.txt run_ngcf --interactions", "run_ngcf exists and holds no data written by gru4rec_fast"),
    ("train none.txt --model ngcf --session-key Who", "--session-key has no effect on log files of interactions"),
    ("train train.txt --model ngcf --quote none", "no column 'UserId'"),  # read as a table
    ("evaluate run_lightgcn none.txt --time-key When", "--time-key has no effect on log files of interactions"),
    (
        "recommend run_lightgcn users.txt --separator ;",
        "--separator has no effect on users that are not read from a log",
    ),
]


@pytest.mark.parametrize(("line", "message"), WRONG_COMMANDS, ids=[line for line, _ in WRONG_COMMANDS])
def test_wrong_commands_are_errors(folder: Path, line: str, message: str) -> None:
    (folder / "empty.txt").write_text("")
    (folder / "users.txt").write_text("7\n")
    (folder / "strangers.txt").write_text("7\n99\n")
    (folder / "words.txt").write_text("bob\n")
    if not (folder / "sessions").exists():
        (folder / "tmp").mkdir()
        write_logs(folder / "tmp")
        assert cli("prepare", folder / "tmp/test.tsv", folder / "sessions").exit_code == 0
    names = {path.name for path in folder.iterdir()} | {"none.txt", "out", "sessions/train"}
    words = [folder / word if word in names else word for word in line.split()]
    ran = cli(*words)
    assert ran.exit_code == 2 and message in ran.error_line


def test_split_interactions_is_random_and_needs_enough_interactions() -> None:
    graph = InteractionGraph.from_arrays([0, 0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="holds out nothing: no user has 5 interactions or more"):
        split_interactions(graph, 0.2)
    drawn = [test.items_of(0).tolist() for _, test in (split_interactions(graph, 0.5, seed=i) for i in range(20))]
    assert {items[0] for items in drawn} == {0, 1} and all(len(items) == 1 for items in drawn)
    _, test = split_interactions(graph, 0.5, seed=3)
    assert drawn[3] == test.items_of(0).tolist()
