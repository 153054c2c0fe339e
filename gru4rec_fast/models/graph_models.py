"""NGCF and LightGCN as estimators: fit, evaluate, recommend, similar items, save, load."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from gru4rec_fast.data import InteractionGraph, Vocabulary
from gru4rec_fast.data.graphs.csr import find_csr_damage
from gru4rec_fast.data.graphs.order import reorder
from gru4rec_fast.distributed import Ranks
from gru4rec_fast.evaluation import By, NegativesBy, Report, Ties, evaluate_graph
from gru4rec_fast.models.builders import (
    build_graph_runner,
    build_lightgcn_network,
    build_ngcf_network,
    open_graph,
)
from gru4rec_fast.models.estimator import Estimator
from gru4rec_fast.models.id_encoder import IdEncoder, Unknown
from gru4rec_fast.models.parameter_fields import document_parameters
from gru4rec_fast.models.parameters import GraphParameters, LightGCNParameters, NGCFParameters
from gru4rec_fast.models.recommendations import Candidates, ItemLists, QueryBatch, Recommendations, search_top_k
from gru4rec_fast.nn import GraphNetwork, LightGCNNetwork, NGCFNetwork
from gru4rec_fast.training import Checkpoint, GraphEpochRunner
from gru4rec_fast.training.checkpoint_tensors import MODEL

# Prefixes of the names of tensors in a checkpoint.
USERS, ITEMS, GRAPH = "users.", "items.", "graph."


class GraphRecommender(Estimator, GraphParameters):
    """Base class of NGCF and LightGCN.

    Attributes:
        graph: the training graph; None before `fit` or `load`.
        network, history, best_epoch, peak_memory_bytes: see `Estimator`.
        All parameters are also attributes.
    """

    _validation_metrics = ("recall", "ndcg")
    _ids_name = "graph"
    _column_arguments = ("user_key", "item_key")
    _progress_unit = "triples"
    network: GraphNetwork | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.graph: InteractionGraph | None = None
        # The final embeddings, and the implementation (`impl`) that computed them.
        self._cached_embeddings: tuple[GraphNetwork, str, Tensor] | None = None  # of a network, by `impl`

    def build_network(self, graph: InteractionGraph) -> GraphNetwork:
        """Return a network with the hyper-parameters of this model and initial weights."""
        raise NotImplementedError

    def evaluate(
        self,
        data: Any,
        *,
        cutoffs: int | Iterable[int] = (20,),
        ties: Ties | None = None,
        batch_size: int = 1024,
        by: By | None = None,
        beyond_accuracy: bool = False,
        negatives: int | None = None,
        negatives_by: NegativesBy = "uniform",
        seed: int = 0,
        per_user: bool = False,
        impl: str | None = None,
        ranks: Ranks | None = None,
        **columns: str,
    ) -> Report:
        """Rank, for every user with test items, all items that the user does not have in training.

        Args:
            data: as `validation` in `fit`. Interactions of users or items unseen in training are dropped, and counted
                in the report.
            cutoffs, ties, batch_size, by, beyond_accuracy, negatives, negatives_by, seed, per_user: see
                `gru4rec_fast.evaluation.evaluate_graph`.
            impl: "auto", "native" or "reference"; None is the model's parameter `impl`.
            ranks: share out the users among these processes, each of which must make the same call.
            columns: names of columns, as in `fit`.
        """
        self._check_columns(columns)
        impl = impl or self.impl
        graph, final = self._graph_and_embeddings(impl)
        test = self._open(data, **columns)
        return evaluate_graph(
            final,
            graph,
            test,
            cutoffs=cutoffs,
            ties=ties,
            batch_size=batch_size,
            by=by,
            beyond_accuracy=beyond_accuracy,
            negatives=negatives,
            negatives_by=negatives_by,
            seed=seed,
            per_user=per_user,
            impl=impl,
            ranks=ranks,
        )

    def recommend(
        self,
        users: ArrayLike | Iterable[int] | Iterable[str],
        k: int = 20,
        *,
        exclude_seen: bool = True,
        exclude: ItemLists | None = None,
        candidates: Candidates | None = None,
        unknown: Unknown = "error",
        batch_size: int = 1024,
        impl: str | None = None,
    ) -> Recommendations:
        """Return the k best items of each user, best first; scores are dot products.

        Args:
            users: user ids. The scores of a user without training items come from its random initial embedding.
            k: how many items, at most the number of items in the graph.
            exclude_seen: leave out the user's training items.
            exclude, candidates: items that are never recommended, or that alone may be recommended; one list for all
                users or one for each, as in `gru4rec_fast.models.recommend`.
            unknown: "error" raises an error for a user or an item of these lists that was not in the training data;
                "skip" gives such a user a row with count 0 and ignores such an item.
            batch_size: users per top-k search.
            impl: "auto", "native" or "reference"; None is the model's parameter `impl`.

        Raises:
            ValueError: an unknown user, unless `unknown` is "skip"; k out of range; a NaN score.
        """
        impl = impl or self.impl
        graph, final = self._graph_and_embeddings(impl)
        indices = IdEncoder(graph.users, unknown, "user").encode(users)
        table = final[graph.n_users :]
        encoder = IdEncoder(graph.items, unknown)
        seen = graph.items_of if exclude_seen else None
        options: dict[str, Any] = {"exclude": exclude, "candidates": candidates, "batch_size": batch_size, "impl": impl}
        return _best_items(final, indices, seen, table, k, encoder, **options)

    def similar_items(
        self,
        items: ArrayLike | Iterable[int] | Iterable[str],
        k: int = 10,
        *,
        candidates: Candidates | None = None,
        unknown: Unknown = "error",
        batch_size: int = 1024,
        impl: str | None = None,
    ) -> Recommendations:
        """Return the k items most similar to each item, without the item itself; scores are cosines of embeddings.

        Args:
            items: item ids.
            k: how many items, at most the number of items in the graph.
            candidates: the only items that may be returned, for all rows or for each, as in `recommend`.
            unknown: "error" raises an error for an item that was not in the training data; "skip" gives it a row with
                count 0.
            batch_size: items per top-k search.
            impl: "auto", "native" or "reference"; None is the model's parameter `impl`.

        Raises:
            ValueError: an unknown item, unless `unknown` is "skip"; k out of range; a NaN score.
        """
        impl = impl or self.impl
        graph, final = self._graph_and_embeddings(impl)
        encoder = IdEncoder(graph.items, unknown)
        indices = encoder.encode(items)
        unit_rows = torch.nn.functional.normalize(final[graph.n_users :], dim=1)
        options: dict[str, Any] = {"candidates": candidates, "batch_size": batch_size, "impl": impl}
        return _best_items(unit_rows, indices, lambda item: np.array([item]), unit_rows, k, encoder, **options)

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return the final embeddings of users [n_users, D] and of items [n_items, D]."""
        graph, final = self._graph_and_embeddings(self.impl)
        return final[: graph.n_users], final[graph.n_users :]

    def _graph_and_embeddings(self, impl: str) -> tuple[InteractionGraph, Tensor]:
        """Return the training graph and the final embeddings [n_nodes, D] of its nodes, users first."""
        network, graph = self._fitted_network(), self.graph
        assert graph is not None
        cached, changes = self._cached_embeddings, self._is_fitting
        if cached is None or cached[0] is not network or cached[1] != impl or changes:
            # Within torch.inference_mode too, the cached tensor must be one that autograd accepts later.
            with torch.inference_mode(False), torch.no_grad():
                cached = network, impl, self._evaluation_view(impl)()
            self._cached_embeddings = None if changes else cached
        return graph, cached[2]

    def extend_users(self, ids: ArrayLike | Iterable[int] | Iterable[str]) -> Self:
        """Append users without interactions; return self. Users that the graph has are ignored.

        New users get the next indices, in the sorted order of their ids, and initial embeddings. The embeddings of all
        other nodes do not change. Item nodes come after user nodes, so a call copies the embeddings: append many ids in
        one call.

        Raises:
            TypeError: ids are strings where the graph has integers, or integers where it has strings.
            RuntimeError: the model is not fitted, or is being fitted (`fit`, `partial_fit`).
        """
        return self._extend(lambda graph: graph.with_nodes(users=ids))

    def extend_items(self, ids: ArrayLike | Iterable[int] | Iterable[str]) -> Self:
        """Append items without interactions; see `extend_users`."""
        return self._extend(lambda graph: graph.with_nodes(items=ids))

    def _extend(self, extend: Callable[[InteractionGraph], InteractionGraph]) -> Self:
        """Replace the graph, and the network by one for the new graph with the same weights; return self."""
        network, graph = self._network_to_change(), self.graph
        assert graph is not None
        new_graph = extend(graph)
        # The initial embeddings of the new nodes need another seed: rows that users had got would go to items.
        seed = (network.seed + graph.n_nodes) % (1 << 63)
        fitted = type(self)(**self._fitted_parameters | {"seed": seed, "device": self.device, "impl": self.impl})
        new_network = fitted.build_network(new_graph)
        state = network.state_dict()
        old_users, old_items = state["embedding"].split([graph.n_users, graph.n_items])
        embedding = new_network.embedding.detach().clone()
        embedding[: graph.n_users] = old_users
        embedding[new_graph.n_users : new_graph.n_users + graph.n_items] = old_items
        new_network.seed_was_drawn = True  # so that it takes the seed of the state
        new_network.load_state_dict(state | {"embedding": embedding})
        new_network.seed_was_drawn = network.seed_was_drawn
        self.graph, self.network = new_graph, new_network.eval()
        return self

    def _open_and_extend(self, data: Any, **columns: Any) -> InteractionGraph:
        assert self.graph is not None
        graph, more = self.graph, open_graph(data, **columns)
        users, items = graph.users.as_own_kind(more.users.ids), graph.items.as_own_kind(more.items.ids)
        user_index, item_index = more.interactions()
        self._extend(lambda graph: graph.with_nodes(users, items).extended(users[user_index], items[item_index]))
        assert self.graph is not None
        return self.graph

    def _open(self, data: Any, **columns: str) -> InteractionGraph:
        graph = open_graph(data, self.graph, **columns)
        return reorder(graph) if self.graph is None and self.reorder else graph

    def _set_training_ids(self, data: InteractionGraph) -> None:
        self.graph = data

    def _training_id_arrays(self) -> dict[str, np.ndarray]:
        assert self.graph is not None
        return graph_to_arrays(self.graph)

    def _restore_training_ids(self, checkpoint: Checkpoint) -> None:
        self.graph = graph_from_tensors(checkpoint)

    def _sizes_of_tensors(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return {"embedding_dim": checkpoint.tensors[MODEL + "embedding"].shape[1]}

    def _build_network(self) -> GraphNetwork:
        assert self.graph is not None
        return self.build_network(self.graph)

    def _build_runner(self, data: InteractionGraph, *, has_validation: bool) -> GraphEpochRunner:
        return build_graph_runner(self, self._fitted_network(), data, has_validation=has_validation)

    @torch.no_grad()
    def _evaluate_held_out(self, data: InteractionGraph, cutoff: int, ranks: Ranks | None) -> Report:
        assert self.graph is not None
        embeddings = self._fitted_network()()
        return evaluate_graph(embeddings, self.graph, data, cutoffs=(cutoff,), impl=self.impl, ranks=ranks)


@document_parameters
class NGCF(GraphRecommender, NGCFParameters):
    """Neural graph collaborative filtering (Wang et al., SIGIR 2019, arXiv 1905.08108).

        model = NGCF(layer_sizes=[64, 64, 64], n_epochs=100)
        model.fit("train.txt", validation="valid.txt", out="run")
        print(model.evaluate("test.txt", cutoffs=(20, 50)).table())
        model.recommend([17, 4], k=10)
        model.save("model.safetensors")

    The parameters below are keyword arguments and attributes. See `GraphRecommender` for further attributes.

    Raises:
        TypeError: an unknown parameter or a value of the wrong type. ValueError: a value out of range.
    """

    file_format = "gru4rec_fast.NGCF/2"

    def _sizes_of_tensors(self, checkpoint: Checkpoint) -> dict[str, Any]:
        weights = checkpoint.group(MODEL)
        n_layers = sum(name.endswith(".weight_1") for name in weights)
        layer_sizes = tuple(weights[f"layers.{layer}.weight_1"].shape[1] for layer in range(n_layers))
        return super()._sizes_of_tensors(checkpoint) | {"layer_sizes": layer_sizes}

    def build_network(self, graph: InteractionGraph) -> NGCFNetwork:
        return build_ngcf_network(self, graph)


@document_parameters
class LightGCN(GraphRecommender, LightGCNParameters):
    """LightGCN (He et al., SIGIR 2020, arXiv 2002.02126); used like `NGCF`.

    The parameters below are keyword arguments and attributes. See `GraphRecommender` for further attributes.

    Raises:
        TypeError: an unknown parameter or a value of the wrong type. ValueError: a value out of range.
    """

    file_format = "gru4rec_fast.LightGCN/2"

    def build_network(self, graph: InteractionGraph) -> LightGCNNetwork:
        return build_lightgcn_network(self, graph)


def graph_to_arrays(graph: InteractionGraph) -> dict[str, np.ndarray]:
    """Return a graph with its ids as numeric arrays for a checkpoint."""
    arrays = {GRAPH + "offsets": graph.offsets, GRAPH + "neighbors": graph.neighbors}
    for prefix, ids in ((USERS, graph.users), (ITEMS, graph.items)):
        arrays |= {prefix + name: array for name, array in ids.to_arrays().items()}
    return arrays


def graph_from_tensors(checkpoint: Checkpoint) -> InteractionGraph:
    """Return the graph in a checkpoint with the arrays of `graph_to_arrays`. Raises ValueError if it is damaged."""
    offsets, neighbors = (checkpoint.tensors[GRAPH + name].numpy() for name in ("offsets", "neighbors"))
    users, items = (Vocabulary.from_arrays(checkpoint.group(prefix)) for prefix in (USERS, ITEMS))
    if damage := find_csr_damage(offsets, neighbors, len(users), len(items)):
        raise ValueError(f"{GRAPH}{damage[0]} {damage[1]}")
    return InteractionGraph(offsets, neighbors, users, items, {})


def _best_items(
    query_table: Tensor,
    indices: np.ndarray,
    excluded_items_of: Callable[[int], np.ndarray] | None,
    item_table: Tensor,
    k: int,
    encoder: IdEncoder,
    *,
    batch_size: int,
    **options: Any,
) -> Recommendations:
    """For each index, return the k items j with the highest dot products of query_table[index] and item_table[j].

    Args:
        indices: int64 [n]; -1 gives a row without recommendations.
        excluded_items_of: returns the items to leave out for an index.
        batch_size: number of indices per search.
        The other arguments: see `search_top_k`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")

    def make_batch(rows: np.ndarray) -> QueryBatch:
        chosen = indices[rows]
        excluded = None if excluded_items_of is None else [excluded_items_of(index) for index in chosen.tolist()]
        return QueryBatch(query_table[torch.from_numpy(chosen).to(query_table.device)], excluded)

    known = np.flatnonzero(indices >= 0)
    batches = (known[start : start + batch_size] for start in range(0, len(known), batch_size))
    return search_top_k(make_batch, batches, len(indices), k, item_table.contiguous(), None, encoder, **options)
