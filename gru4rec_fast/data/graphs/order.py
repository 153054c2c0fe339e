"""The same graph with its nodes in an order that brings neighbors closer together in memory."""

from __future__ import annotations

import numpy as np

from gru4rec_fast.data.graphs.graph import InteractionGraph
from gru4rec_fast.data.vocabulary import Vocabulary

_SWEEPS = 20  # beyond these the order hardly moves


def reordered(graph: InteractionGraph) -> InteractionGraph:
    """The graph with users, and items, renumbered so that nodes with like neighbors stand close together.

    Every id keeps its interactions; only the indices behind the ids change. Each sweep puts every node where its
    neighbors are on average and sorts users and items by that (the barycenter heuristic of Sugiyama et al., "Methods
    for visual understanding of hierarchical system structures", 1981). The result is a function of the graph alone.
    """
    n_users, degrees = graph.n_users, np.maximum(np.diff(graph.offsets), 1)
    sides = (slice(0, n_users), slice(n_users, None))
    place = np.random.default_rng(0).random(graph.n_nodes)
    total = np.zeros(len(graph.neighbors) + 1)
    for _ in range(_SWEEPS):
        np.cumsum(place[graph.neighbors], out=total[1:])
        place = np.diff(total[graph.offsets]) / degrees
        for side in sides:
            place[side] = _ranks(place[side]) / max(1, len(place[side]))
    users, items = graph.interactions()
    rank_of_user, rank_of_item = (_ranks(place[side]) for side in sides)
    return InteractionGraph.from_arrays(
        rank_of_user[users],
        rank_of_item[items],
        user_ids=Vocabulary(graph.users.ids[np.argsort(rank_of_user)]),
        item_ids=Vocabulary(graph.items.ids[np.argsort(rank_of_item)]),
        meta=graph.meta,
    )


def aligned(graph: InteractionGraph, like: InteractionGraph) -> InteractionGraph:
    """`graph` with the indices of `like`, where the two have the same ids in another order; else `graph` itself."""
    if graph.users == like.users and graph.items == like.items:
        return graph
    if len(graph.users) != len(like.users) or len(graph.items) != len(like.items):
        return graph
    kinds = ((graph.users, like.users), (graph.items, like.items))
    if any(mine.holds_strings != theirs.holds_strings for mine, theirs in kinds):
        return graph
    user_of, item_of = (theirs.index_of(mine.ids) for mine, theirs in kinds)
    if (user_of < 0).any() or (item_of < 0).any():
        return graph
    users, items = graph.interactions()
    return InteractionGraph.from_arrays(
        user_of[users], item_of[items], user_ids=like.users, item_ids=like.items, meta=graph.meta
    )


def _ranks(values: np.ndarray) -> np.ndarray:
    """The place of each value among all, equal ones in the order they stand in."""
    ranks = np.empty(len(values), np.int64)
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks
