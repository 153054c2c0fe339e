"""NGCF and LightGCN: node embeddings, their propagation, and the loss of a batch of triples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gru4rec_fast.data.graph import InteractionGraph
from gru4rec_fast.nn.graph_propagation import GraphIndices, LaplacianPropagation, NGCFLayer
from gru4rec_fast.nn.session_gru import glorot_


class GraphNetwork(nn.Module):
    """What NGCF and LightGCN share: a table of node embeddings, final embeddings made of it, scores by dot product.

    Parameters: embedding [n_nodes, embedding_dim], users before items.
    """

    def __init__(self, graph: InteractionGraph | GraphIndices, embedding_dim: int) -> None:
        super().__init__()
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

    def forward(self, *, step: int = 0) -> Tensor:
        """Final embeddings of all nodes, [n_nodes, D]. step: number of the training step; it keys the dropouts."""
        raise NotImplementedError

    def penalised(self, final: Tensor) -> Tensor:
        """The embeddings [n_nodes, ...] whose rows the regulariser penalises."""
        raise NotImplementedError

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor, *, step: int = 0) -> tuple[Tensor, Tensor]:
        """BPR loss and squared norm of a batch of triples; what is minimised is `bpr + reg * norm`.

        Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009.

        Args:
            users, positives, negatives: int64 [B], indices of users and of items (items counted from 0).
            step: number of the training step.

        Returns:
            (bpr, norm), scalars: mean of -log sigmoid(x_ui - x_uj) over the triples; and the sum of the squares of the
            rows they penalise, divided by 2 B.
        """
        final = self(step=step)
        rows = (users, positives + self.n_users, negatives + self.n_users)
        user, positive, negative = (final.index_select(0, row) for row in rows)
        # Not softplus, which torch cuts off at 20: an error of 2e-9, in the gradient too.
        bpr = -F.logsigmoid((user * (positive - negative)).sum(1)).mean()
        source = self.penalised(final)
        penalised = (user, positive, negative) if source is final else [source.index_select(0, row) for row in rows]
        norm = sum((row.square().sum() for row in penalised), bpr.new_zeros(())) / (2 * len(users))
        return bpr, norm


class NGCFNetwork(GraphNetwork):
    """Neural graph collaborative filtering (Wang et al., SIGIR 2019, arXiv 1905.08108).

    The final embedding of a node is its embedding followed by the L2-normalised output of every layer; each layer reads
    the un-normalised output of the one before. The regulariser penalises final embeddings.

    Args:
        graph: an InteractionGraph, or its GraphIndices.
        embedding_dim: width of the embeddings.
        layer_sizes: widths of the layers' outputs, first layer first.
        P, Q, activation, negative_slope, node_dropout, message_dropout: see `NGCFLayer`.
        normalise_messages: each layer reads the normalised output of the one before, as in some libraries.
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
        normalise_messages: bool = False,
        seed: int = 0,
        impl: str = "auto",
    ) -> None:
        super().__init__(graph, embedding_dim)
        self.normalise_messages = normalise_messages
        generator = torch.Generator().manual_seed(seed)
        for table in self.embedding.data.split([self.n_users, self.n_items]):
            glorot_(table, embedding_dim, len(table), generator)
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

    def forward(self, *, step: int = 0) -> Tensor:
        embeddings: Tensor = self.embedding
        parts = [embeddings]
        for layer in self.layers:
            embeddings = layer(embeddings, step=step)
            parts.append(F.normalize(embeddings, dim=1))
            if self.normalise_messages:
                embeddings = parts[-1]
        return torch.cat(parts, dim=1)

    def penalised(self, final: Tensor) -> Tensor:
        return final


class LightGCNNetwork(GraphNetwork):
    """LightGCN (He et al., SIGIR 2020, arXiv 2002.02126): E_{k+1} = L E_k; the final embedding is the layers' mean.

    The regulariser penalises the embeddings of layer 0, the only parameters.

    Args:
        graph: an InteractionGraph, or its GraphIndices.
        embedding_dim: width of the embeddings.
        n_layers: number of propagations.
        matrix: see `LaplacianPropagation`.
        node_dropout: probability in [0, 1) to drop an entry of the matrix, in training.
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
        seed: int = 0,
        impl: str = "auto",
    ) -> None:
        super().__init__(graph, embedding_dim)
        if n_layers < 0:
            raise ValueError(f"n_layers={n_layers}: must not be negative")
        self.n_layers = n_layers
        self.propagation = LaplacianPropagation(self.graph, matrix, dropout=node_dropout, seed=seed, impl=impl)
        with torch.no_grad():
            self.embedding.normal_(std=0.1, generator=torch.Generator().manual_seed(seed))

    def forward(self, *, step: int = 0) -> Tensor:
        embeddings: Tensor = self.embedding
        total = embeddings
        for _ in range(self.n_layers):
            embeddings = self.propagation(embeddings, step=step)
            total = total + embeddings
        return total / (self.n_layers + 1)

    def penalised(self, final: Tensor) -> Tensor:
        return self.embedding
