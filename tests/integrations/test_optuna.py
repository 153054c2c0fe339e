"""integrations.optuna: real studies prune trials of all estimators."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markov import markov_store

from gru4rec_fast import GRU4Rec, InteractionGraph, LightGCN

optuna = pytest.importorskip("optuna", reason="optuna is not installed (pip install optuna)")
from gru4rec_fast.integrations.optuna import PruningCallback  # noqa: E402  # needs optuna

STORE = markov_store(n_sessions=60)
# Every seventh of the 600 pairs of 20 users and 30 items; validation has other pairs.
GRAPH, OTHER_GRAPH = (InteractionGraph.from_arrays(*np.divmod(np.arange(first, 600, 7), 30)) for first in (0, 3))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(verbosity)


def prune_above(upper: float) -> Any:
    """Return a pruner that prunes every trial with a reported value above `upper`."""
    return optuna.pruners.ThresholdPruner(upper=upper)


def fit(trial: Any, monitor: str = "recall@20", validation: Any = STORE, **parameters: Any) -> GRU4Rec:
    model = GRU4Rec(**{"layers": [8], "batch_size": 8, "n_sample": 16, "n_epochs": 4, "seed": 0, **parameters})
    return model.fit(STORE, validation=validation, progress=False, callbacks=[PruningCallback(trial, monitor)])


def test_page(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "integrations" / "optuna.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(example.splitlines()) < 40
    names: dict[str, Any] = {}
    exec(compile(example, "docs/integrations/optuna.md", "exec"), names)
    trials = names["study"].trials
    states = [trial.state.name for trial in trials]
    assert "PRUNED" in states and states[:2] == ["COMPLETE"] * 2 and str(states) in capsys.readouterr().out
    for trial in trials:
        values = trial.intermediate_values
        assert list(values) == list(range(1, len(values) + 1))  # the steps are the epochs
        assert (len(values) < 4) == (trial.state.name == "PRUNED")
    assert names["study"].best_value == max(trial.values[0] for trial in trials if trial.values) > 0.3


def test_reports_are_the_metrics_of_the_validated_epochs() -> None:
    models = []
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())
    study.optimize(lambda trial: models.append(fit(trial, evaluate_every=2)) or 0.0, n_trials=1)
    expected = {
        epoch["epoch"]: epoch["validation"]["recall@20"] for epoch in models[0].history if "validation" in epoch
    }
    assert study.trials[0].intermediate_values == expected and list(expected) == [2, 4]


def test_loss_needs_no_validation_and_prunes_within_fit(tmp_path: Path) -> None:
    losses = [epoch["loss"] for epoch in fit(optuna.trial.FixedTrial({}), "loss", None).history]
    study = optuna.create_study(direction="minimize", pruner=prune_above((losses[0] + losses[1]) / 2))
    message = rf"pruned after epoch 1 with loss={losses[0]:.6g}"
    with pytest.raises(optuna.TrialPruned, match=re.escape(message)):
        fit(study.ask(), "loss", None)
    study.pruner = prune_above(losses[0])  # no loss is above it
    assert len(fit(study.ask(), "loss", None).history) == 4


def test_graph_models_are_pruned() -> None:
    study = optuna.create_study(direction="maximize", pruner=prune_above(-1.0))  # every recall is above it
    model = LightGCN(embedding_dim=8, batch_size=16, n_epochs=9, evaluate_every=3)
    with pytest.raises(optuna.TrialPruned, match="pruned after epoch 3 with"):
        model.fit(GRAPH, validation=OTHER_GRAPH, progress=False, callbacks=[PruningCallback(study.ask())])
    assert len(model.history) == 3


@pytest.mark.parametrize(
    ("direction", "monitor", "validation", "message"),
    [
        ("minimize", "recall@20", STORE, r"monitor='recall@20' needs optuna.create_study\(direction='maximize'\)"),
        ("maximize", "loss", STORE, r"monitor='loss' needs optuna.create_study\(direction='minimize'\)"),
        ("maximize", "recall@20", None, "monitor='recall@20' needs validation data; monitor='loss' does not"),
        ("maximize", "recall@5", STORE, "'recall@5' is not measured; choose one of recall@20, mrr@20, loss"),
    ],
)
def test_errors(direction: str, monitor: str, validation: Any, message: str) -> None:
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        fit(optuna.create_study(direction=direction).ask(), monitor, validation)
