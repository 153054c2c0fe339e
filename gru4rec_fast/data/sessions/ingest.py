"""From a stream of rows to grouped sessions, in memory for what is in hand and no more."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gru4rec_fast.data.sessions.events import EventLog, Events
from gru4rec_fast.data.tables import Table, TableReader, Widened, numpy_ids, pl
from gru4rec_fast.data.vocabulary import Vocabulary

PARTITIONS = 64  # of a log of more than one batch, by hash of the session id


def ingest(
    table: Table,
    folder: Path,
    *,
    vocabulary: Vocabulary | None = None,
    remove_duplicates: bool = False,
    progress: Callable[[int], None] | None = None,
) -> EventLog:
    """Read a log and group it by session.

    A table of one batch stays in memory. A longer one is spread over partitions, files in `folder`, by a hash of the
    session id, and sorted partition by partition: one batch or one partition is held at a time, besides the item ids.

    Item codes are those of `vocabulary` first, then further items in order of appearance.

    Args:
        table: its columns are "session", "item" and "time".
        folder: existing folder for temporary files; the returned log lives there.
        remove_duplicates: keep only the first of the rows with the same session, item and time, and count the others
            in `dropped["duplicate_events"]`.
        progress: called with the number of rows read so far.
    """
    reader = TableReader(table, item="str" if vocabulary is not None and vocabulary.holds_strings else "int")
    while True:
        coder, spill = _ItemCoder(vocabulary, reader.kinds["item"]), _Spill(folder / "rows")
        try:
            _read(reader, coder, spill, progress)
            break
        except Widened:
            spill.discard()
    if spill.n_frames == 0:
        raise ValueError(f"{table.name} holds no events")
    log = EventLog(numpy_ids(coder.known["item"]), folder if spill.n_frames > 1 else None, reader.facts())
    for frame in spill.partitions():
        rows = frame.height
        if remove_duplicates:
            frame = frame.unique(["session", "item", "time"], keep="first", maintain_order=True)
            log.dropped["duplicate_events"] += rows - frame.height
        log.append(_group(frame))
    return log


def _read(reader: TableReader, coder: _ItemCoder, spill: _Spill, progress: Callable[[int], None] | None) -> None:
    # In a function of its own, so that its last batch is let go before the first partition is read.
    for frame in reader.frames():
        if not frame.is_empty():
            spill.add(frame.with_columns(coder.encode(frame["item"])))
        if progress:
            progress(reader.rows)


def _group(frame: pl.DataFrame) -> Events:
    """Rows in input order -> sessions, events by time, equal times in input order."""
    frame = frame.sort("session", "time", maintain_order=True)
    session = frame["session"]
    begins = np.flatnonzero((session != session.shift(1)).fill_null(True).to_numpy())
    return Events(
        session_ids=numpy_ids(session.gather(begins)),
        first_rows=np.minimum.reduceat(frame["row"].to_numpy(), begins),
        lengths=np.diff(begins, append=frame.height),
        items=frame["item"].to_numpy(),
        times=frame["time"].to_numpy(),
    )


class _ItemCoder:
    """Numbers items in order of appearance, after those of a vocabulary; `known` has a row "item" for each "code"."""

    def __init__(self, vocabulary: Vocabulary | None, kind: str) -> None:
        ids, dtype = ([], pl.Int64) if vocabulary is None else (vocabulary.ids.tolist(), None)
        # Integers become strings where some id of the log is no integer.
        self.known = _numbered(pl.Series("item", ids, dtype).cast(pl.String if kind == "str" else pl.Int64))

    def encode(self, items: pl.Series) -> pl.Series:
        unique = items.unique(maintain_order=True).to_frame("item")
        new = unique.join(self.known, on="item", how="anti", maintain_order="left")["item"]
        if len(new):
            self.known = _numbered(pl.concat([self.known["item"], new]))
        codes = items.to_frame("item").join(self.known, on="item", how="left", maintain_order="left")["code"]
        return codes.alias("item")


def _numbered(ids: pl.Series) -> pl.DataFrame:
    return pl.DataFrame({"item": ids, "code": pl.int_range(len(ids), dtype=pl.Int32, eager=True)})


class _Spill:
    """Rows by partition: the first frame in memory; once there is a second, all of them in files."""

    def __init__(self, folder: Path) -> None:
        self.n_frames = 0
        self._folder = folder
        self._first: pl.DataFrame | None = None

    def add(self, frame: pl.DataFrame) -> None:
        if self.n_frames == 0:
            self._first = frame
        else:
            if self._first is not None:
                self._folder.mkdir()
                self._write(self._first, 0)
                self._first = None
            self._write(frame, self.n_frames)
        self.n_frames += 1

    def _write(self, frame: pl.DataFrame, number: int) -> None:
        frame = frame.with_columns(partition=frame["session"].hash(seed=0) % PARTITIONS)
        pieces = frame.partition_by("partition", as_dict=True, include_key=False, maintain_order=True)
        for (key,), piece in pieces.items():
            # Written by Python, whose errors carry their errno: a full disk is told from a broken one.
            (self._folder / f"{key}-{number}.arrow").write_bytes(piece.write_ipc(None).getbuffer())

    def discard(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def partitions(self) -> Iterator[pl.DataFrame]:
        """Every partition's rows in input order; its files are removed as they are read."""
        if self._first is not None:
            yield self._first
            return
        for partition in range(PARTITIONS):
            paths = [self._folder / f"{partition}-{number}.arrow" for number in range(self.n_frames)]
            paths = [path for path in paths if path.exists()]
            if paths:
                frame = pl.concat([pl.read_ipc(path) for path in paths])
                for path in paths:
                    path.unlink()
                yield frame
