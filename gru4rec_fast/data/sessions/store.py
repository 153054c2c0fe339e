"""SessionStore: a session log as arrays, in memory or memory-mapped from a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from gru4rec_fast._atomic_writes import explain_disk_full
from gru4rec_fast.data.array_folder import (
    ArrayFolder,
    FolderFormat,
    replace_data_folder,
    save_array,
    scratch_in_replacement,
    summary_lines,
    write_array_folder,
)
from gru4rec_fast.data.sessions.assembly import ItemRenumbering, merge_into_store_arrays
from gru4rec_fast.data.sessions.events import EventLog
from gru4rec_fast.data.sessions.filters import SessionRules, drop_unseen, require_sessions
from gru4rec_fast.data.vocabulary import Vocabulary, as_ids, as_indices, check_indices

if TYPE_CHECKING:
    from gru4rec_fast.distributed import Ranks

_CHUNK_SESSIONS = 1 << 17
FORMAT, PREPARED_FORMAT = "gru4rec_fast.session_store", "gru4rec_fast.prepared_log"
_FOLDER_FORMAT = FolderFormat(
    name=FORMAT,
    title="session store",
    writing_verb="prepare",
    counts=("n_events", "n_sessions", "n_items", "n_targets", "n_short_sessions"),
    arrays=("offsets", "start_times", "end_times", "support"),
    # Folder written by `prepare`, which contains several stores; opening it by mistake gets a hint.
    parent_format=PREPARED_FORMAT,
)


class SessionStore:
    """Sessions, sorted by the time of their first event. The events of a session are sorted by time.

    Build a store with `from_events` or `from_arrays`, or `open` a saved one. Do not write to its arrays.

    Attributes:
        items: int32 [n_events], item indices.
        offsets: int64 [n_sessions + 1]; session `s` is `items[offsets[s]:offsets[s + 1]]`.
        start_times, end_times: int64 or float64 [n_sessions], times of the first and last event, in the unit of the log
            (dates are converted to seconds since 1970, UTC).
        support: int64 [n_items], support (number of events) of each item.
        vocabulary: item ids by index.
        n_events, n_items: number of events, and number of items in the catalogue.
        n_sessions: number of sessions, including those of one event.
        meta: how the store was made: `meta["dropped"]` counts what was removed, by reason, and `meta["ids"]` states how
            session ids and item ids were read. `meta["targets"]` is "last" if only the last event of each session may
            be predicted, because the others are training events (`Split(last_event=True)`).
        folder: folder of an opened store; None for a store in memory.
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
        """Number of targets in one epoch: all events except the first of each session."""
        return _count_targets(self.offsets)[0]

    @cached_property
    def n_short_sessions(self) -> int:
        """Number of sessions that have fewer than two events and so no target."""
        return _count_targets(self.offsets)[1]

    @cached_property
    def session_ids(self) -> np.ndarray:
        """Session ids of the log, int64 or str (StringDType; object before NumPy 2), [n_sessions]."""
        return self._session_ids() if callable(self._session_ids) else self._session_ids

    def __repr__(self) -> str:
        return f"SessionStore({self.n_sessions:,} sessions, {self.n_events:,} events, {self.n_items:,} items)"

    def summary(self, *, notes: bool = True) -> str:
        """Return lines of text: sizes of the store, what was removed when it was made, and (with `notes`) notes on ids.

        The notes say why ids of the log became strings, and from how many ids blanks were removed. They are about the
        whole log, also if the store is a part of it.
        """
        sizes = f"{self.n_sessions:,} sessions, {self.n_events:,} events, {self.n_items:,} items"
        return "\n".join([sizes, *summary_lines(self.meta, notes)])

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
        """Build a store in memory from arrays, which are checked.

        Args:
            items: integer [n_events], item indices in [0, n_items).
            offsets: integer [n_sessions + 1], non-decreasing from 0 to n_events.
            start_times: non-decreasing [n_sessions]; by default 0, 1, 2, ...
            end_times: [n_sessions]; by default `start_times`.
            n_items: size of the catalogue; by default the length of `vocabulary`, else the largest index + 1.
            vocabulary: item ids; by default the indices themselves.
            session_ids: integers or strings [n_sessions]; by default 0, 1, 2, ...
            meta: becomes the attribute `meta`.

        Raises:
            ValueError: an array has a wrong shape, dtype or value; the message names the argument.
        """
        items, n_items = check_indices(items, "items", n_items, vocabulary)
        offsets = as_indices(offsets, "offsets")
        if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(items) or np.any(np.diff(offsets) < 0):
            raise ValueError(f"offsets must be non-decreasing, from 0 to the number of events ({len(items)})")
        vocabulary = Vocabulary(np.arange(n_items)) if vocabulary is None else vocabulary
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
            raise ValueError("start_times must be non-decreasing: sort the sessions by the time of their first event")
        return cls(
            items=items.astype(np.int32),
            offsets=offsets,
            start_times=_as_stored_times(starts),
            end_times=_as_stored_times(ends),
            support=np.bincount(items, minlength=len(vocabulary)).astype(np.int64),
            vocabulary=vocabulary,
            session_ids=ids,
            meta=dict(meta or {}),
        )

    @classmethod
    def from_sequences(
        cls,
        sequences: Iterable[Sequence[int] | Sequence[str] | np.ndarray],
        *,
        session_ids: ArrayLike | Iterable[int] | Iterable[str] | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> SessionStore:
        """Build a store in memory from sequences of item ids, one for each session, in order of time.

        The times of session k are k: the first session is the earliest.

        Args:
            sequences: lists or arrays of item ids, all integers or all strings. None may be empty.
            session_ids: integers or strings [n_sessions]; by default 0, 1, 2, ...
            vocabulary: as for `from_events`.

        Raises:
            TypeError: ids are neither all integers nor all strings.
            ValueError: there is no sequence, one is empty, there are not as many session ids as sequences, or no item
                is in `vocabulary`. The messages name the sequence by its index.
        """
        from gru4rec_fast.data.sessions.sequences import log_of_sequences

        log = log_of_sequences(sequences, session_ids, vocabulary)
        return cls._from_whole_log(log, vocabulary, "the sequences given", None)

    @classmethod
    def from_events(
        cls,
        source: Any,
        *,
        session_key: str = "SessionId",
        user_key: str = "UserId",
        item_key: str = "ItemId",
        time_key: str = "Time",
        time_of_day_key: str | None = None,
        time_format: str | None = None,
        session_gap: float | None = None,
        separator: str | None = None,
        quote: str | None = '"',
        encoding: str = "utf-8",
        columns: Sequence[str] | None = None,
        vocabulary: Vocabulary | None = None,
        allow_pickle: bool = False,
        out: str | Path | None = None,
        progress: Callable[[int], None] | None = None,
        ranks: Ranks | None = None,
    ) -> SessionStore:
        """Read a log of events, in any order, and group it by session. Nothing is filtered (see `prepare` for that).

        Args:
            source: path of a TSV/CSV (plain, .gz, .zst), Parquet, RecBole `.inter` or pickle file; or a pandas or
                polars table, an object with `__arrow_c_stream__` (pyarrow, duckdb, ibis), a record array of NumPy or a
                dict of columns. A log in several files is a list of their paths, a pattern such as
                "log/*.parquet", or their folder if their names differ in numbers only, as Spark, Ray and Dask write
                them. The order of the files matters where events of a session have equal times.
            session_key, user_key, item_key, time_key: names of the columns. In a `.inter` file, the defaults also find
                the usual RecBole names (session_id, user_id, item_id, timestamp).
            time_of_day_key: name of a second column of times, if that of `time_key` has only dates. The texts of both
                are joined by a blank, and then read as one time.
            time_format: format of times that are texts, such as "%d.%m.%Y %H:%M:%S" or "%Y-%m-%d %H:%M:%S UTC", in the
                codes of Python's `datetime.strptime`. By default such times are ISO 8601. Times without a time zone
                are UTC.
            session_gap: cut the events of each user into sessions: a new one begins if the time since the user's event
                before is longer than this, in the unit of the times (seconds for dates). Then the column `user_key` is
                read instead of `session_key`, and the k-th session of the user `u` has the id "u:k".
            separator: column separator of a text file, one or more characters; by default found in the first line.
            quote: character that quotes fields of a text file, if a field begins with it; None if no field is quoted.
                Fields of `.inter` files are never quoted.
            encoding: encoding of a text file, such as "latin-1" or "utf-16". A byte order mark is removed.
            columns: names of all columns in order, for a text file without a header.
            vocabulary: vocabulary of the training data, for a test log. Events of other items are removed, then
                sessions of fewer than two events. `meta["dropped"]` counts the removed events and sessions.
            allow_pickle: allow a pickle file. Loading a pickle runs the code in it.
            out: folder to write the store to. The returned store is memory-mapped, and the log may be larger than
                memory. With None, the store is held in memory.
            progress: called from time to time with the number of rows that this process has read so far.
            ranks: the processes (`gru4rec_fast.distributed.Ranks`) that read a log in part files together, each some of
                them. Every rank must make the same call, with a folder `out` that all ranks share. The store is the
                same as that of one process, and is returned on every rank.

        Raises:
            ValueError: the source is empty, a column or id is missing, a time cannot be read, or an option has no
                effect on the source; the message names source, column and row. Or `ranks` is given without `out`, or
                for a log in a single file.
            OSError: the disk is full; nothing is written.
            ImportError: polars is not installed.
            gru4rec_fast.distributed.OtherRankError: another rank has raised one of these errors.
        """
        from gru4rec_fast.data.sessions.ingest import ingest, log_columns
        from gru4rec_fast.data.tables import open_table

        if ranks is not None and out is None:
            raise ValueError("ranks needs out, a folder that all ranks share")
        keys = log_columns(session_key, user_key, item_key, time_key, time_of_day_key, session_gap)
        text_options: dict[str, Any] = {"separator": separator, "quote": quote, "encoding": encoding}
        text_options["columns"] = columns
        folder = tempfile.TemporaryDirectory() if out is None else scratch_in_replacement(out, FORMAT)
        with (
            folder if ranks is None else ranks.enter_on_first(folder) as scratch,
            explain_disk_full(Path(out or scratch)),
        ):
            table = open_table(source, keys, allow_pickle=allow_pickle, ranks=ranks, **text_options)
            log = ingest(
                table,
                Path(scratch),
                time_format=time_format,
                session_gap=session_gap,
                vocabulary=vocabulary,
                progress=progress,
                ranks=ranks,
            )
            if log is not None:
                # The parent folder becomes `out` at the end.
                store = cls._from_whole_log(log, vocabulary, table.name, None if out is None else Path(scratch).parent)
        return store if out is None else cls.open(out)

    @classmethod
    def _from_whole_log(
        cls, log: EventLog, vocabulary: Vocabulary | None, name: str, folder: Path | None
    ) -> SessionStore:
        """Call `from_log`; with `vocabulary` first remove unknown items. `name` is the source in error messages."""
        renumbering = ItemRenumbering(log.item_ids, vocabulary)
        if vocabulary is not None:
            drop_unseen(log, renumbering, SessionRules(min_length=2))
            require_sessions(log, name)
        return cls.from_log(log, renumbering, folder)

    @classmethod
    def from_log(cls, log: EventLog, renumbering: ItemRenumbering, folder: Path | None) -> SessionStore:
        """Build a store in memory (folder=None), or write its files to an existing folder. Returns the store."""
        store = cls(**merge_into_store_arrays(log, renumbering, folder))
        if folder is not None:
            store.write_all_but_items(folder)
        return store

    @classmethod
    def open(cls, folder: str | Path) -> SessionStore:
        """Open a saved store as memory maps.

        Reads all arrays once to check them, except the session ids, which are read when they are used.

        Raises:
            FileNotFoundError: there is no store in `folder`.
            ValueError: the store is damaged, or has a format version that this release does not read.
        """
        stored = ArrayFolder(folder, _FOLDER_FORMAT)
        n_events, n_sessions, n_items, n_targets, n_short_sessions = stored.counts

        def open_numbers(name: str, length: int, low: float, high: float, *dtypes: DTypeLike) -> np.ndarray:
            return stored.check_range(name, stored.open_array(name, length, *dtypes), low, high)

        finite = (np.finfo(np.float64).min, np.inf)
        store = cls(
            offsets=stored.open_offsets("offsets", n_sessions, n_events),
            items=open_numbers("items", n_events, 0, n_items, np.int32),
            start_times=open_numbers("start_times", n_sessions, *finite, np.int64, np.float64),
            end_times=open_numbers("end_times", n_sessions, *finite, np.int64, np.float64),
            support=open_numbers("support", n_items, 0, n_events + 1, np.int64),
            vocabulary=stored.read_vocabulary("vocabulary", n_items),
            session_ids=lambda: stored.read_ids("session_ids", n_sessions),
            meta=stored.meta,
        )
        store.folder = stored.path
        if (n_targets, n_short_sessions) != (store.n_targets, store.n_short_sessions):
            problem = f"states {n_targets} targets and {n_short_sessions} short sessions, unlike offsets.npy"
            raise stored.damage_error("meta.json", problem)
        return store

    def save(self, folder: str | Path) -> None:
        """Write the store to a folder of .npy files: first to a temporary folder, which is renamed when complete.

        Raises:
            FileExistsError: `folder` holds something other than a store.
            OSError: the disk is full; an earlier store in `folder` is unchanged.
        """
        with replace_data_folder(folder, FORMAT) as temporary:
            save_array(temporary / "items.npy", self.items)
            self.write_all_but_items(temporary)

    def write_all_but_items(self, folder: Path) -> None:
        """Write all files except items.npy (see `merge_into_store_arrays`) to an existing folder."""
        ids = {"vocabulary": self.vocabulary.ids, "session_ids": self.session_ids}
        write_array_folder(folder, _FOLDER_FORMAT, self, ids)


def _as_stored_times(times: np.ndarray) -> np.ndarray:
    """Return times as float64 or int64, the dtypes that a store allows."""
    return times.astype(np.float64 if times.dtype.kind == "f" else np.int64, copy=False)


def _count_targets(offsets: np.ndarray) -> tuple[int, int]:
    """Return the numbers of targets and of sessions without a target (`SessionStore.n_short_sessions`)."""
    n_targets = n_short = 0
    for start in range(0, len(offsets) - 1, _CHUNK_SESSIONS):  # in chunks, because a log may have very many sessions
        lengths = np.diff(offsets[start : start + _CHUNK_SESSIONS + 1])
        n_targets += int(np.maximum(lengths - 1, 0).sum())
        n_short += int((lengths < 2).sum())
    return n_targets, n_short
