"""Build the symmetric CSR of a bipartite graph from pairs of indices or from a scipy sparse matrix."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

_INT32_NODES = 1 << 31  # with fewer nodes, node indices are stored as int32
_CHUNK_EDGES = 1 << 17
_MAX_NODES = 1 << 32  # edge dropout uses the node index as one 32-bit word of its random-number counter


def build_bipartite_csr(
    users: np.ndarray, items: np.ndarray, n_users: int, n_items: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the offsets and neighbors of an `InteractionGraph`, and the number of repeated pairs that were removed.

    `users` and `items` are int64 [n], and their values must be in range. Raises ValueError if there are no pairs or too
    many nodes.
    """
    if len(users) == 0:
        raise ValueError("the graph is empty: there are no interactions")
    if n_users + n_items >= _MAX_NODES:
        raise ValueError(f"{n_users} users and {n_items} items: there must be fewer than 2**32 nodes")
    # A pair is encoded as one integer below 2^62, so that sorting integers sorts pairs by user, then item.
    pairs = np.sort(users * n_items + items)
    is_first = np.ones(len(pairs), bool)
    np.not_equal(pairs[1:], pairs[:-1], out=is_first[1:])
    pairs = pairs[is_first]
    users, items = np.divmod(pairs, n_items)
    degrees = np.zeros(n_users + n_items + 1, np.int64)  # the degree of node i is at index i + 1
    degrees[1 : n_users + 1] = np.bincount(users, minlength=n_users)
    degrees[n_users + 1 :] = np.bincount(items, minlength=n_items)
    neighbors = np.empty(2 * len(pairs), np.int32 if n_users + n_items < _INT32_NODES else np.int64)
    neighbors[: len(pairs)] = items + n_users
    reversed_pairs = items * n_users + users
    reversed_pairs.sort()
    neighbors[len(pairs) :] = reversed_pairs % n_users
    return np.cumsum(degrees), neighbors, len(is_first) - len(pairs)


def nonzero_entries(matrix: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, int], int]:
    """Return (rows, columns, shape, number of stored zeros) of a scipy sparse matrix.

    `rows` and `columns` are the int64 indices of the nonzero entries. Raises TypeError if `matrix` is not a scipy
    sparse matrix, and ValueError if it holds NaN.
    """
    if not hasattr(matrix, "tocoo"):
        raise TypeError(f"a scipy sparse matrix is needed, not {type(matrix).__name__}")
    entries = matrix.tocoo()
    if len(entries.shape) != 2:
        raise ValueError(f"the matrix must have two dimensions, not shape {entries.shape}")
    rows, columns, values = entries.row.astype(np.int64), entries.col.astype(np.int64), entries.data
    is_nan = values != values
    if is_nan.any():
        i = int(is_nan.argmax())
        raise ValueError(f"the matrix holds NaN at row {rows[i]}, column {columns[i]}: replace it by 0 or 1")
    nonzero = values != 0
    return rows[nonzero], columns[nonzero], entries.shape, int((~nonzero).sum())


