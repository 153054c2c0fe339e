"""Train in PyTorch Lightning: a LightningModule of GRU4Rec, a data module of sessions, and a memory callback.

Works with the packages `lightning` and `pytorch_lightning`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gru4rec_fast.data import SessionParallelLoader, SessionStore
from gru4rec_fast.distributed import Ranks
from gru4rec_fast.evaluation import evaluate_sessions
from gru4rec_fast.models import GRU4RecParameters, build_session_network, build_session_runner
from gru4rec_fast.models.builders import build_schedule, build_session_optimizer, open_sessions
from gru4rec_fast.models.parameters import TRAINING_LOSS
from gru4rec_fast.profiling import LeakDetector, MemoryProfiler
from gru4rec_fast.training import UpdateGroups
from gru4rec_fast.training.memory_callback import TrainingMemory

if TYPE_CHECKING:
    import lightning.pytorch as pl
else:
    # Modules and trainers of the two packages do not fit each other, so take the package that the program uses.
    names = ["lightning.pytorch", "pytorch_lightning"]
    if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
        names.reverse()
    try:
        pl = import_module(names[0])
    except ModuleNotFoundError:
        try:
            pl = import_module(names[1])
        except ModuleNotFoundError as error:
            message = "gru4rec_fast.integrations.lightning needs PyTorch Lightning: pip install lightning"
            raise ModuleNotFoundError(message, name=error.name) from None

# Key of the position of the training in a checkpoint of Lightning.
_POSITION = "gru4rec_fast.training"


class GRU4RecModule(pl.LightningModule):
    """GRU4Rec as a LightningModule, which trains by the fused step.

        module = GRU4RecModule(store, GRU4RecParameters(layers=(100,), batch_size=32), validation=valid)
        Trainer(max_epochs=5, accelerator="cpu").fit(module)

    The module has its own data loaders. A batch, and thus a step of Lightning, is `updates_per_step` updates of the
    weights. Where the fused step cannot train (another optimizer, hooks on the network, autocast), autograd does, also
    in batches of `updates_per_step` updates; a line of the log says which one trains. On one GPU, the captured step
    trains. Optimization is manual, so Lightning's gradient clipping and accumulation are errors; use the parameter
    `accumulate`.

    Logged: "loss_step" and "events_step" for each batch; "loss", the mean over the mini-batches of the epoch, and
    "events" for each epoch; "recall@20", "mrr@20" and the other metrics of `evaluate_sessions` for each validation.

    A checkpoint of Lightning has the position within the epoch, so on the CPU a training that is resumed with
    `Trainer.fit(module, ckpt_path=...)` ends with the same bits as one that was not interrupted.

    Args:
        store: sessions for training.
        parameters: hyper-parameters, or a mapping of them. `lr_scheduler`, `monitor`, `patience` and `min_delta` have
            their effect; `n_epochs`, `evaluate_every` and `device` are replaced by the Trainer's `max_epochs`,
            `check_val_every_n_epoch` and `accelerator`. `seed=None` draws from torch's generator, which
            `seed_everything` seeds.
        validation: sessions for validation, with the vocabulary of `store`; or None.
        updates_per_step: K, updates of the weights per batch. At 1, Lightning takes most of the time.
        sparse: whether autograd computes sparse gradients of the item tables. False if a subclass has an optimizer that
            takes dense ones only, such as Adam. The fused step needs no gradients.

    Attributes:
        network: the `SessionNetwork`. `GRU4Rec.from_network` makes an estimator of it.
        runner: the `SessionEpochRunner` that trains the network; `runner.position` says how far the training has come.

    A subclass may override `configure_optimizers`, to train with another optimizer or other schedulers. A scheduler is
    stepped after every epoch, or with interval "step" after every update. ReduceLROnPlateau monitors what the parameter
    `monitor` names.

    Raises:
        ValueError: a value is out of range, or the validation sessions have another vocabulary.
    """

    def __init__(
        self,
        store: SessionStore,
        parameters: GRU4RecParameters | Mapping[str, Any] | None = None,
        *,
        validation: SessionStore | None = None,
        updates_per_step: int = 32,
        sparse: bool = True,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        values = parameters.to_dict() if isinstance(parameters, GRU4RecParameters) else dict(parameters or {})
        self.save_hyperparameters({"parameters": values, "updates_per_step": updates_per_step, "sparse": sparse})
        # Lightning moves the module to its device before it trains.
        self.hyper_parameters = p = GRU4RecParameters.create(values | {"device": "cpu"})
        self.validation = None if validation is None else open_sessions(validation, store.vocabulary)
        self.monitor = p.monitor
        if validation is None:
            if p.patience is not None and p.monitor != TRAINING_LOSS:
                raise ValueError(
                    f"patience={p.patience} monitors {p.monitor}: give validation=, or set monitor='{TRAINING_LOSS}'"
                )
            self.monitor = TRAINING_LOSS
        self.network = build_session_network(p, store.n_items, sparse=sparse)
        self.runner = build_session_runner(p, self.network, store)
        self.criterion = self.runner.criterion  # a submodule, so that Lightning converts its dtype
        self._groups = UpdateGroups(self.runner, updates_per_step)
        self._saved_position: dict[str, Any] | None = None
        self._announced = False

    def train_dataloader(self) -> _Batches:
        """Return the loader of Lightning, whose batches are numbers; the fused step loads the sessions itself."""
        return _Batches(range(len(self._groups)))

    def val_dataloader(self) -> _Batches | list[Any]:
        """Return a loader whose only batch is the validation store."""
        return _one_batch(self.validation)

    def configure_optimizers(self) -> Any:
        """Return the optimizer that the hyper-parameters choose, and their learning-rate schedule if there is one."""
        p = self.hyper_parameters
        optimizer = build_session_optimizer(p, self.network)
        n_epochs = self.trainer.max_epochs or p.n_epochs
        p = GRU4RecParameters.create(p.to_dict() | {"n_epochs": n_epochs if n_epochs > 0 else p.n_epochs})
        schedule = build_schedule(p, optimizer, has_validation=self.validation is not None)
        if schedule is None:
            return optimizer
        is_validated = self.validation is not None and self.monitor != TRAINING_LOSS
        config = {
            "scheduler": schedule.scheduler,
            "interval": "step" if schedule.per_update else "epoch",
            "frequency": (self.trainer.check_val_every_n_epoch or 1)
            if schedule.monitors_metric and is_validated
            else 1,
        }
        return {"optimizer": optimizer, "lr_scheduler": config}

    def configure_callbacks(self) -> list[pl.Callback]:
        """Return an EarlyStopping callback if the parameter `patience` is set."""
        p = self.hyper_parameters
        if p.patience is None:
            return []
        mode = "min" if self.monitor == TRAINING_LOSS else "max"
        return [pl.callbacks.EarlyStopping(self.monitor, p.min_delta, p.patience, mode=mode)]

    def setup(self, stage: str) -> None:
        """Join the processes of the Trainer, if there are several. Raise ValueError if it scales gradients."""
        if self.trainer.world_size > 1 and self.runner.ranks is None:
            self.runner.join(Ranks(self.trainer.strategy.root_device))
        if self.trainer.precision == "16-mixed":
            raise ValueError("GRU4RecModule does not scale gradients: use precision='32-true' or 'bf16-mixed'")

    def on_fit_start(self) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        if not isinstance(optimizer, Optimizer):
            raise ValueError("configure_optimizers must return one optimizer")
        self.runner.optimizer = optimizer
        schedule: Any = _UpdateSchedules(self) if self.trainer.lr_scheduler_configs else None
        self.runner.schedule = schedule
        self.runner.to(self.device)
        # Without ckpt_path, the checkpoint was loaded earlier, e.g. by load_from_checkpoint: only its weights are used.
        if self._saved_position is not None and self.trainer.ckpt_path is not None:
            self.runner.load_state_dict(self._saved_position)
        self._saved_position, self._announced = None, False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Make the updates of a batch; see the class."""
        if not isinstance(batch, int):
            raise TypeError(
                f"GRU4RecModule loads its own sessions, and was given a batch of class {type(batch).__name__}: call "
                "Trainer.fit(module) without loaders and data module"
            )
        self._announce()
        # The updates are made in the closure, because Lightning counts calls of the optimizer's step; checkpoints and
        # loggers need its count. There are no gradients after the closure, so the step itself changes nothing.
        outcome = self.optimizers().step(lambda: self._groups.run(batch_idx))
        if outcome.loss is not None:
            self.log_dict({"loss_step": outcome.loss, "events_step": float(outcome.events)}, prog_bar=True)
        if self.trainer.is_last_batch:  # Lightning, too, steps them before the validation, which may save a checkpoint
            self._step_schedulers(monitors_metric=False)

    def on_train_epoch_end(self) -> None:
        position = self.runner.position
        if position.mean_loss is not None:
            self.log_dict({TRAINING_LOSS: position.mean_loss, "events": float(position.events)})
        self._step_schedulers(monitors_metric=True)

    def validation_step(self, batch: SessionStore, batch_idx: int) -> None:
        """Log the metrics of `evaluate_sessions` on a store."""
        digits = self.hyper_parameters.monitor.partition("@")[2]
        cutoffs = sorted({20, *([int(digits)] if digits else [])})
        impl, ranks = self.hyper_parameters.impl, self.runner.ranks
        report = evaluate_sessions(self.network, batch, cutoffs=cutoffs, impl=impl, ranks=ranks)
        for name, value in report.metrics.items():
            self.log(name, value, batch_size=report.n_targets, prog_bar=name in ("recall@20", "mrr@20"))

    def test_step(self, batch: SessionStore, batch_idx: int) -> None:
        """Log the metrics on a store: Trainer.test(module, datamodule=SessionDataModule(train, test=store))."""
        self.validation_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[_POSITION] = self.runner.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._saved_position = checkpoint.get(_POSITION)

    def _announce(self) -> None:
        """Log once per training whether the fused step or autograd trains."""
        if not self._announced:
            self._announced = True
            reason = self.runner.why_not_fused
            pl.utilities.rank_zero_info(
                "GRU4RecModule: the fused step trains"
                if reason is None
                else f"GRU4RecModule: autograd trains, not the fused step: {reason}"
            )

    def _step_schedulers(self, *, monitors_metric: bool) -> None:
        """Step the schedulers with interval "epoch": those that monitor a metric, or the others.

        With manual optimization, Lightning does not step them.
        """
        for config in self.trainer.lr_scheduler_configs:
            is_due = config.interval == "epoch" and (self.current_epoch + 1) % config.frequency == 0
            if not is_due or _monitors_metric(config) != monitors_metric:
                continue
            monitored = self.trainer.callback_metrics.get(self.monitor) if monitors_metric else None
            if not monitors_metric or monitored is not None:
                self.lr_scheduler_step(config.scheduler, monitored)
            elif not self.trainer.fit_loop.restarting:  # Lightning saves no metrics in a checkpoint
                names = ", ".join(self.trainer.callback_metrics)
                raise ValueError(f"the scheduler monitors {self.monitor!r}, which was not logged: choose {names}")


