"""RecBole models that run on the operators of this package. Importing this module makes RecBole find them by name.

    import gru4rec_fast.integrations.recbole
    from recbole.quick_start import run_recbole

    run_recbole(model="FastLightGCN", dataset="ml-100k")

Each model is a subclass of RecBole's model, with its configuration keys, defaults, initial weights and state dict.
RecBole 1.2.1 needs an environment of its own, see docs/integrations/recbole.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gru4rec_fast import ops
from gru4rec_fast.data import InteractionGraph, SessionParallelLoader, SessionStore, Vocabulary
from gru4rec_fast.nn.graph_propagation import GraphIndices
from gru4rec_fast.nn.sequence_layout import State
from gru4rec_fast.nn.step_counter import StepCounter
from gru4rec_fast.ops.ngcf_layer import select_nodes

try:
    import recbole.trainer
    from recbole.config import Config
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import GeneralRecommender
    from recbole.model.general_recommender.lightgcn import LightGCN
    from recbole.model.general_recommender.ngcf import NGCF
    from recbole.model.sequential_recommender.gru4rec import GRU4Rec
except ImportError as error:
    raise ImportError(
        f"{error}; RecBole needs an environment of its own: pip install torch, then gru4rec_fast[recbole]"
    ) from error


class _GraphModel(GeneralRecommender):
    """Replaces the propagation and the loss of the RecBole graph model that a subclass also inherits from.

    The last layer is computed only for the nodes of the mini-batch.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        matrix = self.interaction_matrix
        # With the padding user 0 and the padding item 0, so that RecBole's indices are node indices.
        graph = InteractionGraph.from_arrays(matrix.row, matrix.col, n_users=self.n_users, n_items=self.n_items)
        self.graph = GraphIndices(graph)

    def get_norm_adj_mat(self) -> Tensor:
        """Return an empty tensor in place of RecBole's matrix, because the operators read `graph`."""
        return torch.empty(0)

    get_eye_mat = get_norm_adj_mat

    def final_embeddings(self, nodes: Tensor | None = None) -> Tensor:
        """Return the final embeddings [n, D] of `nodes` (int64 [n], increasing), or of all: users, then items."""
        raise NotImplementedError

    def penalty(self, nodes: Tensor, final: tuple[Tensor, ...]) -> Tensor:
        """Return RecBole's regularization of a mini-batch of B triples.

        nodes: int64 [3 B], the users, positive items and negative items. final: their final embeddings, three [B, D].
        """
        raise NotImplementedError

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the final embeddings of all users and of all items."""
        users, items = self.final_embeddings().split([self.n_users, self.n_items])
        return users, items

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Return RecBole's loss of a mini-batch of triples: BPR and regularization."""
        self.restore_user_e = self.restore_item_e = None  # RecBole's cache for evaluation
        users, positives, negatives = (interaction[name] for name in (self.USER_ID, self.ITEM_ID, self.NEG_ITEM_ID))
        nodes = torch.cat([users, positives + self.n_users, negatives + self.n_users])
        unique_nodes, index = nodes.unique(return_inverse=True)
        final = self.final_embeddings(unique_nodes).index_select(0, index).chunk(3)
        user, positive, negative = final
        bpr = self.mf_loss((user * positive).sum(1), (user * negative).sum(1))
        return bpr + self.reg_weight * self.penalty(nodes, final)


class FastLightGCN(_GraphModel, LightGCN):
    """RecBole's LightGCN on `ops.laplacian_propagation`.

    Configuration keys, with the defaults of LightGCN: embedding_size, n_layers, reg_weight, require_pow.
    """

    def final_embeddings(self, nodes: Tensor | None = None) -> Tensor:
        embeddings = self.get_ego_embeddings()
        total = select_nodes(embeddings, nodes, None)
        for layer in range(self.n_layers):
            rows = nodes if layer == self.n_layers - 1 else None
            embeddings = ops.laplacian_propagation(embeddings, self.graph.offsets, self.graph.neighbors, rows=rows)
            total = total + select_nodes(embeddings, nodes, rows)
        return total / (self.n_layers + 1)

    def penalty(self, nodes: Tensor, final: tuple[Tensor, ...]) -> Tensor:
        initial = self.get_ego_embeddings().index_select(0, nodes).chunk(3)
        return self.reg_loss(*initial, require_pow=self.require_pow)


