"""Where a training stands, and the watch over its losses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# On an accelerator looking at a loss waits for the device, so losses are looked at in bunches.
LOSSES_PER_LOOK = 64


class TrainingDiverged(ArithmeticError):
    """A loss or a weight became NaN or infinite; the message says where, and which checkpoint is the last good one."""


@dataclass
class Place:
    """The epoch being played (from 1), mini-batches since the training began (`step`), and sums over this epoch."""

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    mini_batches: int = 0
    events: int = 0
    seconds: float = 0.0


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
        """Add what was not looked at yet to `place.loss_sum`.

        Raises:
            TrainingDiverged: a loss is NaN or infinite.
        """
        waiting, self._waiting = self._waiting, []
        values = [loss.item() for loss, _, _ in waiting[:1]] if len(waiting) < 2 else _read(waiting)
        for value, (_, steps, before) in zip(values, waiting, strict=True):
            if not math.isfinite(value):
                number = f"mini-batch {before + 1}" if steps == 1 else f"mini-batches {before + 1} to {before + steps}"
                step = place.step - place.mini_batches + before + 1
                raise TrainingDiverged(
                    f"the loss is {value} in epoch {place.epoch}, {number} (step {step} of the training)"
                )
            place.loss_sum += value * steps


def _read(waiting: list[tuple[Tensor, int, int]]) -> list[float]:
    return torch.stack([loss for loss, _, _ in waiting]).tolist()
