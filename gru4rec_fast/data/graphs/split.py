"""Holding interactions out of a graph, user by user."""

from __future__ import annotations

import numpy as np

from gru4rec_fast.data.graphs.graph import InteractionGraph


def split_interactions(
    graph: InteractionGraph, fraction: float, *, seed: int = 0
) -> tuple[InteractionGraph, InteractionGraph]:
    """Hold out `fraction` of every user's interactions, rounded down, drawn at random; how the published splits of
    NGCF and LightGCN were made, with a fraction of 0.2.

    Args:
        graph: the whole. fraction: in (0, 1). seed: of the draw.

    Returns:
        (train, test), with the users and items of `graph`, so that their indices agree.

    Raises:
        ValueError: a fraction out of range, or one that holds out nothing.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction}: must lie between 0 and 1")
    users, items = graph.interactions()
    degrees = np.diff(graph.offsets[: graph.n_users + 1])
    order = np.lexsort((np.random.default_rng(seed).random(len(users)), users))  # each user's, in a random order
    place = np.arange(len(users)) - np.repeat(graph.offsets[: graph.n_users], degrees)
    held_out = np.empty(len(users), bool)
    held_out[order] = place < np.repeat(np.floor(degrees * fraction), degrees)
    if not held_out.any():
        raise ValueError(f"fraction={fraction} holds out nothing: no user has {1 / fraction:.0f} interactions or more")
    train, test = (
        InteractionGraph.from_arrays(users[part], items[part], user_ids=graph.users, item_ids=graph.items)
        for part in (~held_out, held_out)
    )
    return train, test
