"""Split the interactions of each user of a graph into training and test interactions; write the parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gru4rec_fast._atomic_writes import replace_folder
from gru4rec_fast.data.array_folder import stated_format, write_meta
from gru4rec_fast.data.graphs.graph import FORMAT, PREPARED_FORMAT, InteractionGraph

_PARTS = ("train", "test", "train_tr", "train_valid")  # the last two are a split of "train"


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
        needed = np.ceil(1 / fraction)
        raise ValueError(f"fraction={fraction} holds out nothing: no user has {needed:.0f} interactions or more")
    train, test = (
        InteractionGraph.from_arrays(users[mask], items[mask], user_ids=graph.users, item_ids=graph.items)
        for mask in (~held_out, held_out)
    )
    return train, test


@contextmanager
def replace_parts(out: str | Path) -> Iterator[dict[str, InteractionGraph]]:
    """Yield an empty dict; at the end of the block, write the graphs that were put into it to the folders `out`/NAME.

    The keys of the dict are the names: "train", "test", "train_tr" or "train_valid". All parts of an earlier
    preparation in `out` are replaced, at once. `InteractionGraph.open` opens the folders.

    Raises:
        FileExistsError: `out` holds something other than prepared interactions; raised before the block runs.
        OSError: see `replace_folder`; an earlier version is unchanged.
    """
    with replace_folder(out, _holds_prepared_interactions) as temporary:
        graphs: dict[str, InteractionGraph] = {}
        yield graphs
        for name, graph in graphs.items():
            (temporary / name).mkdir()
            graph.write(temporary / name)
        parts = {name: {"n_users": g.n_users, "n_items": g.n_items, "n_edges": g.n_edges} for name, g in graphs.items()}
        write_meta(temporary, {"format": PREPARED_FORMAT, "version": 1, "parts": parts})


def _holds_prepared_interactions(folder: Path) -> bool:
    """Return whether this version wrote the folder, or version 0.1, whose folders had no meta.json above the parts."""
    if (folder / "meta.json").exists():
        return stated_format(folder) == PREPARED_FORMAT
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]  # a killed 0.1 left hidden folders
    return all(path.name in _PARTS and stated_format(path) == FORMAT for path in visible)
