"""Models for Cornac's experiments that are trained by this package.

    from gru4rec_fast.integrations.cornac import GRU4Rec  # instead of: from cornac.models import GRU4Rec

    evaluation = cornac.eval_methods.NextItemEvaluation.from_splits(train, test, fmt="SIT", mode="next")
    cornac.Experiment(evaluation, [GRU4Rec(n_epochs=5)], [cornac.metrics.Recall(k=20)]).run()

Each model is a subclass of Cornac's model with the same name, with its arguments, defaults, scores and files. See
docs/integrations/cornac.md for what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gru4rec_fast import models
from gru4rec_fast.data import InteractionGraph, SessionStore, TripleSampler, Vocabulary
from gru4rec_fast.evaluation import evaluating
from gru4rec_fast.nn import GraphNetwork, LightGCNNetwork, NGCFNetwork
from gru4rec_fast.training import Callback, GraphEpochRunner, Trainer, TrainerOptions, make_progress
from gru4rec_fast.training.options import check_at_least

try:
    import cornac.models
    from cornac.data import Dataset, SequentialDataset
    from cornac.models import Recommender
    from cornac.models.seq_utils import val_score
except ImportError as error:
    raise ImportError(f"{error}; gru4rec_fast.integrations.cornac needs Cornac 3: pip install 'cornac>=3'") from error

# Cornac's names of losses, and the names in this package. The cross-entropy "ce" has no logQ correction.
_LOSSES = {name: "cross-entropy" for name in ("cross-entropy", "xe_softmax", "softmax", "ce")}
_LOSSES |= {name: name for name in ("bpr-max", "top1", "bpr")}
# Arguments of Cornac's GRU4Rec that are parameters of the estimator with the same meaning.
_SHARED = (
    *("layers", "embedding", "constrained_embedding", "dropout_p_embed", "dropout_p_hidden"),
    *("n_sample", "sample_alpha", "bpreg", "elu_param"),
    *("batch_size", "learning_rate", "momentum", "n_epochs", "seed"),
)


class GRU4Rec(cornac.models.GRU4Rec):
    """Cornac's GRU4Rec, trained by `gru4rec_fast.GRU4Rec`.

    The arguments are those of cornac.models.GRU4Rec, except the loss "bce". If `seed` is None, a seed is drawn from
    torch's CPU generator.

    With trainable=False, `fit` trains nothing: the model has the weights of a loaded file, or of a model that was
    trained elsewhere and assigned:

        model = GRU4Rec(trainable=False)
        model.estimator = gru4rec_fast.GRU4Rec.load("model.safetensors")

    Attributes:
        estimator: the gru4rec_fast.GRU4Rec that scores; its item ids are the raw ids of the data. None before `fit`.

    Raises, in `fit`:
        ValueError: an argument is out of range or not supported; trainable=False without weights, or with weights that
            lack items of the training data. TypeError: ids of items or sessions are neither all integers nor all
            strings.
    """

    estimator: models.GRU4Rec | None = None

    def fit(self, train_set: Any, val_set: Any = None) -> Self:
        """Train on a cornac.data.SequentialDataset; with model_selection="best", `val_set` selects the best epoch."""
        Recommender.fit(self, train_set, val_set)
        if self.trainable:
            self._train(store_from(train_set), train_set, val_set)
        elif self.estimator is None:
            raise ValueError("trainable=False: this GRU4Rec has no weights; load a saved model, or assign `estimator`")
        else:
            self._item_indices = _indices_in(self.estimator, train_set)
        return self

    def score(self, user_idx: int | None, history_items: Any, **kwargs: Any) -> np.ndarray:
        """Return the scores of all training items as the next item of a session, float32 [num_items].

        Args:
            user_idx, kwargs: have no effect, as in Cornac's GRU4Rec.
            history_items: Cornac's indices of the items of the session so far, first item first. Items that are unseen
                in training are left out. If no item is left, all scores are 1, float64 [total_items], as in Cornac's
                GRU4Rec.
        """
        history = [item for item in history_items if self.knows_item(item)]
        if not history:
            return np.ones(self.total_items)
        estimator: Any = self.estimator
        network = estimator.network
        weight = network.output_weight
        with evaluating(network):
            hidden, _ = network(torch.from_numpy(self._item_indices[history])[:, None].to(weight.device))
            scores = F.linear(hidden[-1], weight, network.output_bias)[0]
        return scores.cpu().numpy()[self._item_indices]

    def _train(self, store: SessionStore, train_set: Any, val_set: Any) -> None:
        estimator = self.estimator = self._make_estimator()
        self._item_indices = np.arange(store.n_items)
        best_score, best_weights = -np.inf, None

        def keep_best(trainer: Any, record: dict[str, Any]) -> None:
            nonlocal best_score, best_weights
            if record["epoch"] % self.val_eval_every == 0:
                score = val_score(self, train_set, val_set, self.val_metric, self.val_k)
                if score > best_score:
                    weights = trainer.network.state_dict()
                    best_score, best_weights = score, {name: value.clone() for name, value in weights.items()}

        selects = self.model_selection == "best" and val_set is not None
        callbacks = [_AfterEpoch(keep_best)] if selects else []
        estimator.fit(store, callbacks=callbacks, progress=_progress(self))
        if best_weights is not None:
            trained: Any = estimator.network
            trained.load_state_dict(best_weights)

    def _make_estimator(self) -> models.GRU4Rec:
        if self.loss not in _LOSSES:
            raise ValueError(f"loss={self.loss!r} is not supported by gru4rec_fast: choose one of {', '.join(_LOSSES)}")
        return models.GRU4Rec(
            **{name: getattr(self, name) for name in _SHARED},
            loss=_LOSSES[self.loss],
            logq=0.0 if self.loss == "ce" else self.logq,
            shuffle=True,  # as Cornac does
            device=str(self.device),
        )


class _GraphModel(Recommender):
    """Replaces the training of a graph model of Cornac. A subclass also inherits from that model.

    Attributes:
        U, V: final embeddings of users [num_users, D] and of items [num_items, D], float32, by Cornac's indices.
    """

    def build_network(self, graph: InteractionGraph) -> GraphNetwork:
        """Return the network with its initial weights."""
        raise NotImplementedError

    def fit(self, train_set: Any, val_set: Any = None) -> Self:
        """Train on a cornac.data.Dataset; `val_set` is for `early_stopping`."""
        Recommender.fit(self, train_set, val_set)
        if self.trainable:
            self._train(train_set, val_set)
        for name, n in (("U", train_set.num_users), ("V", train_set.num_items)):
            if (rows := len(getattr(self, name, ()))) != n:
                raise ValueError(
                    f"trainable=False: {name} must have {n} rows for this training data, not {rows}; load a model that "
                    "was saved with this data, or assign the embeddings U and V"
                )
        return self

    def _train(self, train_set: Any, val_set: Any) -> None:
        check_at_least(1, num_epochs=self.num_epochs, batch_size=self.batch_size, emb_size=self.emb_size)
        check_at_least(0, lambda_reg=self.lambda_reg)
        users, items, _ = train_set.uir_tuple
        graph = InteractionGraph.from_arrays(users, items, n_users=train_set.num_users, n_items=train_set.num_items)
        device = "cuda" if torch.cuda.is_available() else "cpu"  # as Cornac does
        network = self.build_network(graph).to(device)

        def stop_early(trainer: Any, record: dict[str, Any]) -> None:
            self._store_embeddings(network)
            if self.early_stop(train_set, val_set, **self.early_stopping):
                trainer.stop()

        runner = GraphEpochRunner(
            network,
            TripleSampler(graph, self.batch_size, sample_by="interactions", seed=network.seed, device=device),
            optimizer=torch.optim.Adam(network.parameters(), lr=self.learning_rate, fused=True),
            reg_weight=self.lambda_reg,
        )
        callbacks = [] if self.early_stopping is None else [_AfterEpoch(stop_early)]
        progress = make_progress(_progress(self), "triples")
        Trainer(runner, TrainerOptions(self.num_epochs), callbacks=callbacks, progress=progress).run()
        self._store_embeddings(network)

    def _store_embeddings(self, network: GraphNetwork) -> None:
        network.eval()
        with torch.no_grad():
            embeddings = network().cpu().numpy()
        self.U, self.V = np.split(embeddings, [network.n_users])


class LightGCN(_GraphModel, cornac.models.LightGCN):
    """Cornac's LightGCN on `ops.laplacian_propagation`; it does not need dgl.

    The arguments, the initial weights for a seed, and the loss of a mini-batch are those of cornac.models.LightGCN. The
    triples (user, item of the user, other item) are drawn by `TripleSampler`.

    Raises, in `fit`:
        ValueError: an argument is out of range; trainable=False without the embeddings U and V.
    """

    def build_network(self, graph: InteractionGraph) -> GraphNetwork:
        check_at_least(0, num_layers=self.num_layers)
        network = _LightGCNNetwork(graph, self.emb_size, self.num_layers, seed=self.seed)
        generator = torch.Generator().manual_seed(network.seed)
        users, items = network.embedding.data.split([graph.n_users, graph.n_items])
        for table in (items, users):  # Cornac's order
            nn.init.xavier_uniform_(table, generator=generator)
        return network


class _LightGCNNetwork(LightGCNNetwork):
    """LightGCN whose regularization penalizes final embeddings, as Cornac's does."""

    def penalized(self, final: Tensor) -> Tensor:
        return final


