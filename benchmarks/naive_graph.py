"""Implement NGCF and LightGCN in plain PyTorch, as a second baseline in addition to the public code.

The propagation matrix is a sparse CSR tensor with stored values. Every step propagates the features of all nodes, and
autograd computes the gradients. Node dropout samples a new mask of the matrix entries at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gru4rec_fast.data import InteractionGraph


class NaiveMatrix:
    """A propagation matrix of `ops.laplacian_propagation`, stored as a sparse CSR tensor.

    matrix: "symmetric" for D^-1/2 A D^-1/2, or "norm" for (D + I)^-1 (A + I); A is the adjacency matrix, D has the
    degrees. transpose: also store the transposed matrix and multiply by it in the backward pass. Otherwise autograd of
    `matrix @ features` transposes the matrix at every step.
    """

    def __init__(
        self,
        graph: InteractionGraph,
        matrix: str,
        dropout: float = 0.0,
        transpose: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        users, items = (torch.from_numpy(np.asarray(nodes)).to(device) for nodes in graph.interactions())
        rows, columns = torch.cat([users, items + graph.n_users]), torch.cat([items + graph.n_users, users])
        if matrix == "norm":
            diagonal = torch.arange(graph.n_nodes, device=device)
            rows, columns = torch.cat([rows, diagonal]), torch.cat([columns, diagonal])
        order = (rows * graph.n_nodes + columns).argsort()
        rows, self.columns = rows[order], columns[order]
        degrees = torch.bincount(rows, minlength=graph.n_nodes)
        self.offsets = torch.cat([degrees.new_zeros(1), degrees.cumsum(0)])
        self.values = 1.0 / degrees[rows]
        if matrix == "symmetric":
            self.values = (degrees[rows].double() * degrees[self.columns]).pow(-0.5).float()
        # The sparsity pattern is symmetric: the transposed matrix has the same offsets and columns. Its values are
        # values[transposed_order].
        self.transposed_order = (self.columns * graph.n_nodes + rows).argsort()
        self.dropout, self.transpose, self.n_nodes = dropout, transpose, graph.n_nodes
        self.generator = torch.Generator(device).manual_seed(0)

    def matrices_of_step(self, training: bool) -> tuple[Tensor, Tensor]:
        """Return the matrix with a new dropout mask, and its transpose.

        With transpose=False, the second element is the first again, and is not used.
        """
        values = self.values
        if training and self.dropout:
            keep = torch.rand(len(values), generator=self.generator, device=values.device) >= self.dropout
            values = values * keep / (1 - self.dropout)
        forward = self._csr(values)
        return forward, self._csr(values[self.transposed_order]) if self.transpose else forward

    def multiply(self, matrices: tuple[Tensor, Tensor], features: Tensor) -> Tensor:
        """Multiply features by the matrix that `matrices_of_step` returned."""
        if self.transpose:
            return ProductWithTranspose.apply(features, *matrices)  # type: ignore[no-any-return]
        return matrices[0] @ features

    def _csr(self, values: Tensor) -> Tensor:
        size = (self.n_nodes, self.n_nodes)
        return torch.sparse_csr_tensor(self.offsets, self.columns, values, size, check_invariants=False)


class ProductWithTranspose(torch.autograd.Function):
    """Computes matrix @ features. The backward pass multiplies by the given transposed matrix."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:  # type: ignore[override]
        ctx.transposed = transposed
        return matrix @ features

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.transposed @ grad, None, None


class NaiveNGCF(nn.Module):
    """NGCF, initialized with given weights (the state_dict of this package's network).

    adjacency: "paper" computes equation (7) of the NGCF paper; "norm" uses (D + I)^-1 (A + I) in both terms, as the
    public code does. transpose: see NaiveMatrix.
    """

    def __init__(
        self,
        graph: InteractionGraph,
        weights: dict[str, Tensor],
        *,
        adjacency: str = "paper",
        node_dropout: float = 0.1,
        message_dropout: float = 0.1,
        transpose: bool = False,
    ) -> None:
        super().__init__()
        matrix = "symmetric" if adjacency == "paper" else adjacency
        self.matrix = NaiveMatrix(graph, matrix, node_dropout, transpose, weights["embedding"].device)
        self.adds_identity = adjacency == "paper"
        self.n_users, self.message_dropout = graph.n_users, message_dropout
        self.users = nn.Parameter(weights["embedding"][: graph.n_users].clone())
        self.items = nn.Parameter(weights["embedding"][graph.n_users :].clone())
        self.layers = nn.ParameterList()
        for layer in range(sum(name.endswith("weight_1") for name in weights)):
            for name in ("weight_1", "bias_1", "weight_2", "bias_2"):
                self.layers.append(nn.Parameter(weights[f"layers.{layer}.{name}"].clone()))

    def forward(self) -> Tensor:
        """Return the final embeddings of all nodes."""
        x = torch.cat([self.users, self.items])
        matrices, outputs = self.matrix.matrices_of_step(self.training), [x]
        for i in range(0, len(self.layers), 4):
            weight_1, bias_1, weight_2, bias_2 = self.layers[i : i + 4]
            propagated = self.matrix.multiply(matrices, x)
            first = propagated + x if self.adds_identity else propagated
            x = F.leaky_relu(first @ weight_1 + bias_1 + (propagated * x) @ weight_2 + bias_2, 0.2)
            x = F.dropout(x, self.message_dropout, self.training)
            outputs.append(F.normalize(x))
        return torch.cat(outputs, 1)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor, reg: float) -> Tensor:
        """Return the BPR loss plus `reg` times the L2 penalty on the final embeddings."""
        final = self()
        u, i, j = final[users], final[positives + self.n_users], final[negatives + self.n_users]
        return bpr(u, i, j) + reg * half_squares([u, i, j]) / len(users)


class NaiveLightGCN(nn.Module):
    """LightGCN, initialized with given weights (the state_dict of this package's network)."""

    def __init__(
        self, graph: InteractionGraph, weights: dict[str, Tensor], *, n_layers: int = 3, transpose: bool = False
    ) -> None:
        super().__init__()
        self.matrix = NaiveMatrix(graph, "symmetric", transpose=transpose, device=weights["embedding"].device)
        self.n_users, self.n_layers = graph.n_users, n_layers
        self.embedding = nn.Parameter(weights["embedding"].clone())

    def forward(self) -> Tensor:
        """Return the final embeddings of all nodes."""
        x, matrices = self.embedding, self.matrix.matrices_of_step(training=False)
        outputs = [x]
        for _ in range(self.n_layers):
            x = self.matrix.multiply(matrices, x)
            outputs.append(x)
        return torch.stack(outputs).mean(0)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor, reg: float) -> Tensor:
        """Return the BPR loss plus `reg` times the L2 penalty on the embeddings of layer 0."""
        final = self()
        nodes = [users, positives + self.n_users, negatives + self.n_users]
        u, i, j = (final[node] for node in nodes)
        return bpr(u, i, j) + reg * half_squares([self.embedding[node] for node in nodes]) / len(users)


def bpr(u: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Return the mean of -log sigmoid(u . i - u . j), the BPR loss.

    u, i, j: embeddings [n, D] of users, items and negative items.
    """
    return -F.logsigmoid((u * i).sum(1) - (u * j).sum(1)).mean()


def half_squares(tensors: Sequence[Tensor]) -> Tensor:
    """Return half the sum of the squares of all elements."""
    return sum(tensor.square().sum() for tensor in tensors) / 2  # type: ignore[return-value]
