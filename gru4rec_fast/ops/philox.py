"""Philox4x32-10: random numbers that are a function of a key and a counter, and of nothing else.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. No state is carried from draw to
draw, so every backend, thread count and order of evaluation sees the same numbers. csrc/common/philox.h is the same
function; the two files hold the same constants.

Key: (seed low 32 bits, seed high 32 bits). Counter: four 32-bit words, used by this package as
`(stream, step, lane or draw, unit)`; the stream keeps the uses of one seed apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

STREAM_NEGATIVES = 0
STREAM_EMBEDDING_DROPOUT = 1
STREAM_HIDDEN_DROPOUT = 2  # of the first GRU layer; layer l uses STREAM_HIDDEN_DROPOUT + l
STREAM_EDGE_DROPOUT = 1 << 16  # counter (stream, step, row, column): one bit per entry of a graph's matrix
STREAM_MESSAGE_DROPOUT = 1 << 17  # counter (stream, step, node, unit); graph layer l uses STREAM_MESSAGE_DROPOUT + l
STREAM_TRIPLES = 1 << 18  # counter (stream, step, triple, 0 or 1): a user, one of its items, an item it has not

MULTIPLIER_0 = 0xD2511F53
MULTIPLIER_1 = 0xCD9E8D57
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85
ROUNDS = 10
WORD_MASK = 0xFFFFFFFF
WORD_RANGE = 1 << 32

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, seed: int) -> Words:
    """Return the four random 32-bit words of every counter under the key `seed`.

    counter: four int64 tensors of one broadcastable shape, each element in [0, 2**32). seed: in [0, 2**63).
    Returns four int64 tensors of the broadcast shape, each element uniform in [0, 2**32).
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = seed & WORD_MASK, seed >> 32
    for _ in range(ROUNDS):
        # A 64-bit product wraps in int64, which leaves its 64 bits as they are: shift and mask read both halves.
        p0, p1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & WORD_MASK) ^ c1 ^ k0,
            p1 & WORD_MASK,
            ((p0 >> 32) & WORD_MASK) ^ c3 ^ k1,
            p0 & WORD_MASK,
        )
        k0, k1 = (k0 + WEYL_0) & WORD_MASK, (k1 + WEYL_1) & WORD_MASK
    return c0, c1, c2, c3


def check_counters(seed: int, step: int, steps: int) -> None:
    """Raise ValueError unless `seed` fits the key and the steps `step .. step + steps - 1` fit a counter word."""
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed={seed}: must be in [0, 2**63)")
    if steps < 0:
        raise ValueError(f"steps={steps}: must not be negative")
    if not 0 <= step <= WORD_RANGE - steps:
        raise ValueError(f"step={step} with steps={steps}: step must not be negative, step + steps not exceed 2**32")