def extract_user_item_block(
    rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int], n_users: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Return rows, columns and shape of the users x items block of a square adjacency matrix over users, then items.

    The arguments `rows`, `columns` and `shape` describe the adjacency matrix. Raises ValueError if this matrix is not
    square, not symmetric, or connects two users or two items.
    """
    n_nodes = shape[0]
    if shape[0] != shape[1] or not 0 <= n_users <= n_nodes:
        raise ValueError(f"with n_users={n_users} the matrix must be square, over users and items, not {shape}")
    is_user_row = rows < n_users
    same_kind = is_user_row == (columns < n_users)
    if same_kind.any():
        i = int(same_kind.argmax())
        kind = "users" if is_user_row[i] else "items"
        raise ValueError(
            f"the graph is not bipartite: entry ({rows[i]}, {columns[i]}) connects two {kind} (n_users={n_users})"
        )
    user_item_pairs = np.unique(rows[is_user_row] * n_nodes + columns[is_user_row])
    item_user_pairs = np.unique(columns[~is_user_row] * n_nodes + rows[~is_user_row])
    unmatched = np.setxor1d(user_item_pairs, item_user_pairs, assume_unique=True)
    if len(unmatched):
        user, item = divmod(int(unmatched[0]), n_nodes)
        raise ValueError(
            f"the matrix is not symmetric: of the entries ({user}, {item}) and ({item}, {user}) only one is stored"
        )
    return rows[is_user_row], columns[is_user_row] - n_users, (n_users, n_nodes - n_users)


def find_csr_damage(
    offsets: np.ndarray, neighbors: np.ndarray, n_users: int, n_items: int
) -> tuple[Literal["offsets", "neighbors"], str] | None:
    """Return the name of the damaged array of a CSR from a file, and its damage ("holds ..."); None for a valid CSR.

    The edges of users and of items are compared by a sum of hashes, because sorting them would take minutes and much
    memory for a large graph.
    """
    n_edges = len(neighbors) // 2
    if neighbors.dtype not in (np.int32, np.int64) or neighbors.ndim != 1:
        return "neighbors", "is no int32 or int64 array of one dimension"
    if offsets.dtype != np.int64 or offsets.shape != (n_users + n_items + 1,):
        return "offsets", f"is no int64 array of {n_users + n_items + 1} elements"
    if offsets[0] != 0 or offsets[-1] != 2 * n_edges:
        return "offsets", f"ranges from {offsets[0]} to {offsets[-1]}, not from 0 to {2 * n_edges}"
    if (offsets[1:] < offsets[:-1]).any():
        return "offsets", "holds decreasing offsets"
    if offsets[n_users] != n_edges:
        return "offsets", f"states {offsets[n_users]} edges of users, not {n_edges}"
    sums = [0, 0]  # sums of hashes of the edges: over the rows of users, and of items
    last_edge = (-1, -1)  # row and column of the edge before the chunk
    for half, (first_edge, low, high) in enumerate(((0, n_users, n_users + n_items), (n_edges, 0, n_users))):
        for start in range(first_edge, first_edge + n_edges, _CHUNK_EDGES):
            stop = min(start + _CHUNK_EDGES, first_edge + n_edges)
            first_row, last_row = np.searchsorted(offsets, [start, stop - 1], side="right") - 1
            lengths = np.diff(np.clip(offsets[first_row : last_row + 2], start, stop))
            rows = np.repeat(np.arange(first_row, last_row + 1), lengths)
            columns = neighbors[start:stop].astype(np.int64)
            if columns.min() < low or columns.max() >= high:
                return "neighbors", f"holds {columns.min()} to {columns.max()}, not {low} to {high - 1}"
            decreases = rows[0] == last_edge[0] and columns[0] <= last_edge[1]
            if decreases or ((rows[1:] == rows[:-1]) & (columns[1:] <= columns[:-1])).any():
                return "neighbors", "holds neighbors of a node that are not in increasing order"
            last_edge = rows[-1], columns[-1]
            users, items = (rows, columns) if half == 0 else (columns, rows)
            edges = users.astype(np.uint64) << np.uint64(32) | items.astype(np.uint64)
            hashes = edges * np.uint64(0x9E3779B97F4A7C15)
            sums[half] += int(((hashes ^ hashes >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9)).sum())
    return ("neighbors", "holds an edge in one direction only") if (sums[0] - sums[1]) % (1 << 64) else None


def refuse_adjacency_matrix(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> None:
    """Raise ValueError if a matrix that was given as users x items is symmetric, but not diagonal.

    Such a matrix is almost surely an adjacency matrix over all nodes, or one divided by degrees.
    """
    if shape[0] != shape[1] or (rows == columns).all():
        return
    if np.array_equal(np.unique(rows * shape[0] + columns), np.unique(columns * shape[0] + rows)):
        raise ValueError(
            f"the matrix of shape {tuple(shape)} is symmetric, so it seems to be an adjacency matrix over users, then "
            "items: give n_users=, their number; if its rows are users and its columns items, use "
            "InteractionGraph.from_arrays(rows, columns)"
        )
