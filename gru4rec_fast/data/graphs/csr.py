"""From pairs of indices, or a matrix, to the symmetric CSR of a bipartite graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gru4rec_fast.data.vocabulary import Vocabulary, as_indices

_INT32_NODES = 1 << 31
_MAX_NODES = 1 << 32  # a node's number is a word of the counter that edge dropout is drawn by


def bipartite_csr(
    users: np.ndarray, items: np.ndarray, n_users: int, n_items: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Offsets and neighbors of users, then of items, as `InteractionGraph` holds them; and how many pairs are repeats.

    Takes int64 indices [n] in range. ValueError: there are no pairs, or too many nodes.
    """
    if len(users) == 0:
        raise ValueError("the graph is empty: there are no interactions")
    if n_users + n_items >= _MAX_NODES:
        raise ValueError(f"{n_users} users and {n_items} items: there must be fewer than 2**32 nodes")
    # One number per pair, below 2^62: sorted, it orders by user, then item; divided the other way, by item.
    pairs = np.sort(users * n_items + items)
    first = np.ones(len(pairs), bool)
    np.not_equal(pairs[1:], pairs[:-1], out=first[1:])
    pairs = pairs[first]
    users, items = np.divmod(pairs, n_items)
    offsets = np.zeros(n_users + n_items + 1, np.int64)
    offsets[1 : n_users + 1] = np.bincount(users, minlength=n_users)
    offsets[n_users + 1 :] = np.bincount(items, minlength=n_items)
    neighbors = np.empty(2 * len(pairs), np.int32 if n_users + n_items < _INT32_NODES else np.int64)
    neighbors[: len(pairs)] = items + n_users
    reversed_pairs = items * n_users + users
    reversed_pairs.sort()
    neighbors[len(pairs) :] = reversed_pairs % n_users
    return np.cumsum(offsets), neighbors, len(first) - len(pairs)


def checked_pairs(
    values: ArrayLike, name: str, count: int | None, vocabulary: Vocabulary | None
) -> tuple[np.ndarray, int]:
    """One side of the pairs as int64, and how many users or items there are. ValueError names what does not fit."""
    array = as_indices(values, name)
    if vocabulary is not None and count not in (None, len(vocabulary)):
        raise ValueError(f"n_{name}={count}, but there are {len(vocabulary)} ids of {name}")
    if vocabulary is not None:
        count = len(vocabulary)
    elif count is None:
        count = int(array.max()) + 1 if len(array) else 0
    outside = (array < 0) | (array >= count)
    if outside.any():
        at = int(outside.argmax())
        raise ValueError(f"{name}[{at}]={array[at]} is out of range: there are {name} 0 to {count - 1}")
    return array, count


def matrix_entries(matrix: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, int], int]:
    """Rows, columns, shape and the number of stored zeros of a scipy sparse matrix; NaN is a ValueError."""
    if not hasattr(matrix, "tocoo"):
        raise TypeError(f"a scipy sparse matrix is needed, not {type(matrix).__name__}")
    entries = matrix.tocoo()
    if len(entries.shape) != 2:
        raise ValueError(f"the matrix must have two dimensions, not shape {entries.shape}")
    rows, columns, values = entries.row.astype(np.int64), entries.col.astype(np.int64), entries.data
    nan = values != values
    if nan.any():
        at = int(nan.argmax())
        raise ValueError(f"the matrix holds NaN at row {rows[at]}, column {columns[at]}: remove it, or say what it is")
    present = values != 0
    return rows[present], columns[present], entries.shape, int((~present).sum())


def bipartite_block(
    rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int], n_users: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Users and items of the entries of a square adjacency matrix: its users x items block.

    Raises ValueError where the matrix is not square, joins two users or two items, or is not symmetric.
    """
    n_nodes = shape[0]
    if shape[0] != shape[1] or not 0 <= n_users <= n_nodes:
        raise ValueError(f"n_users={n_users} is given, so the matrix must be a square adjacency matrix, not {shape}")
    same_side = (rows < n_users) == (columns < n_users)
    if same_side.any():
        at = int(same_side.argmax())
        side = "users" if rows[at] < n_users else "items"
        raise ValueError(
            f"the graph is not bipartite: entry ({rows[at]}, {columns[at]}) joins two {side} (n_users={n_users})"
        )
    upper = rows < n_users
    there = np.unique(rows[upper] * n_nodes + columns[upper])
    back = np.unique(columns[~upper] * n_nodes + rows[~upper])
    one_way = np.setxor1d(there, back, assume_unique=True)
    if len(one_way):
        user, item = divmod(int(one_way[0]), n_nodes)
        raise ValueError(
            f"the matrix is not symmetric: of the entries ({user}, {item}) and ({item}, {user}) only one is there"
        )
    return rows[upper], columns[upper] - n_users, (n_users, n_nodes - n_users)
