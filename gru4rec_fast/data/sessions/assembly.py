"""Merge the partitions of an `EventLog` into the arrays of one `SessionStore`, and assign the final item indices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gru4rec_fast.data.array_folder import write_npy
from gru4rec_fast.data.sessions.events import EventLog
from gru4rec_fast.data.vocabulary import Vocabulary

BLOCK_EVENTS = 1_000_000  # number of events that are merged at a time


class ItemRenumbering:
    """Assigns the final index of each item: in order of first appearance, or as in a given vocabulary.

    Args:
        item_ids: id of each item code (the preliminary numbers of items in an `EventLog`).
        vocabulary: vocabulary of the training data. The code of each of its items must be the item's index.
    """

    def __init__(self, item_ids: np.ndarray, vocabulary: Vocabulary | None = None) -> None:
        self._item_ids = item_ids
        self._vocabulary = vocabulary
        self._code_of_index = np.arange(0 if vocabulary is None else len(vocabulary))
        self._index_of_code = np.full(len(item_ids), -1, np.int32)
        self._index_of_code[self._code_of_index] = self._code_of_index

    def has_index(self) -> np.ndarray:
        """Return a mask, bool [n item codes], of the items that have an index."""
        return self._index_of_code >= 0

    def renumber(self, codes: np.ndarray) -> np.ndarray:
        """Return the indices of item codes, int32. Items without an index get the next indices."""
        new = codes[self._index_of_code[codes] < 0]
        if new.size:
            unique, first_positions = np.unique(new, return_index=True)
            unique = unique[np.argsort(first_positions)]  # in order of first appearance
            n_indices = len(self._code_of_index)
            self._index_of_code[unique] = np.arange(n_indices, n_indices + len(unique))
            self._code_of_index = np.concatenate([self._code_of_index, unique])
        return self._index_of_code[codes]

    def vocabulary(self) -> Vocabulary:
        """Return the item ids in the order of their indices."""
        return Vocabulary(self._item_ids[self._code_of_index]) if self._vocabulary is None else self._vocabulary


def merge_into_store_arrays(log: EventLog, renumbering: ItemRenumbering, folder: Path | None) -> dict[str, Any]:
    """Merge the partitions of a log, and return the constructor arguments of its `SessionStore`.

    Sessions are sorted by the time of their first event, then by their first input row. Arrays of one value per session
    are held in memory. Events are merged in blocks of `BLOCK_EVENTS`.

    Args:
        log: a log without empty sessions. Temporary files are written to its folder.
        renumbering: assigns the item indices.
        folder: existing folder to write items.npy into; None keeps the items in memory.
    """
    readers: list[_ItemReader] = []
    names = ("starts", "first_rows", "lengths", "ends", "session_ids", "partition")  # of `Events`, except the last
    fields: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for i, partition_events in enumerate(log):
        events = partition_events.sorted_by_start()
        readers.append(_ItemReader(events.items, log.folder / f"items-{i}" if log.folder else None))
        for name in names[:-1]:
            fields[name].append(getattr(events, name))
        fields["partition"].append(np.full(len(events.lengths), i, np.int16))

    def pop_concatenated(name: str) -> np.ndarray:
        return np.concatenate(fields.pop(name))  # pop frees the arrays of the partitions

    starts = pop_concatenated("starts")
    order = np.lexsort((pop_concatenated("first_rows"), starts))
    start_times = starts[order]
    del starts
    offsets = np.concatenate([[0], np.cumsum(pop_concatenated("lengths")[order])])
    partition = pop_concatenated("partition")[order]
    support = np.zeros(len(log.item_ids), np.int64)

    def renumbered_blocks() -> Iterator[np.ndarray]:
        for codes in _merge(readers, partition, offsets):
            indices = renumbering.renumber(codes)
            support[:] += np.bincount(indices, minlength=len(support))
            yield indices

    if folder is None:
        items = np.concatenate(list(renumbered_blocks()))
    else:
        write_npy(folder / "items.npy", renumbered_blocks(), np.int32, int(offsets[-1]))
        items = np.load(folder / "items.npy", mmap_mode="r")
    vocabulary = renumbering.vocabulary()
    return {
        "items": items,
        "offsets": offsets,
        "start_times": start_times,
        "end_times": pop_concatenated("ends")[order],
        "support": support[: len(vocabulary)],
        "vocabulary": vocabulary,
        "session_ids": pop_concatenated("session_ids")[order],
        "meta": {"ids": log.id_parsing, "dropped": dict(log.dropped), **log.notes},
    }


class _ItemReader:
    """Reads the items of one partition from front to back.

    With a path, the constructor writes the items to this file, so that they need no memory until they are read.
    """

    def __init__(self, items: np.ndarray, path: Path | None) -> None:
        self._source = items if path is None else path
        self._dtype, self._position = items.dtype, 0
        if path is not None:
            path.write_bytes(np.ascontiguousarray(items).data)

    def read(self, count: int) -> np.ndarray:
        """Return the next `count` items."""
        start, self._position = self._position, self._position + count
        if isinstance(self._source, np.ndarray):
            return self._source[start : self._position]
        # Read, not memory-mapped: pages of an open memory map count as resident memory of the process.
        return np.fromfile(self._source, self._dtype, count, offset=start * self._dtype.itemsize)


def _merge(readers: list[_ItemReader], partition: np.ndarray, offsets: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the items of all sessions in blocks. Session s is the next unread session of `readers[partition[s]]`."""
    first = 0
    while first < len(partition):
        # The block holds sessions first to end - 1: as many as fit, at least one.
        end = max(first + 1, int(np.searchsorted(offsets, offsets[first] + BLOCK_EVENTS, side="right")) - 1)
        order = np.argsort(partition[first:end], kind="stable")
        lengths = np.diff(offsets[first : end + 1])
        counts = np.bincount(partition[first:end], weights=lengths, minlength=len(readers)).astype(np.int64)
        items = np.concatenate([reader.read(count) for reader, count in zip(readers, counts, strict=True) if count])
        source = np.empty(end - first, np.int64)  # start of each session in `items`, which is in order of partitions
        source[order] = np.cumsum(lengths[order]) - lengths[order]
        target = offsets[first:end] - offsets[first]  # start of each session in the block
        yield items[np.repeat(source - target, lengths) + np.arange(len(items))]
        first = end
