"""Prune the trials of an optuna study during `fit`."""

from __future__ import annotations

from typing import Any

from gru4rec_fast.training import Callback
from gru4rec_fast.training.options import MINIMIZED, TRAINING_LOSS

try:
    import optuna
except ImportError as error:
    raise ImportError("gru4rec_fast.integrations.optuna needs optuna: pip install optuna") from error


class PruningCallback(Callback):
    """Reports a metric to an optuna trial after each validation, and ends the trial if the study's pruner says so.

        def objective(trial):
            model = GRU4Rec(learning_rate=trial.suggest_float("learning_rate", 0.01, 0.3, log=True))
            model.fit(train, validation=valid, callbacks=[PruningCallback(trial)])
            return model.history[-1]["validation"]["recall@20"]

        optuna.create_study(direction="maximize").optimize(objective, n_trials=20)

    Works with GRU4Rec, NGCF, LightGCN and `Trainer`. The epoch is the step of the reports.

    Args:
        trial: the trial that the objective received.
        monitor: a metric of the validation, or "loss", the training loss, which is reported after each epoch. `fit`
            measures the metrics at the cut-off of the model's own parameter `monitor`.

    Raises, within `fit`:
        optuna.TrialPruned: the trial was pruned.
        ValueError: `monitor` is not measured, or the study has the wrong direction for it: a metric needs a study with
            direction="maximize"; the loss, "rmse" and "mae" need direction="minimize".
    """

    def __init__(self, trial: optuna.trial.BaseTrial, monitor: str = "recall@20") -> None:
        self.trial, self.monitor = trial, monitor

    def on_fit_start(self, trainer: Any) -> None:
        """Check that the metric will be measured, and the direction of the study."""
        if self.monitor != TRAINING_LOSS and trainer.validate is None:
            raise ValueError(
                f"PruningCallback: monitor={self.monitor!r} needs validation data; monitor='loss' does not"
            )
        study = getattr(self.trial, "study", None)  # an optuna.trial.FixedTrial has no study
        expected = "minimize" if self.monitor in MINIMIZED else "maximize"
        if study is not None and study.direction.name.lower() != expected:
            raise ValueError(
                f"PruningCallback: monitor={self.monitor!r} needs optuna.create_study(direction={expected!r})"
            )

    def on_epoch_end(self, trainer: Any, record: dict[str, Any]) -> None:
        """Report the metric of the epoch, if it was validated."""
        if self.monitor == TRAINING_LOSS:
            value = record[TRAINING_LOSS]
        elif "validation" in record:
            value = self._metric(record["validation"])
        else:
            return
        self.trial.report(value, step=record["epoch"])
        if self.trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {record['epoch']} with {self.monitor}={value:.6g}")

    def _metric(self, metrics: dict[str, float]) -> float:
        if self.monitor not in metrics:
            raise ValueError(
                f"PruningCallback: monitor={self.monitor!r} is not measured; "
                f"choose one of {', '.join(metrics)}, {TRAINING_LOSS}"
            )
        return metrics[self.monitor]
