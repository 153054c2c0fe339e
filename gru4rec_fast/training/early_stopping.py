"""Early stopping: remembers the best epoch, and says when to stop waiting for a better one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class EarlyStopping:
    """Monitors one value per epoch.

    Args:
        patience: stop after this many values without a better one; None: never stop, only remember the best.
        min_delta: how much better than the best a value must be to count as better (in the metric's unit, >= 0).
        maximize: True for recall and similar metrics, False for a loss.

    Attributes:
        best: the best value so far; None before the first value.
        best_epoch: the epoch of the best value, counted from 1; 0 before the first value.
        waited: number of values since the best one.
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
        """Whether there have been `patience` values without a better one."""
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, its epoch and the values since, as JSON values."""
        return {key: value for key, value in asdict(self).items() if key in ("best", "best_epoch", "waited")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.best, self.best_epoch, self.waited = state["best"], state["best_epoch"], state["waited"]
