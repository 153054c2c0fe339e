"""A cache with a limit in bytes, for read-only data that many requests share, such as pools of candidates."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from gru4rec_fast._untrusted import check_numbers

logger = logging.getLogger("gru4rec_fast")
T = TypeVar("T")


def size_in_bytes(value: Any) -> int:
    """Return the bytes of memory that a value keeps in use. A view counts as the whole array or tensor.

    The size of a tuple, list or dict is the sum of its values' sizes. For a `CandidatePool` or another object it is the
    attribute `nbytes`. Numbers, None, strings and bytes have a size, too.

    Raises:
        TypeError: an object without `nbytes`; give the cache a `size_of=`.
    """
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, np.ndarray):
        while isinstance(value.base, np.ndarray):
            value = value.base
        return value.nbytes
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return sum(map(size_in_bytes, value))
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if value is None or isinstance(value, int | float):
        return 8
    if isinstance(value, str | bytes):
        return value.__sizeof__()
    raise TypeError(
        f"the size of a {type(value).__name__} is unknown: give the cache size_of=, which returns its bytes"
    )


def _read_only(value: Any) -> Any:
    """Return a value with read-only views of its arrays; copy tuples, named tuples, lists and dicts, no subclasses."""
    if isinstance(value, np.ndarray):
        view = value.view()
        view.flags.writeable = False
        return view
    if type(value) in (tuple, list):
        return type(value)(map(_read_only, value))
    if type(value) is dict:
        return {key: _read_only(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_make"):  # a named tuple
        return type(value)._make(map(_read_only, value))
    return value


class CacheStatistics(NamedTuple):
    """What a `ByteLimitedCache` holds, and the counts since it was made.

    entries, bytes: number of values and their size.
    hits, misses: lookups that found a value or not. Threads that waited for the computation of another are hits.
    evictions: values removed because of `max_bytes`. expired: values removed because of `time_to_live`.
    too_large: values that were not stored, because each alone is larger than `max_bytes`.
    """

    entries: int
    bytes: int
    hits: int
    misses: int
    evictions: int
    expired: int
    too_large: int


class _Entry(NamedTuple):
    value: Any
    size: int
    expires_at: float | None


class ByteLimitedCache:
    """Stores values by key up to a limit in bytes; a value that does not fit evicts the least recently used ones.

        cache = ByteLimitedCache(256 << 20, time_to_live=60)
        pool = cache.get_or_compute("recent", lambda: CandidatePool(model.vocabulary, recent_items()))
        model.recommend(sessions, candidates=pool)

    Values are shared by all requests, so NumPy arrays (also in tuples, lists and dicts) are stored as read-only views.
    Tensors and other objects cannot be protected; do not change them. All methods can be called from several threads.

    A value larger than `max_bytes` is not stored: `get_or_compute` returns it, and the next call computes it again. The
    first such value is logged, all are counted in `statistics()`.

    Args:
        max_bytes: maximum of the values' sizes, together. Keys and bookkeeping, about 300 bytes per value, are not
            counted.
        time_to_live: seconds from `put` until a value expires; None: values do not expire. An expired value is never
            returned. It is removed when its key is looked up or room is needed.
        size_of: returns the size of a value in bytes; see `size_in_bytes` for the default.
        clock: returns the time in seconds, which must not decrease; for tests.

    Raises:
        ValueError, TypeError: a limit is not positive, or not a number.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        time_to_live: float | None = None,
        size_of: Callable[[Any], int] = size_in_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_numbers(max_bytes=max_bytes, time_to_live=time_to_live)
        for name, limit in (("max_bytes", max_bytes), ("time_to_live", time_to_live)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name}={limit}: must be positive")
        self.max_bytes, self.time_to_live = max_bytes, time_to_live
        self._size_of, self._clock = size_of, clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()  # least recently used first
        # Values that a thread is computing, each with the thread's number.
        self._pending: dict[Hashable, tuple[Future[Any], int]] = {}
        self._bytes = 0
        self._counts = dict.fromkeys(("hits", "misses", "evictions", "expired", "too_large"), 0)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, default: Any = None) -> Any:
        """Return the value of a key; `default` if there is none, or it has expired."""
        with self._lock:
            entry = self._find(key)
            return default if entry is None else entry.value

    def put(self, key: Hashable, value: T) -> T:
        """Store a value and return it as it is stored, with read-only arrays. Raises the errors of `size_in_bytes`."""
        value = _read_only(value)
        size = self._size_of(value)
        with self._lock:
            self._remove(key)
            if size > self.max_bytes:
                self._counts["too_large"] += 1
                if self._counts["too_large"] == 1:
                    logger.warning(
                        "ByteLimitedCache: the value of %r has %d bytes and is not stored, because max_bytes=%d "
                        "(further ones are counted in statistics())",
                        key,
                        size,
                        self.max_bytes,
                    )
                return value
            now = self._clock()
            self._make_room(size, now)
            expires_at = None if self.time_to_live is None else now + self.time_to_live
            self._entries[key] = _Entry(value, size, expires_at)
            self._bytes += size
        return value

    def get_or_compute(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the value of a key; if there is none, return and store the result of `compute()`.

        If several threads need the same key, one computes and the others wait. An error of `compute` is raised in all
        of them, and the next call computes again.

        Raises:
            RuntimeError: `compute` itself asks for this key.
        """
        with self._lock:
            pending = self._pending.get(key)
            if pending is None:
                entry = self._find(key)
                if entry is not None:
                    return entry.value
                future: Future[Any] = Future()
                self._pending[key] = future, threading.get_ident()
            else:
                self._counts["hits"] += 1
        if pending is not None:
            if pending[1] == threading.get_ident():
                raise RuntimeError(f"the computation of {key!r} asks the cache for {key!r}")
            return pending[0].result()
        try:
            value = self.put(key, compute())
            future.set_result(value)
            return value
        except BaseException as error:
            future.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._pending[key]

    def remove(self, key: Hashable) -> bool:
        """Remove a value; return False if there is none."""
        with self._lock:
            return self._remove(key)

    def statistics(self) -> CacheStatistics:
        """Return the number and size of the values, and the counts since the cache was made."""
        with self._lock:
            return CacheStatistics(len(self._entries), self._bytes, **self._counts)

    def _find(self, key: Hashable) -> _Entry | None:
        """Return the entry of a key unless it has expired; count the lookup. The lock is held."""
        entry = self._entries.get(key)
        if entry is not None and entry.expires_at is not None and self._clock() >= entry.expires_at:
            self._remove(key)
            self._counts["expired"] += 1
            entry = None
        self._counts["misses" if entry is None else "hits"] += 1
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def _make_room(self, size: int, now: float) -> None:
        """Remove expired values, then the least recently used ones, until `size` bytes fit. The lock is held."""
        if self._bytes + size <= self.max_bytes:
            return
        expired = [
            key for key, entry in self._entries.items() if entry.expires_at is not None and now >= entry.expires_at
        ]
        for key in expired:
            self._remove(key)
        self._counts["expired"] += len(expired)
        while self._bytes + size > self.max_bytes:
            self._remove(next(iter(self._entries)))
            self._counts["evictions"] += 1

    def _remove(self, key: Hashable) -> bool:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size
        return entry is not None
