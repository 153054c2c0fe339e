"""The training loop of graph models: batches of triples in, a trained network, a history and checkpoints out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch.optim import Optimizer

from gru4rec_fast.data import TripleSampler
from gru4rec_fast.nn import GraphNetwork
from gru4rec_fast.profiling import PeakMemory
from gru4rec_fast.training.base import BaseTrainer
from gru4rec_fast.training.checkpoint import Checkpoint
from gru4rec_fast.training.place import LossWatch, Place
from gru4rec_fast.training.progress import Progress


@dataclass(frozen=True)
class GraphTrainingOptions:
    """Options of a graph model's training.

    Attributes:
        n_epochs: epochs in all, those before a resume included; an epoch draws one triple per edge.
        reg_weight: strength of the L2 penalty.
        evaluate_every: epochs between two validations; the last epoch is always validated.
        monitor: the validation metric that picks the best epoch, e.g. "recall@20", larger is better; or "loss", the
            training loss, smaller is better.
        patience: stop after this many validations (epochs, for "loss") without a better value; None: never.
        min_delta: by how much a value must beat the best to count as better.
        checkpoint_every: also write the `last` checkpoint inside an epoch, every so many mini-batches; None: per epoch.

    Raises:
        ValueError: a value out of range, named.
    """

    n_epochs: int = 10
    reg_weight: float = 0.0
    evaluate_every: int = 1
    monitor: str = "recall@20"
    patience: int | None = None
    min_delta: float = 0.0
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        smallest: dict[str, float] = {"n_epochs": 1, "reg_weight": 0, "evaluate_every": 1, "min_delta": 0}
        smallest |= {name: 1 for name in ("patience", "checkpoint_every") if getattr(self, name) is not None}
        for name, least in smallest.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")


class TriplePlayer:
    """Plays an epoch of triples and moves the weights after each batch.

    Args: as those of `GraphTrainer`.

    Attributes:
        place: how far the training has come; `step` keys triples and dropouts.
    """

    def __init__(
        self,
        network: GraphNetwork,
        sampler: TripleSampler,
        options: GraphTrainingOptions,
        optimizer: Optimizer,
        progress: Progress,
    ) -> None:
        self.network, self.sampler, self.options = network, sampler, options
        self.optimizer, self.progress = optimizer, progress
        self.place = Place()
        self._losses = LossWatch(network.embedding.device)

    def play(self, between_updates: Callable[[], int | None]) -> None:
        """Play the epoch, or what is left of it; `between_updates` is called after each batch."""
        place, size = self.place, self.sampler.batch_size
        self.network.train()
        total = self.sampler.n_batches * size
        self.progress.begin_epoch(place.epoch, self.options.n_epochs, total, place.events)
        started = time.perf_counter() - place.seconds
        while place.mini_batches < self.sampler.n_batches:
            bpr, norm = self.network.loss(*self.sampler.draw(place.step), step=place.step)
            loss = bpr + self.options.reg_weight * norm
            self._losses.add(place, loss, 1)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            place.step += 1
            place.mini_batches += 1
            place.events += size
            place.seconds = time.perf_counter() - started
            self.progress.advance(size, place.mean_loss)
            between_updates()
        self.look_at_losses()

    def end_epoch(self) -> None:
        """Stand before the next epoch."""
        self.place = Place(self.place.epoch + 1, self.place.step)

    def look_at_losses(self) -> None:
        """Take in every loss so far; TrainingDiverged where one is no number."""
        self._losses.look(self.place)


class GraphTrainer(BaseTrainer):
    """Trains a GraphNetwork by BPR.

    Every random number (triples, dropouts) is a function of the seeds and of the number of batches since the training
    began, so on the CPU a resumed training ends with the same bits as one that was never interrupted.

    Args:
        network: trained in place.
        sampler: draws the triples; its `n_batches` make an epoch.
        options: everything else that can be chosen.
        optimizer: over the network's parameters.
        validate: called with the network in eval mode; returns metrics by name.
        out: folder for last.safetensors, best.safetensors (where there is something to pick it by), curves.csv and
            curves.png; see `RunFolder` for what becomes of an earlier training there. None: nothing is written.
        identity: format, config and further tensors to put into the checkpoints, so that their reader knows the model.
        progress: what is shown.
        peak: meter of the peak memory; None: one that starts with `run`.

    Attributes:
        history: one dict per finished epoch: epoch, loss (mean over the batches, penalty included), seconds (of
            training), mini_batches, events (triples), learning_rate, and `validation` where there was one.
        peak_memory_bytes: peak resident size above the baseline of `peak`, after `run`.

    Raises:
        ValueError: parts that do not fit each other.
    """

    network: GraphNetwork
    options: GraphTrainingOptions
    player: TriplePlayer

    def __init__(
        self,
        network: GraphNetwork,
        sampler: TripleSampler,
        options: GraphTrainingOptions,
        *,
        optimizer: Optimizer,
        validate: Callable[[], Mapping[str, float]] | None = None,
        out: str | os.PathLike[str] | None = None,
        identity: Checkpoint | None = None,
        progress: Progress | None = None,
        peak: PeakMemory | None = None,
    ) -> None:
        super().__init__(
            network,
            options,
            optimizer=optimizer,
            validate=validate,
            out=out,
            identity=identity or Checkpoint("gru4rec_fast.GraphNetwork/1"),
            progress=progress,
            peak=peak,
        )
        self.sampler = sampler
        self.player = TriplePlayer(network, sampler, options, optimizer, self.progress)

    @property
    def _validates_now(self) -> bool:
        epoch, options = self.place.epoch, self.options
        return epoch % options.evaluate_every == 0 or epoch == options.n_epochs

    @property
    def _data(self) -> dict[str, int | str]:
        network = self.network
        return {
            "users": network.n_users,
            "items": network.n_items,
            "entries": len(network.graph.neighbors),
            "batches": self.sampler.n_batches,
        }
