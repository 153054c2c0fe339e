"""NGCF and LightGCN: node embeddings, their propagation, and the loss of a batch of triples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gru4rec_fast.data import InteractionGraph
from gru4rec_fast.nn.graph_propagation import GraphIndices, LaplacianPropagation, NGCFLayer
from gru4rec_fast.nn.session_gru import glorot_
from gru4rec_fast.ops.ngcf_layer import pick

Nodes = Tensor | None

# From this share of all nodes on, a layer is computed for all: choosing costs more than it saves.
_MOST = 0.7
# From this share of all nodes on, their neighbors are taken to be most nodes: to look for them costs a layer's time.
_MANY = 0.4


class GraphNetwork(nn.Module):
    """What NGCF and LightGCN share: a table of node embeddings, final embeddings made of it, scores by dot product.

    Args:
        graph: an InteractionGraph, or its GraphIndices.
        embedding_dim: width of the embeddings.
        only_needed: `loss` computes the last layer for the nodes of the batch only and earlier ones for their
            neighborhoods only. Loss and gradients are the same; a compiled `loss` computes everything all the same. To
            find the nodes the program waits for a GPU some times a step; without, a step never does.

    Parameters: embedding [n_nodes, embedding_dim], users before items.
    """

    n_layers: int

    def __init__(self, graph: InteractionGraph | GraphIndices, embedding_dim: int, only_needed: bool) -> None:
        super().__init__()
        self.only_needed = only_needed
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim={embedding_dim}: must be at least 1")
        self.graph = GraphIndices.of(graph)
        self.embedding = nn.Parameter(torch.empty(self.graph.n_nodes, embedding_dim))

    @property
    def n_users(self) -> int:
        """Number of users; their rows come first."""
        return self.graph.n_users

    @property
    def n_items(self) -> int:
        """Number of items."""
        return self.graph.n_items

    def forward(self, *, step: int = 0, rows: Nodes = None) -> Tensor:
        """Final embeddings of all nodes, [n_nodes, D], or of the nodes `rows` (int64, rising) only.

        step: number of the training step; it keys the dropouts.
        """
        raise NotImplementedError

    def neighborhoods(self, rows: Nodes) -> list[Nodes]:
        """The nodes that each layer's output is needed of, the table's first, for the final embeddings of `rows`."""
        needed: list[Nodes] = [rows]
        for _ in range(self.n_layers):
            if rows is not None:
                n_nodes = self.graph.n_nodes
                rows = self.graph.with_neighbors(rows) if len(rows) < _MANY * n_nodes else None
                rows = None if rows is None or len(rows) >= _MOST * n_nodes else rows
            needed.insert(0, rows)
        return needed

    def penalized(self, final: Tensor) -> Tensor:
        """The embeddings [n_nodes, ...] whose rows the regularizer penalizes."""
        raise NotImplementedError

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor, *, step: int = 0) -> tuple[Tensor, Tensor]:
        """BPR loss and squared norm of a batch of triples; what is minimized is `bpr + reg_weight * norm`.

        Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009.

        Args:
            users, positives, negatives: int64 [B], indices of users and of items (items counted from 0).
            step: number of the training step.

        Returns:
            (bpr, norm), scalars: mean of -log sigmoid(x_ui - x_uj) over the triples; and the sum of the squares of the
            rows they penalize, divided by 2 B.
        """
        nodes = torch.cat([users, positives + self.n_users, negatives + self.n_users])
        if self.only_needed and not torch.compiler.is_compiling():
            needed, place = nodes.unique(return_inverse=True)
            final = self(step=step, rows=needed)
        else:
            final, place = self(step=step), nodes
        user, positive, negative = final.index_select(0, place).chunk(3)
        # Not softplus, which torch cuts off at 20: an error of 2e-9, in the gradient too.
        bpr = -F.logsigmoid((user * (positive - negative)).sum(1)).mean()
        source = self.penalized(final)
        norm = source.index_select(0, place if source is final else nodes).square().sum() / (2 * len(users))
        return bpr, norm


class NGCFNetwork(GraphNetwork):
    """Neural graph collaborative filtering (Wang et al., SIGIR 2019, arXiv 1905.08108).

    The final embedding of a node is its embedding followed by the L2-normalized output of every layer; each layer reads
    the un-normalized output of the one before. The regularizer penalizes final embeddings.

    Args:
        graph: an InteractionGraph, or its GraphIndices.
        embedding_dim: width of the embeddings.
        layer_sizes: widths of the layers' outputs, first layer first.
        P, Q, activation, negative_slope, node_dropout, message_dropout: see `NGCFLayer`.
        normalize_messages: each layer reads the normalized output of the one before, as in some libraries.
        only_needed: see `GraphNetwork`.
        seed: of the initial weights (Xavier uniform, users and items each on their own) and of the dropouts.
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
        seed: int = 0,
        impl: str = "auto",
    ) -> None:
        super().__init__(graph, embedding_dim, only_needed)
        self.normalize_messages = normalize_messages
        generator = torch.Generator().manual_seed(seed)
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
                seed=seed,
                layer=layer,
                impl=impl,
                generator=generator,
            )
            for layer in range(len(layer_sizes))
        )

    def forward(self, *, step: int = 0, rows: Nodes = None) -> Tensor:
        before, *needed = self.neighborhoods(rows)
        embeddings = pick(self.embedding, before, None)
        parts = [pick(embeddings, rows, before)]
        for layer, nodes in zip(self.layers, needed, strict=True):
            embeddings = layer(embeddings, step=step, rows=nodes, columns=before)
            before = nodes
            if self.normalize_messages:
                embeddings = F.normalize(embeddings, dim=1)
                parts.append(pick(embeddings, rows, before))
            else:
                parts.append(F.normalize(pick(embeddings, rows, before), dim=1))
        return torch.cat(parts, dim=1)

    def penalized(self, final: Tensor) -> Tensor:
        return final


class LightGCNNetwork(GraphNetwork):
    """LightGCN (He et al., SIGIR 2020, arXiv 2002.02126): E_{k+1} = L E_k; the final embedding is the layers' mean.

    The regularizer penalizes the embeddings of layer 0, the only parameters.

    Args:
        graph: an InteractionGraph, or its GraphIndices.
        embedding_dim: width of the embeddings.
        n_layers: number of propagations.
        matrix: see `LaplacianPropagation`.
        node_dropout: probability in [0, 1) to drop an entry of the matrix, in training.
        only_needed: see `GraphNetwork`.
        seed: of the initial embeddings (normal, standard deviation 0.1) and of the dropout.
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
        seed: int = 0,
        impl: str = "auto",
    ) -> None:
        super().__init__(graph, embedding_dim, only_needed)
        if n_layers < 0:
            raise ValueError(f"n_layers={n_layers}: must not be negative")
        self.n_layers = n_layers
        self.propagation = LaplacianPropagation(self.graph, matrix, dropout=node_dropout, seed=seed, impl=impl)
        with torch.no_grad():
            self.embedding.normal_(std=0.1, generator=torch.Generator().manual_seed(seed))

    def forward(self, *, step: int = 0, rows: Nodes = None) -> Tensor:
        before, *needed = self.neighborhoods(rows)
        embeddings = pick(self.embedding, before, None)
        total = pick(embeddings, rows, before)
        for nodes in needed:
            embeddings = self.propagation(embeddings, step=step, rows=nodes, columns=before)
            before = nodes
            total = total + pick(embeddings, rows, before)
        return total / (self.n_layers + 1)

    def penalized(self, final: Tensor) -> Tensor:
        return self.embedding
