"""Remove users and items with few interactions from a graph."""

from __future__ import annotations

import numpy as np

from gru4rec_fast.data.graphs.graph import InteractionGraph
from gru4rec_fast.data.vocabulary import Vocabulary


def k_core(graph: InteractionGraph, k: int) -> InteractionGraph:
    """Return the largest part of a graph in which every user and every item has at least `k` interactions.

    The published data of NGCF and LightGCN are such parts, with k = 10. Users and items keep their order, and get new
    indices. `meta["dropped"]` also counts those that are not in the part, and their interactions.

    Raises:
        ValueError: `k` is not a whole number of at least 1, or no interaction is left.
    """
    if k != int(k) or k < 1:
        raise ValueError(f"k={k}: the k of a k-core is a whole number of at least 1")
    users, items = graph.interactions()
    mask = np.ones(len(users), bool)
    while True:
        n_kept = mask.sum()
        for nodes, n_nodes in ((users, graph.n_users), (items, graph.n_items)):
            mask &= np.bincount(nodes[mask], minlength=n_nodes)[nodes] >= k
        if mask.sum() == n_kept:
            break
    if not mask.any():
        raise ValueError(f"k={k}: no interaction is left, because the graph has no such core; give a smaller k")
    users, items = users[mask], items[mask]
    kept_users, kept_items = np.unique(users), np.unique(items)
    dropped = {
        "users_outside_the_core": graph.n_users - len(kept_users),
        "items_outside_the_core": graph.n_items - len(kept_items),
        "interactions_outside_the_core": int((~mask).sum()),
    }
    core = InteractionGraph.from_arrays(
        np.searchsorted(kept_users, users),
        np.searchsorted(kept_items, items),
        user_ids=Vocabulary(graph.users.ids[kept_users]),
        item_ids=Vocabulary(graph.items.ids[kept_items]),
        meta={**graph.meta, "dropped": {**graph.meta.get("dropped", {}), **dropped}},
    )
    if graph.edge_times is not None:
        core.edge_times = graph.edge_times.select(mask)
    return core
