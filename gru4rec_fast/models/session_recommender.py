"""Recommend the next items of live sessions, which receive one event (item) at a time."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from gru4rec_fast.data import Vocabulary
from gru4rec_fast.evaluation.network import NextItemNetwork, evaluating
from gru4rec_fast.models.id_encoder import Unknown
from gru4rec_fast.models.recommendations import QueryBatch, Recommendations, item_encoder, search_top_k

logger = logging.getLogger("gru4rec_fast")

_EVENTS_PER_CALL = 4096  # events of different sessions per call of the network


class _LiveSession(NamedTuple):
    """A live session.

    row: row of the session in the state tensors.
    seen: items of the session in the order of their first occurrence; a dict without values is an ordered set.
    """

    row: int
    seen: dict[int, None]


class SessionRecommender:
    """Recommends items for live sessions: stores the hidden state of each session and updates it with every event.

    The recommendations equal those of `gru4rec_fast.models.recommend` for the events so far. Each session has one row
    in preallocated state tensors. When `capacity` sessions are live and another session begins, the least recently used
    session is evicted. Evictions are counted in `n_evicted`, and the first is logged. An evicted session that continues
    starts from an empty state. The class is not thread-safe. States depend on the weights, so make a new recommender
    after further training.

    Args:
        network: see `NextItemNetwork`; calls do not change its mode (train or eval).
        vocabulary: the ids of the network's items.
        capacity: maximum number of live sessions.
        unknown: "error" raises an error for an id outside the vocabulary; "skip" ignores the event.
        impl: "auto", "native" or "reference", for the top-k search.

    Raises:
        ValueError: `capacity` is less than 1, or network and vocabulary have different numbers of items.
    """

    def __init__(
        self,
        network: NextItemNetwork,
        vocabulary: Vocabulary,
        capacity: int = 10_000,
        *,
        unknown: Unknown = "error",
        impl: str = "auto",
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}: must be at least 1")
        self.encoder = item_encoder(network, vocabulary, unknown)
        self.network, self.impl = network, impl
        self.capacity = capacity
        self.n_evicted = 0
        # Within torch.inference_mode too, states must be tensors that can be updated outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._states, self._initial = network.initial_state(capacity), network.initial_state(1)
        self._live: OrderedDict[Hashable, _LiveSession] = OrderedDict()  # least recently used first
        self._free = list(range(capacity - 1, -1, -1))  # free rows; the lowest row is used first

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, session_id: Hashable) -> bool:
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
        # The pending events of a session are in successive calls of the network, with those of other sessions.
        calls: list[list[tuple[_LiveSession, int]]] = []
        n_pending: dict[Hashable, int] = {}  # number of pending events of each session
        for session_id, item in zip(sessions, items, strict=True):
            if item < 0:
                continue
            # Process the pending events before one of their sessions is evicted.
            evicted = next(iter(self._live)) if session_id not in self._live and not self._free else None
            call = n_pending.get(session_id, 0)
            if evicted in n_pending or (call < len(calls) and len(calls[call]) == _EVENTS_PER_CALL):
                self._process(calls)
                calls, n_pending, call = [], {}, 0
            if call == len(calls):
                calls.append([])
            calls[call].append((self._get_or_start(session_id), item))
            n_pending[session_id] = call + 1
        self._process(calls)

    def recommend(
        self,
        session_ids: Iterable[Hashable],
        k: int = 20,
        *,
        exclude_seen: bool = False,
        exclude: Iterable[int] | Iterable[str] | None = None,
    ) -> Recommendations:
        """Return the k items most likely to come next in each of these live sessions.

        Args:
            session_ids: sessions that have at least one event.
            k, exclude_seen, exclude: as in `gru4rec_fast.models.recommend`.

        Raises:
            ValueError: a session is not live, k is out of range, or an id in `exclude` is unknown.
        """
        sessions = list(session_ids)
        for session_id in sessions:
            if session_id not in self._live:
                raise ValueError(f"session {session_id!r} is not live: it has no event yet, was ended, or was evicted")
        live = [self._get_or_start(session_id) for session_id in sessions]
        hidden = self._states[-1][torch.tensor([session.row for session in live], dtype=torch.int64)]
        batch = QueryBatch(hidden, [np.array([*session.seen]) for session in live] if exclude_seen else None)
        weight, bias, rows = self.network.output_weight, self.network.output_bias, np.arange(len(sessions))
        return search_top_k(
            lambda _: batch, [rows], len(rows), k, weight, bias, self.encoder, exclude=exclude, impl=self.impl
        )

    def end(self, session_id: Hashable) -> bool:
        """End a session and free its row; return False if it was not live."""
        session = self._live.pop(session_id, None)
        if session is not None:
            self._free.append(session.row)
        return session is not None

    def state_dict(self) -> dict[str, Any]:
        """Return the live sessions, least recently used first, and `n_evicted`.

        session_ids: list of ids. states: for each layer, hidden states [n_sessions, H]. seen: item indices per session.
        """
        rows = [session.row for session in self._live.values()]
        return {
            "session_ids": list(self._live),
            "states": [state[torch.tensor(rows, dtype=torch.int64)] for state in self._states],
            "seen": [list(session.seen) for session in self._live.values()],
            "n_evicted": self.n_evicted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the live sessions by those in the `state_dict` of a recommender with equal network and vocabulary.

        Raises:
            ValueError: there are more sessions than `capacity`, or the states do not fit the network.
        """
        n = len(state["session_ids"])
        if n > self.capacity:
            raise ValueError(f"{n} sessions were saved, but capacity={self.capacity}: increase the capacity")
        shapes, needed = [[*s.shape] for s in state["states"]], [[n, *s.shape[1:]] for s in self._states]
        if shapes != needed:
            raise ValueError(f"the saved states have shapes {shapes}, this network needs {needed}")
        for own, saved in zip(self._states, state["states"], strict=True):
            own[:n] = saved.to(own)
        sessions = zip(state["session_ids"], state["seen"], strict=True)
        self._live = OrderedDict(
            (session_id, _LiveSession(row, dict.fromkeys(seen))) for row, (session_id, seen) in enumerate(sessions)
        )
        self._free = list(range(self.capacity - 1, n - 1, -1))
        self.n_evicted = state["n_evicted"]

    def _get_or_start(self, session_id: Hashable) -> _LiveSession:
        """Return a session and mark it as most recently used. If it is not live, start it; this may evict another."""
        if session_id in self._live:
            self._live.move_to_end(session_id)
            return self._live[session_id]
        if not self._free:
            self.end(next(iter(self._live)))
            if self.n_evicted == 0:
                logger.warning(
                    "SessionRecommender: all %d rows are in use; from now on a new session evicts the least recently "
                    "used session (counted in n_evicted; a larger capacity= keeps more)",
                    self.capacity,
                )
            self.n_evicted += 1
        session = self._live[session_id] = _LiveSession(self._free.pop(), {})
        for state, initial in zip(self._states, self._initial, strict=True):
            state[session.row] = initial[0]
        return session

    def _process(self, calls: list[list[tuple[_LiveSession, int]]]) -> None:
        """Update the states of sessions with one event each, in each call of the network."""
        with evaluating(self.network):
            for events in calls:
                rows = torch.tensor([session.row for session, _ in events])
                inputs = torch.tensor([[item for _, item in events]], device=self._states[0].device)
                _, states = self.network(inputs, [state[rows] for state in self._states])
                for stored, new in zip(self._states, states, strict=True):
                    stored[rows] = new.to(stored.dtype)
                for session, item in events:
                    session.seen[item] = None
