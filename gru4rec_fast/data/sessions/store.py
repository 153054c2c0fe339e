"""SessionStore: a prepared session log as plain arrays, in memory or memory-mapped from one folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gru4rec_fast.data.array_folder import (
    ArrayFolder,
    FolderFormat,
    disk_full_named,
    replace_folder,
    save_array,
    summary_lines,
    write_array_folder,
)
from gru4rec_fast.data.sessions.assembly import ItemIndex, assemble
from gru4rec_fast.data.sessions.events import EventLog
from gru4rec_fast.data.sessions.filters import Rules, drop_unseen, require_sessions
from gru4rec_fast.data.vocabulary import Vocabulary, as_ids, as_indices

FORMAT, PREPARED_FORMAT = "gru4rec_fast.session_store", "gru4rec_fast.prepared_log"
_FOLDER = FolderFormat(
    FORMAT,
    "session store",
    "store",
    "prepare",
    counts=("n_events", "n_sessions", "n_items", "n_targets", "n_short_sessions"),
    arrays=("offsets", "start_times", "end_times", "support"),
    container=PREPARED_FORMAT,
)


class SessionStore:
    """Sessions in order of their first event's time, the events of each in time order.

    Build one with `open`, `from_events` or `from_arrays`; arrays are not to be written to.

    Attributes:
        items: int32 [n_events], item indices, session after session.
        offsets: int64 [n_sessions + 1]; session `s` is `items[offsets[s]:offsets[s + 1]]`.
        start_times, end_times: int64 or float64 [n_sessions], times of the first and the last event, in the log's unit
            (seconds, UTC, where the log held dates).
        support: int64 [n_items], how often each item occurs in the log, one-event sessions included.
        vocabulary: item ids by index.
        n_events, n_sessions, n_items: numbers of events, of sessions, those of one event included, and of items in the
            catalogue.
        meta: facts about the log; `meta["dropped"]` counts what preparation removed, by reason, and `meta["ids"]` tells
            how the ids of its sessions and items were read.
        folder: where the store was opened; None where it is held in memory.
    """

    def __init__(
        self,
        *,
        items: np.ndarray,
        offsets: np.ndarray,
        start_times: np.ndarray,
        end_times: np.ndarray,
        support: np.ndarray,
        vocabulary: Vocabulary,
        session_ids: np.ndarray | Callable[[], np.ndarray],
        meta: dict[str, Any],
    ) -> None:
        self.items = items
        self.offsets = offsets
        self.start_times = start_times
        self.end_times = end_times
        self.support = support
        self.vocabulary = vocabulary
        self.meta = meta
        self.n_events, self.n_sessions, self.n_items = len(items), len(offsets) - 1, len(vocabulary)
        self.folder: Path | None = None
        self._session_ids = session_ids

    @cached_property
    def n_targets(self) -> int:
        """Number of next-item targets in one epoch: every event that another one of its session precedes."""
        return int(np.maximum(np.diff(self.offsets) - 1, 0).sum())

    @cached_property
    def n_short_sessions(self) -> int:
        """Number of sessions of fewer than two events, which have no target."""
        return int((np.diff(self.offsets) < 2).sum())

    @cached_property
    def session_ids(self) -> np.ndarray:
        """Ids of the sessions as they stood in the log: int64 or str (NumPy StringDType), [n_sessions]."""
        return self._session_ids() if callable(self._session_ids) else self._session_ids

    def __repr__(self) -> str:
        return f"SessionStore({self.n_sessions:,} sessions, {self.n_events:,} events, {self.n_items:,} items)"

    def summary(self) -> str:
        """What the store holds, and what was changed or dropped on the way, one fact per line."""
        sizes = f"{self.n_sessions:,} sessions, {self.n_events:,} events, {self.n_items:,} items"
        return "\n".join([sizes, *summary_lines(self.meta)])

    @classmethod
    def from_arrays(
        cls,
        items: ArrayLike,
        offsets: ArrayLike,
        *,
        start_times: ArrayLike | None = None,
        end_times: ArrayLike | None = None,
        n_items: int | None = None,
        vocabulary: Vocabulary | None = None,
        session_ids: ArrayLike | Iterable[int] | Iterable[str] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> SessionStore:
        """An in-memory store from arrays, checked.

        Args:
            items: integer [n_events], item indices in 0 .. n_items - 1.
            offsets: integer [n_sessions + 1], from 0 to n_events, never falling.
            start_times, end_times: [n_sessions]; by default 0, 1, 2 ... and equal to `start_times`.
            n_items: size of the catalogue; by default that of `vocabulary`, else the largest index + 1.
            vocabulary: item ids; by default the indices themselves.
            session_ids: by default 0, 1, 2 ...
            meta: kept as it is.

        Raises:
            ValueError: the arrays do not fit each other; the message names the argument.
        """
        items, offsets = as_indices(items, "items"), as_indices(offsets, "offsets")
        if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(items) or np.any(np.diff(offsets) < 0):
            raise ValueError(f"offsets must rise from 0 to the number of events ({len(items)}) and never fall")
        if vocabulary is None:
            largest = int(items.max()) + 1 if len(items) else 0
            vocabulary = Vocabulary(np.arange(largest if n_items is None else n_items))
        elif n_items is not None and n_items != len(vocabulary):
            raise ValueError(f"n_items={n_items}, but the vocabulary holds {len(vocabulary)} ids")
        if len(items) and (items.min() < 0 or items.max() >= len(vocabulary)):
            bad = int(np.flatnonzero((items < 0) | (items >= len(vocabulary)))[0])
            raise ValueError(f"items[{bad}] = {items[bad]} is no index of a catalogue of {len(vocabulary)} items")
        n_sessions = len(offsets) - 1
        starts = np.arange(n_sessions) if start_times is None else np.asarray(start_times)
        ends = starts if end_times is None else np.asarray(end_times)
        ids = np.arange(n_sessions) if session_ids is None else as_ids(session_ids, "session_ids")
        for name, array in (("start_times", starts), ("end_times", ends), ("session_ids", ids)):
            if array.shape != (n_sessions,):
                raise ValueError(f"{name} has shape {array.shape}, but there are {n_sessions} sessions")
        for name, array in (("start_times", starts), ("end_times", ends)):
            if array.dtype.kind not in "iuf" or not np.all(np.isfinite(array)):
                raise ValueError(f"{name} must be finite numbers")
        if np.any(starts[1:] < starts[:-1]):
            raise ValueError("start_times must never fall: sessions stand in order of their first event's time")
        return cls(
            items=items.astype(np.int32),
            offsets=offsets,
            start_times=_time_dtype(starts),
            end_times=_time_dtype(ends),
            support=np.bincount(items, minlength=len(vocabulary)).astype(np.int64),
            vocabulary=vocabulary,
            session_ids=ids,
            meta=dict(meta or {}),
        )

    @classmethod
    def from_events(
        cls,
        source: Any,
        *,
        session_key: str = "SessionId",
        item_key: str = "ItemId",
        time_key: str = "Time",
        separator: str | None = None,
        vocabulary: Vocabulary | None = None,
        allow_pickle: bool = False,
        out: str | Path | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> SessionStore:
        """Read a log of events as it is: grouped and sorted, nothing filtered. Rows may come in any order.

        Args:
            source: path of a TSV/CSV (plain, .gz, .zst), Parquet, RecBole `.inter` or pickle file; or a pandas, polars
                or Arrow table; or a dict of columns.
            session_key, item_key, time_key: names of the columns. With their defaults the usual RecBole names
                (session_id, item_id, timestamp) are found too in a `.inter` file.
            separator: of a text file; by default the one that splits its header.
            vocabulary: of the training data, for a test log. Events of other items are removed, then sessions of
                fewer than two events; both are counted in `meta["dropped"]`.
            allow_pickle: permit reading a pickle, which runs whatever code is in it.
            out: folder to write the store to and open it from, memory-mapped; a log larger than memory goes through.
                Without it the store is held in memory.
            progress: called now and then with the number of rows read so far.

        Raises:
            ValueError: empty source, missing column, missing id, or a time that is none; names file, column and row.
            OSError: the disk is full; nothing is left behind.
            ImportError: polars is not installed.
        """
        from gru4rec_fast.data.sessions.ingest import ingest
        from gru4rec_fast.data.tables import open_table

        keys = {"session": session_key, "item": item_key, "time": time_key}
        with (
            replace_folder(out, [FORMAT]) if out is not None else nullcontext() as partial,
            tempfile.TemporaryDirectory(dir=partial) as scratch,
            disk_full_named(Path(out or scratch)),
        ):
            table = open_table(source, keys, separator=separator, allow_pickle=allow_pickle)
            log = ingest(table, Path(scratch), vocabulary=vocabulary, progress=progress)
            index = ItemIndex(log.item_ids, vocabulary)
            if vocabulary is not None:
                drop_unseen(log, index, Rules())
                require_sessions(log, "the log")
            store = cls.from_log(log, index, partial)
        return store if out is None else cls.open(out)

    @classmethod
    def from_log(cls, log: EventLog, index: ItemIndex, folder: Path | None) -> SessionStore:
        """The store of a grouped log, its files written into an existing folder; None builds it in memory."""
        store = cls(**assemble(log, index, folder))
        if folder is not None:
            store.write_all_but_items(folder)
        return store

    @classmethod
    def open(cls, folder: str | Path) -> SessionStore:
        """Open a saved store, memory-mapped.

        Reads the vocabulary, and `offsets` and `support` to see whether they can be right; everything else when it is
        used. That `items` lie in the catalogue is checked by who plays them.

        Raises:
            FileNotFoundError: there is no store in `folder`.
            ValueError: the store is damaged, or of a format this version does not know.
        """
        stored = ArrayFolder(folder, _FOLDER)
        n_events, n_sessions, n_items, n_targets, n_short_sessions = stored.counts
        store = cls(
            offsets=stored.offsets("offsets", n_sessions, n_events),
            items=stored.array("items", n_events, np.int32),
            start_times=stored.array("start_times", n_sessions, np.int64, np.float64),
            end_times=stored.array("end_times", n_sessions, np.int64, np.float64),
            support=stored.in_range("support", stored.array("support", n_items, np.int64), 0, n_events + 1),
            vocabulary=stored.vocabulary("vocabulary", n_items),
            session_ids=lambda: stored.ids("session_ids", n_sessions),
            meta=stored.meta,
        )
        store.folder = stored.path
        # Counted when the store was written.
        store.n_targets, store.n_short_sessions = n_targets, n_short_sessions
        return store

    def save(self, folder: str | Path) -> None:
        """Write the store to a folder: into a temporary sibling first, renamed when complete.

        Raises:
            FileExistsError: `folder` holds something other than a store.
            OSError: the disk is full; what stood at `folder` before is unchanged.
        """
        with replace_folder(folder, [FORMAT]) as partial:
            save_array(partial / "items.npy", self.items)
            self.write_all_but_items(partial)

    def write_all_but_items(self, folder: Path) -> None:
        """Write every file of the store but items.npy, which ingest streams, into an existing folder."""
        ids = {"vocabulary": self.vocabulary.ids, "session_ids": self.session_ids}
        write_array_folder(folder, _FOLDER, self, ids)


def _time_dtype(times: np.ndarray) -> np.ndarray:
    return times.astype(np.float64 if times.dtype.kind == "f" else np.int64, copy=False)
