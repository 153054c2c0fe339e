"""Recommending: the best next items of many whole sessions, or of live sessions that are fed one event at a time."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gru4rec_fast.data import SessionStore, Vocabulary
from gru4rec_fast.evaluation.network import NextItemNetwork, evaluating
from gru4rec_fast.models.catalogue import Catalogue, Exclude, Unknown, pad

__all__ = ["Exclude", "Recommendations", "SessionRecommender", "Unknown", "best_items", "recommend"]

logger = logging.getLogger("gru4rec_fast")

_STEPS_AT_ONCE = 64  # events of a session fed in one call: memory does not grow with the longest session
_EVENTS_AT_ONCE = 4096  # live sessions fed in one call


class Recommendations(NamedTuple):
    """The k best next items of n sessions, best first.

    items: item ids [n, k], int64 or strings as in the vocabulary; scores: [n, k], float32 or float64 as in the network.
    """

    items: np.ndarray
    scores: np.ndarray


def recommend(
    network: NextItemNetwork,
    vocabulary: Vocabulary,
    sessions: Iterable[Sequence[int] | Sequence[str]] | SessionStore,
    k: int = 20,
    *,
    exclude: Exclude = None,
    unknown: Unknown = "error",
    batch_size: int = 512,
    impl: str = "auto",
) -> Recommendations:
    """The k items most likely to come next in each session.

    Args:
        network: see `NextItemNetwork`; its mode (train or eval) is the same afterwards.
        vocabulary: the ids of the network's items.
        sessions: item ids of each session in time order; or a store of the same vocabulary.
        k: how many items.
        exclude: items not to recommend: None, "session" (those already in the session), or item ids (a list, set,
            array ...) for all sessions.
        unknown: what to do with ids outside the vocabulary: "error", or "skip" them.
        batch_size: sessions played in parallel.
        impl: "auto", "native" or "reference", for ranking.

    Raises:
        ValueError: an argument that does not fit; an unknown id, a session without (known) items, or fewer than k items
            left after exclusion, each with the index of the session; a NaN score.
    """
    scores, items = best_items(
        network, vocabulary, sessions, k, exclude=exclude, unknown=unknown, batch_size=batch_size, impl=impl
    )
    catalogue = Catalogue(network, vocabulary, unknown, impl)
    return Recommendations(catalogue.ids_of(items, range(len(items))), scores)


def best_items(
    network: NextItemNetwork,
    vocabulary: Vocabulary,
    sessions: Iterable[Sequence[int] | Sequence[str]] | SessionStore,
    k: int = 20,
    *,
    exclude: Exclude = None,
    unknown: Unknown = "error",
    batch_size: int = 512,
    impl: str = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """`recommend` by index: scores and item indices [n, k].

    Where a session has fewer than k items left, the rest of its row is -1, at scores of -infinity.
    """
    catalogue = Catalogue(network, vocabulary, unknown, impl)
    catalogue.check_k(k)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    items, offsets = catalogue.encode_sessions(sessions)
    excluded = catalogue.excluded(exclude)
    order = np.argsort(np.diff(offsets), kind="stable")  # like lengths together: little padding
    best = np.empty((len(order), k), np.int64)
    scores = np.empty((len(order), k), np.float64 if network.output_weight.dtype == torch.float64 else np.float32)
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        played = [items[offsets[s] : offsets[s + 1]] for s in chosen]
        scores[chosen], best[chosen] = catalogue.top_k(_last_hidden(network, played), k, excluded, played)
    return scores, best


def _last_hidden(network: NextItemNetwork, sessions: list[np.ndarray]) -> Tensor:
    """Hidden states [n, H] after the last event of each session."""
    device = network.output_weight.device
    inputs = pad(sessions).T.to(device)
    ends = torch.tensor([len(session) - 1 for session in sessions], device=device)
    with evaluating(network):
        state = network.initial_state(len(sessions))
        last = torch.empty_like(state[-1])
        for begin in range(0, len(inputs), _STEPS_AT_ONCE):
            hidden, state = network(inputs[begin : begin + _STEPS_AT_ONCE], state)
            lanes = ((ends >= begin) & (ends < begin + len(hidden))).nonzero()[:, 0]
            last[lanes] = hidden[ends[lanes] - begin, lanes].to(last.dtype)
    return last


class _Live(NamedTuple):
    """A live session: the row of its states, and its items, each once."""

    row: int
    seen: dict[int, None]


class SessionRecommender:
    """Recommends in live sessions: holds the hidden state of each and takes one event at a time.

    The answers are those of `recommend` for the events so far. States stand in one row per session of preallocated
    tensors. When `capacity` sessions are live and another one begins, the one used least recently is forgotten: said
    once, in the log, and counted in `n_evicted`. A forgotten session that goes on starts anew. Not safe to use from
    several threads at once; states hold for the network as it was when the events came, so start over after training
    it further.

    Args:
        network: see `NextItemNetwork`; its mode (train or eval) is the same after each call.
        vocabulary: the ids of the network's items.
        capacity: how many sessions to hold at most.
        unknown: what to do with ids outside the vocabulary: "error", or "skip" the event.
        impl: "auto", "native" or "reference", for ranking.

    Raises:
        ValueError: an argument that does not fit.
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
        self.catalogue = Catalogue(network, vocabulary, unknown, impl)
        self.network = network
        self.capacity = capacity
        self.n_evicted = 0
        with torch.no_grad():
            self._states, self._initial = network.initial_state(capacity), network.initial_state(1)
        self._live: OrderedDict[Hashable, _Live] = OrderedDict()  # least recently used first
        self._free = list(range(capacity - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, session_id: Hashable) -> bool:
        return session_id in self._live

    def observe(self, session_id: Hashable, item_id: int | str) -> None:
        """Take one event; a session that is not live begins with it. ValueError for an unknown id, unless skipped."""
        self.observe_many([session_id], [item_id])

    def observe_many(self, session_ids: Iterable[Hashable], item_ids: Iterable[int | str]) -> None:
        """Take events in the order given; a session may occur several times.

        Raises ValueError, and takes no event, for an unknown id (unless they are skipped) or lists of different length.
        """
        names, ids = list(session_ids), list(item_ids)
        if len(names) != len(ids):
            raise ValueError(f"{len(names)} session_ids, but {len(ids)} item_ids")
        items = self.catalogue.encode(ids, names, "session").tolist()
        waiting: dict[Hashable, tuple[_Live, int]] = {}  # events of different sessions, fed together
        for name, item in zip(names, items, strict=True):
            if item < 0:
                continue
            forgets = next(iter(self._live)) if name not in self._live and not self._free else None
            if name in waiting or forgets in waiting or len(waiting) == _EVENTS_AT_ONCE:
                self._feed(waiting)
                waiting = {}
            waiting[name] = (self._use(name), item)
        if waiting:
            self._feed(waiting)

    def recommend(self, session_ids: Iterable[Hashable], k: int = 20, *, exclude: Exclude = None) -> Recommendations:
        """The k items most likely to come next in each of these live sessions; `exclude` as in `recommend`.

        Raises ValueError for a session that is not live, or with fewer than k items left after exclusion.
        """
        self.catalogue.check_k(k)
        names = list(session_ids)
        for name in names:
            if name not in self._live:
                raise ValueError(f"session {name!r} is not live: it has no event yet, was ended, or was forgotten")
        live = [self._use(name) for name in names]
        hidden = self._states[-1][torch.tensor([session.row for session in live], dtype=torch.int64)]
        seen = [list(session.seen) for session in live]
        scores, items = self.catalogue.top_k(hidden, k, self.catalogue.excluded(exclude), seen)
        return Recommendations(self.catalogue.ids_of(items, names), scores)

    def end(self, session_id: Hashable) -> bool:
        """Forget a session; False where it was not live (any more)."""
        session = self._live.pop(session_id, None)
        if session is not None:
            self._free.append(session.row)
        return session is not None

    def state_dict(self) -> dict[str, Any]:
        """The live sessions, least recently used first: ids, states [n, H_l] of each layer, items seen; `n_evicted`."""
        rows = [session.row for session in self._live.values()]
        return {
            "session_ids": list(self._live),
            "states": [state[torch.tensor(rows, dtype=torch.int64)] for state in self._states],
            "seen": [list(session.seen) for session in self._live.values()],
            "n_evicted": self.n_evicted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the live sessions by those of a recommender with the same network and vocabulary.

        Raises ValueError where they exceed the capacity or their states do not fit the network.
        """
        n = len(state["session_ids"])
        if n > self.capacity:
            raise ValueError(f"{n} sessions were saved, but capacity={self.capacity}: make the recommender larger")
        saved, needed = [[*s.shape] for s in state["states"]], [[n, *s.shape[1:]] for s in self._states]
        if saved != needed:
            raise ValueError(f"the saved states have shapes {saved}, this network needs {needed}")
        for own, rows in zip(self._states, state["states"], strict=True):
            own[:n] = rows.to(own)
        sessions = zip(state["session_ids"], state["seen"], strict=True)
        self._live = OrderedDict((name, _Live(row, dict.fromkeys(seen))) for row, (name, seen) in enumerate(sessions))
        self._free = list(range(self.capacity - 1, n - 1, -1))
        self.n_evicted = state["n_evicted"]

    def _use(self, name: Hashable) -> _Live:
        """A session, live from now on and the one used last."""
        if name in self._live:
            self._live.move_to_end(name)
            return self._live[name]
        if not self._free:
            self.end(next(iter(self._live)))
            if self.n_evicted == 0:
                logger.warning(
                    "SessionRecommender: all %d places are taken; from now on, when a session begins, the one used "
                    "least recently is forgotten (counted in n_evicted; a larger capacity= keeps more)",
                    self.capacity,
                )
            self.n_evicted += 1
        session = self._live[name] = _Live(self._free.pop(), {})
        for state, initial in zip(self._states, self._initial, strict=True):
            state[session.row] = initial[0]
        return session

    def _feed(self, events: dict[Hashable, tuple[_Live, int]]) -> None:
        """Move the states of different sessions on by one event each."""
        rows = torch.tensor([session.row for session, _ in events.values()])
        inputs = torch.tensor([[item for _, item in events.values()]], device=self._states[0].device)
        with evaluating(self.network):
            _, states = self.network(inputs, [state[rows] for state in self._states])
            for own, new in zip(self._states, states, strict=True):
                own[rows] = new.to(own.dtype)
        for session, item in events.values():
            session.seen[item] = None
