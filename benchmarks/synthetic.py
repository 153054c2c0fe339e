"""Write synthetic session logs of any length, chunk by chunk, so that they need not fit in memory.

Items follow Zipf's law; sessions have four events on average.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from gru4rec_fast.data import SessionStore, Vocabulary
from gru4rec_fast.data.array_folder import replace_data_folder, write_npy
from gru4rec_fast.data.sessions.store import FORMAT

CHUNK_EVENTS = 1_000_000
MEAN_LENGTH = 4  # events per session
ZIPF_EXPONENT = 0.9


@dataclass(frozen=True)
class Chunk:
    """Consecutive whole sessions of a log.

    first_session: index of the first session. lengths: int64 [n_sessions]. items: int32 [n_events].
    """

    first_session: int
    lengths: np.ndarray
    items: np.ndarray


def synthetic_chunks(n_events: int, n_items: int, seed: int) -> Iterator[Chunk]:
    """Yield chunks of sessions with `n_events` events in total.

    A session has at least two events; its length follows a shifted geometric distribution.
    """
    rng = np.random.default_rng(seed)
    cumulative = np.cumsum(np.arange(1, n_items + 1) ** -ZIPF_EXPONENT)
    first_session = 0
    while n_events > 0:
        size = n_events if n_events < CHUNK_EVENTS + 2 else CHUNK_EVENTS  # no chunk of a single event is left over
        lengths = 1 + rng.geometric(1 / (MEAN_LENGTH - 1), size=size // 2 + 1)
        ends = np.cumsum(lengths)
        lengths = lengths[: np.searchsorted(ends, size) + 1]
        lengths[-1] -= lengths.sum() - size  # cut the last session, so that the chunk has exactly `size` events
        if lengths[-1] == 1 and len(lengths) > 1:  # a session of one event is too short: add it to the previous one
            lengths = np.append(lengths[:-2], lengths[-2] + 1)
        draws = rng.random(size) * cumulative[-1]
        yield Chunk(first_session, lengths, np.searchsorted(cumulative, draws).astype(np.int32))
        first_session += len(lengths)
        n_events -= size


def synthetic_log(path: str | Path, n_events: int, n_items: int, seed: int = 0) -> None:
    """Write a tab-separated log with the columns SessionId, ItemId and Time (Unix seconds).

    The rows are sorted by session. Sessions overlap in time: events of a session are 30 s apart.
    """
    import polars as pl

    rng = np.random.default_rng([seed, 1])
    with open(path, "wb") as file:
        file.write(b"SessionId\tItemId\tTime\n")
        for chunk in synthetic_chunks(n_events, n_items, seed):
            first = chunk.first_session
            sessions = np.repeat(np.arange(first, first + len(chunk.lengths)), chunk.lengths)
            position = np.arange(len(sessions)) - np.repeat(np.cumsum(chunk.lengths) - chunk.lengths, chunk.lengths)
            start_times = 1_400_000_000 + rng.permutation(len(chunk.lengths)) + first
            times = np.repeat(start_times, chunk.lengths) + 30 * position
            frame = pl.DataFrame({"session": sessions, "item": chunk.items, "time": times})
            frame.write_csv(file, include_header=False, separator="\t")


def synthetic_store(path: str | Path, n_events: int, n_items: int, seed: int = 0) -> SessionStore:
    """Write a `SessionStore` of exactly `n_events` events to a folder, chunk by chunk, and open it."""
    support = np.zeros(n_items, np.int64)
    with replace_data_folder(path, FORMAT) as partial, TemporaryDirectory(dir=partial.parent) as scratch:
        offsets, sessions = _GrowingArray(Path(scratch, "offsets")), _GrowingArray(Path(scratch, "sessions"))
        offsets.append(np.zeros(1, np.int64))

        def items() -> Iterator[np.ndarray]:
            n_written = 0
            for chunk in synthetic_chunks(n_events, n_items, seed):
                offsets.append(n_written + np.cumsum(chunk.lengths))
                sessions.append(np.arange(chunk.first_session, chunk.first_session + len(chunk.lengths)))
                support[:] += np.bincount(chunk.items, minlength=n_items)
                n_written += len(chunk.items)
                yield chunk.items

        write_npy(partial / "items.npy", items(), np.int32, n_events)
        session_indices = sessions.mapped()
        SessionStore(
            items=np.load(partial / "items.npy", mmap_mode="r"),
            offsets=offsets.mapped(),
            start_times=session_indices,
            end_times=session_indices,
            support=support,
            vocabulary=Vocabulary(np.arange(n_items)),
            session_ids=session_indices,
            meta={"synthetic": {"n_events": n_events, "n_items": n_items, "seed": seed}},
        ).write_all_but_items(partial)
    return SessionStore.open(path)


class _GrowingArray:
    """Collects an int64 array of unknown length in a file: `append` values, then call `mapped` once."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("wb")

    def append(self, values: np.ndarray) -> None:
        """Write the values at the end of the file."""
        self._file.write(values.astype(np.int64).tobytes())

    def mapped(self) -> np.ndarray:
        """Close the file and return the memory-mapped array."""
        self._file.close()
        return np.memmap(self._path, np.int64, "r")