class NGCF(_GraphModel, cornac.models.NGCF):
    """Cornac's NGCF on `ops.ngcf_layer`; it does not need dgl.

    The arguments are those of cornac.models.NGCF. A layer adds its biases once to each node, as in the paper; Cornac
    adds them to each message.

    Raises, in `fit`:
        ValueError: an argument is out of range; trainable=False without the embeddings U and V.
    """

    def build_network(self, graph: InteractionGraph) -> GraphNetwork:
        if len(self.dropout_rates) != len(self.layer_sizes):
            raise ValueError(
                f"dropout_rates={self.dropout_rates} must have one rate for each of the {len(self.layer_sizes)} layers"
            )
        if not all(0 <= rate < 1 for rate in self.dropout_rates):
            raise ValueError(f"dropout_rates={self.dropout_rates}: each rate must be in [0, 1)")
        network = NGCFNetwork(graph, self.emb_size, self.layer_sizes, normalize_messages=True, seed=self.seed)
        for layer, rate in zip(network.layers, self.dropout_rates, strict=True):
            layer.message_dropout = rate
        return network


class _AfterEpoch(Callback):
    """Calls a function with the trainer and the record of each epoch."""

    def __init__(self, function: Callable[[Any, dict[str, Any]], None]) -> None:
        self._function = function

    def on_epoch_end(self, trainer: Any, record: dict[str, Any]) -> None:
        """Call the function."""
        self._function(trainer, record)