def _monitors_metric(config: Any) -> bool:
    """Return whether the scheduler monitors a metric; with manual optimization, `reduce_on_plateau` is not set."""
    return isinstance(config.scheduler, ReduceLROnPlateau)


class _UpdateSchedules:
    """Steps the schedulers of a module with interval "step" after each update, for `SessionEpochRunner.schedule`.

    Lightning saves the schedulers, so the state dict is empty.
    """

    def __init__(self, module: GRU4RecModule) -> None:
        self._module = module
        self._configs = [config for config in module.trainer.lr_scheduler_configs if config.interval == "step"]
        if any(map(_monitors_metric, self._configs)):
            raise ValueError("a scheduler that monitors a metric needs interval='epoch'")
        self.per_update = bool(self._configs)

    def after_update(self) -> None:
        """Step the schedulers that are due. Their frequency counts the updates of an epoch."""
        runner = self._module.runner
        n_updates = math.ceil(runner.position.mini_batches / (runner.loader.steps * runner.accumulate))
        for config in self._configs:
            if n_updates % config.frequency == 0:
                self._module.lr_scheduler_step(config.scheduler, None)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class _Batches:
    """A loader of the given batches. A list would be several loaders to Lightning.

    Lightning warns if a loader has no state when it saves a checkpoint within an epoch. The state is empty, because
    `GRU4RecModule.on_save_checkpoint` saves the position.
    """

    def __init__(self, batches: Collection[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _one_batch(store: SessionStore | None) -> _Batches | list[Any]:
    """Return a loader whose only batch is the store; for None, no loader."""
    return [] if store is None else _Batches([store])


class SessionDataModule(pl.LightningDataModule):
    """Sessions for a LightningModule of your own: blocks for training, whole stores for validation and test.

    A training batch is a `SessionBlock`. The validation has one batch, which is the store, so that

        def validation_step(self, store, batch_idx):
            self.log_dict(evaluate_sessions(self.network, store).metrics, batch_size=1)

    logs the metrics. The loader's position is in Lightning's checkpoints.

    Args:
        train: a SessionStore, a folder of `SessionStore.save`, or a log file or table (`SessionStore.from_events`).
        validation, test: in the same forms; events of items that are unknown in `train` are dropped.
        batch_size: B, the number of lanes (sessions processed in parallel).
        steps, shuffle, seed, min_live: see `SessionParallelLoader`.
        columns: names of the columns of files and tables: session_key, item_key, time_key.

    Attributes:
        train_store, validation_store, test_store: the stores. They are opened in the constructor, so that a network can
            be made for `train_store.n_items` items.
    """

    def __init__(
        self,
        train: Any,
        validation: Any = None,
        test: Any = None,
        *,
        batch_size: int = 32,
        steps: int = 1,
        shuffle: bool = False,
        seed: int | None = None,
        min_live: int = 1,
        **columns: str,
    ) -> None:
        super().__init__()
        self.train_store = open_sessions(train, None, **columns)
        self.validation_store, self.test_store = (
            None if data is None else open_sessions(data, self.train_store.vocabulary, **columns)
            for data in (validation, test)
        )
        self._make_loader = partial(
            SessionParallelLoader, self.train_store, batch_size, steps, shuffle=shuffle, seed=seed, min_live=min_live
        )
        self._loader = self._make_loader()

    def setup(self, stage: str) -> None:
        """Give this process its lanes, if the Trainer has several processes."""
        if stage == "fit" and self.trainer.world_size > 1:
            self._loader = self._make_loader(rank=self.trainer.global_rank, world_size=self.trainer.world_size)

    def train_dataloader(self) -> SessionParallelLoader:
        """Return the loader of blocks; Lightning moves them to its device."""
        return self._loader

    def val_dataloader(self) -> _Batches | list[Any]:
        """Return a loader whose only batch is the validation store."""
        return _one_batch(self.validation_store)

    def test_dataloader(self) -> _Batches | list[Any]:
        """Return a loader whose only batch is the test store."""
        return _one_batch(self.test_store)


class MemoryCallback(TrainingMemory, pl.Callback):
    """Records the memory of `Trainer.fit` by a MemoryProfiler, and watches it with a LeakDetector.

        memory = MemoryCallback()
        Trainer(max_epochs=1, callbacks=[memory]).fit(module)
        print(memory.profiler.report().table(), memory.detector.report().describe())

    Phases of a module with automatic optimization: "forward" (`training_step`), "backward", "update" (with gradient
    clipping), and "evaluation" (each validation, also the sanity check). With manual optimization, "training_step" has
    "backward" (`manual_backward`) and "update" (the optimizer's `step`) within it. `GRU4RecModule` has the phases of
    `GRU4Rec.fit` instead, and the fused step still trains. The detector makes a step per training batch.
    Nothing is logged. When `fit` has ended, also by an error, nothing is measured any more. The next `fit` is added to
    the reports.

    Args:
        profiler: the profiler; None makes one for the CPU.
        detector: the detector; None makes one that warns. Its `warm_up` counts training batches.

    Raises:
        RuntimeError: in `fit`: another profiler records in this thread.
    """

    def __init__(self, profiler: MemoryProfiler | None = None, detector: LeakDetector | None = None) -> None:
        super().__init__(profiler, detector)
        self._manual_step: Any = None  # the phase "training_step"

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start(pl_module, *trainer.optimizers)
        if not isinstance(pl_module, GRU4RecModule):
            for optimizer in trainer.optimizers:  # with manual optimization, no hook of Lightning ends an update
                handle = optimizer.register_step_post_hook(lambda *_: self.end_phase())
                self._contexts.callback(handle.remove)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.automatic_optimization:
            self.begin_phase("forward")
        elif not isinstance(pl_module, GRU4RecModule):
            self._manual_step = self.profiler.begin_phase("training_step")

    def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        self.end_phase()  # so that freeing the gradients of the last step is not part of "forward"

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Any) -> None:
        self.begin_phase("backward")

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.end_phase()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        self.profiler.note_gradients()
        if not isinstance(pl_module, GRU4RecModule):  # its updates are made before Lightning's step
            self.begin_phase("update")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.end_phase()
        self.profiler.end_phase(self._manual_step)
        self.detector.step()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begin_phase("evaluation")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.end_phase()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.close()
