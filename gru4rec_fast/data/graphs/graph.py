"""InteractionGraph: who interacted with what, as one symmetric CSR, in memory or memory-mapped from one folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from gru4rec_fast.data.array_folder import (
    ArrayFolder,
    FolderFormat,
    as_tensor,
    replace_folder,
    summary_lines,
    write_array_folder,
)
from gru4rec_fast.data.graphs.csr import bipartite_block, bipartite_csr, checked_pairs, matrix_entries
from gru4rec_fast.data.sessions.store import SessionStore
from gru4rec_fast.data.vocabulary import Vocabulary, as_ids, kind_of

FORMAT = "gru4rec_fast.interaction_graph"
_FOLDER = FolderFormat(
    FORMAT, "interaction graph", "graph", "save", ("n_users", "n_items", "n_edges"),
    ("offsets", "neighbors"), version=2,
)


class InteractionGraph:
    """A bipartite graph of users and items. Node u is user u, node n_users + i is item i.

    Build one with `from_text`, `from_table`, `from_scipy`, `from_store` or `from_arrays`, or `open` a saved one; arrays
    are not to be written to. An interaction counts once, however often it occurs; repetitions are counted in
    `meta["dropped"]`. Users and items without interactions are nodes without neighbors.

    Attributes:
        offsets: int64 [n_nodes + 1]; the neighbors of node r are `neighbors[offsets[r]:offsets[r + 1]]`, rising.
        neighbors: int32 (int64 from 2^31 nodes on) [2 * n_edges]; each edge stands there in both directions.
        users, items: ids by index.
        n_users, n_items, n_nodes, n_edges: numbers of users and of items, those without interactions included, of both
            together, and of different interactions; each of these is one undirected edge.
        meta: facts about the graph; `meta["dropped"]` counts what was left out, by reason, and `meta["ids"]` tells how
            the ids of a table were read.
    """

    def __init__(
        self, offsets: np.ndarray, neighbors: np.ndarray, users: Vocabulary, items: Vocabulary, meta: dict[str, Any]
    ) -> None:
        self.offsets = offsets
        self.neighbors = neighbors
        self.users = users
        self.items = items
        self.meta = meta
        self.n_users, self.n_items, self.n_edges = len(users), len(items), len(neighbors) // 2
        self.n_nodes = self.n_users + self.n_items

    def __repr__(self) -> str:
        return f"InteractionGraph({self.n_users:,} users, {self.n_items:,} items, {self.n_edges:,} edges)"

    def summary(self) -> str:
        """What the graph holds and what was left out on the way, one fact per line."""
        degrees = np.diff(self.offsets)
        lonely = int((degrees[: self.n_users] == 0).sum()), int((degrees[self.n_users :] == 0).sum())
        lines = [f"{self.n_users:,} users, {self.n_items:,} items, {self.n_edges:,} edges"]
        lines += [f"  {n:,} {what} without edges" for n, what in zip(lonely, ("users", "items"), strict=True) if n]
        return "\n".join(lines + summary_lines(self.meta))

    def items_of(self, user: int) -> np.ndarray:
        """Indices of the items that user `user` (an index) interacted with, int64 [degree], rising."""
        if not 0 <= user < self.n_users:
            raise IndexError(f"user {user}: the graph has users 0 to {self.n_users - 1}")
        return self.neighbors[self.offsets[user] : self.offsets[user + 1]].astype(np.int64) - self.n_users

    def interactions(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the user and of the item of every edge, int64 [n_edges] each, ordered by user, then item."""
        users = np.repeat(np.arange(self.n_users), np.diff(self.offsets[: self.n_users + 1]))
        return users, self.neighbors[: self.n_edges].astype(np.int64) - self.n_users

    def structure(self) -> tuple[Tensor, Tensor]:
        """`offsets` and `neighbors` as tensors over the same memory, for `gru4rec_fast.ops.laplacian_propagation`."""
        return as_tensor(self.offsets), as_tensor(self.neighbors)

    @classmethod
    def from_arrays(
        cls,
        users: ArrayLike,
        items: ArrayLike,
        *,
        n_users: int | None = None,
        n_items: int | None = None,
        user_ids: Vocabulary | None = None,
        item_ids: Vocabulary | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> InteractionGraph:
        """From aligned indices of users and items.

        Args:
            users, items: integer [n], indices from 0; interaction k is of `users[k]` with `items[k]`.
            n_users, n_items: by default those of the vocabularies, else the largest index + 1.
            user_ids, item_ids: ids by index; by default the indices themselves.
            meta: kept; `meta["dropped"]` is added to.

        Raises:
            ValueError: no interactions, arrays that do not fit, an index out of range; the message names it.
        """
        user_index, n_users = checked_pairs(users, "users", n_users, user_ids)
        item_index, n_items = checked_pairs(items, "items", n_items, item_ids)
        if len(user_index) != len(item_index):
            raise ValueError(f"users has {len(user_index)} elements and items {len(item_index)}: they must be aligned")
        offsets, neighbors, n_repeated = bipartite_csr(user_index, item_index, n_users, n_items)
        user_ids = Vocabulary(np.arange(n_users)) if user_ids is None else user_ids
        item_ids = Vocabulary(np.arange(n_items)) if item_ids is None else item_ids
        meta = dict(meta or {})
        meta["dropped"] = {**meta.get("dropped", {}), "duplicate_interactions": n_repeated}
        return cls(offsets, neighbors, user_ids, item_ids, meta)

    @classmethod
    def from_text(cls, path: str | Path, *, like: InteractionGraph | None = None) -> InteractionGraph:
        """From lines of `user item item ...` (plain, .gz or .zst); a user may have no item, or several lines.

        Args:
            path: the file. Ids are integers, or any words without blanks; they are indexed in rising order.
            like: the training graph, for a test file: its indices are used, and interactions of users and items that
                it does not have are left out and counted in `meta["dropped"]`.

        Raises:
            FileNotFoundError, ValueError: no such file; no interactions; damaged.
        """
        from gru4rec_fast.data.tables import read_adjacency_lists

        listed, counts, items = read_adjacency_lists(path)
        return cls._from_ids(str(path), np.repeat(listed, counts), items, like, {}, listed)

    @classmethod
    def from_table(
        cls,
        source: Any,
        *,
        user_key: str = "UserId",
        item_key: str = "ItemId",
        separator: str | None = None,
        allow_pickle: bool = False,
        like: InteractionGraph | None = None,
    ) -> InteractionGraph:
        """From two columns of a table, one interaction per row; further columns are not read.

        Args:
            source: path of a TSV/CSV (plain, .gz, .zst), Parquet, RecBole `.inter` or pickle file; or a pandas, polars
                or Arrow table; or a dict of columns.
            user_key, item_key: names of the columns. With their defaults RecBole's user_id and item_id are found too in
                a `.inter` file.
            separator: of a text file; by default the one that splits its header.
            allow_pickle: permit reading a pickle, which runs whatever code is in it.
            like: as in `from_text`.

        Raises:
            FileNotFoundError, ValueError, TypeError: no such file; no rows; a missing column; an id that is missing, or
                no integer and no string, by its row.
        """
        from gru4rec_fast.data.tables import TableReader, numpy_ids, open_table

        keys = {"user": user_key, "item": item_key}
        reader = TableReader(open_table(source, keys, separator=separator, allow_pickle=allow_pickle))
        users, items = map(numpy_ids, reader.read().select("user", "item"))
        return cls._from_ids(reader.table.name, users, items, like, {"ids": reader.facts()}, users)

    @classmethod
    def from_scipy(
        cls, matrix: Any, *, n_users: int | None = None, like: InteractionGraph | None = None
    ) -> InteractionGraph:
        """From a scipy sparse matrix or array; every stored value other than 0 is an interaction.

        Args:
            matrix: users x items; or, with `n_users`, the symmetric adjacency matrix of users, then items.
            n_users: of a square adjacency matrix.
            like: a graph whose ids are taken over; the matrix must have as many users and items.

        Raises:
            TypeError: not a scipy sparse matrix.
            ValueError: a NaN value; no interactions; or a square matrix that is not symmetric or joins two users or two
                items, named.
        """
        rows, columns, shape, n_zeros = matrix_entries(matrix)
        if n_users is not None:
            rows, columns, shape = bipartite_block(rows, columns, shape, n_users)
        meta = {"dropped": {"stored_zeros": n_zeros}}
        if like is None:
            return cls.from_arrays(rows, columns, n_users=shape[0], n_items=shape[1], meta=meta)
        if tuple(shape) != (like.n_users, like.n_items):
            raise ValueError(
                f"the matrix has {shape[0]} users and {shape[1]} items, the graph given as like= {like.n_users} and "
                f"{like.n_items}"
            )
        return cls.from_arrays(rows, columns, user_ids=like.users, item_ids=like.items, meta=meta)

    @classmethod
    def from_store(cls, store: SessionStore) -> InteractionGraph:
        """From a session log: its sessions are the users; the items keep their indices and ids."""
        sessions = np.repeat(np.arange(store.n_sessions), np.diff(store.offsets))
        ids = Vocabulary(store.session_ids)
        return cls.from_arrays(sessions, store.items, user_ids=ids, item_ids=store.vocabulary)

    def extended(
        self, users: ArrayLike | Iterable[int] | Iterable[str], items: ArrayLike | Iterable[int] | Iterable[str]
    ) -> InteractionGraph:
        """A new graph with further interactions, given as aligned ids; this one stays as it is.

        New ids are indexed behind those there are, so that no index of a user or item changes (the *nodes* of items
        move up by the number of new users). Interactions already there count as duplicates.

        Raises:
            TypeError, ValueError: ids of another kind than the graph's, or not aligned.
        """
        new_users, new_items = as_ids(users, "users"), as_ids(items, "items")
        old = self.interactions()
        more_users, more_items = _grown(self.users, new_users), _grown(self.items, new_items)
        return InteractionGraph.from_arrays(
            np.concatenate([old[0], more_users.index_of(new_users)]),
            np.concatenate([old[1], more_items.index_of(new_items)]),
            user_ids=more_users,
            item_ids=more_items,
        )

    @classmethod
    def _from_ids(
        cls,
        name: str,
        users: np.ndarray,
        items: np.ndarray,
        like: InteractionGraph | None,
        meta: dict[str, Any],
        listed_users: np.ndarray,
    ) -> InteractionGraph:
        """From aligned ids, which the source `name` holds, and the ids of its users, those without items included."""
        user_ids = Vocabulary(np.unique(listed_users)) if like is None else like.users
        item_ids = Vocabulary(np.unique(items)) if like is None else like.items
        user_index = _indices(user_ids, users, f"{name}: users")
        item_index = _indices(item_ids, items, f"{name}: items")
        known = (user_index >= 0) & (item_index >= 0)
        dropped = {
            "interactions_of_unknown_users": int((user_index < 0).sum()),
            "interactions_with_unknown_items": int(((user_index >= 0) & (item_index < 0)).sum()),
        }
        if not known.any():
            why = f"; left out: {dropped}" if len(known) else ""
            raise ValueError(f"{name} holds no interactions{why}")
        if like is not None:
            meta["dropped"] = dropped
        return cls.from_arrays(user_index[known], item_index[known], user_ids=user_ids, item_ids=item_ids, meta=meta)

    def save(self, folder: str | Path) -> None:
        """Write the graph to a folder of plain .npy files: into a temporary sibling first, renamed when complete.

        Raises:
            FileExistsError: `folder` holds something other than a graph.
            OSError: the disk is full; what stood at `folder` before is unchanged.
        """
        with replace_folder(folder, [FORMAT]) as partial:
            write_array_folder(partial, _FOLDER, self, {"users": self.users.ids, "items": self.items.ids})

    @classmethod
    def open(cls, folder: str | Path) -> InteractionGraph:
        """Open a saved graph, memory-mapped. Reads all of it once, to see whether it can be right.

        Raises:
            FileNotFoundError: there is no graph in `folder`.
            ValueError: the graph is damaged, or of a format this version does not know.
        """
        stored = ArrayFolder(folder, _FOLDER)
        n_users, n_items, n_edges = stored.counts
        neighbors = stored.array("neighbors", 2 * n_edges, np.int32, np.int64)
        stored.in_range("neighbors", neighbors[:n_edges], n_users, n_users + n_items)  # those of users
        stored.in_range("neighbors", neighbors[n_edges:], 0, n_users)
        offsets = stored.offsets("offsets", n_users + n_items, 2 * n_edges)
        if offsets[n_users] != n_edges:
            raise stored.damage("offsets.npy", f"gives users {offsets[n_users]} edges where {n_edges} were expected")
        users, items = stored.vocabulary("users", n_users), stored.vocabulary("items", n_items)
        return cls(offsets, neighbors, users, items, stored.meta)


def _indices(vocabulary: Vocabulary, ids: np.ndarray, what: str) -> np.ndarray:
    held, given = kind_of(vocabulary.ids), kind_of(ids)
    if len(ids) and given != held:
        raise ValueError(f"{what} are {given}, those of the graph given as like= are {held}")
    return vocabulary.index_of(ids)


def _grown(vocabulary: Vocabulary, ids: np.ndarray) -> Vocabulary:
    unknown = np.unique(ids[vocabulary.index_of(ids) < 0])
    return Vocabulary(np.concatenate([vocabulary.ids, unknown])) if len(unknown) else vocabulary
