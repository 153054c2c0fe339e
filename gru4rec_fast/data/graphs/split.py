"""Split the interactions of a graph into training and test interactions; write the parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gru4rec_fast._atomic_writes import replace_folder
from gru4rec_fast.data.array_folder import stated_format, write_meta
from gru4rec_fast.data.graphs.graph import FORMAT, PREPARED_FORMAT, EdgeTimes, InteractionGraph
from gru4rec_fast.data.sessions.split import Split

_PARTS = ("train", "test", "train_tr", "train_valid")  # the last two are a split of "train"


def split_interactions(
    graph: InteractionGraph, split: float | str | Split, *, seed: int = 0
) -> tuple[InteractionGraph, InteractionGraph]:
    """Hold out interactions of every user at random, the last one of every user, or the latest ones of all users.

    Args:
        graph: the graph to split.
        split: a number or `Split(fraction=F)`: a random share of the interactions of every user, in (0, 1). The number
            per user is rounded down. The published splits of NGCF and LightGCN were made in this way, with 0.2.
            `Split(last_event=True)`: the last interaction of every user who has two or more.
            `Split(days=N)`: the interactions within the last N times 24 hours of the graph.
            The last two need the times of the interactions (`InteractionGraph.from_table(time_key=...)`). Of
            interactions with equal times, the later row of the input is the last. A text as in `Split.parse` is also
            allowed.
        seed: seed of the random choice.

    Returns:
        (train, test). Both have the users and items of `graph`, with the same indices.

    Raises:
        ValueError: a fraction is out of range, all interactions or none would be held out, the split has windows, or
            it needs times that the graph does not have.
    """
    if isinstance(split, str):
        split = Split.parse(split)
    elif not isinstance(split, Split):
        if not 0 < split < 1:
            raise ValueError(f"fraction={split}: must be between 0 and 1")
        split = Split(fraction=split)
    if split.windows is not None:
        raise ValueError("interactions cannot be split by windows: leave them out")
    users, items = graph.interactions()
    if split.fraction is not None:
        held_out = _random_mask(graph, users, split.fraction, seed)
    elif graph.edge_times is None:
        raise ValueError(
            "the interactions have no times, which this split needs: read them from a table with time_key=..., or "
            "split by fraction=..."
        )
    elif split.last_event:
        held_out = _last_mask(users, graph.edge_times)
    else:
        times = graph.edge_times.times
        held_out = split.held_out(times, times, graph.edge_times.rows)
        if held_out.all():
            raise ValueError(f"days={split.days} holds out all interactions: give fewer days")
    train, test = (
        InteractionGraph.from_arrays(users[mask], items[mask], user_ids=graph.users, item_ids=graph.items)
        for mask in (~held_out, held_out)
    )
    if graph.edge_times is not None:
        train.edge_times, test.edge_times = (graph.edge_times.select(mask) for mask in (~held_out, held_out))
    return train, test


def _random_mask(graph: InteractionGraph, users: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return a mask of a random share of the interactions of each user; `users` are the users of all interactions."""
    degrees = np.diff(graph.offsets[: graph.n_users + 1])
    # Sorted by user; the interactions of one user are in random order.
    order = np.lexsort((np.random.default_rng(seed).random(len(users)), users))
    rank_within_user = np.arange(len(users)) - np.repeat(graph.offsets[: graph.n_users], degrees)
    held_out = np.empty(len(users), bool)
    held_out[order] = rank_within_user < np.repeat(np.floor(degrees * fraction), degrees)
    if not held_out.any():
        needed = np.ceil(1 / fraction)
        raise ValueError(f"fraction={fraction} holds out nothing: no user has {needed:.0f} interactions or more")
    return held_out


def _last_mask(users: np.ndarray, edge_times: EdgeTimes) -> np.ndarray:
    """Return a mask of the last interaction of each user who has two or more."""
    order = np.lexsort((edge_times.rows, edge_times.times, users))
    is_last = np.append(users[1:] != users[:-1], True)  # `users` is sorted, so that users[order] is the same
    is_only = is_last & np.append(True, is_last[:-1])
    held_out = np.zeros(len(users), bool)
    held_out[order] = is_last & ~is_only
    if not held_out.any():
        raise ValueError("last_event=True holds out nothing: no user has two interactions or more")
    return held_out


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
