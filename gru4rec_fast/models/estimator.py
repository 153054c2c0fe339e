"""The base class of all estimators: fit, save, load, parameters by name, report."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch

from gru4rec_fast import _version
from gru4rec_fast._backend import build_info
from gru4rec_fast._untrusted import brief, check_numbers, whole_numbers
from gru4rec_fast.distributed import Ranks, digest
from gru4rec_fast.evaluation.network import evaluation_view
from gru4rec_fast.models.builders import build_trainer, find_device
from gru4rec_fast.models.parameter_fields import Parameters
from gru4rec_fast.models.parameters import TRAINING_LOSS
from gru4rec_fast.nn.step_counter import StepCounter
from gru4rec_fast.profiling.device_memory import peak_of_training
from gru4rec_fast.training import (
    Callback,
    Checkpoint,
    CheckpointError,
    EpochRunner,
    Trainer,
    TrainingPosition,
    load_checkpoint,
    save_checkpoint,
)
from gru4rec_fast.training.callbacks import check_callbacks
from gru4rec_fast.training.checkpoint import convert_progress
from gru4rec_fast.training.checkpoint_tensors import (
    MODEL,
    accumulator_maxima,
    load_weights,
    model_tensors,
    saved_accumulator_maxima,
)
from gru4rec_fast.training.folder_lock import lock_folder
from gru4rec_fast.training.progress import make_progress
from gru4rec_fast.training.run_folder import checkpoint_to_resume
from gru4rec_fast.training.saved_values import checked_history, damage_as_checkpoint_error

# Parameters that say where and how a model runs; they are not stored in its file.
NOT_STORED = ("device", "impl", "fused")
# Parameters that may change when a training is resumed, since the epochs so far do not depend on them.
FREE_ON_RESUME = ("n_epochs", "evaluate_every", "patience", "min_delta", *NOT_STORED)
# Names of parameters and tensors in version 0.1, and their names now.
RENAMED = {
    "draw": "sample_by",
    "mess_dropout": "message_dropout",
    "normalise_messages": "normalize_messages",
    "reg": "reg_weight",
    "graph.neighbours": "graph.neighbors",
}


class Metrics(Protocol):
    """Protocol of the report of an evaluation, such as `gru4rec_fast.evaluation.Report`."""

    @property
    def metrics(self) -> dict[str, float]: ...


class Model(Parameters):
    """Base class of all estimators: parameters by name. Models are compared by identity."""

    _column_arguments: ClassVar[tuple[str, ...]]  # arguments that name the columns of a table

    # The parameter dataclasses would compare models by their parameters.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return all parameters by name. `deep` has no effect; scikit-learn passes it."""
        return {name: getattr(self, name) for name in self.names()}

    def __repr__(self) -> str:
        defaults = type(self)().to_dict()
        changed = {name: value for name, value in self.to_dict().items() if value != defaults[name]}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"

    def _check_columns(self, columns: Iterable[str]) -> None:
        """Raise TypeError for an argument that does not name a column."""
        for name in columns:
            if name not in self._column_arguments:
                known = ", ".join(self._column_arguments)
                raise TypeError(f"unknown argument {name!r}; the arguments that name columns of a table are {known}")


