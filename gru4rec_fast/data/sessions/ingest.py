"""From a stream of rows to grouped sessions, in memory for what is in hand and no more."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from gru4rec_fast.data.columns import ColumnReader, Kinds, Widened
from gru4rec_fast.data.events import EventLog, Events
from gru4rec_fast.data.ids import STRING
from gru4rec_fast.data.sources import BATCH_ROWS, Source, open_source
from gru4rec_fast.data.vocabulary import Vocabulary

PARTITIONS = 64  # of a log of more than one batch, by hash of the session id


def ingest(
    source: Any,
    keys: tuple[str, str, str],
    folder: Path,
    *,
    separator: str | None = None,
    vocabulary: Vocabulary | None = None,
    allow_pickle: bool = False,
    remove_duplicates: bool = False,
    dropped: dict[str, int],
    progress: Callable[[int], None] | None = None,
) -> EventLog:
    """Read a log and group it by session; arguments as those of `SessionStore.from_events`.

    A source of one batch stays in memory. A longer one is spread over partitions, files in `folder`, by a hash of the
    session id, and sorted partition by partition: one batch or one partition is held at a time, besides the item ids.

    Item codes are those of `vocabulary` first, then further items in order of appearance.

    Args:
        folder: existing folder for temporary files; the returned log lives there.
        remove_duplicates: keep only the first of the rows with the same session, item and time, and count the others
            in `dropped["duplicate_events"]`.
    """
    log_source = open_source(source, keys, separator=separator, allow_pickle=allow_pickle)
    kinds = Kinds(item="str" if vocabulary is not None and vocabulary.holds_strings else "int")
    reasons: dict[str, str] = {}
    while True:
        reader, coder, spill = ColumnReader(log_source, kinds), _ItemCoder(vocabulary, kinds), _Spill(folder / "rows")
        try:
            _read(log_source, reader, coder, spill, progress)
            break
        except Widened as wider:
            kinds = wider.kinds
            reasons |= wider.reasons
            spill.discard()
    facts = {
        which: {"kind": kind, "because": reasons.get(which), "stripped": reader.stripped[which]}
        for which, kind in (("session", kinds.session), ("item", kinds.item))
    }
    log = EventLog(coder.ids(), folder if spill.spilled else None, facts)
    for frame in spill.partitions():
        rows = frame.height
        if remove_duplicates:
            frame = frame.unique(["session", "item", "time"], keep="first", maintain_order=True)
            dropped["duplicate_events"] += rows - frame.height
        log.append(_group(frame))
    return log


def _read(
    source: Source, reader: ColumnReader, coder: _ItemCoder, spill: _Spill, progress: Callable[[int], None] | None
) -> None:
    for raw in source.frames(BATCH_ROWS):
        frame = reader.read(raw)
        if not frame.is_empty():
            spill.add(frame.with_columns(coder.encode(frame["item"])))
        if progress:
            progress(reader.rows)
    if spill.is_empty:
        raise ValueError(f"{source.name} holds no events")


def _group(frame: pl.DataFrame) -> Events:
    """Rows in input order -> sessions, events by time, equal times in input order."""
    frame = frame.sort("session", "time", maintain_order=True)
    session = frame["session"]
    begins = np.flatnonzero((session != session.shift(1)).fill_null(True).to_numpy())
    ids = session.gather(begins)
    return Events(
        session_ids=ids.to_numpy() if ids.dtype == pl.Int64 else np.array(ids.to_list(), STRING),
        first_rows=np.minimum.reduceat(frame["row"].to_numpy(), begins),
        lengths=np.diff(begins, append=frame.height),
        items=frame["item"].to_numpy(),
        times=frame["time"].to_numpy(),
    )


class _ItemCoder:
    """Numbers items in order of appearance, after those of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary | None, kinds: Kinds) -> None:
        known = pl.Series("item", [], pl.Int64)
        if vocabulary is not None:
            known = pl.Series("item", vocabulary.ids.tolist(), pl.String if vocabulary.holds_strings else pl.Int64)
        # Integers become strings where some id of the log is no integer.
        self._table = _numbered(known.cast(pl.String if kinds.item == "str" else pl.Int64))

    def encode(self, items: pl.Series) -> pl.Series:
        unique = items.unique(maintain_order=True).to_frame("item")
        new = unique.join(self._table, on="item", how="anti", maintain_order="left")["item"]
        if len(new):
            self._table = _numbered(pl.concat([self._table["item"], new]))
        codes = items.to_frame("item").join(self._table, on="item", how="left", maintain_order="left")["code"]
        return codes.alias("item")

    def ids(self) -> np.ndarray:
        ids = self._table["item"]
        return ids.to_numpy() if ids.dtype == pl.Int64 else np.array(ids.to_list(), STRING)


def _numbered(ids: pl.Series) -> pl.DataFrame:
    return pl.DataFrame({"item": ids, "code": pl.int_range(len(ids), dtype=pl.Int32, eager=True)})


class _Spill:
    """Rows by partition: the first frame in memory; once there is a second, all of them in files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._first: pl.DataFrame | None = None
        self._frames = 0

    @property
    def is_empty(self) -> bool:
        return self._frames == 0

    @property
    def spilled(self) -> bool:
        return self._frames > 1

    def add(self, frame: pl.DataFrame) -> None:
        if self._frames == 0:
            self._first = frame
        else:
            if self._first is not None:
                self._folder.mkdir()
                self._write(self._first, 0)
                self._first = None
            self._write(frame, self._frames)
        self._frames += 1

    def _write(self, frame: pl.DataFrame, number: int) -> None:
        partition = (frame["session"].hash(seed=0) % PARTITIONS).alias("partition")
        for (key,), piece in (
            frame.with_columns(partition)
            .partition_by("partition", as_dict=True, include_key=False, maintain_order=True)
            .items()
        ):
            # Written by Python, whose errors carry their errno: a full disk is told from a broken one.
            (self._folder / f"{key}-{number}.arrow").write_bytes(piece.write_ipc(None).getbuffer())

    def discard(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def partitions(self) -> Iterator[pl.DataFrame]:
        """Every partition's rows in input order; its files are removed as they are read."""
        if self._first is not None:
            yield self._first
        for partition in range(PARTITIONS if self.spilled else 0):
            paths = [self._folder / f"{partition}-{number}.arrow" for number in range(self._frames)]
            paths = [path for path in paths if path.exists()]
            if paths:
                frame = pl.concat([pl.read_ipc(path) for path in paths])
                for path in paths:
                    path.unlink()
                yield frame