def store_from(dataset: Any) -> SessionStore:
    """Convert a sequential dataset of Cornac to a store.

    Args:
        dataset: a cornac.data.SequentialDataset, such as `train_set` and `test_set` of a NextItemEvaluation.

    Returns:
        SessionStore of all sessions, sorted by the time of their first row; the events of a session are in the order of
        its rows. Item i is Cornac's item i. Ids of items and sessions are the raw ids of the data.

    Raises:
        TypeError: another class of dataset, or ids are neither all integers nor all strings.
    """
    if not isinstance(dataset, SequentialDataset):
        raise TypeError(f"dataset must be a cornac.data.SequentialDataset, not a {type(dataset).__name__}")
    indices, first_rows, session_of_row, lengths = np.unique(
        dataset.session_indices, return_index=True, return_inverse=True, return_counts=True
    )
    start_times = first_rows if dataset.timestamps is None else dataset.timestamps[first_rows]
    by_time = np.argsort(start_times, kind="stable")
    position = np.argsort(by_time)  # position[k]: index in the store of the session indices[k]
    session_ids = list(dataset.sid_map)
    return SessionStore.from_arrays(
        dataset.uir_tuple[1][np.argsort(position[session_of_row], kind="stable")],
        np.concatenate([[0], np.cumsum(lengths[by_time])]),
        start_times=start_times[by_time],
        vocabulary=Vocabulary(_ids_and_indices(dataset.iid_map, dataset.num_items)[0]),
        session_ids=[session_ids[index] for index in indices[by_time]],
    )


def graph_from(dataset: Any) -> InteractionGraph:
    """Convert a dataset of Cornac to a graph.

    Args:
        dataset: a cornac.data.Dataset, such as `train_set` and `test_set` of a RatioSplit. Ratings have no effect.

    Returns:
        InteractionGraph of the dataset's users and items, in the order of Cornac's indices. For a training set, the
        indices equal Cornac's. Ids are the raw ids of the data, by which `evaluate` of the estimators matches a test
        set to the training set.

    Raises:
        TypeError: another class of dataset, or ids are neither all integers nor all strings.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(f"dataset must be a cornac.data.Dataset, not a {type(dataset).__name__}")
    users, items, _ = dataset.uir_tuple
    user_ids, user_indices = _ids_and_indices(dataset.uid_map, dataset.num_users)
    item_ids, item_indices = _ids_and_indices(dataset.iid_map, dataset.num_items)
    return InteractionGraph.from_arrays(
        np.searchsorted(user_indices, users),
        np.searchsorted(item_indices, items),
        user_ids=Vocabulary(user_ids),
        item_ids=Vocabulary(item_ids),
    )


def _ids_and_indices(id_map: Mapping[Any, int], n: int) -> tuple[list[Any], list[int]]:
    """Return the ids in `id_map` (id -> index) that have an index less than n, and these indices, increasing.

    Cornac adds the ids of test data to the map of the training data.
    """
    pairs = sorted(((index, raw) for raw, index in id_map.items() if index < n), key=lambda pair: pair[0])
    return [raw for _, raw in pairs], [index for index, _ in pairs]


def _indices_in(estimator: models.GRU4Rec, train_set: Any) -> np.ndarray:
    """Return the estimator's index of each item of Cornac's training data, int64 [num_items]."""
    if estimator.vocabulary is None:
        raise ValueError("estimator has no weights: fit it, or load it from a file")
    ids, _ = _ids_and_indices(train_set.iid_map, train_set.num_items)
    indices = estimator.vocabulary.index_of(ids)
    if n_unknown := int((indices < 0).sum()):
        raise ValueError(
            f"estimator was trained without {n_unknown} of the {len(ids)} items of the training data, such as "
            f"{ids[int(indices.argmin())]!r}"
        )
    return indices


def _progress(model: Any) -> bool | None:
    """Return the argument `progress` for Cornac's `verbose`."""
    return None if model.verbose else False
