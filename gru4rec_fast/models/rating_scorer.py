"""RatingScorer as an estimator: fit, predict, evaluate, append ids, save, load."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike

from gru4rec_fast.data import Vocabulary
from gru4rec_fast.data.rating_table import RatingTable
from gru4rec_fast.distributed import Ranks
from gru4rec_fast.evaluation import Report, rating_metrics
from gru4rec_fast.models.builders import build_schedule, find_device
from gru4rec_fast.models.estimator import Estimator
from gru4rec_fast.models.parameter_fields import document_parameters
from gru4rec_fast.models.parameters import RATING_METRICS, RatingScorerParameters
from gru4rec_fast.nn import RatingNetwork
from gru4rec_fast.optim import SparseAdam
from gru4rec_fast.training import Checkpoint, RatingEpochRunner
from gru4rec_fast.training.checkpoint_tensors import MODEL

_COLUMNS = {"user": "UserId", "group": "GroupId", "item": "ItemId"}  # default names of the columns, by kind of id
_BATCH = 65_536  # rows that are predicted together


@document_parameters
class RatingScorer(Estimator, RatingScorerParameters):
    """Predicts explicit ratings from embeddings of the user, the item and the item's group (its channel, author ...).

        model = RatingScorer(patience=3)
        model.fit("ratings.tsv", validation="valid.tsv", group_key="Channel", out="run")
        model = RatingScorer.load("run/model.safetensors")  # the best epoch
        print(model.evaluate("test.tsv", group_key="Channel").table())
        model.extend_items([981])
        model.predict({"UserId": [17], "Channel": ["news"], "ItemId": [981]}, group_key="Channel")

    The network is `gru4rec_fast.nn.RatingNetwork`. Group and item have embeddings of their own, so that the rating of
    an item without ratings is predicted by its group. It is trained by Adam (`SparseAdam`) on the squared error.

    The parameters below are keyword arguments and attributes. `fit` and `load` set two further attributes: `network`,
    and `vocabularies`, the ids by index, {"user": ..., "group": ..., "item": ...}. See `Estimator` for `history`,
    `best_epoch` and `peak_memory_bytes`.

    Tables are files or data frames, or dicts of columns, with a row per rating. The names of the columns are the
    arguments `user_key` ("UserId"), `item_key` ("ItemId"), `rating_key` ("Rating") and, unless `group_dim` is 0,
    `group_key` ("GroupId").

    Raises:
        TypeError: an unknown parameter or a value of the wrong type. ValueError: a value out of range.
    """

    file_format = "gru4rec_fast.RatingScorer/2"
    _column_arguments = ("user_key", "group_key", "item_key", "rating_key")
    _progress_unit = "ratings"
    _ids_name = "set of users, groups and items"
    network: RatingNetwork | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.vocabularies: Mapping[str, Vocabulary] = {}
        self._mean_and_scale = 0.0, 1.0  # of the training ratings; the network has them, too

    def predict(self, data: Any, *, unknown: Literal["error", "ignore"] = "error", **columns: str) -> np.ndarray:
        """Return the predicted rating of each row, [n], of the dtype of the model.

        Args:
            data: table of users, items and groups; a column of ratings is not read.
            unknown: "error" raises an error for an id that the model does not have; "ignore" predicts by the other
                ids of the row.
            columns: names of columns, see the class.

        Raises:
            ValueError, TypeError: bad input; the message names it. RuntimeError: the model is not fitted yet.
        """
        if unknown not in ("error", "ignore"):
            raise ValueError(f"unknown={unknown!r}: choose 'error' or 'ignore'")
        if "rating_key" in columns:
            raise TypeError("rating_key has no effect on predict, which reads no ratings: leave it out")
        self._check_columns(columns)
        self._fitted_network()
        return self._predict(self._read(data, columns, with_ratings=False, require_known=unknown == "error").index)

    def evaluate(self, data: Any, *, threshold: float | None = None, **columns: str) -> Report:
        """Compare predictions with ratings.

        The report has the metrics of all rows. If a row has ids that the model does not have, it also has the metrics
        by the kinds of these ids, e.g. of items without ratings (`Report.groups`).

        Args:
            data: table as in `fit`.
            threshold: see `gru4rec_fast.evaluation.rating_metrics`.
            columns: names of columns, see the class.

        Raises: see `predict`.
        """
        self._check_columns(columns)
        self._fitted_network()
        return self._evaluate_table(self._open(data, **columns), threshold)

    def extend_users(self, ids: ArrayLike | Iterable[int] | Iterable[str]) -> Self:
        """Append users without ratings; return self. Users that the model has are ignored.

        New users get the next indices, in the sorted order of their ids, and embeddings of zero: they are predicted
        like unknown users until `partial_fit` trains them. Other predictions keep their bits. Do not call it while
        another thread uses the model.

        Raises:
            TypeError: ids are strings where the model has integers, or integers where it has strings.
            RuntimeError: the model is not fitted, or is being fitted (`fit`, `partial_fit`).
        """
        return self._extend("user", ids)

    def extend_items(self, ids: ArrayLike | Iterable[int] | Iterable[str]) -> Self:
        """Append items without ratings; see `extend_users`."""
        return self._extend("item", ids)

    def extend_groups(self, ids: ArrayLike | Iterable[int] | Iterable[str]) -> Self:
        """Append groups without ratings; see `extend_users`. Raises ValueError if the model has no groups."""
        return self._extend("group", ids)

    def _extend(self, kind: str, ids: ArrayLike | Iterable[int] | Iterable[str]) -> Self:
        network: RatingNetwork = self._network_to_change()
        if kind not in self.vocabularies:
            raise ValueError(f"this {type(self).__name__} has no {kind}s, because it was fitted with {kind}_dim=0")
        vocabulary = self.vocabularies[kind].extended(ids)
        network.append_rows(kind, len(vocabulary) - len(self.vocabularies[kind]))
        self.vocabularies = {**self.vocabularies, kind: vocabulary}
        return self

    def _dims(self) -> dict[str, int]:
        """Return the width of each table, by kind of id."""
        dims = {"user": self.user_dim, "group": self.group_dim, "item": self.item_dim}
        return {kind: dim for kind, dim in dims.items() if dim}

    def _read(self, data: Any, columns: Mapping[str, str], *, with_ratings: bool, **options: Any) -> RatingTable:
        """Read a table; see `RatingTable.read`. `columns` are the arguments that name columns."""
        kinds = [*(self.vocabularies or self._dims())]
        if "group_key" in columns and "group" not in kinds:
            raise TypeError("group_key has no effect with group_dim=0: leave it out, or set group_dim")
        keys = {kind: columns.get(f"{kind}_key", _COLUMNS[kind]) for kind in kinds}
        rating_key = columns.get("rating_key", "Rating") if with_ratings else None
        return RatingTable.read(data, keys, rating_key=rating_key, vocabularies=self.vocabularies or None, **options)

    @torch.no_grad()
    def _predict(self, index: np.ndarray) -> np.ndarray:
        """Return the predictions for indices int64 [n, number of tables]."""
        network, device = self._evaluation_view(), find_device(self.device)
        batches = torch.from_numpy(index).split(_BATCH)
        return torch.cat([network(batch.to(device)).cpu() for batch in batches]).numpy()

    def _evaluate_table(self, table: RatingTable, threshold: float | None = None) -> Report:
        assert table.ratings is not None
        predictions, is_unknown = self._predict(table.index), table.index < 0
        groups: dict[str, dict[str, float]] = {}
        for pattern in np.unique(is_unknown, axis=0) if is_unknown.any() else ():
            rows = (is_unknown == pattern).all(axis=1)
            name = " + ".join(kind for kind, unknown in zip(table.vocabularies, pattern, strict=True) if unknown)
            metrics = rating_metrics(predictions[rows], table.ratings[rows], threshold=threshold)
            groups[name or "none"] = metrics | {"n": int(rows.sum())}
        return Report(
            rating_metrics(predictions, table.ratings, threshold=threshold),
            n_targets=len(predictions),
            n_items=len(table.vocabularies["item"]),
            n_users=len(np.unique(table.index[:, 0])),
            by="unknown ids" if groups else None,
            groups=groups,
        )

    def _open(self, data: Any, **columns: str) -> RatingTable:
        return self._read(data, columns, with_ratings=True)

    def _open_and_extend(self, data: Any, **columns: str) -> RatingTable:
        new_ids = copy.copy(self)
        new_ids.vocabularies = {}
        table = new_ids._open(data, **columns)
        self.network = copy.deepcopy(self._fitted_network()).to(find_device(self.device))
        for kind, vocabulary in table.vocabularies.items():
            self._extend(kind, self.vocabularies[kind].as_own_kind(vocabulary.ids))
        return self._open(data, **columns)

    def _set_training_ids(self, data: RatingTable) -> None:
        assert data.ratings is not None
        self.vocabularies = data.vocabularies
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = float(np.mean(data.ratings)), float(np.std(data.ratings))
        if not np.isfinite([mean, scale]).all():
            raise ValueError("the ratings are too large: their standard deviation is not finite")
        self._mean_and_scale = mean, scale or 1.0

    def _training_id_arrays(self) -> dict[str, np.ndarray]:
        return {
            f"{kind}s.{name}": array
            for kind, vocabulary in self.vocabularies.items()
            for name, array in vocabulary.to_arrays().items()
        }

    def _restore_training_ids(self, checkpoint: Checkpoint) -> None:
        self.vocabularies = {kind: Vocabulary.from_arrays(checkpoint.group(f"{kind}s.")) for kind in self._dims()}

    def _sizes_of_tensors(self, checkpoint: Checkpoint) -> dict[str, Any]:
        weights = checkpoint.group(MODEL)
        n_hidden = sum(name.startswith("layers.") and name.endswith(".weight") for name in weights) - 1
        sizes = {f"{kind}_dim": weights[f"tables.{kind}.weight"].shape[1] for kind in self._dims()}
        return sizes | {"layer_sizes": tuple(weights[f"layers.{layer}.weight"].shape[0] for layer in range(n_hidden))}

    def _build_network(self) -> RatingNetwork:
        mean, scale = self._mean_and_scale
        return RatingNetwork(
            {kind: (len(self.vocabularies[kind]), dim) for kind, dim in self._dims().items()},
            self.layer_sizes,
            mean=mean,
            scale=scale,
            id_dropout=self.id_dropout,
            sparse=True,
            seed=self.seed,
            dtype=getattr(torch, self.dtype),
            device=find_device(self.device),
            impl=self.impl,
        )

    def _build_runner(self, data: RatingTable, *, has_validation: bool) -> RatingEpochRunner:
        assert data.ratings is not None
        network = self._fitted_network()
        optimizer = SparseAdam(network.parameters(), self.learning_rate, weight_decay=self.weight_decay, impl=self.impl)
        return RatingEpochRunner(
            network,
            torch.from_numpy(data.index),
            torch.tensor(data.ratings),
            self.batch_size,
            optimizer=optimizer,
            schedule=build_schedule(self, optimizer, has_validation),
        )

    def _validate(self, held_out: RatingTable, ranks: Ranks | None = None) -> Mapping[str, float]:
        metrics = self._evaluate_table(held_out).metrics
        return {name: metrics[name] for name in RATING_METRICS}
