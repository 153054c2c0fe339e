"""NGCF and LightGCN as anyone would write them in plain PyTorch: the second baseline beside the published code.

The propagation matrix is stored, values and all, as a sparse CSR tensor; every step propagates all nodes; autograd does
the rest. Node dropout draws a fresh mask over the stored entries.
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
    """A propagation matrix of `ops.laplacian_propagation` as a stored sparse CSR tensor.

    matrix: "symmetric" or "norm". transpose: also store the transposed matrix and multiply by it in the backward pass;
    otherwise autograd transposes at every step, as it does for anyone who writes `matrix @ features`.
    """

    def __init__(
        self,
        graph: InteractionGraph,
        matrix: str,
        dropout: float = 0.0,
        transpose: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        users, items = (torch.from_numpy(np.asarray(side)).to(device) for side in graph.interactions())
        rows, columns = torch.cat([users, items + graph.n_users]), torch.cat([items + graph.n_users, users])
        if matrix == "norm":
            own = torch.arange(graph.n_nodes, device=device)
            rows, columns = torch.cat([rows, own]), torch.cat([columns, own])
        order = (rows * graph.n_nodes + columns).argsort()
        rows, self.columns = rows[order], columns[order]
        degrees = torch.bincount(rows, minlength=graph.n_nodes)
        self.offsets = torch.cat([degrees.new_zeros(1), degrees.cumsum(0)])
        self.values = 1.0 / degrees[rows]
        if matrix == "symmetric":
            self.values = (degrees[rows].double() * degrees[self.columns]).pow(-0.5).float()
        # The structure is symmetric, so the transposed matrix has the same indices, and these values in their places.
        self.flipped = (self.columns * graph.n_nodes + rows).argsort()
        self.dropout, self.transpose, self.n_nodes = dropout, transpose, graph.n_nodes
        self.generator = torch.Generator(device).manual_seed(0)

    def draw(self, training: bool) -> tuple[Tensor, Tensor]:
        """The matrix of a step and, where it is stored, its transpose (else the matrix again)."""
        values = self.values
        if training and self.dropout:
            keep = torch.rand(len(values), generator=self.generator, device=values.device) >= self.dropout
            values = values * keep / (1 - self.dropout)
        forward = self._csr(values)
        return forward, self._csr(values[self.flipped]) if self.transpose else forward

    def multiply(self, drawn: tuple[Tensor, Tensor], features: Tensor) -> Tensor:
        """The product with a drawn matrix."""
        if self.transpose:
            return Product.apply(features, *drawn)  # type: ignore[no-any-return]
        return drawn[0] @ features

    def _csr(self, values: Tensor) -> Tensor:
        size = (self.n_nodes, self.n_nodes)
        return torch.sparse_csr_tensor(self.offsets, self.columns, values, size, check_invariants=False)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:  # type: ignore[override]
        ctx.transposed = transposed
        return matrix @ features

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.transposed @ grad, None, None


class NaiveNGCF(nn.Module):
    """NGCF; equation (7) of the paper ("paper"), or P = Q = norm of the published code ("norm")."""

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
        """Final embeddings of all nodes."""
        x = torch.cat([self.users, self.items])
        matrix, parts = self.matrix.draw(self.training), [x]
        for at in range(0, len(self.layers), 4):
            weight_1, bias_1, weight_2, bias_2 = self.layers[at : at + 4]
            side = self.matrix.multiply(matrix, x)
            first = side + x if self.adds_identity else side
            x = F.leaky_relu(first @ weight_1 + bias_1 + (side * x) @ weight_2 + bias_2, 0.2)
            x = F.dropout(x, self.message_dropout, self.training)
            parts.append(F.normalize(x))
        return torch.cat(parts, 1)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor, reg: float) -> Tensor:
        """BPR, and the penalty on final embeddings."""
        final = self()
        u, i, j = final[users], final[positives + self.n_users], final[negatives + self.n_users]
        return bpr(u, i, j) + reg * half_squares([u, i, j]) / len(users)


class NaiveLightGCN(nn.Module):
    """LightGCN."""

    def __init__(
        self, graph: InteractionGraph, weights: dict[str, Tensor], *, n_layers: int = 3, transpose: bool = False
    ) -> None:
        super().__init__()
        self.matrix = NaiveMatrix(graph, "symmetric", transpose=transpose, device=weights["embedding"].device)
        self.n_users, self.n_layers = graph.n_users, n_layers
        self.embedding = nn.Parameter(weights["embedding"].clone())

    def forward(self) -> Tensor:
        """Final embeddings of all nodes."""
        x, matrix = self.embedding, self.matrix.draw(False)
        parts = [x]
        for _ in range(self.n_layers):
            x = self.matrix.multiply(matrix, x)
            parts.append(x)
        return torch.stack(parts).mean(0)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor, reg: float) -> Tensor:
        """BPR, and the penalty on the rows of layer 0."""
        final = self()
        nodes = [users, positives + self.n_users, negatives + self.n_users]
        u, i, j = (final[node] for node in nodes)
        return bpr(u, i, j) + reg * half_squares([self.embedding[node] for node in nodes]) / len(users)


def bpr(u: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Mean of -log sigmoid(x_ui - x_uj)."""
    return -F.logsigmoid((u * i).sum(1) - (u * j).sum(1)).mean()


def half_squares(parts: Sequence[Tensor]) -> Tensor:
    """Half the sum of all squares."""
    return sum(part.square().sum() for part in parts) / 2  # type: ignore[return-value]
