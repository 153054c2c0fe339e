"""NGCF and LightGCN: node embeddings, their propagation, and the BPR loss of a mini-batch of triples.

A triple is a user, an item that the user has (positive), and an item that the user does not have (negative).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gru4rec_fast.data import InteractionGraph
from gru4rec_fast.distributed import Ranks
from gru4rec_fast.nn.embedding_rows import gather_rows
from gru4rec_fast.nn.graph_propagation import GraphIndices, LaplacianPropagation, NGCFLayer, Nodes
from gru4rec_fast.nn.session_gru import glorot_
from gru4rec_fast.nn.step_counter import StepCounter
from gru4rec_fast.ops.ngcf_layer import select_nodes

# If a layer needs at least this fraction of the nodes, it is computed for all nodes, because selecting nodes would cost
# more time than it saves.
_MAX_SELECTED = 0.7
# If a layer needs the neighbors of at least this fraction of the nodes, it is computed for all nodes, because searching
# the neighbors would take as long as computing the layer.
_MAX_SEARCHED = 0.4


class GraphNetwork(StepCounter):
    """Base class of NGCF and LightGCN: a table of node embeddings, final embeddings, and the BPR loss.

    The score of an item for a user is the dot product of their final embeddings.

    Args:
        graph: an InteractionGraph, or its GraphIndices.
        embedding_dim: width of the embeddings.
        only_needed: whether `loss` computes the last layer only for the nodes of the mini-batch, and earlier layers
            only for the neighborhoods of these nodes. Loss and gradients are the same. Finding the nodes synchronizes
            with a GPU several times per step. Under torch.compile, all nodes are computed.
        sparse: whether the gradient of the embedding table is sparse (COO), with the rows that the mini-batch needs.
            This is worth it only where `only_needed` leaves out most nodes.
        seed: seed of the initial embeddings and of the dropout; None draws one from torch's CPU generator.

    Parameters: embedding [n_nodes, embedding_dim], users before items.
    """

    n_layers: int

    def __init__(
        self,
        graph: InteractionGraph | GraphIndices,
        embedding_dim: int,
        only_needed: bool,
        sparse: bool,
        seed: int | None,
    ) -> None:
        super().__init__(seed)
        self.sparse = sparse
        self.only_needed = only_needed
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim={embedding_dim}: must be at least 1")
        self.graph = GraphIndices.of(graph)
        self.embedding = nn.Parameter(torch.empty(self.graph.n_nodes, embedding_dim))

    @property
    def n_users(self) -> int:
        """Number of users, which are the first nodes."""
        return self.graph.n_users

    @property
    def n_items(self) -> int:
        """Number of items."""
        return self.graph.n_items

    def forward(self, *, step: int | Tensor | None = None, rows: Nodes = None, ranks: Ranks | None = None) -> Tensor:
        """Return the final embeddings of all nodes, [n_nodes, D], or only of the nodes `rows` (int64, increasing).

        Args:
            step: number of the training step; with the seed it determines the dropout masks. An integer or a 0-dim
                int64 tensor; None counts by itself, see `StepCounter`.
            rows: see above.
            ranks: share out the nodes of each layer among these processes, each of which must make the same call with
                the same weights. All get the same result. The gradients of the layers' parameters must then be added up
                over the ranks; that of the embedding table is complete.
        """
        raise NotImplementedError

    def neighborhoods(self, rows: Nodes) -> list[Nodes]:
        """Return the nodes whose embeddings are needed to compute the final embeddings of `rows`.

        Element 0 has the nodes needed of the embedding table, element l the nodes needed of the output of layer l.
        """
        needed: list[Nodes] = [rows]
        for _ in range(self.n_layers):
            if rows is not None:
                n_nodes = self.graph.n_nodes
                rows = self.graph.with_neighbors(rows) if len(rows) < _MAX_SEARCHED * n_nodes else None
                rows = None if rows is None or len(rows) >= _MAX_SELECTED * n_nodes else rows
            needed.insert(0, rows)
        return needed

    def initial_embeddings(self, nodes: Nodes) -> Tensor:
        """Return the rows `nodes` of the embedding table; None: all rows."""
        if not self.sparse:
            return select_nodes(self.embedding, rows=nodes, columns=None)
        if nodes is None:
            nodes = torch.arange(self.graph.n_nodes, device=self.embedding.device)
        return gather_rows(self.embedding, nodes, sparse=True, padding=False)

    def penalized(self, final: Tensor) -> Tensor:
        """Return the embeddings that the regularization penalizes: `final` (the final embeddings) or `embedding`."""
        raise NotImplementedError

    def loss(
        self,
        users: Tensor,
        positives: Tensor,
        negatives: Tensor,
        *,
        step: int | Tensor | None = None,
        ranks: Ranks | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the BPR loss and the L2 penalty of a mini-batch of triples; minimize `bpr + reg_weight * norm`.

        Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009.

        Args:
            users, positives, negatives: int64 [B], indices of users and of items (items are numbered from 0).
            step, ranks: see `forward`.

        Returns:
            bpr: scalar, the mean over the triples of -log sigmoid(score of the positive - score of the negative).
            norm: scalar, the sum of the squares of the penalized embeddings of all nodes of the triples, divided by
                2 B.
        """
        nodes = torch.cat([users, positives + self.n_users, negatives + self.n_users])
        if self.only_needed and not torch.compiler.is_compiling():
            unique_nodes, final_rows = nodes.unique(return_inverse=True)
            final = self(step=step, rows=unique_nodes, ranks=ranks)
        else:
            final, final_rows = self(step=step, ranks=ranks), nodes
        user, positive, negative = final.index_select(0, final_rows).chunk(3)
        # Not F.softplus: torch computes a linear function above 20, with an error of 2e-9.
        bpr = -F.logsigmoid((user * (positive - negative)).sum(1)).mean()
        penalized = self.penalized(final)
        regularized = final.index_select(0, final_rows) if penalized is final else self.initial_embeddings(nodes)
        return bpr, regularized.square().sum() / (2 * len(users))


