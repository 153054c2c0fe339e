"""Options of a `Trainer`, which are the same for sessions and graphs."""

from __future__ import annotations

from dataclasses import dataclass

TRAINING_LOSS = "loss"  # the value of `monitor` that stands for the training loss
MINIMIZED = (TRAINING_LOSS, "rmse", "mae")  # values of `monitor` of which smaller ones are better


def check_at_least(minimum: float, **values: float | None) -> None:
    """Raise ValueError for the first value below `minimum`; None is allowed."""
    for name, value in values.items():
        if value is not None and not value >= minimum:
            raise ValueError(f"{name}={value}: must be at least {minimum}")


@dataclass(frozen=True)
class TrainerOptions:
    """Options of a `Trainer`.

    Attributes:
        n_epochs: number of epochs in total; a resumed training runs only those that are not finished.
        evaluate_every: number of epochs from one validation to the next; the last epoch is always validated.
        monitor: the value that selects the best epoch: a validation metric, e.g. "recall@20", or "loss", the training
            loss. Larger values are better, but smaller ones of "loss", "rmse" and "mae".
        patience: stop after this many validations (with "loss": epochs) in a row without a better value; None: never
            stop early.
        min_delta: a value is better if it improves on the best by more than this.
        checkpoint_every: number of mini-batches after which last.safetensors is written, in addition to the end of each
            epoch; None: only at the end of each epoch.

    Raises:
        ValueError: a value is out of range.
    """

    n_epochs: int = 10
    evaluate_every: int = 1
    monitor: str = "recall@20"
    patience: int | None = None
    min_delta: float = 0.0
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        check_at_least(1, n_epochs=self.n_epochs, evaluate_every=self.evaluate_every)
        check_at_least(1, patience=self.patience, checkpoint_every=self.checkpoint_every)
        check_at_least(0, min_delta=self.min_delta)
