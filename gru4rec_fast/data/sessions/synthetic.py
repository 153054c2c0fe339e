"""Synthetic session logs with Zipf-distributed item popularity and predictable next items."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from gru4rec_fast.data.sessions.store import SessionStore

FIRST_TIME = 1_700_000_000  # time of the first event, in seconds since 1970
SESSION_INTERVAL_S = 60  # seconds from the start of a session to the start of the next
EVENT_INTERVAL_S = 10  # seconds from an event to the next of its session


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
    """Draw a click log from a first-order Markov chain over a catalogue with Zipf popularity.

    The first item of a session is drawn by popularity. With probability `p_follow`, the next item is one of the
    `n_successors` successors of the current item. The j-th successor has a probability proportional to 1 / j.
    Otherwise the next item is drawn by popularity. The successors of each item are drawn by popularity. A session has
    1 + G events, where G >= 1 is geometrically distributed.

    Args:
        n_sessions: number of sessions.
        n_items: size of the catalogue. Rare items may not occur in the log.
        zipf_exponent: the popularity of the item with rank r is proportional to r^-zipf_exponent.
        n_successors: number of successors of each item.
        p_follow: probability that the next item is a successor. With 0, only popularity can be learned.
        mean_length: expected number of events per session, above 2.
        seed: the same seed gives the same log.

    Returns:
        Columns "SessionId", "ItemId" and "Time" (seconds), int64 [n_events] each, sorted by session and time.

    Raises:
        ValueError: an argument is out of range.
    """
    for name, value in (("n_sessions", n_sessions), ("n_items", n_items), ("n_successors", n_successors)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if not 0 <= p_follow <= 1:
        raise ValueError(f"p_follow={p_follow}: must be between 0 and 1")
    if not mean_length > 2:
        raise ValueError(f"mean_length={mean_length}: must be greater than 2, the length of the shortest sessions")
    rng = np.random.default_rng(seed)
    popularity = _normalized(np.arange(1, n_items + 1) ** -zipf_exponent)
    successors = rng.choice(n_items, (n_items, n_successors), p=popularity)
    weights = _normalized(1 / np.arange(1, n_successors + 1))

    lengths = 1 + rng.geometric(1 / (mean_length - 1), n_sessions)
    items = np.empty((n_sessions, lengths.max()), np.int64)
    items[:, 0] = rng.choice(n_items, n_sessions, p=popularity)
    for t in range(1, items.shape[1]):
        live = lengths > t  # sessions that have an event t
        followers = successors[items[live, t - 1], rng.choice(n_successors, live.sum(), p=weights)]
        popular = rng.choice(n_items, live.sum(), p=popularity)
        items[live, t] = np.where(rng.random(live.sum()) < p_follow, followers, popular)

    session, position = np.nonzero(np.arange(items.shape[1]) < lengths[:, None])
    ids = rng.permutation(n_items) + 1  # as in a real log, ids do not reveal popularity
    return {
        "SessionId": 1 + session,
        "ItemId": ids[items[session, position]],
        "Time": FIRST_TIME + SESSION_INTERVAL_S * session + EVENT_INTERVAL_S * position,
    }


def markov_sessions(
    n_sessions: int = 20_000,
    n_items: int = 1000,
    *,
    parts: Sequence[float] = (0.9, 0.1),
    seed: int = 0,
    **chain: Any,
) -> tuple[SessionStore, ...]:
    """Draw a log with `markov_events` and split its sessions by time.

    Args:
        n_sessions, n_items, seed: as in `markov_events`.
        chain: further arguments of `markov_events`.
        parts: share of the sessions in each part, earliest part first. The default parts are training and test.

    Returns:
        One store per part. All have the vocabulary of the first part.

    Raises:
        ValueError: an argument is out of range, or a part gets no session.
    """
    events = markov_events(n_sessions, n_items, seed=seed, **chain)
    ends = np.round(np.cumsum(parts) / np.sum(parts) * n_sessions).astype(np.int64)
    if np.any(np.diff(ends, prepend=0) < 1):
        raise ValueError(f"parts={tuple(parts)}: each part must get at least one of the {n_sessions} sessions")
    stores: list[SessionStore] = []
    for previous_end, end in pairwise([0, *ends.tolist()]):
        mask = (events["SessionId"] > previous_end) & (events["SessionId"] <= end)
        vocabulary = stores[0].vocabulary if stores else None
        columns = {name: column[mask] for name, column in events.items()}
        stores.append(SessionStore.from_events(columns, vocabulary=vocabulary))
    return tuple(stores)


def _normalized(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()