class NGCFNetwork(GraphNetwork):
    """Neural graph collaborative filtering (Wang et al., SIGIR 2019, arXiv 1905.08108).

    The final embedding of a node is the concatenation of the node's embedding and the L2-normalized outputs of all
    layers. The input of a layer is the output of the previous layer, normalized only if normalize_messages is True. The
    regularization penalizes final embeddings.

    Args:
        graph: an InteractionGraph, or its GraphIndices.
        embedding_dim: width of the embeddings.
        layer_sizes: widths of the outputs of the layers, first layer first.
        P, Q, activation, negative_slope, node_dropout, message_dropout: see `NGCFLayer`.
        normalize_messages: whether the input of a layer is the normalized output of the previous layer, as in some
            libraries.
        only_needed, sparse: see `GraphNetwork`.
        seed: seed of the initial weights (Xavier uniform, separately for users and items) and of the dropout;
            None draws one from torch's CPU generator.
        impl: "auto", "native" or "reference".

    Parameters: embedding [n_nodes, embedding_dim]; layers.<l>.{weight_1, bias_1, weight_2, bias_2}.
    """

    def __init__(
        self,
        graph: InteractionGraph | GraphIndices,
        embedding_dim: int = 64,
        layer_sizes: Sequence[int] = (64, 64, 64),
        *,
        P: str = "symmetric+I",
        Q: str = "symmetric",
        activation: str = "sum",
        negative_slope: float = 0.2,
        node_dropout: float = 0.0,
        message_dropout: float = 0.0,
        normalize_messages: bool = False,
        only_needed: bool = True,
        sparse: bool = False,
        seed: int | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__(graph, embedding_dim, only_needed, sparse, seed)
        self.normalize_messages = normalize_messages
        generator = torch.Generator().manual_seed(self.seed)
        for table in self.embedding.data.split([self.n_users, self.n_items]):
            glorot_(table, embedding_dim, len(table), generator)
        self.n_layers = len(layer_sizes)
        widths = [embedding_dim, *layer_sizes]
        self.layers = nn.ModuleList(
            NGCFLayer(
                self.graph,
                widths[layer],
                widths[layer + 1],
                P=P,
                Q=Q,
                activation=activation,
                negative_slope=negative_slope,
                node_dropout=node_dropout,
                message_dropout=message_dropout,
                seed=self.seed,
                layer=layer,
                impl=impl,
                generator=generator,
            )
            for layer in range(len(layer_sizes))
        )
        self.count_for_layers()

    def forward(self, *, step: int | Tensor | None = None, rows: Nodes = None, ranks: Ranks | None = None) -> Tensor:
        nodes, *nodes_of_layers = self.neighborhoods(rows)
        embeddings = self.initial_embeddings(nodes)
        outputs = [select_nodes(embeddings, rows, nodes)]
        step = self.first_step(step, 1, has_dropout=any(layer.has_dropout for layer in self.layers))
        for layer, layer_nodes in zip(self.layers, nodes_of_layers, strict=True):
            embeddings = layer(embeddings, step=step, rows=layer_nodes, columns=nodes, ranks=ranks)
            nodes = layer_nodes
            if self.normalize_messages:
                embeddings = F.normalize(embeddings, dim=1)
                outputs.append(select_nodes(embeddings, rows, nodes))
            else:
                outputs.append(F.normalize(select_nodes(embeddings, rows, nodes), dim=1))
        return torch.cat(outputs, dim=1)

    def penalized(self, final: Tensor) -> Tensor:
        return final


class LightGCNNetwork(GraphNetwork):
    """LightGCN (He et al., SIGIR 2020, arXiv 2002.02126): E_{k+1} = L E_k; the final embedding is the mean of all E_k.

    L is the propagation matrix. E_0 is the embedding table, the only parameter, which the regularization penalizes.

    Args:
        graph: an InteractionGraph, or its GraphIndices.
        embedding_dim: width of the embeddings.
        n_layers: number of propagations.
        matrix: see `LaplacianPropagation`.
        node_dropout: probability in [0, 1) of dropping an entry of the matrix, in training.
        only_needed, sparse: see `GraphNetwork`.
        seed: seed of the initial embeddings (normal, standard deviation 0.1) and of the dropout; None draws one from
            torch's CPU generator.
        impl: "auto", "native" or "reference".

    Parameters: embedding [n_nodes, embedding_dim].
    """

    def __init__(
        self,
        graph: InteractionGraph | GraphIndices,
        embedding_dim: int = 64,
        n_layers: int = 3,
        *,
        matrix: str = "symmetric",
        node_dropout: float = 0.0,
        only_needed: bool = True,
        sparse: bool = False,
        seed: int | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__(graph, embedding_dim, only_needed, sparse, seed)
        if n_layers < 0:
            raise ValueError(f"n_layers={n_layers}: must not be negative")
        self.n_layers = n_layers
        self.propagation = LaplacianPropagation(self.graph, matrix, dropout=node_dropout, seed=self.seed, impl=impl)
        self.count_for_layers()
        with torch.no_grad():
            self.embedding.normal_(std=0.1, generator=torch.Generator().manual_seed(self.seed))

    def forward(self, *, step: int | Tensor | None = None, rows: Nodes = None, ranks: Ranks | None = None) -> Tensor:
        nodes, *nodes_of_layers = self.neighborhoods(rows)
        embeddings = self.initial_embeddings(nodes)
        total = select_nodes(embeddings, rows, nodes)
        step = self.first_step(step, 1, has_dropout=self.propagation.dropout > 0)
        for layer_nodes in nodes_of_layers:
            embeddings = self.propagation(embeddings, step=step, rows=layer_nodes, columns=nodes, ranks=ranks)
            nodes = layer_nodes
            total = total + select_nodes(embeddings, rows, nodes)
        return total / (self.n_layers + 1)

    def penalized(self, final: Tensor) -> Tensor:
        return self.embedding
