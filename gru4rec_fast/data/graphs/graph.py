"""InteractionGraph: interactions of users with items as one symmetric CSR, in memory or memory-mapped from a folder."""

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
    dropped_counts,
    replace_folder,
    summary_lines,
    write_array_folder,
)
from gru4rec_fast.data.graphs.csr import bipartite_block, bipartite_csr, matrix_entries
from gru4rec_fast.data.sessions.store import SessionStore
from gru4rec_fast.data.vocabulary import Vocabulary, as_ids, check_indices, kind_of

FORMAT = "gru4rec_fast.interaction_graph"
_FOLDER = FolderFormat(
    FORMAT, "interaction graph", "save", ("n_users", "n_items", "n_edges"), ("offsets", "neighbors"), version=2
)


class InteractionGraph:
    """A bipartite graph of users and items. Node u is user u, node n_users + i is item i.

    Build a graph with `from_text`, `from_table`, `from_scipy`, `from_store` or `from_arrays`, or `open` a saved one. Do
    not write to its arrays. Repeated interactions of a user with an item are one edge; the repetitions are counted in
    `meta["dropped"]`. Users and items without interactions are nodes without neighbors.

    Attributes:
        offsets: int64 [n_nodes + 1]; the neighbors of node r are `neighbors[offsets[r]:offsets[r + 1]]`, increasing.
        neighbors: int32, or int64 from 2^31 nodes on, [2 * n_edges]; every edge is stored in both directions.
        users, items: `Vocabulary` of user ids and of item ids.
        n_users, n_items: number of users and of items, including those without interactions.
        n_nodes, n_edges: n_users + n_items, and the number of undirected edges.
        meta: facts about the graph; `meta["dropped"]` counts what was removed, by reason, and `meta["ids"]` states how
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
        """Return the sizes of the graph and what was removed while it was built, one fact per line."""
        isolated = np.diff(self.offsets) == 0
        counts = {"users": isolated[: self.n_users].sum(), "items": isolated[self.n_users :].sum()}
        lines = [f"{self.n_users:,} users, {self.n_items:,} items, {self.n_edges:,} edges"]
        lines += [f"  {count:,} {kind} without edges" for kind, count in counts.items() if count]
        return "\n".join(lines + summary_lines(self.meta))

    def items_of(self, user: int) -> np.ndarray:
        """Return the indices of the items of the user with index `user`, int64 [degree], increasing."""
        if not 0 <= user < self.n_users:
            raise IndexError(f"user {user} is out of range: the graph has users 0 to {self.n_users - 1}")
        return self.neighbors[self.offsets[user] : self.offsets[user + 1]].astype(np.int64) - self.n_users

    def interactions(self) -> tuple[np.ndarray, np.ndarray]:
        """Return user indices and item indices of all edges, int64 [n_edges] each, sorted by user, then item."""
        users = np.repeat(np.arange(self.n_users), np.diff(self.offsets[: self.n_users + 1]))
        return users, self.neighbors[: self.n_edges].astype(np.int64) - self.n_users

    def structure(self) -> tuple[Tensor, Tensor]:
        """Return `offsets` and `neighbors` as tensors that share their memory, for `ops.laplacian_propagation`."""
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
        """Build a graph from arrays of user indices and item indices.

        Args:
            users, items: integer [n]; `users[k]` interacted with `items[k]`.
            n_users, n_items: by default the lengths of `user_ids` and `item_ids`, else the largest index + 1.
            user_ids, item_ids: ids by index; by default the indices themselves.
            meta: facts to store; the number of repeated interactions is added to `meta["dropped"]`.

        Raises:
            ValueError: there are no interactions, an index is out of range, or sizes disagree.
        """
        user_index, n_users = check_indices(users, "users", n_users, user_ids)
        item_index, n_items = check_indices(items, "items", n_items, item_ids)
        if len(user_index) != len(item_index):
            raise ValueError(f"users has {len(user_index)} elements, items has {len(item_index)}: they must be aligned")
        offsets, neighbors, n_repeated = bipartite_csr(user_index, item_index, n_users, n_items)
        user_ids = Vocabulary(np.arange(n_users)) if user_ids is None else user_ids
        item_ids = Vocabulary(np.arange(n_items)) if item_ids is None else item_ids
        meta = dict(meta or {})
        meta["dropped"] = {**meta.get("dropped", {}), "duplicate_interactions": n_repeated}
        return cls(offsets, neighbors, user_ids, item_ids, meta)

    @classmethod
    def from_text(cls, path: str | Path, *, like: InteractionGraph | None = None) -> InteractionGraph:
        """Read lines of `user item item ...` (plain, .gz or .zst). A user may have no item, or several lines.

        Args:
            path: the file. Ids are integers or words without blanks; they are indexed in sorted order.
            like: the training graph, for a test file: the new graph has the ids and indices of `like`; interactions of
                users or items that `like` does not have are removed and counted in `meta["dropped"]`.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is damaged or holds no interactions.
        """
        from gru4rec_fast.data.tables import read_adjacency_lists

        line_users, counts, items = read_adjacency_lists(path)
        return cls._from_ids(str(path), np.repeat(line_users, counts), items, like, {}, line_users)

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
        """Read two columns of a table, one interaction per row. Other columns are ignored.

        Args:
            source: path of a TSV/CSV (plain, .gz, .zst), Parquet, RecBole `.inter` or pickle file; or a pandas, polars
                or Arrow table; or a dict of columns.
            user_key, item_key: names of the columns. In a `.inter` file, the defaults also find RecBole's user_id and
                item_id.
            separator: column separator of a text file; by default found in the header.
            allow_pickle: allow a pickle file. Loading a pickle runs the code in it.
            like: as in `from_text`.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: there are no rows, a column is missing, or an id is missing or neither integer nor string.
            TypeError: `source` is neither a path nor a table.
        """
        from gru4rec_fast.data.tables import TableReader, numpy_ids, open_table

        keys = {"user": user_key, "item": item_key}
        reader = TableReader(open_table(source, keys, separator=separator, allow_pickle=allow_pickle))
        users, items = map(numpy_ids, reader.read().select("user", "item"))
        return cls._from_ids(reader.table.name, users, items, like, {"ids": reader.id_facts()}, users)

    @classmethod
    def from_scipy(
        cls, matrix: Any, *, n_users: int | None = None, like: InteractionGraph | None = None
    ) -> InteractionGraph:
        """Convert a scipy sparse matrix or array. Every stored value other than 0 is an interaction.

        Args:
            matrix: users x items; or, with `n_users`, the symmetric adjacency matrix over users, then items.
            n_users: number of users of an adjacency matrix; None for a users x items matrix.
            like: a graph with as many users and items, whose ids the new graph gets.

        Raises:
            TypeError: `matrix` is not a scipy sparse matrix.
            ValueError: there are no interactions, a value is NaN, sizes differ from `like`, or an adjacency matrix is
                not symmetric or connects two users or two items.
        """
        rows, columns, shape, n_zeros = matrix_entries(matrix)
        if n_users is not None:
            rows, columns, shape = bipartite_block(rows, columns, shape, n_users)
        meta = {"dropped": {"stored_zeros": n_zeros}}
        if like is None:
            return cls.from_arrays(rows, columns, n_users=shape[0], n_items=shape[1], meta=meta)
        if tuple(shape) != (like.n_users, like.n_items):
            raise ValueError(
                f"the matrix has {shape[0]} users and {shape[1]} items, but the training graph (like=) has "
                f"{like.n_users} and {like.n_items}"
            )
        return cls.from_arrays(rows, columns, user_ids=like.users, item_ids=like.items, meta=meta)

    @classmethod
    def from_store(cls, store: SessionStore) -> InteractionGraph:
        """Convert a session log: every session becomes a user. Items keep their indices and ids."""
        sessions = np.repeat(np.arange(store.n_sessions), np.diff(store.offsets))
        ids = Vocabulary(store.session_ids)
        return cls.from_arrays(sessions, store.items, user_ids=ids, item_ids=store.vocabulary)

    def extended(
        self, users: ArrayLike | Iterable[int] | Iterable[str], items: ArrayLike | Iterable[int] | Iterable[str]
    ) -> InteractionGraph:
        """Return a new graph that has further interactions, too; `users[k]` interacted with `items[k]`, both are ids.

        Unknown ids get the next indices. So the indices of users and items stay the same, but the *nodes* of items
        move up by the number of new users. Interactions that the graph has already count as duplicates.

        Raises:
            TypeError: ids are strings where the graph has integers, or integers where it has strings.
            ValueError: `users` and `items` differ in length.
        """
        new_users, new_items = as_ids(users, "users"), as_ids(items, "items")
        old_user_index, old_item_index = self.interactions()
        user_ids, item_ids = _extend_vocabulary(self.users, new_users), _extend_vocabulary(self.items, new_items)
        return InteractionGraph.from_arrays(
            np.concatenate([old_user_index, user_ids.index_of(new_users)]),
            np.concatenate([old_item_index, item_ids.index_of(new_items)]),
            user_ids=user_ids,
            item_ids=item_ids,
        )

    @classmethod
    def _from_ids(
        cls,
        name: str,
        users: np.ndarray,
        items: np.ndarray,
        like: InteractionGraph | None,
        meta: dict[str, Any],
        all_users: np.ndarray,
    ) -> InteractionGraph:
        """Build a graph from the ids of aligned `users` and `items`, and of all users, including those without items.

        `name` is the name of the source in error messages.
        """
        user_ids = Vocabulary(np.unique(all_users)) if like is None else like.users
        item_ids = Vocabulary(np.unique(items)) if like is None else like.items
        user_index = _look_up(user_ids, users, f"{name}: users")
        item_index = _look_up(item_ids, items, f"{name}: items")
        known = (user_index >= 0) & (item_index >= 0)
        dropped = {
            "interactions_of_unknown_users": int((user_index < 0).sum()),
            "interactions_with_unknown_items": int(((user_index >= 0) & (item_index < 0)).sum()),
        }
        if not known.any():
            reason = f"; dropped: {', '.join(dropped_counts(dropped))}" if len(known) else ""
            raise ValueError(f"{name} holds no interactions{reason}")
        if like is not None:
            meta["dropped"] = dropped
        return cls.from_arrays(user_index[known], item_index[known], user_ids=user_ids, item_ids=item_ids, meta=meta)

    def save(self, folder: str | Path) -> None:
        """Write the graph to a folder of .npy files. They are written to a temporary folder that is renamed at the end.

        Raises:
            FileExistsError: `folder` holds something other than a graph.
            OSError: the disk is full; an earlier graph in `folder` is unchanged.
        """
        with replace_folder(folder, [FORMAT]) as partial:
            write_array_folder(partial, _FOLDER, self, {"users": self.users.ids, "items": self.items.ids})

    @classmethod
    def open(cls, folder: str | Path) -> InteractionGraph:
        """Open a saved graph as memory maps. Reads all of it once to check it.

        Raises:
            FileNotFoundError: there is no graph in `folder`.
            ValueError: the graph is damaged, or has a format version that this release does not read.
        """
        stored = ArrayFolder(folder, _FOLDER)
        n_users, n_items, n_edges = stored.counts
        neighbors = stored.open_array("neighbors", 2 * n_edges, np.int32, np.int64)
        stored.check_range("neighbors", neighbors[:n_edges], n_users, n_users + n_items)  # neighbors of users are items
        stored.check_range("neighbors", neighbors[n_edges:], 0, n_users)
        offsets = stored.open_offsets("offsets", n_users + n_items, 2 * n_edges)
        if offsets[n_users] != n_edges:
            raise stored.damage_error("offsets.npy", f"gives users {offsets[n_users]} edges, not {n_edges}")
        users, items = stored.read_vocabulary("users", n_users), stored.read_vocabulary("items", n_items)
        return cls(offsets, neighbors, users, items, stored.meta)


def _look_up(vocabulary: Vocabulary, ids: np.ndarray, label: str) -> np.ndarray:
    if len(ids) and kind_of(ids) != kind_of(vocabulary.ids):
        raise ValueError(f"{label} are {kind_of(ids)}, but the training graph (like=) has {kind_of(vocabulary.ids)}")
    return vocabulary.index_of(ids)


def _extend_vocabulary(vocabulary: Vocabulary, ids: np.ndarray) -> Vocabulary:
    unknown = np.unique(ids[vocabulary.index_of(ids) < 0])
    return Vocabulary(np.concatenate([vocabulary.ids, unknown])) if len(unknown) else vocabulary
