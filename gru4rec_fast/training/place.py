"""Where a training stands, and the watch over its losses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# On an accelerator looking at a loss waits for the device, so losses are looked at in bunches.
LOSSES_PER_LOOK = 64


class TrainingDiverged(ArithmeticError):
    """A loss, a weight or a metric became NaN or infinite; the message says where, and which checkpoint is good."""


@dataclass
class Place:
    """The epoch being played (from 1), mini-batches since the training began (`step`), and sums over this epoch.

    `loss_sum` is over the first `summed` of the epoch's `mini_batches`: on an accelerator losses are read later.
    """

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    summed: int = 0
    mini_batches: int = 0
    events: int = 0
    seconds: float = 0.0

    @property
    def mean_loss(self) -> float | None:
        """Mean over the mini-batches whose loss was read; None before the first."""
        return self.loss_sum / self.summed if self.summed else None

    def __str__(self) -> str:
        inside = f"in epoch {self.epoch} after mini-batch {self.mini_batches} of it"
        where = inside if self.mini_batches else f"after epoch {self.epoch - 1}"
        return f"{where} (step {self.step} of the training)"


class LossWatch:
    """Adds losses to a place's sum and stops the training at the first that is not a finite number.

    On the CPU every loss is looked at before its gradient is computed; on an accelerator `LOSSES_PER_LOOK` at a time,
    and always before a checkpoint is written.
    """

    def __init__(self, device: torch.device):
        self._every = 1 if device.type == "cpu" else LOSSES_PER_LOOK
        self._waiting: list[tuple[Tensor, int, int]] = []

    def add(self, place: Place, loss: Tensor, steps: int) -> None:
        """Take in the mean loss of the `steps` mini-batches that follow `place`."""
        self._waiting.append((loss.detach(), steps, place.mini_batches))
        if len(self._waiting) >= self._every:
            self.look(place)

    def look(self, place: Place) -> None:
        """Add what was not looked at yet to the sum of `place`.

        Raises:
            TrainingDiverged: a loss is NaN or infinite.
        """
        waiting, self._waiting = self._waiting, []
        values = [loss.item() for loss, _, _ in waiting[:1]] if len(waiting) < 2 else _read(waiting)
        for value, (_, steps, before) in zip(values, waiting, strict=True):
            add_loss(place, value, steps, before)


def add_loss(place: Place, value: float, steps: int, before: int) -> None:
    """Add the mean loss of the `steps` mini-batches that follow the epoch's first `before` to the sum of `place`.

    Raises:
        TrainingDiverged: it is NaN or infinite.
    """
    if not math.isfinite(value):
        number = f"mini-batch {before + 1}" if steps == 1 else f"mini-batches {before + 1} to {before + steps}"
        step = place.step - place.mini_batches + before + 1
        raise TrainingDiverged(f"the loss is {value} in epoch {place.epoch}, {number} (step {step} of the training)")
    place.loss_sum += value * steps
    place.summed += steps


def _read(waiting: list[tuple[Tensor, int, int]]) -> list[float]:
    return torch.stack([loss for loss, _, _ in waiting]).tolist()


def check_weights(network: nn.Module, place: Place) -> None:
    """Raise TrainingDiverged where a weight is NaN or infinite."""
    for name, parameter in network.named_parameters():
        if not all(math.isfinite(extreme) for extreme in torch.aminmax(parameter.detach())):
            raise TrainingDiverged(f"{name} holds NaN or infinite weights {place}")
