"""Early stopping: finds the best epoch, and says when to stop because no better epoch is expected."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gru4rec_fast.training.saved_values import check_like


@dataclass
class EarlyStopping:
    """Finds the best of the monitored values; says to stop after `patience` values without an improvement.

    Args:
        patience: stop after this many values in a row that are not better; None: never stop.
        min_delta: >= 0; a value is better if it improves on the best value so far by more than this.
        maximize: True for recall and similar metrics, False for a loss.

    Attributes:
        best: the best value so far; None before the first value.
        best_epoch: the epoch of the best value, counted from 1; 0 before the first value.
        waited: number of values since the best value.
    """

    patience: int | None = None
    min_delta: float = 0.0
    maximize: bool = True
    best: float | None = None
    best_epoch: int = 0
    waited: int = 0

    def update(self, epoch: int, value: float) -> bool:
        """Add an epoch's value; return whether it is the best so far."""
        gain = float("inf") if self.best is None else (value - self.best) * (1 if self.maximize else -1)
        if gain > self.min_delta:
            self.best, self.best_epoch, self.waited = value, epoch, 0
            return True
        self.waited += 1
        return False

    @property
    def should_stop(self) -> bool:
        """Whether the last `patience` values brought no improvement."""
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return `best`, `best_epoch` and `waited`, as JSON values."""
        return {key: value for key, value in asdict(self).items() if key in ("best", "best_epoch", "waited")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises KeyError or TypeError for other values."""
        example = {"best": None if state["best"] is None else 0.0, "best_epoch": 0, "waited": 0}  # for the types
        check_like(state, example, "early_stopping")
        self.best, self.best_epoch, self.waited = state["best"], state["best_epoch"], state["waited"]
