"""From grouped sessions, partition by partition, to one store in order of time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gru4rec_fast.data.array_folder import write_npy
from gru4rec_fast.data.sessions.events import EventLog
from gru4rec_fast.data.vocabulary import Vocabulary

BLOCK_EVENTS = 1_000_000  # events put in order at a time


class ItemIndex:
    """Final indices of a log's item codes, in order of first appearance unless a vocabulary fixes them.

    Args:
        item_ids: id of each item code.
        vocabulary: of the training data, whose items are the first item codes.
    """

    def __init__(self, item_ids: np.ndarray, vocabulary: Vocabulary | None = None) -> None:
        self._item_ids = item_ids
        self._vocabulary = vocabulary
        self._codes = np.arange(0 if vocabulary is None else len(vocabulary))  # code of each index
        self._index = np.full(len(item_ids), -1, np.int32)
        self._index[self._codes] = self._codes

    def known(self) -> np.ndarray:
        """bool [n item codes]: the item has an index."""
        return self._index >= 0

    def of_codes(self, codes: np.ndarray) -> np.ndarray:
        """int32 indices; an item met for the first time gets the next one."""
        new = codes[self._index[codes] < 0]
        if new.size:
            unique, first = np.unique(new, return_index=True)
            unique = unique[np.argsort(first)]
            self._index[unique] = np.arange(len(self._codes), len(self._codes) + len(unique))
            self._codes = np.concatenate([self._codes, unique])
        return self._index[codes]

    def vocabulary(self) -> Vocabulary:
        """Item ids in index order."""
        return Vocabulary(self._item_ids[self._codes]) if self._vocabulary is None else self._vocabulary


def assemble(log: EventLog, index: ItemIndex, folder: Path | None) -> dict[str, Any]:
    """What a `SessionStore` of the log is made of, by argument; sessions stand in order of their first event's time.

    Ties stand in input order. Per-session arrays are held in memory, events only block by block.

    Args:
        log: without empty sessions; temporary files go into its folder.
        index: gives the items their indices, and learns new ones.
        folder: existing folder to write items.npy into; None keeps the items in memory.
    """
    columns: list[_Column] = []
    names = ("starts", "first_rows", "lengths", "ends", "session_ids", "column_of")
    fields: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for number, part in enumerate(log):
        events = part.in_start_order()
        columns.append(_Column(events.items, log.folder / f"items-{number}" if log.folder else None))
        for name in names[:-1]:
            fields[name].append(getattr(events, name))
        fields["column_of"].append(np.full(len(events.lengths), number, np.int16))

    def joined(name: str) -> np.ndarray:
        return np.concatenate(fields.pop(name))  # popped: the pieces are let go as soon as they are joined

    starts = joined("starts")
    order = np.lexsort((joined("first_rows"), starts))
    start_times = starts[order]
    del starts
    offsets = np.concatenate([[0], np.cumsum(joined("lengths")[order])])
    column_of = joined("column_of")[order]
    support = np.zeros(len(log.item_ids), np.int64)

    def blocks() -> Iterator[np.ndarray]:
        for codes in _merged(columns, column_of, offsets):
            indices = index.of_codes(codes)
            support[:] += np.bincount(indices, minlength=len(support))
            yield indices

    if folder is None:
        items = np.concatenate(list(blocks()))
    else:
        write_npy(folder / "items.npy", blocks(), np.int32, int(offsets[-1]))
        items = np.load(folder / "items.npy", mmap_mode="r")
    vocabulary = index.vocabulary()
    return {
        "items": items,
        "offsets": offsets,
        "start_times": start_times,
        "end_times": joined("ends")[order],
        "support": support[: len(vocabulary)],
        "vocabulary": vocabulary,
        "session_ids": joined("session_ids")[order],
        "meta": {"ids": log.id_facts, "dropped": dict(log.dropped)},
    }


class _Column:
    """One part's items, read front to back: in memory, or in a file that takes their place."""

    def __init__(self, items: np.ndarray, path: Path | None) -> None:
        self._source = items if path is None else path
        self._dtype, self._position = items.dtype, 0
        if path is not None:
            path.write_bytes(np.ascontiguousarray(items).data)

    def take(self, count: int) -> np.ndarray:
        """The next `count` items."""
        start, self._position = self._position, self._position + count
        if isinstance(self._source, np.ndarray):
            return self._source[start : self._position]
        # Not memory-mapped: pages of an open map count as memory held.
        return np.fromfile(self._source, self._dtype, count, offset=start * self._dtype.itemsize)


def _merged(columns: list[_Column], column_of: np.ndarray, offsets: np.ndarray) -> Iterator[np.ndarray]:
    """Items of all sessions in order, in blocks; session s is the next one not yet taken of column `column_of[s]`."""
    first = 0
    while first < len(column_of):
        # As many sessions as fit the block, at least one.
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + BLOCK_EVENTS, side="right")) - 1)
        by_column = np.argsort(column_of[first:last], kind="stable")
        lengths = np.diff(offsets[first : last + 1])
        per_column = np.bincount(column_of[first:last], weights=lengths, minlength=len(columns)).astype(np.int64)
        pool = np.concatenate([column.take(count) for column, count in zip(columns, per_column, strict=True) if count])
        begins = np.empty(last - first, np.int64)  # of each session within the pool
        begins[by_column] = np.cumsum(lengths[by_column]) - lengths[by_column]
        into = offsets[first:last] - offsets[first]
        yield pool[np.repeat(begins - into, lengths) + np.arange(len(pool))]
        first = last