class Estimator(Model):
    """Base class of GRU4Rec, NGCF and LightGCN, whose hyper-parameters are keyword arguments and attributes.

    Attributes:
        network: the network; None before `fit` or `load`.
        history: one dict per epoch, see `gru4rec_fast.training.Trainer`.
        best_epoch: the epoch whose model the last `fit` wrote to best.safetensors; None if there is none.
        peak_memory_bytes: peak resident memory of the last `fit` minus the resident memory at its start, or minus the
            baseline if `gru4rec_fast.profiling.set_baseline` was called.
    """

    file_format: ClassVar[str]
    """Format of the model's files, with its version."""
    _validation_metrics: ClassVar[tuple[str, ...]]  # metrics of a validation, without their cut-off
    _progress_unit: ClassVar[str] = "events"  # what the progress counts
    _ids_name: ClassVar[str]  # name of the training data's ids in the error "... was trained on another ..."
    network: StepCounter | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.network = None
        self.history: list[dict[str, Any]] = []
        self.best_epoch: int | None = None
        self.peak_memory_bytes = 0
        self._fitted_parameters: dict[str, Any] = {}
        self._accumulator_maxima: dict[str, torch.Tensor] = {}  # see the function `accumulator_maxima`
        self._is_fitting = False  # whether a `fit` of this model, perhaps in another thread, is changing the weights
        self._is_being_replaced = False  # whether a `partial_fit` is training a copy, which will replace everything

    def fit(
        self,
        data: Any,
        *,
        validation: Any = None,
        out: str | os.PathLike[str] | None = None,
        resume: bool | str | os.PathLike[str] = False,
        checkpoint_every: int | None = None,
        callbacks: Iterable[Callback] = (),
        progress: bool | None = None,
        ranks: Ranks | None = None,
        **columns: str,
    ) -> Self:
        """Train from scratch, or resume a training.

        Args:
            data: for GRU4Rec a SessionStore, a folder that `SessionStore.save` wrote, or an argument of
                `SessionStore.from_events` (a TSV, CSV or Parquet file, a pandas, polars or Arrow table). For graph
                models an InteractionGraph, a folder that `InteractionGraph.save` wrote, a .txt file of `user item
                item ...` lines, a log file or table with a column of users and a column of items, a scipy sparse
                matrix or a SessionStore.
            validation: held-out data in the same forms, on which the model is evaluated after every `evaluate_every`
                epochs; the metric `monitor` selects the best epoch. For graph models: interactions of the same users.
            out: folder for last.safetensors, best.safetensors (with validation or monitor="loss"), curves.csv,
                curves.png and, when the training has ended, model.safetensors: the model of the best epoch if the
                training selects one, else of the last epoch. Files of an earlier training are in out/previous once the
                first last.safetensors of this training is written.
            resume: True: resume from `out`/last.safetensors; or the path of such a file. On the CPU a resumed training
                ends with the same bits as an uninterrupted one.
            checkpoint_every: number of mini-batches after which last.safetensors is written also within an epoch;
                needs `out`.
            callbacks: a list of `gru4rec_fast.training.Callback` objects, which are called during the training and may
                stop it.
            progress: False shows nothing; None shows progress on stderr, as a bar on a terminal and as lines in a pipe.
            ranks: train together with these processes. Each one must call `fit` with the same arguments, and gets the
                same model. Rank 0 writes to `out`, which must be in a file system that all of them share.
            columns: names of the columns if data is a table: `session_key` ("SessionId"), `item_key` ("ItemId") and
                `time_key` ("Time"); for graph models `user_key` ("UserId") and `item_key`.

        Raises:
            ValueError: bad input; the message names it. CheckpointError: the checkpoint has other parameters or data.
            TrainingInterrupted, TrainingDiverged, OSError: see `gru4rec_fast.training.Trainer.run`.
            The training starts with `on_fit_start` of the callbacks. An earlier error leaves the model unchanged.
        """
        self._check_columns(columns)
        peak = peak_of_training()
        model = type(self)(**self.get_params())  # a second model, so that an error leaves this model unchanged
        model._check_patience(validation)
        if checkpoint_every is not None and out is None:
            raise ValueError(f"checkpoint_every={checkpoint_every}: give out=, the folder of the checkpoints")
        find_device(model.device)
        callbacks = check_callbacks(callbacks)
        if ranks is not None:
            parameters = {name: value for name, value in model.get_params().items() if name != "device"}
            folder = None if out is None else os.fspath(out)
            ranks.check_equal(parameters | {"resume": resume, "checkpoint_every": checkpoint_every, "out": folder})
        is_first = ranks is None or ranks.is_first  # rank 0 repairs the folder of an earlier training and writes to it
        with nullcontext() if ranks is None else ranks.first_alone():
            checkpoint_path = _path_to_resume(resume, out)
        for message in model.ignored_parameter_warnings:
            warnings.warn(message, stacklevel=2)
        train = model._open(data, **columns)
        model._set_training_ids(train)
        model._fitted_parameters = model._stored_parameters()
        held_out = None if validation is None else model._open(validation, **columns)
        with lock_folder(out if is_first else None):
            network = model.network = model._build_network()
            template = model._checkpoint_template()
            checkpoint = None if checkpoint_path is None else model._checkpoint_to_resume(checkpoint_path, template)
            if checkpoint is not None:
                with damage_as_checkpoint_error(checkpoint_path):  # before the runner, which takes the network's seed
                    network.restore_seed(_saved_seed(checkpoint))
            runner = model._build_runner(train, has_validation=validation is not None)
            if ranks is not None:
                runner.join(ranks)
                model._check_equal_ids(ranks)
            trainer = build_trainer(
                model,
                runner,
                checkpoint_every,
                validate=None if held_out is None else lambda: model._validate(held_out, ranks),
                out=out,
                checkpoint_template=template,
                callbacks=callbacks,
                progress=make_progress(progress if is_first else False, model._progress_unit),
                peak=peak,
            )
            if checkpoint is not None:
                trainer.restore(checkpoint)
            trainer.folder.prepare()  # `run` does so, too; here an error leaves this model unchanged
            model.history = trainer.history
            model._is_fitting = True
            vars(self).update(vars(model))  # no error so far, so this model gets all attributes of `model`
            try:
                trainer.run()
            finally:
                self._is_fitting = False
                self._take_results(trainer)
        return self

    def partial_fit(
        self,
        data: Any,
        *,
        validation: Any = None,
        n_epochs: int | None = None,
        shrink: float = 1.0,
        callbacks: Iterable[Callback] = (),
        progress: bool | None = None,
        ranks: Ranks | None = None,
        **columns: str,
    ) -> Self:
        """Continue the training of a fitted or loaded model with new data; return self.

            model = GRU4Rec.load("model.safetensors")
            model.partial_fit("today.tsv").save("model.safetensors")

        GRU4Rec trains on the new events only. Items that it does not have are appended to its catalogue as by
        `extend_items`. Negatives are sampled from the new events, which are then added to `support`. Adagrad continues
        with the maximum of its accumulator in each row, which is saved with the model, and without velocity. Models of
        `from_network`, of version 0.1 and of the official code have no such maxima: they learn with the large steps of
        a new training, and forget more of the old data.

        Graph models add the new interactions to their graph, append new users and items as by `extend_users` and
        `extend_items`, and train on the whole graph, with a new Adam.

        The epochs, and their numbers in `history`, follow those of the last training. A learning-rate schedule starts
        anew. Weights are trained as a copy: until the training has ended, and after an error or Ctrl-C, the model is
        unchanged.

        Args:
            data: new data, in the forms of `fit`. Sessions that continue may have all or only the new events.
            validation, callbacks, progress, ranks, columns: see `fit`.
            n_epochs: number of passes over the data; None is the parameter `n_epochs`.
            shrink: factor in (0, 1] by which all weights are multiplied first. Weights that have converged on the old
                data learn less from the new data (Ash & Adams, "On Warm-Starting Neural Network Training", NeurIPS
                2020). 0.8 suits as much new data as old; other ratios were not tried.

        Raises:
            ValueError, TypeError: bad input; the message names it. RuntimeError: the model is not fitted, or is
                being fitted. TrainingInterrupted, TrainingDiverged: see
                `gru4rec_fast.training.Trainer.run`.
        """
        self._check_columns(columns)
        peak = peak_of_training()
        self._network_to_change()
        (n_epochs,) = whole_numbers(1, n_epochs=self.n_epochs if n_epochs is None else n_epochs)
        check_numbers(shrink=shrink)
        if not 0 < shrink <= 1:
            raise ValueError(f"shrink={shrink}: must be in (0, 1]")
        model = copy.copy(self)
        self._is_being_replaced = True  # changes by a callback or another thread would be lost
        try:
            model.n_epochs = n_epochs
            model._check_patience(validation)
            callbacks = check_callbacks(callbacks)
            train = model._open_and_extend(data, **columns)
            with torch.no_grad():
                for weight in model._fitted_network().parameters():
                    weight.mul_(shrink)
            held_out = None if validation is None else model._open(validation, **columns)
            runner = model._build_runner(train, has_validation=validation is not None)
            n_earlier = self.history[-1]["epoch"] if self.history else 0
            # Seeds and steps determine negatives and dropout masks; these steps follow those of the earlier epochs.
            n_steps = sum(record.get("mini_batches", 0) for record in self.history)
            runner.position = TrainingPosition(epoch=n_earlier + 1, step=n_steps)
            if ranks is not None:
                runner.join(ranks)
                model._check_equal_ids(ranks)
            trainer = build_trainer(
                model,
                runner,
                n_epochs=n_earlier + model.n_epochs,
                validate=None if held_out is None else lambda: model._validate(held_out, ranks),
                callbacks=callbacks,
                progress=make_progress(progress if ranks is None or ranks.is_first else False, model._progress_unit),
                peak=peak,
            )
            trainer.history = [*self.history]
            trainer.run()
            model._take_results(trainer)
            model.n_epochs = self.n_epochs
        finally:
            self._is_being_replaced = False
        vars(self).update(vars(model))
        return self

    def _check_patience(self, validation: Any) -> None:
        """Raise ValueError if early stopping needs validation data, and there are none."""
        if self.patience is not None and validation is None and self.monitor != TRAINING_LOSS:
            raise ValueError(
                f"patience={self.patience} monitors {self.monitor}: give validation=, or set monitor='loss'"
            )

    def _take_results(self, trainer: Trainer) -> None:
        """Set the attributes that describe a training which has ended."""
        trainer.network.eval()
        self.history, self.best_epoch = trainer.history, trainer.best_epoch
        self.peak_memory_bytes = trainer.peak_memory_bytes
        self._accumulator_maxima = accumulator_maxima(trainer.network, trainer.optimizer)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model with its ids to a safetensors file. `load` needs only this file.

        Raises:
            RuntimeError: the model is not fitted yet.
            OSError: the file cannot be written; an earlier file is unchanged.
        """
        network, template = self._fitted_network(), self._checkpoint_template()
        tensors = template.tensors | model_tensors(network, self._accumulator_maxima)
        return save_checkpoint(path, replace(template, tensors=tensors, progress={"history": self.history}))

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu", *, impl: str = "auto") -> Self:
        """Return the model in a file of `save`, or in a file of a run folder such as model.safetensors, on `device`.

        Args:
            path: the file.
            device: where the model runs; the file does not store the device of the training.
            impl: "auto", "native" or "reference", for every operator; the file does not store it.

        Raises:
            ValueError, RuntimeError: there is no such device or implementation.
            FileNotFoundError: there is no such file.
            CheckpointError: the file is truncated, or not a checkpoint of this class.
        """
        try:
            checkpoint = cls._read_checkpoint(path)
            try:
                model = cls(**checkpoint.config["parameters"])
                model._restore_training_ids(checkpoint)
            except ValueError as error:
                raise CheckpointError(f"{path} is damaged: {brief(error, 200)}") from error
            model.set_params(device=str(device), impl=impl)
            for name, size in model._sizes_of_tensors(checkpoint).items():  # before the network allocates memory
                if getattr(model, name) != size:
                    raise CheckpointError(
                        f"{path} is damaged: its header has {name}={getattr(model, name)}, its tensors {name}={size}"
                    )
            with torch.random.fork_rng(devices=[]):  # a seed that is drawn here is replaced by the saved one
                network = model.network = model._build_network()
            load_weights(network, checkpoint)
            model._accumulator_maxima = saved_accumulator_maxima(network, checkpoint)
            model.history = checked_history(checkpoint.progress)
        except (AttributeError, LookupError, TypeError) as error:
            raise CheckpointError(f"{path} lacks a part of a {cls.__name__} checkpoint: {error}") from error
        network.eval()
        model._fitted_parameters = model._stored_parameters()
        return model

    def report(self, evaluation: Metrics | None = None) -> dict[str, Any]:
        """Return a report as JSON values: `metrics`, `epochs`, `peak_memory_bytes`, `build` and `parameters`.

        evaluation: the evaluation whose metrics are reported. By default the metrics are those of the last validation.
        """
        validations = [record["validation"] for record in self.history if "validation" in record]
        return {
            "metrics": evaluation.metrics if evaluation is not None else validations[-1] if validations else {},
            "epochs": self.history,
            "peak_memory_bytes": self.peak_memory_bytes,
            "build": build_info(),
            # If the parameter `seed` is None, the seed that was drawn.
            "parameters": self.to_dict() | ({} if self.network is None else {"seed": self._fitted_network().seed}),
        }

    # Methods that each estimator implements.

    def _open(self, data: Any, **columns: str) -> Any:
        """Return the data as a store or graph; with the indices of the training data, once the training ids are set."""
        raise NotImplementedError

    def _open_and_extend(self, data: Any, **columns: str) -> Any:
        """Open new data, append ids and weights for its unknown ids, and return what to train on.

        The network is replaced by a copy. Other objects that the model shares with copies of it are not changed.
        """
        raise NotImplementedError

    def _set_training_ids(self, data: Any) -> None:
        """Store what the model needs of the training data: its ids, and its support or edges."""
        raise NotImplementedError

    def _training_id_arrays(self) -> dict[str, np.ndarray]:
        """Return what `_set_training_ids` stored, as numeric arrays for a checkpoint."""
        raise NotImplementedError

    def _check_equal_ids(self, ranks: Ranks) -> None:
        """Raise ValueError on every rank unless all have the same ids, and graph models the same edges."""
        ranks.check_equal({name: digest(array) for name, array in self._training_id_arrays().items()})

    def _restore_training_ids(self, checkpoint: Checkpoint) -> None:
        """Restore the ids from a checkpoint with the arrays of `_training_id_arrays`. Raises ValueError for damage."""
        raise NotImplementedError

    def _sizes_of_tensors(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the parameters that determine the sizes of the network, computed from the tensors of a checkpoint."""
        raise NotImplementedError

    def _build_network(self) -> StepCounter:
        """Return the network with its initial weights, on the model's device."""
        raise NotImplementedError

    def _build_runner(self, data: Any, *, has_validation: bool) -> EpochRunner:
        """Return the runner that trains the network on the data."""
        raise NotImplementedError

    def _evaluate_held_out(self, data: Any, cutoff: int, ranks: Ranks | None) -> Metrics:
        """Evaluate the network in its current state on opened validation data."""
        raise NotImplementedError

    # Checkpoints and validation.

    def _validate(self, held_out: Any, ranks: Ranks | None = None) -> Mapping[str, float]:
        """Return `_validation_metrics` and the monitored metric of the held-out data.

        The cut-off of all metrics is that of `monitor`, or 20 if `monitor` has none.
        """
        digits = self.monitor.partition("@")[2]
        cutoff = int(digits) if digits.isdigit() else 20
        metrics = self._evaluate_held_out(held_out, cutoff, ranks).metrics
        names = dict.fromkeys([*(f"{name}@{cutoff}" for name in self._validation_metrics), self.monitor])
        return {name: metrics[name] for name in names if name in metrics}

    def _fitted_network(self) -> Any:
        """Return the network. Raises RuntimeError before `fit` or `load`, or if the network was assigned."""
        name = type(self).__name__
        if self.network is None:
            raise RuntimeError(f"this {name} has no weights yet: call fit, or {name}.load")
        if not self._fitted_parameters:
            raise RuntimeError(
                f"the network of this {name} was assigned, so the ids of its items are unknown: call fit, or "
                f"{name}.load; GRU4Rec.from_network(network, vocabulary) makes a GRU4Rec of a network"
            )
        return self.network

    def _network_to_change(self) -> Any:
        """Return the network. Raises RuntimeError before `fit` or `load`, and during `fit` and `partial_fit`."""
        if self._is_fitting or self._is_being_replaced:
            raise RuntimeError(
                f"this {type(self).__name__} is being fitted, in another thread or by the training that called a "
                "callback: wait until it has ended"
            )
        return self._fitted_network()

    def _evaluation_view(self, impl: str | None = None) -> Any:
        """Return a view of the network for scoring, which does not disturb a `fit` in another thread.

        Raises RuntimeError before `fit` or `load`. impl: None is the model's parameter `impl`.
        """
        return evaluation_view(self._fitted_network(), impl or self.impl)

    def _stored_parameters(self) -> dict[str, Any]:
        """Return the parameters that are stored in the model's files, as JSON values."""
        return {name: value for name, value in self.to_dict().items() if name not in NOT_STORED}

    def _checkpoint_template(self) -> Checkpoint:
        """Return a checkpoint with the parameters and ids of this model, but without weights and progress."""
        config = {"parameters": self._fitted_parameters, "gru4rec_fast": _version.__version__}
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in self._training_id_arrays().items()}
        return Checkpoint(self.file_format, config, tensors=tensors)

    @classmethod
    def _read_checkpoint(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Read a checkpoint of this class; one of version 0.1 (format 1) is converted to format 2."""
        format_1 = cls.file_format.rpartition("/")[0] + "/1"
        with damage_as_checkpoint_error(Path(path)):
            return load_checkpoint(path, cls.file_format, convert={format_1: convert_format_1})

    def _checkpoint_to_resume(self, path: Path, template: Checkpoint) -> Checkpoint:
        """Return the checkpoint at `path`; CheckpointError if its parameters or ids differ from those of the model."""
        checkpoint = self._read_checkpoint(path)
        with damage_as_checkpoint_error(path):
            saved = type(self)().to_dict() | checkpoint.config["parameters"] | {"seed": _saved_seed(checkpoint)}
        free = (*FREE_ON_RESUME, "seed") if self.seed is None else FREE_ON_RESUME
        differing = [
            f"{name}={brief(saved[name])} in the checkpoint, {brief(value)} now"
            for name, value in self.to_dict().items()
            if name not in free and saved[name] != value
        ]
        if differing:
            raise CheckpointError(f"{path} cannot be resumed with other parameters: {', '.join(differing)}")
        for name, tensor in template.tensors.items():
            # The support is not compared here: it changes only with the log, and the trainer compares the logs.
            if name != "support" and not np.array_equal(checkpoint.tensors.get(name, []), tensor):
                raise CheckpointError(f"{path} was trained on another {self._ids_name}; resume with the same data")
        return checkpoint


def _saved_seed(checkpoint: Checkpoint) -> int | None:
    """Return the seed of the training that wrote a checkpoint, also if it was drawn."""
    drawn = checkpoint.tensors.get(MODEL + "dropout_seed")
    return checkpoint.config["parameters"].get("seed") if drawn is None else int(drawn)


def convert_format_1(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint of version 0.1 (format 1) in format 2."""
    saved = checkpoint.config["parameters"]
    parameters = {RENAMED.get(name, name): value for name, value in saved.items()}
    tensors = {RENAMED.get(name, name): tensor for name, tensor in checkpoint.tensors.items()}
    config = checkpoint.config | {"parameters": parameters}
    return replace(checkpoint, config=config, progress=convert_progress(checkpoint.progress), tensors=tensors)


def _path_to_resume(resume: bool | str | os.PathLike[str], out: str | os.PathLike[str] | None) -> Path | None:
    """Return the checkpoint that `fit` resumes from; None for a new training.

    Raises:
        ValueError: `resume` is True and `out` is None. FileNotFoundError: there is no checkpoint in the folder.
    """
    if resume is False:
        return None
    if resume is not True:
        return Path(resume)
    if out is None:
        raise ValueError("resume=True needs out=, the folder of the training to resume; or give a checkpoint's path")
    return checkpoint_to_resume(out)
