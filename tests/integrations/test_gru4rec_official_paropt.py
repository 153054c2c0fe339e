"""integrations.gru4rec_official.paropt: Optuna optimizes parameters, with the options of the official paropt.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markov import markov_store
from test_estimator import as_table

from gru4rec_fast.integrations.gru4rec_official.paropt import main, read_parameter_space

pytest.importorskip("optuna", reason="paropt needs optuna")

SPACE = """
{"name": "layers", "dtype": "int", "values": [8, 16], "step": 8}
{"name": "learning_rate", "dtype": "float", "values": [0.05, 0.1], "step": 0.05}
{"name": "momentum", "dtype": "float", "values": [0.01, 0.1], "log": true}
{"name": "sample_alpha", "dtype": "categorical", "values": [0, 0.5]}
"""
FIXED = "batch_size=16,n_sample=32,n_epochs=1,loss=cross-entropy"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write train.tsv, test.tsv and space.json to the working folder."""
    monkeypatch.chdir(tmp_path)
    as_table(markov_store()).to_csv("train.tsv", sep="\t", index=False)
    as_table(markov_store(n_sessions=60, seed=1)).to_csv("test.tsv", sep="\t", index=False)
    Path("space.json").write_text(SPACE)


def test_optimization_prints_the_best_parameters_and_their_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    # The options of the official example, in which -n is short for -nt.
    arguments = "train.tsv test.tsv -pm mrr -m 5 -fm 1 5 -e conservative -d cpu -opf space.json -n 3 -fp"
    assert main([*arguments.split(), FIXED]) == 0
    output = capsys.readouterr().out
    best = re.search(r"^best mrr@5 (0\.\d+) with layers=(8|16),learning_rate=[\d.]+,momentum=[\d.]+", output, re.M)
    final = re.findall(r"^Recall@(\d+): (0\.\d+) MRR@\1: (0\.\d+)$", output, re.M)
    assert best and [k for k, _, _ in final] == ["1", "5"]
    assert 0 < float(final[0][1]) <= float(final[1][1]) and float(best[1]) > 0.1


def test_diverged_trial_is_pruned(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    Path("space.json").write_text('{"name": "learning_rate", "dtype": "categorical", "values": [1e38, 1e37]}')
    with pytest.warns(UserWarning, match="error_during_train"):
        assert main(["train.tsv", "test.tsv", "-opf", "space.json", "-fp", FIXED, "-nt", "2", "-d", "cpu"]) == 2
    assert [message.strip() for message in caplog.messages[-2:]] == ["Trial 0 pruned.", "Trial 1 pruned."]
    assert "error: the training of every trial has diverged" in capsys.readouterr().err


def test_parameter_space_is_checked() -> None:
    assert [parameter.name for parameter in read_parameter_space("space.json")] == [
        "layers",
        "learning_rate",
        "momentum",
        "sample_alpha",
    ]
    for line, problem in (
        ('{"name": "layers"', "line 1: Expecting"),
        ('{"name": "layer", "dtype": "int", "values": [1, 2]}', "line 1: GRU4Rec has no parameter 'layer'"),
        ('{"name": "layers", "dtype": "integer", "values": [1, 2]}', "line 1: dtype='integer': choose int, float"),
        ('{"name": "layers", "dtype": "int", "values": [1]}', r"line 1: values=\[1\]: give a list"),
        ('{"name": "layers", "dtype": "int", "range": [1]}', "line 1: .*unexpected keyword argument 'range'"),
        ("[1]", "line 1: "),
        ("", "space.json has no parameter"),
    ):
        Path("space.json").write_text(line)
        with pytest.raises(ValueError, match=problem):
            read_parameter_space("space.json")


def test_parameter_that_is_fixed_and_searched_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train.tsv", "test.tsv", "-opf", "space.json", "-fp", "layers=8", "-d", "cpu"]) == 2
    assert "error: layers: give a parameter either in -fp or in space.json" in capsys.readouterr().err
