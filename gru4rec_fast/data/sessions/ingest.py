"""Read the rows of a log and group them by session, in partitions on disk if the log is longer than one batch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gru4rec_fast.data.sessions.events import EventLog, Events
from gru4rec_fast.data.table_reader import RereadRequired, TableReader, numpy_ids
from gru4rec_fast.data.tables import Table
from gru4rec_fast.data.text_files import pl
from gru4rec_fast.data.vocabulary import Vocabulary

PARTITIONS = 64  # number of partitions of a log of more than one batch


def ingest(
    table: Table,
    folder: Path,
    *,
    vocabulary: Vocabulary | None = None,
    remove_duplicates: bool = False,
    progress: Callable[[int], None] | None = None,
) -> EventLog:
    """Read a log and group it by session.

    A table of at most one batch (`BATCH_ROWS`) is held in memory. The rows of a longer table are distributed to
    partitions, which are files in `folder`, by a hash of the session id. Then each partition is sorted. Memory holds
    only the item ids and one batch or partition.

    Item codes number the items of `vocabulary` first, then other items in order of appearance.

    Args:
        table: table with the columns "session", "item" and "time".
        folder: existing folder for temporary files, including those of the returned log.
        vocabulary: vocabulary of the training data; None if there is none yet.
        remove_duplicates: keep only the first of the rows with the same session, item and time, and count the others
            in `dropped["duplicate_events"]`.
        progress: called with the number of rows read so far.
    """
    reader = TableReader(table, item="str" if vocabulary is not None and vocabulary.holds_strings else "int")
    while True:
        coder, partitions = _ItemCoder(vocabulary, reader.kinds["item"]), _RowPartitions(folder / "rows")
        try:
            _read(reader, coder, partitions, progress)
            break
        except RereadRequired:
            partitions.discard()
    if partitions.n_frames == 0:
        raise ValueError(f"{table.name} holds no events")
    log = EventLog(numpy_ids(coder.codes["item"]), folder if partitions.n_frames > 1 else None, reader.id_parsing())
    for frame in partitions.pop_all():
        n_rows = frame.height
        if remove_duplicates:
            frame = frame.unique(["session", "item", "time"], keep="first", maintain_order=True)
            log.dropped["duplicate_events"] += n_rows - frame.height
        log.append(_group(frame))
    return log


def _read(
    reader: TableReader, coder: _ItemCoder, partitions: _RowPartitions, progress: Callable[[int], None] | None
) -> None:
    # A function of its own, so that its last `frame` is freed when it returns, before the first partition is read.
    for frame in reader.frames():
        if not frame.is_empty():
            partitions.add(frame.with_columns(coder.encode(frame["item"])))
        if progress:
            progress(reader.n_rows)


def _group(frame: pl.DataFrame) -> Events:
    """Group rows by session and sort each session by time. Events with equal times stay in input order."""
    frame = frame.sort("session", "time", maintain_order=True)
    session = frame["session"]
    first = np.flatnonzero((session != session.shift(1)).fill_null(True).to_numpy())  # first event of each session
    return Events(
        session_ids=numpy_ids(session.gather(first)),
        first_rows=np.minimum.reduceat(frame["row"].to_numpy(), first),
        lengths=np.diff(first, append=frame.height),
        items=frame["item"].to_numpy(),
        times=frame["time"].to_numpy(),
    )


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
    """Collects frames of rows. A single frame stays in memory. The rows of two or more are written to files.

    There is one file for each frame and partition.
    """

    def __init__(self, folder: Path) -> None:
        self.n_frames = 0
        self._folder = folder
        self._first_frame: pl.DataFrame | None = None

    def add(self, frame: pl.DataFrame) -> None:
        """Add the rows of a frame. The second frame moves the rows of the first to files."""
        if self.n_frames == 0:
            self._first_frame = frame
        else:
            if self._first_frame is not None:
                self._folder.mkdir()
                self._write(self._first_frame, 0)
                self._first_frame = None
            self._write(frame, self.n_frames)
        self.n_frames += 1

    def _write(self, frame: pl.DataFrame, frame_index: int) -> None:
        frame = frame.with_columns(partition=frame["session"].hash(seed=0) % PARTITIONS)
        by_partition = frame.partition_by("partition", as_dict=True, include_key=False, maintain_order=True)
        for (partition,), rows in by_partition.items():
            # Python writes the file, because its errors have an errno, which tells whether the disk is full; errors of
            # polars have none.
            (self._folder / f"{partition}-{frame_index}.arrow").write_bytes(rows.write_ipc(None).getbuffer())

    def discard(self) -> None:
        """Remove all files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def pop_all(self) -> Iterator[pl.DataFrame]:
        """Yield the rows of each partition in input order, and remove its files."""
        if self._first_frame is not None:
            yield self._first_frame
            return
        for partition in range(PARTITIONS):
            paths = [self._folder / f"{partition}-{i}.arrow" for i in range(self.n_frames)]
            paths = [path for path in paths if path.exists()]
            if paths:
                frame = pl.concat([pl.read_ipc(path) for path in paths])
                for path in paths:
                    path.unlink()
                yield frame
