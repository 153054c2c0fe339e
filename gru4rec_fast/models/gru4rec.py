"""GRU4Rec as an estimator: fit, evaluate, recommend, save, load."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gru4rec_fast.data import SessionStore, Vocabulary
from gru4rec_fast.evaluation import Report, Ties, evaluate_sessions
from gru4rec_fast.models.estimator import Estimator, resumed_file
from gru4rec_fast.models.parameter_text import parse_parameter_string, read_parameter_file
from gru4rec_fast.models.parameters import GRU4RecParameters
from gru4rec_fast.models.parts import (
    FORMAT,
    VOCABULARY,
    as_store,
    build_network,
    build_trainer,
    checkpoint_for,
    find_device,
    identity,
    running_by,
)
from gru4rec_fast.models.recommending import Exclude, Recommendations, SessionRecommender, Unknown, recommend
from gru4rec_fast.nn import SessionNetwork
from gru4rec_fast.profiling import NULL_RECORD, MemoryRecord, PeakMemory, process_baseline
from gru4rec_fast.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from gru4rec_fast.training.folder_lock import exclusive
from gru4rec_fast.training.progress import make_progress
from gru4rec_fast.training.state import MODEL, model_tensors


class GRU4Rec(Estimator):
    """Session-based recommender (Hidasi et al. 2016; Hidasi & Karatzoglou 2018; Hidasi & Czapp 2023).

        model = GRU4Rec(layers=[100], loss="cross-entropy", logq=1.0, n_epochs=5)
        model.fit("train.tsv", out="run")
        print(model.evaluate("test.tsv").table())
        model.recommend([[2345, 678]], k=10)
        model.save("model.safetensors")

    Args:
        parameters: by name; names and defaults are those of the official PyTorch code, see `GRU4RecParameters`.

    Attributes:
        parameters: a `GRU4RecParameters`.
        network, vocabulary, support: the SessionNetwork, the item ids by index and the items' occurrences in the
            training log; None before `fit` or `load`.
        history, best_epoch, peak_memory_bytes: see `Estimator`.

    Raises:
        TypeError: an unknown parameter or a value of the wrong type; ValueError: a value out of range.
    """

    parameter_class = GRU4RecParameters
    parameters: GRU4RecParameters

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.network: SessionNetwork | None = None
        self.vocabulary: Vocabulary | None = None
        self.support: np.ndarray | None = None
        self._identity: Checkpoint | None = None

    @classmethod
    def from_parameter_string(cls, text: str, **parameters: Any) -> GRU4Rec:
        """From the official code's form, e.g. "layers=512/256,loss=bpr-max,n_sample=2048"; `parameters` come on top."""
        return cls(**{**parse_parameter_string(text), **parameters})

    @classmethod
    def from_parameter_file(cls, path: str | os.PathLike[str], **parameters: Any) -> GRU4Rec:
        """From a TOML or JSON file; `parameters` come on top."""
        return cls(**{**read_parameter_file(Path(path)), **parameters})

    def fit(
        self,
        data: Any,
        validation: Any = None,
        *,
        out: str | os.PathLike[str] | None = None,
        resume: bool | str | os.PathLike[str] = False,
        checkpoint_every: int | None = None,
        memory: MemoryRecord = NULL_RECORD,
        progress: bool | None = None,
        session_key: str = "SessionId",
        item_key: str = "ItemId",
        time_key: str = "Time",
        sample_cache_max_size: int | None = None,
        compatibility_mode: bool | None = None,
    ) -> GRU4Rec:
        """Train from scratch, or go on with a training.

        Args:
            data: a SessionStore, the folder of one, or whatever `SessionStore.from_events` reads (a TSV, CSV or Parquet
                file, a pandas, polars or Arrow table).
            validation: sessions to measure after each epoch, in the same forms; `monitor` picks the best epoch by them.
            out: folder for last.safetensors, best.safetensors (with validation), curves.csv and curves.png. Files of an
                earlier training are moved to out/previous when the first checkpoint of this one is written.
            resume: True: go on from `out`/last.safetensors; or the path of such a file. On the CPU a resumed training
                ends with the same bits as one that was never interrupted.
            checkpoint_every: write last.safetensors every so many mini-batches too, not only after each epoch.
            memory: a MemoryRecord to be filled, phase by phase.
            progress: False shows nothing; by default a bar on a terminal, lines in a pipe, on stderr.
            session_key, item_key, time_key: column names, where `data` is a log.
            sample_cache_max_size, compatibility_mode: taken for the official code's sake, without effect: there is no
                cache of samples here.

        Raises:
            ValueError: bad input, named. CheckpointError: nothing to resume that fits.
            TrainingInterrupted, TrainingDiverged, OSError: see `gru4rec_fast.training.Trainer.run`.
            After an error that comes before the first mini-batch the model is what it was.
        """
        peak = process_baseline() or PeakMemory()
        p, keys = self.parameters, (session_key, item_key, time_key)
        self._check_patience(validation)
        device = find_device(p.device)
        resumed = resumed_file(resume, out)
        for reason in p.not_read:
            warnings.warn(reason, stacklevel=2)
        store = as_store(data, keys)
        valid_store = None if validation is None else as_store(validation, keys, store.vocabulary)
        with exclusive(out):
            trainer = build_trainer(
                p,
                store,
                valid_store,
                device,
                checkpoint_every=checkpoint_every,
                out=out,
                memory=memory,
                progress=make_progress(progress),
                peak=peak,
            )
            if resumed is not None:
                trainer.restore(checkpoint_for(p, store.vocabulary, resumed))
            # What can go wrong before the training has: the earlier model, if there was one, gives way as a whole.
            assert isinstance(trainer.network, SessionNetwork)
            self.network, self.vocabulary, self.support = trainer.network, store.vocabulary, np.array(store.support)
            self._identity, self.history, self.best_epoch = trainer.folder.identity, trainer.history, None
            try:
                trainer.run()
            finally:
                trainer.network.eval()
                self.history, self.best_epoch = trainer.history, trainer.best_epoch
                self.peak_memory_bytes = trainer.peak_memory_bytes
        return self

    def evaluate(
        self,
        data: Any,
        *,
        cutoffs: Iterable[int] = (20,),
        ties: Ties = "conservative",
        batch_size: int = 512,
        baselines: bool = False,
        impl: str | None = None,
        session_key: str = "SessionId",
        item_key: str = "ItemId",
        time_key: str = "Time",
    ) -> Report:
        """Rank the next item of every event of the test sessions among the whole catalogue.

        Args:
            data: as in `fit`; items unseen in training are dropped, and counted in the report.
            cutoffs, ties, batch_size: see `gru4rec_fast.evaluation.evaluate_sessions`.
            baselines: put popularity and a random order beside the model.
            impl: "auto", "native" or "reference"; by default that of the parameters.
        """
        network, vocabulary = self._fitted()
        store = as_store(data, (session_key, item_key, time_key), vocabulary)
        impl = impl or self.parameters.impl
        with running_by(network, impl):
            return evaluate_sessions(
                network,
                store,
                cutoffs=cutoffs,
                ties=ties,
                batch_size=batch_size,
                impl=impl,
                baselines=baselines,
                support=self.support if baselines else None,
            )

    def recommend(
        self,
        sessions: Iterable[Sequence[int] | Sequence[str]] | SessionStore,
        k: int = 20,
        *,
        exclude: Exclude = None,
        unknown: Unknown = "error",
        batch_size: int = 512,
        impl: str | None = None,
    ) -> Recommendations:
        """The k items most likely to come next in each session, best first: item ids and scores, [n, k] each.

        Args: see `gru4rec_fast.models.recommending.recommend`; impl is by default that of the parameters.
        """
        network, vocabulary = self._fitted()
        impl = impl or self.parameters.impl
        with running_by(network, impl):
            return recommend(
                network, vocabulary, sessions, k, exclude=exclude, unknown=unknown, batch_size=batch_size, impl=impl
            )

    def recommender(self, capacity: int = 10_000, *, unknown: Unknown = "error") -> SessionRecommender:
        """A recommender for live sessions, which takes one event at a time; see `SessionRecommender`."""
        network, vocabulary = self._fitted()
        return SessionRecommender(network, vocabulary, capacity, unknown=unknown, impl=self.parameters.impl)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model to one safetensors file, catalogue included; `load` needs nothing else.

        Raises:
            RuntimeError: not fitted yet. OSError: the file cannot be written; an earlier one is unchanged.
        """
        network, _ = self._fitted()
        assert self._identity is not None
        tensors = self._identity.tensors | model_tensors(network)
        return save_checkpoint(path, replace(self._identity, tensors=tensors, progress={"history": self.history}))

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu", *, impl: str = "auto") -> GRU4Rec:
        """Read a model from `save`, or from the last or best checkpoint of a training, onto `device`.

        Args:
            impl: "auto", "native" or "reference", for every operator, whatever it was trained with.

        Raises:
            ValueError, RuntimeError: no such device or implementation.
            FileNotFoundError: there is no such file.
            CheckpointError: the file is truncated, or no GRU4Rec checkpoint.
        """
        checkpoint = load_checkpoint(path, FORMAT)
        try:
            model = cls(**checkpoint.config["parameters"] | {"device": str(device), "impl": impl})
            model.vocabulary = Vocabulary.from_arrays(checkpoint.group(VOCABULARY))
            model.support = checkpoint.tensors["support"].numpy()
            model.network = build_network(model.parameters, len(model.vocabulary), find_device(str(device)))
            model.network.load_state_dict(checkpoint.group(MODEL))
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} lacks a part of a GRU4Rec checkpoint: {error}") from error
        model.network.eval()
        model.history = checkpoint.progress["history"]
        model._identity = identity(model.parameters, model.vocabulary, model.support)
        return model

    savemodel = save
    loadmodel = load

    def _fitted(self) -> tuple[SessionNetwork, Vocabulary]:
        if self.network is None or self.vocabulary is None:
            raise RuntimeError("this GRU4Rec has no weights yet: call fit, or GRU4Rec.load")
        return self.network, self.vocabulary


GRU4Rec.__signature__ = inspect.signature(GRU4RecParameters)  # type: ignore[attr-defined]  # for help()
