"""Small synthetic session logs with predictable next items."""

from __future__ import annotations

import numpy as np

from gru4rec_fast.data import SessionStore, Vocabulary


def markov_store(
    n_sessions: int = 200, n_items: int = 30, seed: int = 0, vocabulary: Vocabulary | None = None, longest: int = 9
) -> SessionStore:
    """Return a store of random sessions of 2 to `longest` events.

    Item i is followed by item i + 1 (80 %), 2 * i (15 %) or i * i (5 %), modulo n_items.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest + 1, n_sessions)
    items = []
    for length in lengths:
        item = int(rng.integers(n_items))
        for _ in range(length):
            items.append(item)
            item = (item + 1, 2 * item, item * item)[rng.choice(3, p=(0.8, 0.15, 0.05))] % n_items
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return SessionStore.from_arrays(items, offsets, vocabulary=vocabulary or Vocabulary(np.arange(n_items) * 10 + 5))
