"""Split the interactions of each user of a graph into training and test interactions."""

from __future__ import annotations

import numpy as np

from gru4rec_fast.data.graphs.graph import InteractionGraph


def split_interactions(
    graph: InteractionGraph, fraction: float, *, seed: int = 0
) -> tuple[InteractionGraph, InteractionGraph]:
    """Hold out a random `fraction` of the interactions of every user. The number per user is rounded down.

    The published splits of NGCF and LightGCN were made in this way, with a fraction of 0.2.

    Args:
        graph: the graph to split.
        fraction: share of the interactions in the test graph, in (0, 1).
        seed: seed of the random choice.

    Returns:
        (train, test). Both have the users and items of `graph`, with the same indices.

    Raises:
        ValueError: `fraction` is out of range, or so small that nothing is held out.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction}: must be between 0 and 1")
    users, items = graph.interactions()
    degrees = np.diff(graph.offsets[: graph.n_users + 1])
    # Sorted by user; the interactions of one user are in random order.
    order = np.lexsort((np.random.default_rng(seed).random(len(users)), users))
    rank_within_user = np.arange(len(users)) - np.repeat(graph.offsets[: graph.n_users], degrees)
    held_out = np.empty(len(users), bool)
    held_out[order] = rank_within_user < np.repeat(np.floor(degrees * fraction), degrees)
    if not held_out.any():
        raise ValueError(f"fraction={fraction} holds out nothing: no user has {1 / fraction:.0f} interactions or more")
    train, test = (
        InteractionGraph.from_arrays(users[mask], items[mask], user_ids=graph.users, item_ids=graph.items)
        for mask in (~held_out, held_out)
    )
    return train, test
