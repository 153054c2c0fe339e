"""The training loop of graph models: batches of triples in, a trained network, a history and checkpoints out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from gru4rec_fast.data.triples import TripleSampler
from gru4rec_fast.nn import GraphNetwork
from gru4rec_fast.profiling import PeakMemory
from gru4rec_fast.training.checkpoint import Checkpoint, CheckpointError
from gru4rec_fast.training.early_stopping import EarlyStopping
from gru4rec_fast.training.folder_lock import exclusive
from gru4rec_fast.training.interrupt import InterruptRequest, TrainingInterrupted, deferred_interrupt
from gru4rec_fast.training.options import LOSS
from gru4rec_fast.training.place import LossWatch, Place, TrainingDiverged, check_weights
from gru4rec_fast.training.progress import Progress, Silent
from gru4rec_fast.training.run_folder import LAST, RunFolder
from gru4rec_fast.training.state import MODEL, OPTIMIZER, load_optimizer, optimizer_state


@dataclass(frozen=True)
class GraphTrainingOptions:
    """Options of a graph model's training.

    Attributes:
        n_epochs: epochs in all, those before a resume included; an epoch draws one triple per edge.
        reg: strength of the L2 penalty.
        evaluate_every: epochs between two validations; the last epoch is always validated.
        monitor: the validation metric that picks the best epoch, e.g. "recall@20", larger is better; or "loss", the
            training loss, smaller is better.
        patience: stop after this many validations (epochs, for "loss") without a better value; None: never.
        min_delta: by how much a value must beat the best to count as better.

    Raises:
        ValueError: a value out of range, named.
    """

    n_epochs: int = 10
    reg: float = 0.0
    evaluate_every: int = 1
    monitor: str = "recall@20"
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        smallest: dict[str, float] = {"n_epochs": 1, "reg": 0, "evaluate_every": 1, "min_delta": 0}
        smallest |= {"patience": 1} if self.patience is not None else {}
        for name, least in smallest.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")


class GraphTrainer:
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
            curves.png; files of these names are replaced. None: nothing is written.
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

    def __init__(
        self,
        network: GraphNetwork,
        sampler: TripleSampler,
        options: GraphTrainingOptions,
        *,
        optimizer: Optimizer,
        validate: Callable[[], Mapping[str, float]] | None = None,
        out: str | Path | None = None,
        identity: Checkpoint | None = None,
        progress: Progress | None = None,
        peak: PeakMemory | None = None,
    ) -> None:
        watches_loss = options.monitor == LOSS
        if options.patience is not None and validate is None and not watches_loss:
            raise ValueError(f"patience={options.patience} watches {options.monitor}, which needs validation data")
        self.network, self.sampler, self.options = network, sampler, options
        self.optimizer, self.validate, self.progress = optimizer, validate, progress or Silent()
        self.folder = RunFolder(out, identity or Checkpoint("gru4rec_fast.GraphNetwork/1"))
        self.early_stopping = EarlyStopping(options.patience, options.min_delta, maximise=not watches_loss)
        self.history: list[dict[str, Any]] = []
        self._peak, self.peak_memory_bytes = peak, 0
        self.place = Place()
        self._losses = LossWatch(network.embedding.device)

    def run(self, resume: Checkpoint | None = None) -> list[dict[str, Any]]:
        """Train up to `n_epochs`, from the start or from where `resume` stands; return the history.

        Raises:
            TrainingInterrupted: Ctrl-C; raised between two updates, after `last` was written.
            TrainingDiverged: a NaN or infinite loss or weight.
            CheckpointError: `resume` holds no training state, or one over another graph.
            OSError: a checkpoint cannot be written.
        """
        peak = self._peak or PeakMemory()
        if resume is not None:
            self._restore(resume)
        with exclusive(self.folder.path):
            return self._run(peak)

    def _run(self, peak: PeakMemory) -> list[dict[str, Any]]:
        try:
            with deferred_interrupt() as interrupt:
                while self.place.epoch <= self.options.n_epochs and not self.early_stopping.should_stop:
                    self._play_epoch(interrupt)
                    self._finish_epoch()
                    self._stop_if(interrupt)
        except TrainingDiverged as error:
            saved = self.folder.last_saved
            kept = "no checkpoint had been written yet" if saved is None else f"the last good checkpoint is {saved}"
            raise TrainingDiverged(f"{error}; training stopped; {kept}; try a smaller learning_rate") from None
        finally:
            self.progress.close()
            self.peak_memory_bytes = peak.bytes
            self.folder.write_curves(self.history)
        return self.history

    def _play_epoch(self, interrupt: InterruptRequest) -> None:
        """Play the epoch, or what is left of it."""
        place, size = self.place, self.sampler.batch_size
        self.network.train()
        total = self.sampler.n_batches * size
        self.progress.begin_epoch(place.epoch, self.options.n_epochs, total, place.events)
        started = time.perf_counter() - place.seconds
        while place.mini_batches < self.sampler.n_batches:
            bpr, norm = self.network.loss(*self.sampler.draw(place.step), step=place.step)
            loss = bpr + self.options.reg * norm
            self._losses.add(place, loss, 1)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            place.step += 1
            place.mini_batches += 1
            place.events += size
            place.seconds = time.perf_counter() - started
            self.progress.advance(size, place.mean_loss)
            self._stop_if(interrupt)
        self._losses.look(place)

    def _finish_epoch(self) -> None:
        """Validate, write the history, pick the best, save."""
        place, options = self.place, self.options
        check_weights(self.network, place)
        record: dict[str, Any] = {
            "epoch": place.epoch,
            "loss": place.loss_sum / place.mini_batches,
            "seconds": place.seconds,
            "mini_batches": place.mini_batches,
            "events": place.events,
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
        }
        watched: float | None = record[LOSS] if options.monitor == LOSS else None
        if self.validate is not None and (place.epoch % options.evaluate_every == 0 or place.epoch == options.n_epochs):
            self.network.eval()
            metrics = record["validation"] = dict(self.validate())
            if options.monitor not in (LOSS, *metrics):
                raise ValueError(
                    f"monitor={options.monitor!r} is not measured; there are {', '.join(metrics)} and {LOSS}"
                )
            watched = record[LOSS] if options.monitor == LOSS else metrics[options.monitor]
        better = watched is not None and self.early_stopping.update(place.epoch, watched)
        self.history.append(record)
        self.place = Place(place.epoch + 1, place.step)
        self._save_last()
        if better:
            self.folder.save_best(self.network, self.history)
        self.folder.write_csv(self.history)
        self.progress.end_epoch(record)

    def _stop_if(self, interrupt: InterruptRequest) -> None:
        if interrupt.signal_number is None:
            return
        path = self._save_last()
        then = "nothing was saved: no out folder was given"
        if path is not None:
            then = f"to go on from {path}, resume with the same out folder"
        raise TrainingInterrupted(f"training interrupted {self.place}; {then}", interrupt.signal_number)

    def _save_last(self) -> Path | None:
        if self.folder.path is None:
            return None
        self._losses.look(self.place)
        check_weights(self.network, self.place)
        state, values = optimizer_state(self.network, self.optimizer)
        progress = {
            "place": asdict(self.place),
            "history": self.history,
            "optimizer": values,
            "early_stopping": self.early_stopping.state_dict(),
            "data": self._data(),
        }
        return self.folder.save_last(self.network, state, progress)

    def _data(self) -> dict[str, int]:
        network = self.network
        return {
            "users": network.n_users,
            "items": network.n_items,
            "entries": len(network.graph.neighbours),
            "batches": self.sampler.n_batches,
        }

    def _restore(self, checkpoint: Checkpoint) -> None:
        progress = checkpoint.progress
        if "place" not in progress:
            raise CheckpointError(f"the checkpoint holds a model but no training to go on with; resume from {LAST}")
        if progress["data"] != self._data():
            raise CheckpointError(f"the checkpoint was trained on other data: {progress['data']}, not {self._data()}")
        self.place, self.history = Place(**progress["place"]), progress["history"]
        self.early_stopping.load_state_dict(progress["early_stopping"])
        self.network.load_state_dict(checkpoint.group(MODEL))
        load_optimizer(self.network, self.optimizer, checkpoint.group(OPTIMIZER), progress["optimizer"])
        self.folder.go_on_from(checkpoint.path)
