"""GRU4Rec as an estimator: fit, evaluate, recommend, save, load."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from gru4rec_fast.data import SessionStore, Vocabulary
from gru4rec_fast.data.vocabulary import as_indices
from gru4rec_fast.distributed import Ranks
from gru4rec_fast.evaluation import By, NegativesBy, Report, Targets, Ties, evaluate_sessions
from gru4rec_fast.models.builders import (
    build_session_network,
    build_session_optimizer,
    build_session_runner,
    find_device,
    open_more_sessions,
    open_sessions,
    parameters_of_network,
)
from gru4rec_fast.models.estimator import Estimator
from gru4rec_fast.models.id_encoder import Unknown
from gru4rec_fast.models.parameter_fields import document_parameters
from gru4rec_fast.models.parameter_text import parse_parameter_string, read_parameter_file
from gru4rec_fast.models.parameters import GRU4RecParameters
from gru4rec_fast.models.recommendations import Candidates, ItemLists, Recommendations, recommend
from gru4rec_fast.models.session_recommender import SessionRecommender
from gru4rec_fast.nn import SessionNetwork
from gru4rec_fast.training import Checkpoint, SessionEpochRunner
from gru4rec_fast.training.checkpoint_tensors import MODEL, restore_accumulators

VOCABULARY_PREFIX = "vocabulary."  # prefix of the names of the vocabulary's tensors in a checkpoint


@document_parameters
class GRU4Rec(Estimator, GRU4RecParameters):
    """Session-based recommender (Hidasi et al. 2016; Hidasi & Karatzoglou 2018; Hidasi & Czapp 2023).

        model = GRU4Rec(layers=[100], loss="cross-entropy", logq=1.0, n_epochs=5)
        model.fit("train.tsv", out="run")
        print(model.evaluate("test.tsv").table())
        model.recommend([[2345, 678]], k=10)
        model.save("model.safetensors")

    The parameters below are keyword arguments and attributes. `fit` and `load` set three further attributes: `network`,
    `vocabulary` (the item ids by index) and `support` (the number of occurrences of each item in the training log,
    int64 [n_items]). See `Estimator` for `history`, `best_epoch` and `peak_memory_bytes`.

    Raises:
        TypeError: an unknown parameter or a value of the wrong type. ValueError: a value out of range.
    """

    file_format = "gru4rec_fast.GRU4Rec/2"
    _validation_metrics = ("recall", "mrr")
    _ids_name = "catalogue of items"  # for the error "... was trained on another catalogue of items"
    _column_arguments = ("session_key", "item_key", "time_key")
    network: SessionNetwork | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.vocabulary: Vocabulary | None = None
        self.support: np.ndarray | None = None

    @classmethod
    def from_parameter_string(cls, text: str, **parameters: Any) -> Self:
        """Return a model with the parameters of a string in the form of the official code.

            GRU4Rec.from_parameter_string("layers=512/256,loss=bpr-max,n_sample=2048", n_epochs=5)

        `parameters` override the parameters in the string.
        """
        return cls.create({**parse_parameter_string(text), **parameters})

    @classmethod
    def from_parameter_file(cls, path: str | os.PathLike[str], **parameters: Any) -> Self:
        """Return a model with the parameters of a TOML or JSON file; `parameters` override those in the file."""
        return cls.create({**read_parameter_file(Path(path)), **parameters})

    @classmethod
    def from_network(
        cls,
        network: SessionNetwork,
        vocabulary: Vocabulary | Iterable[int] | Iterable[str],
        *,
        support: ArrayLike | None = None,
        **parameters: Any,
    ) -> Self:
        """Return a model of a network that was trained elsewhere. It can evaluate, recommend, save and load.

            GRU4Rec.from_network(network, store.vocabulary).save("model.safetensors")

        `partial_fit` continues the training of a copy of this network. `fit` trains a new network, like every `fit`,
        with the parameters of the model.

        Args:
            network: not copied, so that further training of it changes the model.
            vocabulary: the item ids in the order of the network's items.
            support: number of occurrences of each item in the training log, int [n_items], for `evaluate` with
                `baselines=True`; None: unknown.
            parameters: parameters of the training, for the model's file and for a later `fit`, e.g. `loss` or
                `n_epochs`. Those of the network itself (`layers`, `dtype` ...) are read from the network.

        Raises:
            TypeError: `network` is not exactly a SessionNetwork, or an unknown parameter. ValueError: vocabulary or
                support do not have one entry per item of the network, or a parameter that is read from the network.
        """
        if type(network) is not SessionNetwork:
            raise TypeError(
                f"network must be a gru4rec_fast.nn.SessionNetwork, not a {type(network).__name__}, which `load` could "
                "not restore; if it is a wrapper, give the network inside it"
            )
        if not isinstance(vocabulary, Vocabulary):
            vocabulary = Vocabulary(vocabulary)
        if len(vocabulary) != network.n_items:
            raise ValueError(f"the network has {network.n_items} items, the vocabulary {len(vocabulary)}")
        own = parameters_of_network(network)
        if repeated := [name for name in parameters if name in own]:
            raise ValueError(f"{', '.join(repeated)}: read from the network; leave it out")
        model = cls(**own, **parameters)
        model.network, model.vocabulary = network, vocabulary
        if support is not None:
            model.support = check_support(as_indices(support, "support"), len(vocabulary))
        model._fitted_parameters = model._stored_parameters()
        return model

    def evaluate(
        self,
        data: Any,
        *,
        cutoffs: int | Iterable[int] = (20,),
        ties: Ties = "conservative",
        targets: Targets | None = None,
        batch_size: int = 512,
        baselines: bool = False,
        by: By | None = None,
        beyond_accuracy: bool = False,
        negatives: int | None = None,
        negatives_by: NegativesBy = "uniform",
        seed: int = 0,
        per_session: bool = False,
        impl: str | None = None,
        ranks: Ranks | None = None,
        **columns: str,
    ) -> Report:
        """Rank the next item of every event of the test sessions among all items.

        Args:
            data: as in `fit`; events of items unseen in training are dropped, and counted in the report.
            cutoffs, ties, targets, batch_size, by, beyond_accuracy, negatives, negatives_by, seed, per_session: see
                `gru4rec_fast.evaluation.evaluate_sessions`.
            baselines: add the metrics of ranking by popularity and of a random order to the report.
            impl: "auto", "native" or "reference"; None is the model's parameter `impl`.
            ranks: share out the sessions among these processes, each of which must make the same call.
            columns: names of columns, as in `fit`.
        """
        self._check_columns(columns)
        network, impl = self._evaluation_view(impl), impl or self.impl
        if baselines and self.support is None:
            raise ValueError("baselines=True needs the support of the items: give support= to from_network")
        return evaluate_sessions(
            network,
            self._open(data, **columns),
            cutoffs=cutoffs,
            ties=ties,
            targets=targets,
            batch_size=batch_size,
            impl=impl,
            baselines=baselines,
            support=self.support,
            by=by,
            beyond_accuracy=beyond_accuracy,
            negatives=negatives,
            negatives_by=negatives_by,
            seed=seed,
            per_session=per_session,
            ranks=ranks,
        )

    def recommend(
        self,
        sessions: Iterable[Sequence[int] | Sequence[str]] | SessionStore,
        k: int = 20,
        *,
        exclude_seen: bool = False,
        exclude: ItemLists | None = None,
        candidates: Candidates | None = None,
        unknown: Unknown = "error",
        batch_size: int = 512,
        impl: str | None = None,
    ) -> Recommendations:
        """Return the k items most likely to come next in each session, best first.

        Args: see `gru4rec_fast.models.recommend`; impl=None is the model's parameter `impl`.
        """
        network, impl = self._evaluation_view(impl), impl or self.impl
        assert self.vocabulary is not None
        return recommend(
            network,
            self.vocabulary,
            sessions,
            k,
            exclude_seen=exclude_seen,
            exclude=exclude,
            candidates=candidates,
            unknown=unknown,
            batch_size=batch_size,
            impl=impl,
        )

    def recommender(
        self,
        capacity: int = 10_000,
        *,
        max_age: float | None = None,
        max_bytes: int | None = None,
        unknown: Unknown = "error",
    ) -> SessionRecommender:
        """Return a recommender for live sessions, which receive one event at a time; see `SessionRecommender`."""
        network = self._evaluation_view()
        assert self.vocabulary is not None
        limits: dict[str, Any] = {"max_age": max_age, "max_bytes": max_bytes}
        return SessionRecommender(network, self.vocabulary, capacity, unknown=unknown, impl=self.impl, **limits)

    def extend_items(self, ids: ArrayLike | Iterable[int] | Iterable[str]) -> Self:
        """Append items to the catalogue; return self. Items that the model has are ignored.

            model.extend_items([981, 982]).recommend([[981]])

        New items get the next indices, in the sorted order of their ids, and the initial weights of
        `SessionNetwork.extend_items`. The scores of the other items do not change. Do not call it while another thread
        uses the model. A SessionRecommender made before does not know the new items: make a new one.

        Raises:
            TypeError: ids are strings where the model has integers, or integers where it has strings.
            RuntimeError: the model is not fitted, or is being fitted (`fit`, `partial_fit`).
        """
        network: SessionNetwork = self._network_to_change()
        assert self.vocabulary is not None
        vocabulary = self.vocabulary.extended(ids)
        n_new = len(vocabulary) - len(self.vocabulary)
        network.extend_items(n_new)
        if self.support is not None:
            self.support = np.pad(self.support, (0, n_new))
        self.vocabulary = vocabulary
        return self

    def _open(self, data: Any, **columns: str) -> SessionStore:
        return open_sessions(data, self.vocabulary, **columns)

    def _open_and_extend(self, data: Any, **columns: str) -> SessionStore:
        assert self.vocabulary is not None
        store = open_more_sessions(data, self.vocabulary, **columns)
        self.network = copy.deepcopy(self._fitted_network()).to(find_device(self.device))
        self.extend_items(store.vocabulary.ids)
        if self.support is not None:
            self.support = self.support + store.support
        return store

    # The ids of the training data are the vocabulary. The support, if it is known, is stored together with it.
    def _set_training_ids(self, data: SessionStore) -> None:
        self.vocabulary, self.support = data.vocabulary, np.array(data.support)

    def _training_id_arrays(self) -> dict[str, np.ndarray]:
        assert self.vocabulary is not None
        arrays = {VOCABULARY_PREFIX + name: array for name, array in self.vocabulary.to_arrays().items()}
        return arrays if self.support is None else arrays | {"support": self.support}

    def _restore_training_ids(self, checkpoint: Checkpoint) -> None:
        self.vocabulary = Vocabulary.from_arrays(checkpoint.group(VOCABULARY_PREFIX))
        if "support" in checkpoint.tensors:
            self.support = check_support(checkpoint.tensors["support"].numpy(), len(self.vocabulary))

    def _sizes_of_tensors(self, checkpoint: Checkpoint) -> dict[str, Any]:
        weights = checkpoint.group(MODEL)
        n_layers = sum(name.endswith(".weight_hh") for name in weights)
        sizes: dict[str, Any] = {
            "layers": tuple(weights[f"gru.layers.{layer}.weight_hh"].shape[1] for layer in range(n_layers))
        }
        if self.embedding_mode == "separate":
            sizes["embedding_dim"] = weights["embedding.weight"].shape[1]
        return sizes

    def _build_network(self) -> SessionNetwork:
        assert self.vocabulary is not None
        return build_session_network(self, len(self.vocabulary))

    def _build_runner(self, data: SessionStore, *, has_validation: bool) -> SessionEpochRunner:
        network = self._fitted_network()
        optimizer = build_session_optimizer(self, network)
        # In `fit` there are no maxima. `partial_fit` continues with those of the last training.
        restore_accumulators(network, optimizer, self._accumulator_maxima)
        return build_session_runner(
            self,
            network,
            data,
            optimizer=optimizer,
            has_validation=has_validation,
        )

    def _evaluate_held_out(self, data: SessionStore, cutoff: int, ranks: Ranks | None) -> Report:
        return evaluate_sessions(self._fitted_network(), data, cutoffs=(cutoff,), impl=self.impl, ranks=ranks)


def check_support(support: np.ndarray, n_items: int) -> np.ndarray:
    """Return the support of the items. Raises ValueError unless it is int64 [n_items] without negative numbers."""
    if support.dtype != np.int64 or support.shape != (n_items,) or (support < 0).any():
        raise ValueError(f"support must be int64, one number for each of the {n_items} items, none negative")
    return support
