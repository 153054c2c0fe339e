"""InteractionGraph: interactions of users with items as one symmetric CSR, in memory or memory-mapped from a folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from gru4rec_fast.data.array_folder import (
    ArrayFolder,
    FolderFormat,
    as_tensor,
    counted,
    dropped_counts,
    replace_data_folder,
    summary_lines,
    write_array_folder,
)
from gru4rec_fast.data.graphs.csr import (
    build_bipartite_csr,
    extract_user_item_block,
    find_csr_damage,
    nonzero_entries,
    refuse_adjacency_matrix,
)
from gru4rec_fast.data.sessions.store import SessionStore
from gru4rec_fast.data.vocabulary import Vocabulary, as_ids, check_indices

FORMAT, PREPARED_FORMAT = "gru4rec_fast.interaction_graph", "gru4rec_fast.prepared_interactions"
_FOLDER_FORMAT = FolderFormat(
    name=FORMAT,
    title="interaction graph",
    writing_verb="save",
    counts=("n_users", "n_items", "n_edges"),
    arrays=("offsets", "neighbors"),
    parent_format=PREPARED_FORMAT,
    version=2,
)


@dataclass(frozen=True)
class EdgeTimes:
    """Times of the interactions of a graph, in the order of `InteractionGraph.interactions`.

    Attributes:
        times: int64 or float64 [n_edges]; of repeated interactions, the time of the first.
        rows: int64 [n_edges], input row of each interaction, which orders interactions of equal times.
    """

    times: np.ndarray
    rows: np.ndarray

    @classmethod
    def of_first(cls, users: np.ndarray, items: np.ndarray, times: np.ndarray) -> EdgeTimes:
        """Return the time of the first interaction of each pair; `users`, `items` (indices) and `times` are [n]."""
        order = np.lexsort((times, items, users))  # equal times stay in input order
        pairs = np.stack([users[order], items[order]])
        is_first = np.append(True, np.any(pairs[:, 1:] != pairs[:, :-1], axis=0))
        rows = order[is_first]
        return cls(times[rows], rows)

    def select(self, mask: np.ndarray) -> EdgeTimes:
        """Return the times of the interactions for which `mask`, bool [n_edges], is True."""
        return EdgeTimes(self.times[mask], self.rows[mask])


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
        meta: how the graph was built: `meta["dropped"]` counts what was removed, by reason, and `meta["ids"]` states
            how the ids of a table were read.
        edge_times: times of the interactions of a graph that `from_table` read with `time_key`, for
            `split_interactions`; else None. They are not saved.
    """

    edge_times: EdgeTimes | None = None

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

    def summary(self, *, notes: bool = True) -> str:
        """Return the sizes of the graph, what was removed while it was built, and `notes` on reading, as lines of text.

        The notes say why ids of the table became strings, and from how many ids blanks were removed.
        """
        isolated = np.diff(self.offsets) == 0
        counts = {"users": isolated[: self.n_users].sum(), "items": isolated[self.n_users :].sum()}
        lines = [f"{self.n_users:,} users, {self.n_items:,} items, {self.n_edges:,} edges"]
        lines += [f"  {counted(int(count), f'{kind} without edges')}" for kind, count in counts.items() if count]
        return "\n".join(lines + summary_lines(self.meta, notes))

    def items_of(self, user: int) -> np.ndarray:
        """Return the indices of the items of the user with index `user`, int64 [degree], increasing."""
        if not 0 <= user < self.n_users:
            raise IndexError(f"user {user} is out of range: the graph has users 0 to {self.n_users - 1}")
        return self.neighbors[self.offsets[user] : self.offsets[user + 1]].astype(np.int64) - self.n_users

    def interactions(self) -> tuple[np.ndarray, np.ndarray]:
        """Return user indices and item indices of all edges, int64 [n_edges] each, sorted by user, then item."""
        user_index = np.repeat(np.arange(self.n_users), np.diff(self.offsets[: self.n_users + 1]))
        item_index = self.neighbors[: self.n_edges].astype(np.int64) - self.n_users
        return user_index, item_index

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
            users, items: indices, integer [n]; user `users[k]` interacted with item `items[k]`.
            n_users, n_items: by default the lengths of `user_ids` and `item_ids`, else the largest index + 1.
            user_ids, item_ids: ids by index; by default the indices themselves.
            meta: becomes the attribute `meta`; the number of repeated interactions is added to `meta["dropped"]`.

        Raises:
            ValueError: there are no interactions, an index is out of range, or sizes disagree.
        """
        user_index, n_users = check_indices(users, "users", n_users, user_ids)
        item_index, n_items = check_indices(items, "items", n_items, item_ids)
        if len(user_index) != len(item_index):
            raise ValueError(f"users has {len(user_index)} elements, items has {len(item_index)}: give equally many")
        offsets, neighbors, n_repeated = build_bipartite_csr(user_index, item_index, n_users, n_items)
        user_ids = Vocabulary(np.arange(n_users)) if user_ids is None else user_ids
        item_ids = Vocabulary(np.arange(n_items)) if item_ids is None else item_ids
        meta = dict(meta or {})
        dropped = meta.get("dropped", {})
        n_repeated += dropped.get("duplicate_interactions", 0)
        meta["dropped"] = {**dropped, "duplicate_interactions": n_repeated}
        return cls(offsets, neighbors, user_ids, item_ids, meta)

    @classmethod
    def from_text(
        cls, path: str | Path, *, encoding: str = "utf-8", like: InteractionGraph | None = None
    ) -> InteractionGraph:
        """Read a text file with lines of `user item item ...`. A user may have no item, or several lines.

        Args:
            path: the file, plain or compressed (.gz, .zst). Ids are integers or words without blanks. They get indices
                in sorted order.
            encoding: encoding of the file, such as "latin-1". A byte order mark is removed.
            like: the training graph, for a test file: the new graph has the ids and indices of `like`; interactions of
                users or items that `like` does not have are removed and counted in `meta["dropped"]`. The integer 7 and
                the string "7" are the same id.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is damaged, holds no interactions or seems to be a table: it has a header, or its lines
                seem to be `user item weight`.
        """
        from gru4rec_fast.data.adjacency_lists import read_adjacency_lists

        line_user_ids, items_per_line, item_ids = read_adjacency_lists(path, encoding)
        user_ids = np.repeat(line_user_ids, items_per_line)
        return cls._from_ids(str(path), user_ids, item_ids, like, meta={}, all_user_ids=line_user_ids)

    @classmethod
    def from_table(
        cls,
        source: Any,
        *,
        user_key: str = "UserId",
        item_key: str = "ItemId",
        time_key: str | None = None,
        time_of_day_key: str | None = None,
        time_format: str | None = None,
        rating_key: str = "Rating",
        min_rating: float | None = None,
        separator: str | None = None,
        quote: str | None = '"',
        encoding: str = "utf-8",
        columns: Sequence[str] | None = None,
        allow_pickle: bool = False,
        like: InteractionGraph | None = None,
    ) -> InteractionGraph:
        """Read the columns of users and items of a table, one interaction per row. Other columns are ignored.

        Args:
            source, separator, quote, encoding, columns, allow_pickle: as for `SessionStore.from_events`.
            user_key, item_key, rating_key: names of the columns. In a `.inter` file, the defaults also find RecBole's
                user_id, item_id and rating.
            time_key: name of a column of times, which become `edge_times`; by default no times are read. "Time" also
                finds RecBole's timestamp.
            time_of_day_key, time_format: as for `SessionStore.from_events`, with `time_key` only.
            min_rating: use only the rows with at least this rating, which then needs a column. The others are counted
                in `meta["dropped"]`. By default all rows are used, and no rating is read.
            like: as in `from_text`.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: there are no rows, a column is missing, an id is missing or neither integer nor string, or an
                option has no effect on the source.
            TypeError: `source` is neither a path nor a table.
        """
        from gru4rec_fast.data.table_reader import TableReader, numpy_ids
        from gru4rec_fast.data.tables import NAMES, open_table

        if min_rating is None and rating_key != NAMES["rating"][0]:
            raise ValueError(f"rating_key={rating_key!r} has no effect without min_rating: leave it out")
        if min_rating is not None and not np.isfinite(min_rating):
            raise ValueError(f"min_rating={min_rating}: give a finite number")
        for name, value in (("time_of_day_key", time_of_day_key), ("time_format", time_format)):
            if time_key is None and value is not None:
                raise ValueError(f"{name}={value!r} has no effect without time_key: leave it out")
        optional = {
            "time": time_key,
            "time_of_day": time_of_day_key,
            "rating": None if min_rating is None else rating_key,
        }
        keys = {"user": user_key, "item": item_key, **{role: key for role, key in optional.items() if key is not None}}
        text_options: dict[str, Any] = {"separator": separator, "quote": quote, "encoding": encoding}
        table = open_table(source, keys, columns=columns, allow_pickle=allow_pickle, **text_options)
        reader = TableReader(table, time_format=time_format)
        frame = reader.read()
        meta: dict[str, Any] = {"ids": reader.id_parsing()}
        if min_rating is not None:
            n_rows = frame.height
            frame = frame.filter(frame["rating"] >= min_rating)
            meta["dropped"] = {"low_rating_interactions": n_rows - frame.height}
        user_ids, item_ids = map(numpy_ids, frame.select("user", "item"))
        times = None if time_key is None else frame["time"].to_numpy()
        return cls._from_ids(table.name, user_ids, item_ids, like, meta=meta, all_user_ids=user_ids, times=times)

    @classmethod
    def from_scipy(
        cls, matrix: Any, *, n_users: int | None = None, like: InteractionGraph | None = None
    ) -> InteractionGraph:
        """Convert a scipy sparse matrix or array. Every stored value other than 0 is an interaction.

        Args:
            matrix: users x items; or, with `n_users`, the symmetric adjacency matrix over users, then items.
            n_users: number of users of an adjacency matrix; None for a users x items matrix. Without n_users, a
                symmetric matrix is taken for an adjacency matrix and refused, unless it is diagonal or `like` is given.
            like: a graph with the same numbers of users and items. The new graph gets the ids of `like`.

        Raises:
            TypeError: `matrix` is not a scipy sparse matrix.
            ValueError: there are no interactions, a value is NaN, sizes differ from `like`, an adjacency matrix is
                not symmetric or connects two users or two items, or `n_users` is not given for a matrix that seems to
                be an adjacency matrix.
        """
        rows, columns, shape, n_zeros = nonzero_entries(matrix)
        if n_users is not None:
            rows, columns, shape = extract_user_item_block(rows, columns, shape, n_users)
        elif like is None:
            refuse_adjacency_matrix(rows, columns, shape)
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
        session_index = np.repeat(np.arange(store.n_sessions), np.diff(store.offsets))
        session_ids = Vocabulary(store.session_ids)
        return cls.from_arrays(session_index, store.items, user_ids=session_ids, item_ids=store.vocabulary)

    def extended(
        self, users: ArrayLike | Iterable[int] | Iterable[str], items: ArrayLike | Iterable[int] | Iterable[str]
    ) -> InteractionGraph:
        """Return a new graph with the interactions of this graph and additional ones.

        New users and items get the next indices. The users and items of this graph keep their indices. Item nodes are
        numbered after user nodes, so their node indices increase by the number of new users. Interactions that this
        graph already has are counted as duplicates.

        Args:
            users, items: ids, integers or strings [n]; user `users[k]` interacted with item `items[k]`.

        Raises:
            TypeError: ids are strings where the graph has integers, or integers where it has strings.
            ValueError: `users` and `items` differ in length.
        """
        added_user_ids, added_item_ids = as_ids(users, "users"), as_ids(items, "items")
        user_index, item_index = self.interactions()
        user_vocabulary, item_vocabulary = self.users.extended(added_user_ids), self.items.extended(added_item_ids)
        return InteractionGraph.from_arrays(
            np.concatenate([user_index, user_vocabulary.index_of(added_user_ids)]),
            np.concatenate([item_index, item_vocabulary.index_of(added_item_ids)]),
            user_ids=user_vocabulary,
            item_ids=item_vocabulary,
        )

    def with_nodes(
        self,
        users: ArrayLike | Iterable[int] | Iterable[str] = (),
        items: ArrayLike | Iterable[int] | Iterable[str] = (),
    ) -> InteractionGraph:
        """Return a graph with additional users and items, which have no interactions. Ids of this graph are ignored.

        Indices are as in `extended`. Raises TypeError as `extended` does.
        """
        user_ids, item_ids = self.users.extended(users), self.items.extended(items)
        return InteractionGraph.from_arrays(*self.interactions(), user_ids=user_ids, item_ids=item_ids)

    @classmethod
    def _from_ids(
        cls,
        name: str,
        user_ids: np.ndarray,
        item_ids: np.ndarray,
        like: InteractionGraph | None,
        *,
        meta: dict[str, Any],
        all_user_ids: np.ndarray,
        times: np.ndarray | None = None,
    ) -> InteractionGraph:
        """Build a graph in which the user with id `user_ids[k]` interacted with the item `item_ids[k]` at `times[k]`.

        `all_user_ids` also has the users without interactions. `name` is the name of the source in error messages.
        """
        users = Vocabulary(np.unique(all_user_ids)) if like is None else like.users
        items = Vocabulary(np.unique(item_ids)) if like is None else like.items
        # index_of_any_kind takes 7 and "7" for the same id.
        user_index, item_index = users.index_of_any_kind(user_ids), items.index_of_any_kind(item_ids)
        known = (user_index >= 0) & (item_index >= 0)
        dropped = {
            **meta.get("dropped", {}),
            "interactions_of_unknown_users": int((user_index < 0).sum()),
            "interactions_with_unknown_items": int(((user_index >= 0) & (item_index < 0)).sum()),
        }
        if not known.any():
            counts = ", ".join(dropped_counts(dropped))
            raise ValueError(f"{name} holds no interactions" + (f"; dropped: {counts}" if counts else ""))
        if like is not None:
            meta["dropped"] = dropped
        user_index, item_index = user_index[known], item_index[known]
        graph = cls.from_arrays(user_index, item_index, user_ids=users, item_ids=items, meta=meta)
        if times is not None:
            graph.edge_times = EdgeTimes.of_first(user_index, item_index, times[known])
        return graph

    def save(self, folder: str | Path) -> None:
        """Write the graph to a folder of .npy files: first to a temporary folder, which is renamed when complete.

        Raises:
            FileExistsError: `folder` holds something other than a graph.
            OSError: the disk is full; an earlier graph in `folder` is unchanged.
        """
        with replace_data_folder(folder, FORMAT) as temporary:
            self.write(temporary)

    def write(self, folder: Path) -> None:
        """Write all files of the graph to an existing empty folder."""
        write_array_folder(folder, _FOLDER_FORMAT, self, {"users": self.users.ids, "items": self.items.ids})

    @classmethod
    def open(cls, folder: str | Path) -> InteractionGraph:
        """Open a saved graph as memory maps. Reads all arrays once to check them.

        Raises:
            FileNotFoundError: there is no graph in `folder`.
            ValueError: the graph is damaged, or has a format version that this release does not read.
        """
        stored = ArrayFolder(folder, _FOLDER_FORMAT)
        n_users, n_items, n_edges = stored.counts
        offsets = stored.open_array("offsets", n_users + n_items + 1, np.int64)
        neighbors = stored.open_array("neighbors", 2 * n_edges, np.int32, np.int64)
        if damage := find_csr_damage(offsets, neighbors, n_users, n_items):
            raise stored.damage_error(f"{damage[0]}.npy", damage[1])
        user_ids, item_ids = stored.read_vocabulary("users", n_users), stored.read_vocabulary("items", n_items)
        return cls(offsets, neighbors, user_ids, item_ids, stored.meta)
