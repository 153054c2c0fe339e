"""Recommend the next items of live sessions, which receive one event (item) at a time."""

from __future__ import annotations

import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from gru4rec_fast.data import Vocabulary
from gru4rec_fast.evaluation.network import NextItemNetwork, evaluating
from gru4rec_fast.models.id_encoder import Unknown
from gru4rec_fast.models.recommendations import (
    Candidates,
    ItemLists,
    QueryBatch,
    Recommendations,
    item_encoder,
    search_top_k,
)

logger = logging.getLogger("gru4rec_fast")

EvictionCause: TypeAlias = Literal["capacity", "age", "bytes"]

_EVENTS_PER_CALL = 4096  # events of different sessions per call of the network
_MIN_ROWS = 16  # rows of the state tensors
# Bytes of the Python objects of a session (_LiveSession, its id, entries of two dicts), and of an item's int in `seen`.
_SESSION_BYTES, _ITEM_BYTES = 450, 32


class _LiveSession:
    """A live session.

    row: row of the session in the state tensors.
    seen: items of the session in the order of their first occurrence; a dict without values is an ordered set.
    """

    __slots__ = ("row", "seen")

    def __init__(self, row: int, seen: dict[int, None]) -> None:
        self.row, self.seen = row, seen

    def seen_bytes(self) -> int:
        """Return the memory of `seen`."""
        return sys.getsizeof(self.seen) + _ITEM_BYTES * len(self.seen)


