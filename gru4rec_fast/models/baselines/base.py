"""The base class of the baselines: fit, evaluate, recommend, save, load."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from gru4rec_fast import _version
from gru4rec_fast._backend import build_info
from gru4rec_fast._untrusted import brief
from gru4rec_fast.data import InteractionGraph, SessionStore, Vocabulary
from gru4rec_fast.distributed import digest
from gru4rec_fast.evaluation import Report, evaluate_graph, evaluate_sessions
from gru4rec_fast.evaluation.scores import HistoryScorer
from gru4rec_fast.models.baselines.sparse import check_rows, scipy_sparse
from gru4rec_fast.models.builders import open_graph, open_sessions
from gru4rec_fast.models.candidates import RowLists, encode_row_lists
from gru4rec_fast.models.estimator import Metrics, Model
from gru4rec_fast.models.graph_models import GRAPH, graph_from_tensors, graph_to_arrays
from gru4rec_fast.models.gru4rec import VOCABULARY_PREFIX, check_support
from gru4rec_fast.models.id_encoder import IdEncoder, Unknown
from gru4rec_fast.models.recommendations import Candidates, ItemLists, Recommendations, check_k
from gru4rec_fast.training import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from gru4rec_fast.training.saved_values import damage_as_checkpoint_error

_MATRIX = "matrix."  # prefix of the names of the matrix's arrays in a file
_GRAPH_BATCH = 256  # users whose scores are computed together, which may be nearly dense


class Baseline(Model):
    """Base class of the baselines, which count and sort, and train no network.

        model = ItemKNN(n_neighbors=50)
        model.fit("train.tsv")
        print(model.evaluate("test.tsv").table())
        model.recommend([[2345, 678]], k=10)
        model.save("model.safetensors")

    A model is fitted to sessions, and ranks the next items of a session; or to user-item interactions, and ranks the
    items that a user does not have. A score is the sum of a score that the item has for every session (or user), and
    one by the items of the session (or user). Scores are float64.

    Attributes:
        vocabulary: the item ids by index; None before `fit` or `load`.
        support: number of occurrences of each item in the training data, int64 [n_items].
        graph: the training graph of a model of interactions, else None.
        All parameters are also attributes.
    """

    file_format: ClassVar[str]
    """Format of the model's files, with its version."""
    _column_arguments = ("session_key", "user_key", "item_key", "time_key")
    _needs_sessions: ClassVar[str | None] = None  # why the model cannot be fitted to interactions
    _rows_are_items: ClassVar[bool] = False  # whether the matrix has a row for each item
    _entries_are_ones: ClassVar[bool] = False  # whether all entries of the matrix are 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.vocabulary: Vocabulary | None = None
        self.support: np.ndarray | None = None
        self.graph: InteractionGraph | None = None
        self._item_scores = np.empty(0)  # float64 [n_items], the scores that items have for every session
        self._matrix: Any = None  # scipy CSR array of float64 with n_items columns, see the classes
        self._fitted_parameters: dict[str, Any] = {}

    def fit(self, data: Any, *, interactions: bool = False, **columns: str) -> Self:
        """Count what the model needs; return self.

        Args:
            data: sessions in the forms of `GRU4Rec.fit`, or interactions in those of `NGCF.fit`.
            interactions: whether a file, folder or table holds user-item interactions. An InteractionGraph and a scipy
                sparse matrix always do, a SessionStore never.
            columns: names of the columns if data is a table: `session_key` ("SessionId") and `time_key` ("Time"), or
                `user_key` ("UserId"), and `item_key` ("ItemId").

        Raises:
            ValueError, TypeError: bad input; the message names it. ImportError: SciPy is not installed. After an error
                the model is unchanged.
        """
        return self._fit(data, interactions, columns, lambda model, opened: model._count(opened))

    def _fit(
        self,
        data: Any,
        interactions: bool,
        columns: dict[str, str],
        count: Callable[[Self, SessionStore | InteractionGraph], None],
    ) -> Self:
        """Open the data and call `count` with a model that replaces this one, and the opened data; see `fit`."""
        self._check_columns(columns)
        scipy_sparse()
        model = type(self)(**self.get_params())  # a second model, so that an error leaves this model unchanged
        for message in model.ignored_parameter_warnings:
            warnings.warn(message, stacklevel=2)
        if isinstance(data, SessionStore) and interactions:
            raise ValueError("interactions=True: data is a SessionStore; give InteractionGraph.from_store(store)")
        opened: SessionStore | InteractionGraph
        if interactions or isinstance(data, InteractionGraph) or hasattr(data, "tocoo"):
            if self._needs_sessions is not None:
                raise ValueError(f"{type(self).__name__} needs sessions, not interactions: {self._needs_sessions}")
            _refuse_columns(columns, ("session_key", "time_key"), "interactions")
            opened = model.graph = open_graph(data, None, **columns)
            model.vocabulary = opened.items
            model.support = np.diff(opened.offsets[opened.n_users :])
        else:
            _refuse_columns(columns, ("user_key",), "sessions")
            opened = open_sessions(data, None, **columns)
            model.vocabulary, model.support = opened.vocabulary, np.array(opened.support)
        model._fitted_parameters = model.to_dict()
        model._item_scores = np.zeros(opened.n_items)
        model._matrix = scipy_sparse().csr_array((0, opened.n_items))
        count(model, opened)
        if not np.isfinite(model._item_scores).all():
            raise ValueError(f"{model}: a score is not finite: are values of the data or of a parameter too large?")
        model._matrix.sum_duplicates()  # sorts the columns of each row
        model._prepare()
        vars(self).update(vars(model))
        return self

    def evaluate(self, data: Any, **options: Any) -> Report:
        """Rank the next item of every event of the test sessions; or for every user, the items that the user lacks.

        Args:
            data: as in `fit`; events of items (or users) unseen in training are dropped, and counted in the report.
            options: those of `GRU4Rec.evaluate`, or of `NGCF.evaluate` if the model was fitted to interactions.
                `batch_size` has no effect on sessions; `impl` has none.
        """
        scorer = self._scorer()
        columns = {name: options.pop(name) for name in self._column_arguments if name in options}
        if self.graph is not None:
            test = open_graph(data, self.graph, **columns)
            return evaluate_graph(scorer, self.graph, test, **{"batch_size": _GRAPH_BATCH} | options)
        return evaluate_sessions(
            scorer, open_sessions(data, self.vocabulary, **columns), support=self.support, **options
        )

    def recommend(
        self,
        queries: Any,
        k: int = 20,
        *,
        exclude_seen: bool | None = None,
        exclude: ItemLists | None = None,
        candidates: Candidates | None = None,
        unknown: Unknown = "error",
    ) -> Recommendations:
        """Return the k items with the highest scores for each session or user, best first. Ties are ranked by index.

        Args:
            queries: sessions, as for `GRU4Rec.recommend`; or user ids, if the model was fitted to interactions.
            k: how many items, at most the number of items in the training data.
            exclude_seen: leave out the items that the session has, or the user has in training. None: for users only.
            exclude, candidates, unknown: as for `GRU4Rec.recommend` and `NGCF.recommend`.

        Raises:
            ValueError: an argument that does not fit, or an unknown id, unless `unknown` is "skip".
        """
        scorer = self._scorer()
        assert self.vocabulary is not None
        encoder = IdEncoder(self.vocabulary, unknown)
        if self.graph is None:
            items, offsets = encoder.encode_sessions(queries)
            has_row = np.diff(offsets) > 0
        else:
            users = IdEncoder(self.graph.users, unknown, "user").encode(queries)
            has_row = users >= 0
            histories = [self.graph.items_of(user) for user in users[has_row].tolist()]
            lengths = np.zeros(len(users), np.int64)
            lengths[has_row] = [len(history) for history in histories]
            items = np.concatenate([np.empty(0, np.int64), *histories])
            offsets = np.concatenate([[0], np.cumsum(lengths)])
        n_rows = len(has_row)
        check_k(k, len(self.vocabulary))
        left_out = None if exclude is None else encode_row_lists(exclude, "exclude", encoder, n_rows)
        chosen = None if candidates is None else encode_row_lists(candidates, "candidates", encoder, n_rows)
        excludes_seen = self.graph is not None if exclude_seen is None else exclude_seen
        found_items, found_scores = np.full((n_rows, k), -1, np.int64), np.full((n_rows, k), -np.inf)
        known = np.flatnonzero(has_row)
        for scores, numbers in scorer.score_prefixes(items, offsets[known], offsets[known + 1]):
            rows = known[numbers]
            excluded = [_excluded_items(row, left_out, chosen, len(self.vocabulary)) for row in rows]
            if excludes_seen:
                seen = (items[offsets[row] : offsets[row + 1]] for row in rows)
                excluded = [np.concatenate(pair) for pair in zip(excluded, seen, strict=True)]
            best_scores, best = scores.top_k(k, excluded)
            found_items[rows], found_scores[rows] = best.numpy(), best_scores.numpy()
        return Recommendations(encoder.decode(found_items), found_scores, (found_items >= 0).sum(axis=1))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model with its ids to a safetensors file. `load` needs only this file.

        Raises:
            RuntimeError: the model is not fitted yet.
            OSError: the file cannot be written; an earlier file is unchanged.
        """
        config = {"parameters": self._fitted_parameters, "gru4rec_fast": _version.__version__}
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in self._arrays().items()}
        return save_checkpoint(path, Checkpoint(self.file_format, config, tensors=tensors))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return the model in a file of `save`.

        Raises:
            FileNotFoundError: there is no such file. CheckpointError: the file is truncated, or not of this class.
            ImportError: SciPy is not installed.
        """
        sparse = scipy_sparse()
        with damage_as_checkpoint_error(Path(path)):
            checkpoint = load_checkpoint(path, cls.file_format)
            try:
                model = cls(**checkpoint.config["parameters"])
                if GRAPH + "offsets" in checkpoint.tensors:
                    model.graph = graph_from_tensors(checkpoint)
                    model.vocabulary = model.graph.items
                else:
                    model.vocabulary = Vocabulary.from_arrays(checkpoint.group(VOCABULARY_PREFIX))
                n_items = len(model.vocabulary)
                arrays = {name: tensor.numpy() for name, tensor in checkpoint.tensors.items()}
                model.support = check_support(arrays["support"], n_items)
                model._item_scores = arrays["item_scores"]
                data, indices, offsets = (arrays[_MATRIX + name] for name in ("data", "indices", "offsets"))
                if not all(
                    scores.dtype == np.float64 and scores.ndim == 1 and np.isfinite(scores).all()
                    for scores in (model._item_scores, data)
                ):
                    raise ValueError("scores must be finite float64, of one dimension")
                check_rows(data, indices, offsets, n_items)
                if cls._entries_are_ones and (data != 1).any():
                    raise ValueError("the entries of the matrix must be 1")
                model._matrix = sparse.csr_array((data, indices, offsets), shape=(len(offsets) - 1, n_items))
                if len(model._item_scores) != n_items or (cls._rows_are_items and len(offsets) != n_items + 1):
                    raise ValueError(f"the scores are not of {n_items} items")
            except ValueError as error:
                raise CheckpointError(f"{path} is damaged: {brief(error, 200)}") from error
        model._fitted_parameters = model.to_dict()
        model._prepare()
        return model

    def report(self, evaluation: Metrics | None = None) -> dict[str, Any]:
        """Return a report as JSON values: `metrics` of an evaluation, `build` and `parameters`."""
        metrics = {} if evaluation is None else evaluation.metrics
        return {"metrics": metrics, "build": build_info(), "parameters": self.to_dict()}

    # Methods that each baseline implements.

    def _count(self, data: SessionStore | InteractionGraph) -> None:
        """Set `_item_scores`, `_matrix` or both; they are zero, and a matrix without rows."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """Compute what `_score` needs in addition; called after `fit` and `load`."""

    def _score(self, items: np.ndarray, offsets: np.ndarray) -> Any:
        """Return the scores of all items by Q histories, a scipy CSR array of float64 [Q, n_items].

        items: the items of all histories, int64 [n]. offsets: int64 [Q + 1].
        """
        raise NotImplementedError

    def _n_last(self) -> int | None:
        """Return the number of the last events of a session that `_score` needs; None: all."""
        return None

    def _arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of the model's file. Raises RuntimeError before `fit` or `load`."""
        self._require_fitted()
        assert self.vocabulary is not None and self.support is not None
        if self.graph is not None:
            arrays = graph_to_arrays(self.graph)
        else:
            arrays = {VOCABULARY_PREFIX + name: array for name, array in self.vocabulary.to_arrays().items()}
        matrix = self._matrix
        arrays |= {
            _MATRIX + "data": matrix.data,
            _MATRIX + "indices": matrix.indices,
            _MATRIX + "offsets": matrix.indptr,
        }
        return arrays | {"support": self.support, "item_scores": self._item_scores}

    def _scorer(self) -> HistoryScorer:
        """Return what evaluations rank by. Raises RuntimeError before `fit` or `load`."""
        self._require_fitted()
        fitted = copy.copy(self)  # scores with the parameters of `fit`, also if `set_params` has changed some since
        vars(fitted).update(self._fitted_parameters)
        n_last = None if self.graph is not None else fitted._n_last()
        return HistoryScorer(
            fitted._score,
            self._item_scores,
            n_last,
            lambda: " ".join(digest(array) for array in self._arrays().values()),
        )

    def _require_fitted(self) -> None:
        """Raise RuntimeError before `fit` or `load`."""
        if self.vocabulary is None:
            name = type(self).__name__
            raise RuntimeError(f"this {name} has counted nothing yet: call fit, or {name}.load")


def _refuse_columns(columns: dict[str, str], unused: tuple[str, ...], kind: str) -> None:
    """Raise TypeError for the name of a column that data of this kind do not have."""
    for name in unused:
        if name in columns:
            raise TypeError(f"{name} has no effect on {kind}: leave it out")


def _excluded_items(row: int, left_out: RowLists | None, chosen: RowLists | None, n_items: int) -> np.ndarray:
    """Return the items that `exclude` and `candidates` of `recommend` leave out for a row, int64 [n]."""
    is_excluded = np.zeros(n_items, bool)
    if chosen is not None:
        is_excluded[:] = True
        is_excluded[chosen.lists[chosen.list_of_row[row]]] = False
    if left_out is not None:
        is_excluded[left_out.lists[left_out.list_of_row[row]]] = True
    return np.flatnonzero(is_excluded)
