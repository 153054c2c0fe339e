"""Runs an epoch of training on ratings: one update per mini-batch, by the squared error."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gru4rec_fast.distributed import Ranks, digest
from gru4rec_fast.nn import RatingNetwork
from gru4rec_fast.profiling import phase
from gru4rec_fast.training.checkpoint import Checkpoint
from gru4rec_fast.training.options import check_at_least
from gru4rec_fast.training.progress import Progress
from gru4rec_fast.training.schedules import Schedule
from gru4rec_fast.training.training_position import LossMonitor, TrainingPosition


class RatingEpochRunner:
    """Trains a RatingNetwork on ratings in random order, epoch by epoch.

    Implements the protocol `gru4rec_fast.training.trainer.EpochRunner`. The order is a function of the network's seed
    and the number of the epoch.

    Args:
        network: trained in place, from the weights that it has.
        index: row in each table of the network, int64 [n, number of tables].
        ratings: float64 [n].
        batch_size: ratings per mini-batch; the last one of an epoch may have fewer.
        optimizer: optimizer of the network's parameters.
        schedule: learning-rate schedule of `optimizer`; None: a constant learning rate.

    Raises:
        ValueError: batch_size is below 1.
    """

    def __init__(
        self,
        network: RatingNetwork,
        index: Tensor,
        ratings: Tensor,
        batch_size: int,
        *,
        optimizer: Optimizer,
        schedule: Schedule | None = None,
    ) -> None:
        check_at_least(1, batch_size=batch_size)
        self.network, self.optimizer, self.schedule = network, optimizer, schedule
        self.device = network.rating_mean.device
        self.index, self.ratings, self.batch_size = index.to(self.device), ratings.to(self.device), batch_size
        self.ranks: Ranks | None = None
        self.position = TrainingPosition()
        self._losses = LossMonitor(self.device)

    def join(self, ranks: Ranks) -> None:
        """Raise ValueError: ratings are trained on by one process."""
        raise ValueError("a RatingNetwork is trained by one process: leave out ranks=")

    @property
    def n_events(self) -> int:
        """Number of ratings in an epoch."""
        return len(self.ratings)

    @property
    def data_identity(self) -> dict[str, int | str]:
        """Number and digest of the ratings, which a resumed training must share."""
        return {"ratings": len(self.ratings), "digest": f"{digest(self.index)} {digest(self.ratings)}"}

    def notice(self) -> str | None:
        """Return None: no line is shown before training."""
        return None

    def run_epoch(self, progress: Progress, between_updates: Callable[[], int | None]) -> None:
        """Run the current epoch to its end; `between_updates` is called after each mini-batch."""
        position = self.position
        self.network.train()
        started = time.perf_counter() - position.seconds
        # The generator's state depends on 64 bits. The epoch is added so that each one has another order.
        generator = torch.Generator().manual_seed((self.network.seed + position.epoch) % (1 << 63))
        order = torch.randperm(len(self.ratings), generator=generator).to(self.device)
        for rows in order.split(self.batch_size)[position.mini_batches :]:
            with phase("forward"):
                loss = self.network.loss(self.index[rows], self.ratings[rows], step=position.step)
            with phase("backward"):
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
            self._losses.add(position, loss, 1)
            with phase("update"):
                self.optimizer.step()
            if self.schedule:
                self.schedule.after_update()
            position.step += 1
            position.mini_batches += 1
            position.events += len(rows)
            position.seconds = time.perf_counter() - started
            progress.advance(len(rows), position.mean_loss)
            between_updates()
        self.optimizer.zero_grad(set_to_none=True)  # rows can be appended to tables without a gradient only
        self.read_losses()

    def start_next_epoch(self) -> None:
        """Advance `position` to the start of the next epoch."""
        self.position = TrainingPosition(self.position.epoch + 1, self.position.step)

    def read_losses(self) -> None:
        """Add the losses that are still on the device to `position`.

        Raises:
            TrainingDiverged: a loss is NaN or infinite.
        """
        self._losses.read(self.position)

    def checkpoint_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return nothing: the order depends on the network's seed and the position."""
        return {}, {}

    def load_checkpoint_state(self, checkpoint: Checkpoint) -> None:
        """Restore nothing, see `checkpoint_state`."""
