"""Random graphs. Dense propagation matrices and edge-dropout masks, as a reference for the sparse operators."""

from __future__ import annotations

import torch
from oracle.philox import bernoulli_keep
from torch import Tensor

EDGE_STREAM = 1 << 16  # stream of the random-number generator that edge dropout uses


def random_graph(
    n_users: int, n_items: int, n_draws: int, *, seed: int, dtype: torch.dtype = torch.int32, skewed: bool = False
) -> tuple[Tensor, Tensor]:
    """Return offsets and neighbors of a random bipartite graph with at most `n_draws` edges.

    Some nodes may have no edge. With `skewed`, users and items with low indices have most of the edges.
    """
    draws = torch.rand(n_draws, 2, generator=torch.Generator().manual_seed(seed))
    if skewed:
        draws = draws**3  # in [0, 1), moved towards 0
    users, items = (draws[:, 0] * n_users).long(), (draws[:, 1] * n_items).long() + n_users
    n_nodes = n_users + n_items
    entries = torch.cat([users * n_nodes + items, items * n_nodes + users]).unique()  # row * n_nodes + column
    degrees = torch.bincount(entries // n_nodes, minlength=n_nodes)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), degrees.cumsum(0)])
    return offsets, (entries % n_nodes).to(dtype)


def dense_matrix(
    offsets: Tensor, neighbors: Tensor, matrix: str, dropout: float = 0.0, seed: int = 0, step: int = 0
) -> Tensor:
    """Return the propagation matrix after edge dropout, float64 [n_nodes, n_nodes], computed by dense products.

    `matrix` is "plain" (the adjacency matrix A), "symmetric" (D^-1/2 A D^-1/2), "mean" (D^-1 A) or "norm" (D^-1 A of
    the graph with self-loops); D holds the degrees.
    """
    n_nodes = len(offsets) - 1
    adjacency = torch.zeros(n_nodes, n_nodes, dtype=torch.float64)
    for row in range(n_nodes):
        adjacency[row, neighbors[offsets[row] : offsets[row + 1]].long()] = 1
    if matrix == "norm":
        adjacency = adjacency + torch.eye(n_nodes, dtype=torch.float64)
    degrees = adjacency.sum(1)

    def degree_power(exponent: float) -> Tensor:
        return torch.diag(torch.tensor([d**exponent if d else 0.0 for d in degrees.tolist()], dtype=torch.float64))

    if matrix == "symmetric":
        adjacency = degree_power(-0.5) @ adjacency @ degree_power(-0.5)
    elif matrix in ("mean", "norm"):
        adjacency = degree_power(-1.0) @ adjacency
    else:
        assert matrix == "plain"
    if dropout:
        adjacency = adjacency.masked_fill(dropped_entries(n_nodes, dropout, seed, step), 0) / (1 - dropout)
    return adjacency


def dropped_entries(n_nodes: int, dropout: float, seed: int, step: int) -> Tensor:
    """Return a mask of the matrix entries that edge dropout drops, bool [n_nodes, n_nodes]."""
    keep = bernoulli_keep(dropout, seed=seed, stream=EDGE_STREAM, step=step, lanes=n_nodes, units=n_nodes)
    return ~torch.from_numpy(keep)
