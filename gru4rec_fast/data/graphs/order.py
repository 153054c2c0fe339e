"""Renumber the nodes of a graph, for better memory locality or to match the indices of another graph."""

from __future__ import annotations

import numpy as np

from gru4rec_fast.data.graphs.graph import InteractionGraph
from gru4rec_fast.data.vocabulary import Vocabulary

_SWEEPS = 20  # number of iterations of `reorder`; further iterations hardly change the order


def reorder(graph: InteractionGraph) -> InteractionGraph:
    """Return the graph with users and items renumbered so that nodes with similar neighbors get close indices.

    Every id keeps its interactions; only the indices of the ids change. Each node has a position in [0, 1), at first a
    random one. An iteration computes the mean position of each node's neighbors. It sorts the users by this mean, and
    separately the items, to get the new positions. This is the barycenter heuristic of Sugiyama et al., "Methods for
    visual understanding of hierarchical system structures", 1981. The result is deterministic.
    """
    n_users, degrees = graph.n_users, np.maximum(np.diff(graph.offsets), 1)
    node_kinds = (slice(0, n_users), slice(n_users, None))  # users, items
    position = np.random.default_rng(0).random(graph.n_nodes)
    running_sum = np.zeros(len(graph.neighbors) + 1)
    for _ in range(_SWEEPS):
        np.cumsum(position[graph.neighbors], out=running_sum[1:])
        position = np.diff(running_sum[graph.offsets]) / degrees
        for nodes in node_kinds:
            position[nodes] = _ranks(position[nodes]) / max(1, len(position[nodes]))
    users, items = graph.interactions()
    user_rank, item_rank = (_ranks(position[nodes]) for nodes in node_kinds)
    return InteractionGraph.from_arrays(
        user_rank[users],
        item_rank[items],
        user_ids=Vocabulary(graph.users.ids[np.argsort(user_rank)]),
        item_ids=Vocabulary(graph.items.ids[np.argsort(item_rank)]),
        meta=graph.meta,
    )


def align_indices(graph: InteractionGraph, like: InteractionGraph) -> InteractionGraph:
    """Return `graph` with the indices of `like` if both have the same ids in another order, else `graph` unchanged."""
    if graph.users == like.users and graph.items == like.items:
        return graph
    if (len(graph.users), len(graph.items)) != (len(like.users), len(like.items)):
        return graph
    # index_of_any_kind takes 7 and "7" for the same id.
    user_index = like.users.index_of_any_kind(graph.users.ids)
    item_index = like.items.index_of_any_kind(graph.items.ids)
    if (user_index < 0).any() or (item_index < 0).any():
        return graph
    users, items = graph.interactions()
    return InteractionGraph.from_arrays(
        user_index[users], item_index[items], user_ids=like.users, item_ids=like.items, meta=graph.meta
    )


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value, from 0; equal values are ranked in the order of the array."""
    ranks = np.empty(len(values), np.int64)
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks
