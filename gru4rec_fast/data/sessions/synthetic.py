"""Synthetic sessions with what makes real ones learnable: a few popular items, and items that follow items."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from gru4rec_fast.data.sessions.store import SessionStore

FIRST_TIME = 1_700_000_000  # seconds since 1970
SESSION_INTERVAL_S = 60
EVENT_INTERVAL_S = 10


def markov_events(
    n_sessions: int,
    n_items: int = 1000,
    *,
    zipf_exponent: float = 1.0,
    n_successors: int = 10,
    p_follow: float = 0.8,
    mean_length: float = 6.0,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """A click log drawn from a first-order Markov chain over a catalogue with Zipf popularity.

    Every item has `n_successors` items of its own, drawn by popularity. An event is followed, with probability
    `p_follow`, by one of them (the j-th of them with weight 1 / j), else by any item, drawn by popularity; so is the
    first event. Session lengths are 2 plus a geometric number.

    Args:
        n_sessions, n_items: sizes of the log and of its catalogue; rare items may not occur.
        zipf_exponent: popularity of the item of rank r is proportional to r^-zipf_exponent.
        n_successors, p_follow: see above; p_follow=0 leaves nothing to learn but popularity.
        mean_length: expected events per session, above 2.
        seed: same seed, same log.

    Returns:
        Columns "SessionId", "ItemId" and "Time" (seconds), int64 [n_events] each, by session and time.

    Raises:
        ValueError: an argument out of range, named.
    """
    for name, number in (("n_sessions", n_sessions), ("n_items", n_items), ("n_successors", n_successors)):
        if number < 1:
            raise ValueError(f"{name}={number}: must be at least 1")
    if not 0 <= p_follow <= 1:
        raise ValueError(f"p_follow={p_follow}: must lie in [0, 1]")
    if not mean_length > 2:
        raise ValueError(f"mean_length={mean_length}: must be above 2, the shortest session's length")
    rng = np.random.default_rng(seed)
    popularity = _normalized(np.arange(1, n_items + 1) ** -zipf_exponent)
    successors = rng.choice(n_items, (n_items, n_successors), p=popularity)
    weights = _normalized(1 / np.arange(1, n_successors + 1))

    lengths = 1 + rng.geometric(1 / (mean_length - 1), n_sessions)
    items = np.empty((n_sessions, lengths.max()), np.int64)
    items[:, 0] = rng.choice(n_items, n_sessions, p=popularity)
    for position in range(1, items.shape[1]):
        live = lengths > position
        followers = successors[items[live, position - 1], rng.choice(n_successors, live.sum(), p=weights)]
        others = rng.choice(n_items, live.sum(), p=popularity)
        items[live, position] = np.where(rng.random(live.sum()) < p_follow, followers, others)

    session, place = np.nonzero(np.arange(items.shape[1]) < lengths[:, None])
    ids = rng.permutation(n_items) + 1  # as in a real log, an id says nothing about popularity
    return {
        "SessionId": 1 + session,
        "ItemId": ids[items[session, place]],
        "Time": FIRST_TIME + SESSION_INTERVAL_S * session + EVENT_INTERVAL_S * place,
    }


def markov_sessions(
    n_sessions: int = 20_000,
    n_items: int = 1000,
    *,
    parts: Sequence[float] = (0.9, 0.1),
    seed: int = 0,
    **chain: Any,
) -> tuple[SessionStore, ...]:
    """Sessions of one `markov_events` log, split by time.

    Args:
        n_sessions, n_items, seed, chain: see `markov_events`.
        parts: positive shares of the sessions, the earliest first; by default for training and test.

    Returns:
        One store per part, all indexed by the vocabulary of the first.

    Raises:
        ValueError: an argument out of range, named; or a part without a session.
    """
    events = markov_events(n_sessions, n_items, seed=seed, **chain)
    ends = np.round(np.cumsum(parts) / np.sum(parts) * n_sessions).astype(np.int64)
    if np.any(np.diff(ends, prepend=0) < 1):
        raise ValueError(f"parts={tuple(parts)} of {n_sessions} sessions: each must get at least one")
    stores: list[SessionStore] = []
    for first, last in pairwise([0, *ends.tolist()]):
        chosen = (events["SessionId"] > first) & (events["SessionId"] <= last)
        vocabulary = stores[0].vocabulary if stores else None
        columns = {name: column[chosen] for name, column in events.items()}
        stores.append(SessionStore.from_events(columns, vocabulary=vocabulary))
    return tuple(stores)


def _normalized(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()
