"""Read the rows of a log and group them by session, in partitions on disk if the log is longer than one batch."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gru4rec_fast.data.sessions.events import EventLog, Events
from gru4rec_fast.data.table_reader import RereadRequired, TableReader, numpy_ids
from gru4rec_fast.data.tables import NAMES, Table
from gru4rec_fast.data.text_files import pl
from gru4rec_fast.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from gru4rec_fast.distributed import Ranks

PARTITIONS = 64  # number of partitions of a log of more than one batch


def log_columns(
    session_key: str,
    user_key: str,
    item_key: str,
    time_key: str,
    time_of_day_key: str | None,
    session_gap: float | None,
) -> dict[str, str]:
    """Return the wanted columns of a log by role; the arguments are those of `SessionStore.from_events`.

    Raises ValueError for a column that would not be used, and for a gap that is not a positive number.
    """
    if session_gap is not None and not 0 < session_gap < math.inf:
        raise ValueError(f"session_gap={session_gap}: give a positive number, in the unit of the times")
    role, unused = ("session", "user") if session_gap is None else ("user", "session")
    keys = {"session": session_key, "user": user_key}
    if keys[unused] != NAMES[unused][0]:
        condition = "without" if session_gap is None else "with"
        raise ValueError(f"{unused}_key={keys[unused]!r} has no effect {condition} session_gap: leave it out")
    times = {"time": time_key} if time_of_day_key is None else {"time": time_key, "time_of_day": time_of_day_key}
    return {role: keys[role], "item": item_key, **times}


def ingest(
    table: Table,
    folder: Path,
    *,
    time_format: str | None = None,
    session_gap: float | None = None,
    vocabulary: Vocabulary | None = None,
    remove_duplicates: bool = False,
    progress: Callable[[int], None] | None = None,
    ranks: Ranks | None = None,
) -> EventLog | None:
    """Read a log and group it by session.

    A table of at most one batch (`BATCH_ROWS`) is held in memory. The rows of a longer table are distributed to
    partitions, which are files in `folder`, by a hash of the session id. Then each partition is sorted. Memory holds
    only the item ids and one batch or partition. With `ranks`, each rank reads its own part files and sorts some of the
    partitions.

    Item codes number the items of `vocabulary` first, then other items in order of appearance.

    Args:
        table: table with the columns "session" (or "user"), "item" and "time".
        time_format, session_gap: as for `SessionStore.from_events`.
        folder: existing folder for temporary files, including those of the returned log. All ranks share it.
        vocabulary: vocabulary of the training data; None if there is none yet.
        remove_duplicates: keep only the first of the rows with the same session, item and time, and count the others
            in `dropped["duplicate_events"]`.
        progress: called with the number of rows read so far by this process.
        ranks: the processes that read the log, if there are several.

    Returns:
        The log; None on ranks other than 0.

    Raises:
        ValueError: the log has no events, or a value cannot be read.
        OtherRankError: another rank has raised an error.
    """
    item_kind = "str" if vocabulary is not None and vocabulary.holds_strings else "int"
    reader = TableReader(table, time_format=time_format, item=item_kind)
    if ranks is not None:
        return _ingest_together(reader, folder, vocabulary, session_gap, remove_duplicates, progress, ranks)
    partitions = _RowPartitions(folder / "rows")
    coder = _read(reader, vocabulary, partitions, progress)
    _require_rows(partitions.n_frames, table)
    log = EventLog(numpy_ids(coder.codes["item"]), folder if partitions.n_frames > 1 else None, reader.id_parsing())
    _append_groups(log, partitions.pop_all(), session_gap, remove_duplicates)
    return log


def _ingest_together(
    reader: TableReader,
    folder: Path,
    vocabulary: Vocabulary | None,
    session_gap: float | None,
    remove_duplicates: bool,
    progress: Callable[[int], None] | None,
    ranks: Ranks,
) -> EventLog | None:
    """Read a log by all ranks; see `ingest`. All ranks raise an error if one does."""
    own = _RowPartitions(folder / f"rows-{ranks.rank}", in_memory=False)
    kinds: dict[str, str] = {}  # with which this rank has read its rows
    agreed = False
    while not agreed:
        if reader.kinds != kinds:
            error: Exception | None = None
            try:
                coder = _read(reader, vocabulary, own, progress)
            except Exception as caught:  # raised below, unless the rows are right with the types of all ranks
                error = caught
            kinds = dict(reader.kinds)
        with ranks.shared_errors():
            agreed = reader.agree(ranks, failed=error is not None)
    with ranks.shared_errors():
        if error is not None:
            raise error
    n_known = 0 if vocabulary is None else len(vocabulary)
    shared = ranks.gather((coder.codes["item"][n_known:], reader.n_rows, own))
    with ranks.shared_errors():
        coder = _ItemCoder(vocabulary, reader.kinds["item"])
        known = coder.codes["code"]
        parts, first_row = [], 0
        for new_items, n_rows, partitions in shared:
            parts.append((partitions, pl.concat([known, coder.encode(new_items)]), first_row))
            first_row += n_rows
        _require_rows(first_row, reader.table)
        own_folder = folder / f"events-{ranks.rank}"
        own_folder.mkdir()
        log = EventLog(numpy_ids(coder.codes["item"]), own_folder, reader.id_parsing())
        _append_groups(log, _pop_own(parts, ranks), session_gap, remove_duplicates)
    log.join(ranks)
    return log if ranks.is_first else None


def _read(
    reader: TableReader,
    vocabulary: Vocabulary | None,
    partitions: _RowPartitions,
    progress: Callable[[int], None] | None,
) -> _ItemCoder:
    """Write the rows of a table to partitions; return the codes of the items."""
    # A function of its own, so that its last `frame` is freed when it returns, before the first partition is read.
    while True:
        partitions.clear()
        coder = _ItemCoder(vocabulary, reader.kinds["item"])
        try:
            for frame in reader.frames():
                if not frame.is_empty():
                    frame = frame.rename({"user": "session"}, strict=False)  # sessions are cut from the events of users
                    partitions.add(frame.with_columns(coder.encode(frame["item"])))
                if progress:
                    progress(reader.n_rows)
            return coder
        except RereadRequired:
            continue


def _require_rows(count: int, table: Table) -> None:
    if count == 0:
        raise ValueError(f"{table.name} holds no events")


def _pop_own(parts: list[tuple[_RowPartitions, pl.Series, int]], ranks: Ranks) -> Iterator[pl.DataFrame]:
    """Yield the partitions that this rank sorts, with the item codes and row numbers of the whole log.

    `parts` has for each rank its rows, the new codes of its item codes, and the number of rows before its first.
    """
    for partition in range(ranks.rank, PARTITIONS, ranks.size):
        frames = [
            frame.with_columns(codes.gather(frame["item"]).alias("item"), pl.col("row") + first_row)
            for partitions, codes, first_row in parts
            if (frame := partitions.pop(partition)) is not None
        ]
        if frames:
            yield pl.concat(frames)


def _append_groups(
    log: EventLog, frames: Iterator[pl.DataFrame], session_gap: float | None, remove_duplicates: bool
) -> None:
    """Group the rows of each partition by session, and append them to the log."""
    for frame in frames:
        n_rows = frame.height
        if remove_duplicates:
            frame = frame.unique(["session", "item", "time"], keep="first", maintain_order=True)
            log.dropped["duplicate_events"] += n_rows - frame.height
        log.append(_group(frame, session_gap))


def _group(frame: pl.DataFrame, session_gap: float | None) -> Events:
    """Group rows by session and sort each session by time. Events with equal times stay in input order.

    With `session_gap`, the ids of sessions in the frame are those of users, see `SessionStore.from_events`.
    """
    frame = frame.sort("session", "time", maintain_order=True)
    session = frame["session"]
    is_first = (session != session.shift(1)).fill_null(True).to_numpy()
    if session_gap is None:
        first = np.flatnonzero(is_first)  # first event of each session
        ids = session.gather(first)
    else:
        first_of_user = np.flatnonzero(is_first)
        first = np.flatnonzero(is_first | _follows_gap(frame["time"].to_numpy(), session_gap))
        # Number of each session among those of its user, from 1.
        number = np.arange(1, len(first) + 1) - np.searchsorted(first, first_of_user)[np.cumsum(is_first)[first] - 1]
        ids = session.gather(first).cast(pl.String) + ":" + pl.Series(number).cast(pl.String)
    return Events(
        session_ids=numpy_ids(ids),
        first_rows=np.minimum.reduceat(frame["row"].to_numpy(), first),
        lengths=np.diff(first, append=frame.height),
        items=frame["item"].to_numpy(),
        times=frame["time"].to_numpy(),
    )


def _follows_gap(times: np.ndarray, session_gap: float) -> np.ndarray:
    """Return a mask of the events more than `session_gap` after the event before; anything where times decrease."""
    with np.errstate(over="ignore"):  # an infinite difference is longer than any gap
        elapsed = np.diff(times, prepend=times[:1])
    if elapsed.dtype.kind == "i":
        elapsed = elapsed.view(np.uint64)  # the difference of two int64 may overflow int64
    return elapsed > session_gap


class _ItemCoder:
    """Assigns item codes: first to the items of a vocabulary, then to other items in order of appearance.

    `codes` is a frame with the columns "item" (id) and "code".
    """

    def __init__(self, vocabulary: Vocabulary | None, kind: str) -> None:
        ids, dtype = ([], pl.Int64) if vocabulary is None else (vocabulary.ids.tolist(), None)
        # An integer vocabulary becomes strings if the log's ids are strings.
        self.codes = _with_codes(pl.Series("item", ids, dtype).cast(pl.String if kind == "str" else pl.Int64))

    def encode(self, items: pl.Series) -> pl.Series:
        """Return the codes of item ids as a series named "item". New items get the next codes."""
        unique = items.unique(maintain_order=True).to_frame("item")
        new = unique.join(self.codes, on="item", how="anti", maintain_order="left")["item"]
        if len(new):
            self.codes = _with_codes(pl.concat([self.codes["item"], new]))
        codes = items.to_frame("item").join(self.codes, on="item", how="left", maintain_order="left")["code"]
        return codes.alias("item")


def _with_codes(ids: pl.Series) -> pl.DataFrame:
    """Return a frame with the columns "item" (the ids) and "code" (0, 1, 2, ...)."""
    return pl.DataFrame({"item": ids, "code": pl.int_range(len(ids), dtype=pl.Int32, eager=True)})


class _RowPartitions:
    """Collects frames of rows. With `in_memory`, a single frame stays in memory; else the rows are written to files.

    There is one file for each frame and partition.
    """

    def __init__(self, folder: Path, *, in_memory: bool = True) -> None:
        self.n_frames = 0
        self._folder = folder
        self._in_memory = in_memory
        self._first_frame: pl.DataFrame | None = None
        self._paths: dict[int, list[Path]] = {}  # the files of each partition

    def add(self, frame: pl.DataFrame) -> None:
        """Add the rows of a frame. The second frame moves the rows of the first to files."""
        if self.n_frames == 0 and self._in_memory:
            self._first_frame = frame
        else:
            if self._first_frame is not None:
                self._write(self._first_frame, 0)
                self._first_frame = None
            self._write(frame, self.n_frames)
        self.n_frames += 1

    def _write(self, frame: pl.DataFrame, frame_index: int) -> None:
        self._folder.mkdir(exist_ok=True)
        frame = frame.with_columns(partition=frame["session"].hash(seed=0) % PARTITIONS)
        by_partition = frame.partition_by("partition", as_dict=True, include_key=False, maintain_order=True)
        for (partition,), rows in by_partition.items():
            # Python writes the file, because its errors have an errno, which tells whether the disk is full; errors of
            # polars have none.
            path = self._folder / f"{partition}-{frame_index}.arrow"
            path.write_bytes(rows.write_ipc(None).getbuffer())
            self._paths.setdefault(partition, []).append(path)

    def clear(self) -> None:
        """Remove all rows and files."""
        self.n_frames, self._first_frame = 0, None
        self._paths.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def pop(self, partition: int) -> pl.DataFrame | None:
        """Return the rows of a partition in input order, and remove its files; None if there are none."""
        if not (paths := self._paths.pop(partition, None)):
            return None
        frame = pl.concat([pl.read_ipc(path) for path in paths])
        for path in paths:
            path.unlink()
        return frame

    def pop_all(self) -> Iterator[pl.DataFrame]:
        """Yield the rows of each partition in input order, and remove its files."""
        if self._first_frame is not None:
            yield self._first_frame
            return
        for partition in range(PARTITIONS):
            if (frame := self.pop(partition)) is not None:
                yield frame
