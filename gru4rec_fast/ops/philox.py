"""Philox4x32-10: random numbers that depend only on a key and a counter.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The generator has no state, so
the numbers are the same in every implementation, for any number of threads and in any order of evaluation.
csrc/common/philox.h is the same function with the same constants.

The key is the seed: (low 32 bits, high 32 bits). The counter consists of four 32-bit words, which this package uses as
`(stream, step, lane or draw, unit)`:

- stream: a constant that says what the numbers are used for (STREAM_* below), so that two uses of one seed draw
  different numbers. It is not a CUDA stream.
- step: number of the training step (mini-batch) since the training began.
- lane: one of the B sessions that are processed in parallel; draw: number of a negative; unit: one of the hidden units.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

STREAM_NEGATIVES = 0
STREAM_EMBEDDING_DROPOUT = 1
STREAM_HIDDEN_DROPOUT = 2  # GRU layer l uses STREAM_HIDDEN_DROPOUT + l
STREAM_EDGE_DROPOUT = 1 << 16  # counter (stream, step, row, column) for an entry of a graph's propagation matrix
STREAM_MESSAGE_DROPOUT = 1 << 17  # counter (stream, step, node, unit); graph layer l uses STREAM_MESSAGE_DROPOUT + l
# Counter (stream, step, triple, 0) for the user and the positive of a BPR triple, (stream, step, triple, 1) for the
# negative.
STREAM_TRIPLES = 1 << 18
# Counter (stream, low and high word of the number of a ranking, draw) for the sampled negatives of an evaluation.
STREAM_EVALUATION = 1 << 19

# Constants of the paper.
MULTIPLIER_0 = 0xD2511F53
MULTIPLIER_1 = 0xCD9E8D57
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85
ROUNDS = 10
WORD_MASK = 0xFFFFFFFF
WORD_RANGE = 1 << 32

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def step_word(step: int, counter: Tensor | None, device: Any) -> Tensor:
    """Return the number of a step as a 0-dim int64 tensor: `step`, plus `counter` unless it is None.

    counter: a 0-dim tensor that the caller, or a captured step on the device, increments.
    """
    return torch.tensor(step, device=device) if counter is None else counter + step


def philox4x32(counter: Words, seed: int) -> Words:
    """Return four random 32-bit words for each counter, under the key `seed`.

    counter: four int64 tensors that broadcast to one shape, with elements in [0, 2**32). seed: in [0, 2**63).
    Returns four int64 tensors of the broadcast shape; their elements are uniform in [0, 2**32).
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = seed & WORD_MASK, seed >> 32
    for _ in range(ROUNDS):
        # The products overflow int64, but their 64 bits are right: shift and mask extract the high and the low half.
        p0, p1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & WORD_MASK) ^ c1 ^ k0,
            p1 & WORD_MASK,
            ((p0 >> 32) & WORD_MASK) ^ c3 ^ k1,
            p0 & WORD_MASK,
        )
        k0, k1 = (k0 + WEYL_0) & WORD_MASK, (k1 + WEYL_1) & WORD_MASK
    return c0, c1, c2, c3
