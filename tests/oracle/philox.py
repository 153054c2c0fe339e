"""Philox4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3"), dropout masks and negatives.

Key: the seed as two 32-bit words, low then high. Counter: (stream, step, lane or draw index, unit or 0).
Streams: 0 negatives, 1 the input embedding's dropout, 2 + l the dropout on the output of GRU layer l.
"""

import numpy as np

NEGATIVES, EMBEDDING_DROPOUT, FIRST_LAYER_DROPOUT = 0, 1, 2

_LOW_WORD = np.uint64(0xFFFFFFFF)  # mask of the low 32 bits
_WORD_BITS = np.uint64(32)
# Constants of the paper.
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85


def philox4x32(counter, key: tuple[int, int]) -> np.ndarray:
    """Return four random 32-bit words for each counter, uint64 [..., 4]. The four words of `counter` are broadcast."""
    a, b, c, d = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in counter))
    low, high = key
    for _ in range(10):
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            (right >> _WORD_BITS) ^ b ^ np.uint64(low),
            right & _LOW_WORD,
            (left >> _WORD_BITS) ^ d ^ np.uint64(high),
            left & _LOW_WORD,
        )
        low, high = (low + _WEYL[0]) % 2**32, (high + _WEYL[1]) % 2**32
    return np.stack([a, b, c, d], axis=-1)


def seed_key(seed: int) -> tuple[int, int]:
    """Return the two 32-bit words of a 64-bit seed, low then high."""
    return seed % 2**32, (seed >> 32) % 2**32


def bernoulli_keep(p: float, *, seed: int, stream: int, step: int, lanes: int, units: int) -> np.ndarray:
    """Return bool [lanes, units], True where dropout with probability p keeps a unit: word 0 >= floor(p * 2^32)."""
    lane, unit = np.arange(lanes)[:, None], np.arange(units)[None, :]
    words = philox4x32((stream, step, lane, unit), seed_key(seed))
    return words[..., 0] >= np.uint64(int(p * 2**32))


def draw_negatives(threshold: np.ndarray, alias: np.ndarray, n: int, *, seed: int, step: int) -> np.ndarray:
    """Draw items from an alias table, int64 [n].

    64 random bits choose a column of the table. 31 more bits choose the item of that column or its alias.
    """
    words = philox4x32((NEGATIVES, step, np.arange(n), 0), seed_key(seed))
    columns = np.uint64(len(threshold))
    column = ((words[:, 0] * columns + ((words[:, 1] * columns) >> _WORD_BITS)) >> _WORD_BITS).astype(np.int64)
    accept = (words[:, 2] >> np.uint64(1)).astype(np.int64) < np.asarray(threshold, dtype=np.int64)[column]
    return np.where(accept, column, np.asarray(alias, dtype=np.int64)[column])


def table_distribution(threshold: np.ndarray, alias: np.ndarray) -> np.ndarray:
    """Return the probabilities that an alias table represents, float64 [K]. Thresholds are in units of 2^-31."""
    threshold = np.asarray(threshold, dtype=np.float64)
    mass = threshold.copy()  # in units of 2^-31 of a column
    np.add.at(mass, np.asarray(alias, dtype=np.int64), 2.0**31 - threshold)
    return mass / (len(threshold) * 2.0**31)


def wanted_distribution(support: np.ndarray, alpha: float) -> np.ndarray:
    """Return the probabilities that an alias table should represent: p ~ support^alpha, float64 [K].

    The support of an item is the number of its occurrences in the training log.
    """
    weight = np.asarray(support, dtype=np.float64) ** alpha
    return weight / weight.sum()