class SessionRecommender:
    """Recommends items for live sessions: stores the hidden state of each session and updates it with every event.

    The recommendations equal those of `gru4rec_fast.models.recommend` for the events so far. Each session has one row
    in state tensors, which grow and shrink with the number of live sessions (the number of unused rows is at most 16
    plus a third of the number of live sessions). A session that is too old is evicted, and the least recently used one
    if a limit is reached. An evicted session that continues starts from an empty state. Evictions are counted, and the
    first that makes room for another session is logged. The class is not thread-safe. States depend on the weights, so
    make a new recommender after further training.

    Args:
        network: see `NextItemNetwork`; calls do not change its mode (train or eval).
        vocabulary: the ids of the network's items.
        capacity: maximum number of live sessions.
        max_age: seconds after a session's last event, after which it is evicted at the next call; None: no limit.
        max_bytes: maximum of `n_bytes`, the memory of the live sessions; None: no limit. The session that got the last
            event is not evicted, even if it needs more.
        unknown: "error" raises an error for an id outside the vocabulary; "skip" ignores the event.
        clock: returns the time in seconds, which must not decrease; for tests.
        impl: "auto", "native" or "reference", for the top-k search.

    Attributes:
        evictions: number of evicted sessions by cause, {"capacity", "age", "bytes"}.

    Raises:
        ValueError: a limit is not positive, or network and vocabulary have different numbers of items.
    """

    def __init__(
        self,
        network: NextItemNetwork,
        vocabulary: Vocabulary,
        capacity: int = 10_000,
        *,
        max_age: float | None = None,
        max_bytes: int | None = None,
        unknown: Unknown = "error",
        clock: Callable[[], float] = time.monotonic,
        impl: str = "auto",
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}: must be at least 1")
        for name, limit in (("max_age", max_age), ("max_bytes", max_bytes)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name}={limit}: must be positive, or None for no limit")
        self.encoder = item_encoder(network, vocabulary, unknown)
        self.network, self.impl = network, impl
        self.capacity, self.max_age, self.max_bytes = capacity, max_age, max_bytes
        self.evictions: dict[EvictionCause, int] = {"capacity": 0, "age": 0, "bytes": 0}
        self._clock = clock
        # Within torch.inference_mode too, states must be tensors that can be updated outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._initial = network.initial_state(1)
        self._row_bytes = sum(state.nbytes for state in self._initial) + _SESSION_BYTES
        self._set_sessions([], [], [state[:0] for state in self._initial])

    @property
    def n_evicted(self) -> int:
        """Number of evicted sessions, whatever the cause."""
        return sum(self.evictions.values())

    @property
    def n_bytes(self) -> int:
        """Memory of the live sessions in bytes: rows of states, items for `exclude_seen`, and Python objects."""
        return len(self._live) * self._row_bytes + self._seen_bytes

    def __len__(self) -> int:
        self._evict_old()
        return len(self._live)

    def __contains__(self, session_id: Hashable) -> bool:
        self._evict_old()
        return session_id in self._live

    def observe(self, session_id: Hashable, item_id: int | str) -> None:
        """Add an event to a session; if the session is not live, start it. Raises the errors of `observe_many`."""
        self.observe_many([session_id], [item_id])

    def observe_many(self, session_ids: Iterable[Hashable], item_ids: Iterable[int | str]) -> None:
        """Add events in the given order; a session may occur several times.

        Raises:
            ValueError: an id is unknown and unknown="error", or the lists differ in length. No event is added then.
        """
        sessions, ids = list(session_ids), list(item_ids)
        if len(sessions) != len(ids):
            raise ValueError(f"{len(sessions)} session_ids, but {len(ids)} item_ids")
        items = self.encoder.encode(ids, sessions).tolist()
        self._evict_old()
        now = self._clock()
        # Events that the network has not processed yet, for each call of the network. A call has at most one event of a
        # session; the next event of the session is in the next call.
        calls: list[list[tuple[_LiveSession, int]]] = []
        n_pending: dict[Hashable, int] = {}  # number of events of each session in `calls`

        def evict_oldest(cause: EvictionCause) -> None:
            nonlocal calls, n_pending
            oldest = next(iter(self._live))
            if oldest in n_pending:  # its row may be used for another session
                self._process(calls)
                calls, n_pending = [], {}
            self._evict(oldest, cause)

        for session_id, item in zip(sessions, items, strict=True):
            if item < 0:
                continue
            if session_id not in self._live and len(self._live) == self.capacity:
                evict_oldest("capacity")
            session = self._get_or_start(session_id)
            self._last_event[session_id] = now
            self._last_event.move_to_end(session_id)
            if item not in session.seen:
                self._seen_bytes -= session.seen_bytes()
                session.seen[item] = None
                self._seen_bytes += session.seen_bytes()
            while self.max_bytes is not None and self.n_bytes > self.max_bytes and len(self._live) > 1:
                evict_oldest("bytes")
            call = n_pending.get(session_id, 0)
            if call < len(calls) and len(calls[call]) == _EVENTS_PER_CALL:
                self._process(calls)
                calls, n_pending, call = [], {}, 0
            if call == len(calls):
                calls.append([])
            calls[call].append((session, item))
            n_pending[session_id] = call + 1
        self._process(calls)

    def recommend(
        self,
        session_ids: Iterable[Hashable],
        k: int = 20,
        *,
        exclude_seen: bool = False,
        exclude: ItemLists | None = None,
        candidates: Candidates | None = None,
    ) -> Recommendations:
        """Return the k items most likely to come next in each of these live sessions.

        Args:
            session_ids: sessions that have at least one event.
            k, exclude_seen, exclude, candidates: as in `gru4rec_fast.models.recommend`.

        Raises:
            ValueError: a session is not live, k is out of range, or an id in `exclude` or `candidates` is unknown.
        """
        sessions = list(session_ids)
        self._evict_old()
        for session_id in sessions:
            if session_id not in self._live:
                raise ValueError(f"session {session_id!r} is not live: it has no event yet, was ended, or was evicted")
        live = [self._get_or_start(session_id) for session_id in sessions]
        hidden = self._states[-1][torch.tensor([session.row for session in live], dtype=torch.int64)]
        seen = [np.fromiter(session.seen, np.int64) for session in live] if exclude_seen else None
        batch = QueryBatch(hidden, seen)
        weight, bias, rows = self.network.output_weight, self.network.output_bias, np.arange(len(sessions))
        lists: dict[str, Any] = {"exclude": exclude, "candidates": candidates}
        return search_top_k(lambda _: batch, [rows], len(rows), k, weight, bias, self.encoder, **lists, impl=self.impl)

    def end(self, session_id: Hashable) -> bool:
        """End a session and free its row; return False if it was not live."""
        session = self._live.pop(session_id, None)
        if session is not None:
            del self._last_event[session_id]
            self._seen_bytes -= session.seen_bytes()
            self._free.append(session.row)
            if len(self._free) > len(self._live) // 3 + _MIN_ROWS:
                self._resize()
        return session is not None

    def state_dict(self) -> dict[str, Any]:
        """Return the live sessions, least recently used first, and the number of evictions.

        session_ids: list of ids. states: for each layer, hidden states [n_sessions, H]. seen: item indices per session.
        ages: seconds since the last event of each session. evictions: see the class.
        """
        self._evict_old()
        rows, now = [session.row for session in self._live.values()], self._clock()
        return {
            "session_ids": list(self._live),
            "states": [state[torch.tensor(rows, dtype=torch.int64)] for state in self._states],
            "seen": [list(session.seen) for session in self._live.values()],
            "ages": [now - self._last_event[session_id] for session_id in self._live],
            "evictions": dict(self.evictions),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the live sessions by those in the `state_dict` of a recommender with equal network and vocabulary.

        A session has the age that it had when it was saved. In a state dict of version 0.1, which has no ages, the
        age of all sessions is 0. Sessions beyond `max_age` or `max_bytes` are evicted.

        Raises:
            ValueError: there are more sessions than `capacity`, or the states do not fit the network.
        """
        n = len(state["session_ids"])
        if n > self.capacity:
            raise ValueError(f"{n} sessions were saved, but capacity={self.capacity}: increase the capacity")
        shapes, needed = [[*s.shape] for s in state["states"]], [[n, *s.shape[1:]] for s in self._states]
        if shapes != needed:
            raise ValueError(f"the saved states have shapes {shapes}, this network needs {needed}")
        evictions = state.get("evictions") or {"capacity": state["n_evicted"], "age": 0, "bytes": 0}
        self.evictions = dict(evictions)
        self._set_sessions(state["session_ids"], state["seen"], state["states"], state.get("ages"))
        self._evict_old()
        while self.max_bytes is not None and self.n_bytes > self.max_bytes and len(self._live) > 1:
            self._evict(next(iter(self._live)), "bytes")

    def _set_sessions(
        self,
        session_ids: list[Hashable],
        seen: list[list[int]],
        states: list[torch.Tensor],
        ages: list[float] | None = None,
    ) -> None:
        """Replace all live sessions. Session i has the hidden states states[layer][i]."""
        self._live: OrderedDict[Hashable, _LiveSession] = OrderedDict()  # least recently used first
        for row, (session_id, items) in enumerate(zip(session_ids, seen, strict=True)):
            self._live[session_id] = _LiveSession(row, dict.fromkeys(items))
        self._seen_bytes = sum(session.seen_bytes() for session in self._live.values())
        now = self._clock()
        last_events = [now - age for age in ages or [0.0] * len(session_ids)]
        by_time = sorted(zip(last_events, range(len(session_ids)), strict=True))
        # Time of the last event of each session, earliest first. The order can differ from that of `_live`, because
        # `recommend` uses a session without adding an event.
        self._last_event = OrderedDict((session_ids[row], seconds) for seconds, row in by_time)
        with torch.inference_mode(False), torch.no_grad():
            self._states = [saved.to(own, copy=True) for own, saved in zip(self._initial, states, strict=True)]
        self._free: list[int] = []  # free rows of the state tensors; the last one is used first

    def _get_or_start(self, session_id: Hashable) -> _LiveSession:
        """Return a session and mark it as most recently used. If it is not live, start it."""
        if session_id in self._live:
            self._live.move_to_end(session_id)
            return self._live[session_id]
        if not self._free:
            self._resize()
        session = self._live[session_id] = _LiveSession(self._free.pop(), {})
        self._seen_bytes += session.seen_bytes()
        for state, initial in zip(self._states, self._initial, strict=True):
            state[session.row] = initial[0]
        return session

    def _evict_old(self) -> None:
        """Evict the sessions whose last event is more than `max_age` seconds ago."""
        if self.max_age is None:
            return
        earliest = self._clock() - self.max_age
        while self._last_event and next(iter(self._last_event.values())) < earliest:
            self._evict(next(iter(self._last_event)), "age")

    def _evict(self, session_id: Hashable, cause: EvictionCause) -> None:
        """End a session without pending events and count it."""
        self.end(session_id)
        if cause != "age" and self.evictions["capacity"] + self.evictions["bytes"] == 0:
            limit = f"capacity={self.capacity}" if cause == "capacity" else f"max_bytes={self.max_bytes}"
            logger.warning(
                "SessionRecommender: %s is reached with %d live sessions; from now on the least recently used sessions "
                "are evicted (counted in evictions; a larger limit keeps more)",
                limit,
                len(self._live) + 1,
            )
        self.evictions[cause] += 1

    def _resize(self) -> None:
        """Copy the states to the first rows of new tensors with an eighth more rows (at least 16, at most capacity)."""
        sessions = [*self._live.values()]
        n_rows = min(max(len(sessions) + 1, len(sessions) * 9 // 8, _MIN_ROWS), self.capacity)
        rows = torch.tensor([session.row for session in sessions], dtype=torch.int64)
        with torch.inference_mode(False), torch.no_grad():
            for layer, state in enumerate(self._states):
                self._states[layer] = state.new_empty(n_rows, *state.shape[1:])
                self._states[layer][: len(sessions)] = state[rows]
        for row, session in enumerate(sessions):
            session.row = row
        self._free = list(range(n_rows - 1, len(sessions) - 1, -1))

    def _process(self, calls: list[list[tuple[_LiveSession, int]]]) -> None:
        """Call the network once for each list of events, one event per session, and store the new states."""
        with evaluating(self.network):
            for events in calls:
                rows = torch.tensor([session.row for session, _ in events])
                inputs = torch.tensor([[item for _, item in events]], device=self._states[0].device)
                _, states = self.network(inputs, [state[rows] for state in self._states])
                for stored, new in zip(self._states, states, strict=True):
                    stored[rows] = new.to(stored.dtype)
