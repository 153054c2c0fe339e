"""Propagation of node embeddings over a user-item graph, and the NGCF layer."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gru4rec_fast import ops
from gru4rec_fast.data import InteractionGraph
from gru4rec_fast.distributed import Ranks
from gru4rec_fast.nn.graph_ranks import share_product, share_rows
from gru4rec_fast.nn.session_gru import glorot_
from gru4rec_fast.nn.step_counter import StepCounter
from gru4rec_fast.ops._checks import check_choice, check_probability
from gru4rec_fast.ops.ngcf_layer import ACTIVATIONS, select_nodes, split_matrix

Nodes = Tensor | None  # int64, increasing node indices; None: all nodes


class GraphIndices(nn.Module):
    """Stores the CSR indices of a graph as buffers, so that `to(device)` moves them with a network.

    The buffers are not in the state dict. Modules that get the same GraphIndices share them.

    Buffers: offsets int64 [n_nodes + 1], neighbors int32 or int64 [n_entries]. The neighbors of node r are
    `neighbors[offsets[r]:offsets[r + 1]]`. Nodes are users, then items.
    """

    def __init__(self, graph: InteractionGraph) -> None:
        super().__init__()
        self.n_users, self.n_items, self.n_nodes = graph.n_users, graph.n_items, graph.n_nodes
        self.offsets: Tensor
        self.neighbors: Tensor
        offsets, neighbors = graph.structure()
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("neighbors", neighbors, persistent=False)

    def with_neighbors(self, rows: Tensor) -> Tensor:
        """Return the nodes `rows` (int64) and all their neighbors, as increasing int64 indices."""
        starts = self.offsets[rows]
        degrees = self.offsets[rows + 1] - starts
        new_starts = degrees.cumsum(0) - degrees
        # The positions in `neighbors` of all neighbors of all rows.
        entries = torch.repeat_interleave(starts - new_starts, degrees)
        entries += torch.arange(len(entries), device=entries.device)
        is_needed = torch.zeros(self.n_nodes, dtype=torch.bool, device=rows.device)
        is_needed[rows] = True
        is_needed[self.neighbors[entries].long()] = True
        return is_needed.nonzero()[:, 0]

    @staticmethod
    def of(graph: InteractionGraph | GraphIndices) -> GraphIndices:
        """Return the GraphIndices of a graph; `graph` itself if it is a GraphIndices."""
        return graph if isinstance(graph, GraphIndices) else GraphIndices(graph)


class LaplacianPropagation(StepCounter):
    """Multiplies node embeddings by a propagation matrix of a graph; has no parameters.

    Args:
        graph: an InteractionGraph, or its GraphIndices.
        matrix: "symmetric" D^-1/2 A D^-1/2, "mean" D^-1 A, "norm" (D + I)^-1 (A + I) or "plain" A. A is the
            adjacency matrix, D the diagonal matrix of degrees. The suffix "+I" adds the identity: "symmetric+I" is
            L + I of the NGCF paper.
        dropout: probability in [0, 1) of dropping an entry of the matrix, in training ("node dropout" in published
            code); the identity of "+I" is never dropped.
        seed: seed of the dropout; None draws one from torch's CPU generator.
        impl: "auto", "native" or "reference".

    Raises:
        ValueError: the matrix is unknown, or the dropout is out of range.
    """

    def __init__(
        self,
        graph: InteractionGraph | GraphIndices,
        matrix: str = "symmetric",
        *,
        dropout: float = 0.0,
        seed: int | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__(seed)
        check_probability("dropout", dropout)
        self.graph = GraphIndices.of(graph)
        self.matrix, self.adds_identity = split_matrix("matrix", matrix)
        self.dropout, self.impl = dropout, impl

    def forward(
        self,
        embeddings: Tensor,
        *,
        step: int | Tensor | None = None,
        rows: Nodes = None,
        columns: Nodes = None,
        ranks: Ranks | None = None,
    ) -> Tensor:
        """Return the product of the matrix with the embeddings, [n_nodes, d], or [n_rows, d] with `rows`.

        Args:
            embeddings: [n_nodes, d], users before items; [n_columns, d] with `columns`.
            step: number of the training step; with the seed it determines which entries are dropped. An integer or a
                0-dim int64 tensor; None counts by itself, see `StepCounter`.
            rows: int64 [n_rows], increasing: the nodes to compute; None: all.
            columns: int64 [n_columns], increasing: the nodes whose embeddings are given; None: all. They must include
                `rows` and their neighbors.
            ranks: share out the rows among these processes, each of which must make the same call.
        """
        multiply = partial(
            ops.laplacian_propagation,
            offsets=self.graph.offsets,
            neighbors=self.graph.neighbors,
            matrix=self.matrix,
            dropout=self.dropout if self.training else 0.0,
            seed=self.seed,
            step=self.first_step(step, 1, has_dropout=self.dropout > 0),
            impl=self.impl,
        )
        if ranks is None:
            product = multiply(embeddings, rows=rows, columns=columns)
        else:
            product = share_product(ranks, multiply, embeddings, rows, columns, self.graph.n_nodes)
        return product + select_nodes(embeddings, rows, columns) if self.adds_identity else product

    def extra_repr(self) -> str:
        return f"{self.matrix}{'+I' if self.adds_identity else ''}, dropout={self.dropout}"


class NGCFLayer(StepCounter):
    """Layer of neural graph collaborative filtering: Wang et al., SIGIR 2019 (arXiv 1905.08108), equation (7).

        sum       E' = act(P E W1 + b1 + (Q E * E) W2 + b2)
        per_term  E' = act(P E W1 + b1) + act((Q E * E) W2 + b2)

    E are node embeddings, act is LeakyReLU, and * is element-wise. In training, node dropout drops the
    same entries of P and Q, and message dropout drops units of E'.

    Args:
        graph: an InteractionGraph, or its GraphIndices.
        in_features, out_features: widths of E and E'.
        P, Q: propagation matrices, see `LaplacianPropagation`; the defaults are the matrices of the paper. If they
            differ only by "+I", the product is computed once.
        activation: "sum" or "per_term".
        negative_slope: slope of the LeakyReLU, not negative.
        node_dropout: probability in [0, 1) of dropping an entry of P and Q, in training.
        message_dropout: probability in [0, 1) of dropping a unit of E', in training.
        normalize: whether to L2-normalize the rows of E' (a row of zeros stays zero).
        seed: seed of the dropout and, unless `generator` is given, of the initial weights; None draws one from torch's
            CPU generator.
        layer: number of the layer, from 0, so that layers with the same seed drop different units.
        generator: generator of the initial weights.
        impl: "auto", "native" or "reference".

    Parameters: weight_1, weight_2 [in_features, out_features]; bias_1, bias_2 [out_features]. The initial weights are
    Xavier uniform. As in the published code, a bias is initialized like a weight matrix with one row.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        graph: InteractionGraph | GraphIndices,
        in_features: int,
        out_features: int,
        *,
        P: str = "symmetric+I",
        Q: str = "symmetric",
        activation: str = "sum",
        negative_slope: float = 0.2,
        node_dropout: float = 0.0,
        message_dropout: float = 0.0,
        normalize: bool = False,
        seed: int | None = None,
        layer: int = 0,
        generator: torch.Generator | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__(seed)
        check_probability("node_dropout", node_dropout)
        check_probability("message_dropout", message_dropout)
        check_choice("activation", activation, ACTIVATIONS)
        if in_features < 1 or out_features < 1:
            raise ValueError(f"in_features={in_features}, out_features={out_features}: both must be at least 1")
        self.graph = GraphIndices.of(graph)
        split_matrix("P", P)
        split_matrix("Q", Q)
        self.P, self.Q = P, Q
        self.activation, self.negative_slope = activation, negative_slope
        self.dropout, self.message_dropout, self.normalize = node_dropout, message_dropout, normalize
        self.layer, self.impl = layer, impl
        generator = generator or torch.Generator().manual_seed(self.seed)
        self.weight_1, self.weight_2 = (nn.Parameter(torch.empty(in_features, out_features)) for _ in range(2))
        self.bias_1, self.bias_2 = (nn.Parameter(torch.empty(out_features)) for _ in range(2))
        for weight, bias in ((self.weight_1, self.bias_1), (self.weight_2, self.bias_2)):
            glorot_(weight, in_features, out_features, generator)
            glorot_(bias, 1, out_features, generator)

    @property
    def has_dropout(self) -> bool:
        """Whether the layer drops entries or units in training."""
        return self.dropout > 0 or self.message_dropout > 0

    def forward(
        self,
        embeddings: Tensor,
        *,
        step: int | Tensor | None = None,
        rows: Nodes = None,
        columns: Nodes = None,
        ranks: Ranks | None = None,
    ) -> Tensor:
        """Return E' [n_nodes, out_features] from E [n_nodes, in_features], users before items.

        step, rows, columns, ranks: see `LaplacianPropagation.forward`. With ranks, the gradients of the parameters are
            those of the rows of this process.
        """
        layer = partial(
            ops.ngcf_layer,
            offsets=self.graph.offsets,
            neighbors=self.graph.neighbors,
            weight_1=self.weight_1,
            bias_1=self.bias_1,
            weight_2=self.weight_2,
            bias_2=self.bias_2,
            columns=columns,
            P=self.P,
            Q=self.Q,
            activation=self.activation,
            negative_slope=self.negative_slope,
            node_dropout=self.dropout if self.training else 0.0,
            message_dropout=self.message_dropout if self.training else 0.0,
            seed=self.seed,
            step=self.first_step(step, 1, has_dropout=self.has_dropout),
            layer=self.layer,
            impl=self.impl,
        )
        if ranks is None:
            out = layer(embeddings, rows=rows)
        else:
            out = share_rows(ranks, layer, embeddings, rows, self.graph.n_nodes)
        return F.normalize(out, dim=1) if self.normalize else out

    def extra_repr(self) -> str:
        shape = f"{self.weight_1.shape[0]}, {self.weight_1.shape[1]}"
        return f"{shape}, P={self.P}, Q={self.Q}, activation={self.activation}"
