"""Which epoch was the best, and when to stop waiting for a better one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class EarlyStopping:
    """Watches one value per epoch.

    Args:
        patience: stop after this many epochs without a better value; None: never stop, only remember the best.
        min_delta: by how much a value must beat the best one to count as better (in the metric's own unit, >= 0).
        maximize: True for recall and its like, False for a loss.

    Attributes:
        best: the best value so far; None before the first.
        best_epoch: its epoch, counted from 1; 0 before the first.
        waited: epochs since then.
    """

    patience: int | None = None
    min_delta: float = 0.0
    maximize: bool = True
    best: float | None = None
    best_epoch: int = 0
    waited: int = 0

    def update(self, epoch: int, value: float) -> bool:
        """Take in an epoch's value; True where it is the best so far."""
        gain = float("inf") if self.best is None else (value - self.best) * (1 if self.maximize else -1)
        if gain > self.min_delta:
            self.best, self.best_epoch, self.waited = value, epoch, 0
            return True
        self.waited += 1
        return False

    @property
    def should_stop(self) -> bool:
        """True once `patience` epochs have passed without a better value."""
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, as JSON values."""
        return {key: value for key, value in asdict(self).items() if key in ("best", "best_epoch", "waited")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.best, self.best_epoch, self.waited = state["best"], state["best_epoch"], state["waited"]