class FastNGCF(_GraphModel, NGCF):
    """RecBole's NGCF on `ops.ngcf_layer`.

    Configuration keys, with the defaults of NGCF: embedding_size, hidden_size_list, node_dropout, message_dropout,
    reg_weight.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.steps = StepCounter(seed=None)  # RecBole has seeded torch's generator, from which the seed is drawn

    def final_embeddings(self, nodes: Tensor | None = None) -> Tensor:
        embeddings = self.get_ego_embeddings()
        outputs = [select_nodes(embeddings, nodes, None)]
        node_dropout, message_dropout = (self.node_dropout, self.message_dropout) if self.training else (0.0, 0.0)
        step = self.steps.first_step(None, 1, has_dropout=node_dropout > 0 or message_dropout > 0)
        for layer, weights in enumerate(self.GNNlayers):
            rows = nodes if layer == len(self.GNNlayers) - 1 else None
            embeddings = ops.ngcf_layer(
                embeddings,
                self.graph.offsets,
                self.graph.neighbors,
                weights.linear.weight.t(),
                weights.linear.bias,
                weights.interActTransform.weight.t(),
                weights.interActTransform.bias,
                rows=rows,
                node_dropout=node_dropout,
                message_dropout=message_dropout,
                seed=self.steps.seed,
                step=step,
                layer=layer,
            )
            embeddings = F.normalize(embeddings, dim=1)
            outputs.append(select_nodes(embeddings, nodes, rows))
        return torch.cat(outputs, dim=1)

    def penalty(self, nodes: Tensor, final: tuple[Tensor, ...]) -> Tensor:
        return self.reg_loss(*final)


class SessionGRU4Rec(GRU4Rec):
    """RecBole's GRU4Rec, trained on whole sequences instead of on each prefix of each sequence.

    RecBole trains on a row for each event, which has the last MAX_ITEM_LIST_LENGTH events before it. So the GRU
    computes an event again for each of the following rows. Here a mini-batch has MAX_ITEM_LIST_LENGTH steps of
    train_batch_size / MAX_ITEM_LIST_LENGTH sequences (lanes): as many targets as RecBole's, but each event is computed
    once. Hidden states pass from one mini-batch to the next, without gradient. Evaluation is RecBole's.

    Configuration keys, with the defaults of GRU4Rec: embedding_size, hidden_size, num_layers, dropout_prob, loss_type.
    With loss_type BPR it trains on RecBole's rows and negatives, exactly as GRU4Rec does.
    """

    def initial_state(self, lanes: int) -> State:
        """Return hidden states of zeros, [lanes, hidden_size] for each layer."""
        return [self.dense.weight.new_zeros(lanes, self.hidden_size) for _ in range(self.num_layers)]

    def session_loss(self, block: Any, state: State) -> tuple[Tensor, State]:
        """Return the sum of the cross-entropies of T steps of B lanes, divided by T B, and the states after the steps.

        The divisor is the same where some lanes have no sequence left, so that every event has the same weight.

        Args:
            block: with the entries `inputs` and `targets`, int64 [T, B], items of a store that `store_from` made, -1
                for padding; and `reset`, bool [T, B], True where a sequence starts.
            state: [B, hidden_size] for each layer.
        """
        # Item i of the store is item i + 1 of RecBole, and item 0 is the padding.
        hidden = self.emb_dropout(self.item_embedding(block["inputs"] + 1))
        new_state = []
        for layer, layer_state in enumerate(state):
            weight_ih, weight_hh = (getattr(self.gru_layers, f"weight_{name}_l{layer}") for name in ("ih", "hh"))
            gate_inputs = F.linear(hidden, weight_ih).to(layer_state.dtype)  # autocast computes a lower precision
            hidden = ops.gru(gate_inputs, layer_state, weight_hh, None, block["reset"])
            new_state.append(hidden[-1].detach())
        live = block["targets"] >= 0
        scores = F.linear(self.dense(hidden[live]), self.item_embedding.weight)
        total = F.cross_entropy(scores, block["targets"][live] + 1, reduction="sum")
        return total / live.numel(), new_state


class SessionGRU4RecTrainer(recbole.trainer.Trainer):
    """RecBole's trainer, with the mini-batches of `SessionGRU4Rec`. RecBole finds it by its name."""

    def _train_epoch(
        self,
        train_data: Any,
        epoch_idx: int,
        loss_func: Callable[[Any], Tensor] | None = None,
        show_progress: bool = False,
    ) -> Any:
        if self.config["loss_type"] != "CE":
            return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        if not self.config["single_spec"]:
            raise ValueError("SessionGRU4Rec with loss_type CE trains in one process: run it with nproc=1")
        if not hasattr(self, "_sessions"):
            steps = self.config["MAX_ITEM_LIST_LENGTH"]
            self._sessions = SessionParallelLoader(
                store_from(train_data.dataset),
                max(1, self.config["train_batch_size"] // steps),
                steps,
                shuffle=self.config["shuffle"],
                seed=self.config["seed"],
            )
        self._sessions.set_epoch(epoch_idx)
        state = self.model.initial_state(self._sessions.n_lanes)

        def session_loss(block: Any) -> Tensor:
            nonlocal state
            loss, state = self.model.session_loss(block, state)
            return loss

        return super()._train_epoch(_Blocks(self._sessions), epoch_idx, session_loss, show_progress)


class _Blocks:
    """The blocks of a loader as RecBole's interactions, which its trainer moves to a device."""

    def __init__(self, loader: SessionParallelLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for block in self.loader:
            yield Interaction({"inputs": block.inputs, "targets": block.targets, "reset": block.reset})


def graph_from(dataset: Any) -> InteractionGraph:
    """Convert a RecBole dataset to a graph of all its users and items, without RecBole's padding.

    Args:
        dataset: a recbole.data.dataset.Dataset: from `create_dataset`, or a part of it that `dataset.build()` or a data
            loader (`train_data.dataset`) has. Repeated interactions are one edge.

    Returns:
        InteractionGraph; user u and item i are RecBole's u + 1 and i + 1. Ids are RecBole's tokens, which are strings.
    """
    events = dataset.inter_feat
    if _has_histories(dataset):
        matrix = dataset.inter_matrix()
        users, items = matrix.row, matrix.col
    else:
        users, items = np.asarray(events[dataset.uid_field]), np.asarray(events[dataset.iid_field])
    user_ids, item_ids = (
        Vocabulary(dataset.field2id_token[field][1:]) for field in (dataset.uid_field, dataset.iid_field)
    )
    return InteractionGraph.from_arrays(users - 1, items - 1, user_ids=user_ids, item_ids=item_ids)


def store_from(dataset: Any) -> SessionStore:
    """Convert a RecBole dataset to a store in which each user is a session, sorted by time.

    Args:
        dataset: a recbole.data.dataset.Dataset with a time field: from `create_dataset`, or a part of it that
            `dataset.build()` or a data loader (`train_data.dataset`) has. A row of a part has a history and a target. A
            row that continues the previous row of its user adds its target to the session; any other row starts a
            session with its history, so a session of validation or test data begins with the history.

    Returns:
        SessionStore of all items, without RecBole's padding: item i is RecBole's i + 1. Item ids and session ids are
        RecBole's tokens, which are strings.

    Raises:
        ValueError: the dataset has no time field.
    """
    events, time_field = dataset.inter_feat, dataset.time_field
    if time_field not in events:
        raise ValueError(f"the dataset has no field {time_field!r}: set TIME_FIELD, and list the field in load_col")
    users, items, times = (np.asarray(events[name]) for name in (dataset.uid_field, dataset.iid_field, time_field))
    if _has_histories(dataset):
        order = np.argsort(users, kind="stable")  # the rows of a user are in the order of time
        histories = np.asarray(events[dataset.iid_field + dataset.config["LIST_SUFFIX"]])[order]
        lengths = np.asarray(events[dataset.item_list_length_field])[order]
    else:
        order = np.lexsort((times, users))
        histories, lengths = np.zeros((len(order), 0), items.dtype), np.zeros(len(order), np.int64)
    users, items, times = users[order], items[order], times[order]

    starts_session = np.ones(len(order), bool)
    starts_session[1:] = (users[1:] != users[:-1]) | ~_continues(histories, lengths, items)
    session = np.cumsum(starts_session) - 1  # of each row
    start_times = times[starts_session]
    # The events that the rows add: the target of every row, and the history of a row that starts a session.
    columns = np.column_stack([histories, items])
    is_history = np.arange(histories.shape[1]) < lengths[:, None]
    added = np.column_stack([is_history & starts_session[:, None], np.ones(len(order), bool)])
    n_events = np.bincount(session, weights=added.sum(1)).astype(np.int64)

    by_time = np.argsort(start_times, kind="stable")
    rows = np.lexsort((session, start_times[session]))
    user_ids, item_ids = (dataset.field2id_token[field] for field in (dataset.uid_field, dataset.iid_field))
    return SessionStore.from_arrays(
        columns[rows][added[rows]] - 1,
        np.concatenate([[0], np.cumsum(n_events[by_time])]),
        start_times=start_times[by_time],
        vocabulary=Vocabulary(item_ids[1:]),
        session_ids=user_ids[users[starts_session][by_time]],
    )


def _continues(histories: np.ndarray, lengths: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return bool [n - 1]: whether the history of row k + 1 is that of row k and its target, cut to the last events.

    Only the last item and the length are compared.

    histories: [n, L], padded at the end; L = 0: there are none. lengths, targets: [n].
    """
    if not histories.shape[1]:
        return np.ones(max(len(targets) - 1, 0), bool)
    last = histories[np.arange(len(lengths)), lengths - 1]
    return (last[1:] == targets[:-1]) & (lengths[1:] == np.minimum(lengths[:-1] + 1, histories.shape[1]))


def _has_histories(dataset: Any) -> bool:
    """Return whether the rows of a dataset have the items before the target, as parts of sequential datasets do."""
    return getattr(dataset, "item_list_length_field", None) in dataset.inter_feat


def _read_defaults_of_base(config: Any, model: str, model_class: Any, dataset: str) -> None:
    """Load RecBole's default configuration; for a model of this module, that of RecBole's model of the same kind."""
    base = _DEFAULTS_OF.get(model_class)
    _load_defaults(config, model if base is None else base.__name__, model_class, dataset)


def _register() -> None:
    """Make RecBole find the models, their trainer and their defaults by name.

    RecBole imports the model M from recbole.model.general_recommender.m or recbole.model.sequential_recommender.m, and
    its trainer from recbole.trainer.
    """
    for model, base in _DEFAULTS_OF.items():
        package = base.__module__.rpartition(".")[0]
        sys.modules[f"{package}.{model.__name__.lower()}"] = sys.modules[__name__]
    recbole.trainer.SessionGRU4RecTrainer = SessionGRU4RecTrainer
    Config._load_internal_config_dict = _read_defaults_of_base


_DEFAULTS_OF = {FastLightGCN: LightGCN, FastNGCF: NGCF, SessionGRU4Rec: GRU4Rec}
_load_defaults = Config._load_internal_config_dict
_register()
