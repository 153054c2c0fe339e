"""Records how far a training has come, and checks that losses and weights are finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from gru4rec_fast.training.saved_values import check_like

# Reading a loss synchronizes with an accelerator, so on accelerators losses are read in groups of this size.
LOSSES_PER_READ = 64


class TrainingDiverged(ArithmeticError):
    """Raised for a loss, weight or metric that is NaN or infinite.

    `Trainer` adds the path of the last good checkpoint to the message.
    """


@dataclass
class TrainingPosition:
    """How far a training has come.

    Attributes:
        epoch: the current epoch, counted from 1.
        step: mini-batches since the training began.
        loss_sum: sum of the losses of this epoch that were read from the device (see `LossMonitor`).
        loss_count: number of mini-batches in `loss_sum`.
        mini_batches: number of mini-batches of this epoch so far.
        events: number of training examples (targets or triples) of this epoch so far.
        seconds: duration of this epoch so far.
    """

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    mini_batches: int = 0
    events: int = 0
    seconds: float = 0.0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the position that `asdict` converted to JSON values. Raises TypeError for values of other types."""
        check_like(values, asdict(cls()), "position")
        if any(value < 0 for name, value in values.items() if name != "loss_sum"):
            raise TypeError(f"position has negative values: {values}")
        if values["step"] >= 2**32:  # a limit of the counter of random numbers
            raise TypeError(f"position has step={values['step']}")
        return cls(**values)

    @property
    def mean_loss(self) -> float | None:
        """Mean of the losses of this epoch that were read; None if no loss was read."""
        return self.mean_loss_since(TrainingPosition())

    def mean_loss_since(self, earlier: TrainingPosition) -> float | None:
        """Return the mean of the losses that were read since an earlier position of this epoch; None without losses."""
        n_losses = self.loss_count - earlier.loss_count
        return (self.loss_sum - earlier.loss_sum) / n_losses if n_losses else None

    def describe(self) -> str:
        """Return the position as text, e.g. "in epoch 2, after mini-batch 5 (step 105 of the training)"."""
        inside = f"in epoch {self.epoch}, after mini-batch {self.mini_batches}"
        where = inside if self.mini_batches else f"after epoch {self.epoch - 1}"
        return f"{where} (step {self.step} of the training)"


class LossMonitor:
    """Adds up losses; raises TrainingDiverged for the first loss that is NaN or infinite.

    On the CPU every loss is read before the update of the weights. On an accelerator, `LOSSES_PER_READ` losses are read
    at a time, and the remaining ones before a checkpoint is written.
    """

    def __init__(self, device: torch.device):
        self._group_size = 1 if device.type == "cpu" else LOSSES_PER_READ
        self._unread: list[tuple[Tensor, int, int]] = []  # (loss on the device, steps, n_earlier) as in `add_loss`

    def add(self, position: TrainingPosition, loss: Tensor, steps: int) -> None:
        """Add the mean loss of the next `steps` mini-batches, which `position` does not count yet.

        Raises:
            TrainingDiverged: a loss is NaN or infinite.
        """
        self._unread.append((loss.detach(), steps, position.mini_batches))
        if len(self._unread) >= self._group_size:
            self.read(position)

    def read(self, position: TrainingPosition) -> None:
        """Read all unread losses and add them to the sum of `position`.

        Raises:
            TrainingDiverged: a loss is NaN or infinite.
        """
        unread, self._unread = self._unread, []
        losses = [loss for loss, _, _ in unread]
        values = [loss.item() for loss in losses] if len(losses) < 2 else torch.stack(losses).tolist()
        for value, (_, steps, n_earlier) in zip(values, unread, strict=True):
            add_loss(position, value, steps, n_earlier)


def add_loss(position: TrainingPosition, value: float, steps: int, n_earlier: int) -> None:
    """Add the mean loss `value` of `steps` mini-batches to the sum of `position`.

    n_earlier: number of earlier mini-batches in this epoch.

    Raises:
        TrainingDiverged: the loss is NaN or infinite.
    """
    if not math.isfinite(value):
        first, last = n_earlier + 1, n_earlier + steps
        numbers = f"mini-batch {first}" if steps == 1 else f"mini-batches {first} to {last}"
        step = position.step - position.mini_batches + first
        raise TrainingDiverged(
            f"the loss is {value} in epoch {position.epoch}, {numbers} (step {step} of the training)"
        )
    position.loss_sum += value * steps
    position.loss_count += steps


def check_weights(network: nn.Module, position: TrainingPosition) -> None:
    """Raise TrainingDiverged if a weight is NaN or infinite."""
    for name, parameter in network.named_parameters():
        if not all(math.isfinite(extreme) for extreme in torch.aminmax(parameter.detach())):
            raise TrainingDiverged(f"{name} has NaN or infinite weights {position.describe()}")
