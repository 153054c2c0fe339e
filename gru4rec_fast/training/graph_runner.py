"""Runs an epoch of graph training: one BPR update per mini-batch of triples (user, item of the user, other item)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gru4rec_fast.data import TripleSampler
from gru4rec_fast.distributed import Ranks
from gru4rec_fast.nn import GraphNetwork
from gru4rec_fast.profiling import attempts, phase
from gru4rec_fast.profiling.out_of_memory import UPDATE, Attempt
from gru4rec_fast.training.checkpoint import Checkpoint
from gru4rec_fast.training.gradient_sums import sum_gradients
from gru4rec_fast.training.options import check_at_least
from gru4rec_fast.training.progress import Progress
from gru4rec_fast.training.schedules import Schedule
from gru4rec_fast.training.training_position import LossMonitor, TrainingPosition


class GraphEpochRunner:
    """Trains a GraphNetwork by BPR (Bayesian personalized ranking), epoch by epoch.

    Implements the protocol `gru4rec_fast.training.trainer.EpochRunner`.

    Triples and dropout masks are functions of the seeds of sampler and network, and of the number of mini-batches since
    the training began.

    Args:
        network: trained in place, from the weights that it has.
        sampler: draws the triples; an epoch has `sampler.n_batches` mini-batches.
        optimizer: optimizer of the network's parameters.
        reg_weight: weight of the L2 penalty.
        schedule: learning-rate schedule of `optimizer`; None: a constant learning rate.

    Raises:
        ValueError: reg_weight is negative.
    """

    def __init__(
        self,
        network: GraphNetwork,
        sampler: TripleSampler,
        *,
        optimizer: Optimizer,
        reg_weight: float = 0.0,
        schedule: Schedule | None = None,
    ) -> None:
        check_at_least(0, reg_weight=reg_weight)
        self.network, self.sampler, self.optimizer = network, sampler, optimizer
        self.reg_weight, self.schedule = reg_weight, schedule
        self.ranks: Ranks | None = None
        self.position = TrainingPosition()
        self._losses = LossMonitor(network.embedding.device)

    def join(self, ranks: Ranks) -> None:
        """Train together with other processes from now on, before an epoch has begun.

        Each process must have made a runner of the same arguments. Weights and drawn seeds become those of rank 0.
        Within `oom_guard`, an update that runs out of memory is not repeated: the other ranks are in the midst of it.

        Raises:
            ValueError: the arguments differ between the ranks.
        """
        settings: dict[str, Any] = {"batch_size": self.sampler.batch_size, "reg_weight": self.reg_weight}
        settings |= {"only_needed": self.network.only_needed, "position": asdict(self.position)}
        ranks.check_equal(self.data_identity | settings)
        ranks.check_equal_networks(self.network, self.optimizer)
        self.ranks = ranks
        for seeded in (self.network, self.sampler):
            seeded.restore_seed(ranks.from_first(seeded.seed))
        ranks.check_equal({"seed of the network": self.network.seed, "seed of the sampler": self.sampler.seed})
        ranks.copy_from_first(self.network)

    @property
    def n_events(self) -> int:
        """Number of triples in an epoch."""
        return self.sampler.n_batches * self.sampler.batch_size

    @property
    def data_identity(self) -> dict[str, int | str]:
        """Counts of the graph, which a resumed training must share."""
        network = self.network
        return {
            "users": network.n_users,
            "items": network.n_items,
            "entries": len(network.graph.neighbors),
            "batches": self.sampler.n_batches,
        }

    def notice(self) -> str | None:
        """Return None: no line is shown before training."""
        return None

    def run_epoch(self, progress: Progress, between_updates: Callable[[], int | None]) -> None:
        """Run the current epoch to its end.

        `between_updates` is called after each mini-batch. The maximum number of mini-batches that it returns never
        forbids this, so it is ignored.
        """
        position, batch_size = self.position, self.sampler.batch_size
        self.network.train()
        started = time.perf_counter() - position.seconds
        while position.mini_batches < self.sampler.n_batches:
            with phase("batch"):
                triples = self.sampler.draw(position.step)
            once = [Attempt(1, is_last=True)]
            for attempt in attempts(UPDATE, most=batch_size) if self.ranks is None else once:
                with attempt:
                    loss = self._backpropagate(triples, attempt.n_parts)
            self._losses.add(position, loss, 1)
            with phase("update"):
                self.optimizer.step()
            if self.schedule:
                self.schedule.after_update()
            position.step += 1
            position.mini_batches += 1
            position.events += batch_size
            position.seconds = time.perf_counter() - started
            progress.advance(batch_size, position.mean_loss)
            between_updates()
        self.read_losses()

    def _backpropagate(self, triples: Sequence[Tensor], n_parts: int) -> Tensor:
        """Compute the loss of a mini-batch of triples and its gradients, in `n_parts` parts of it; return the loss."""
        if n_parts > 1:  # memory is short
            self.optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        for part in zip(*(indices.tensor_split(n_parts) for indices in triples), strict=True):
            with phase("forward"):
                bpr, l2_penalty = self.network.loss(*part, step=self.position.step, ranks=self.ranks)
                loss = bpr + self.reg_weight * l2_penalty
                if n_parts > 1:  # both terms are means over the triples of the part
                    loss = loss * (len(part[0]) / len(triples[0]))
            with phase("backward"):
                if not losses:
                    self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
            losses.append(loss.detach())
        if self.ranks is not None:
            self._sum_gradients(self.ranks)
        return losses[0] if n_parts == 1 else torch.stack(losses).sum()

    def _sum_gradients(self, ranks: Ranks) -> None:
        """Add up the gradients of the layers' parameters, to which each rank has contributed its nodes."""
        table = self.network.embedding
        weights = [weight for weight in self.network.parameters() if weight is not table]
        if weights:
            sum_gradients(ranks, weights, rows={}, losses=[])
        if table.is_cuda and table.grad is not None:  # not the same bits on all ranks: a GPU adds rows in any order
            ranks.overwrite_(table.grad._values() if table.grad.is_sparse else table.grad)

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
        """Return the seed of the triples, which are functions of the seed and the position."""
        return {}, {"sampler_seed": self.sampler.seed}

    def load_checkpoint_state(self, checkpoint: Checkpoint) -> None:
        """Restore what `checkpoint_state` returned."""
        self.sampler.restore_seed(checkpoint.progress.get("sampler_seed"))
