"""Philox4x32-10 in torch equals the published test vectors and an implementation with Python integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gru4rec_fast.ops._checks import check_counters
from gru4rec_fast.ops.philox import philox4x32

words = st.integers(0, 2**32 - 1)

# (counter, key, random words), from the file kat_vectors of Random123, the library of the authors of Philox.
PUBLISHED_VECTORS = [
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0_A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_integers(counter: tuple[int, ...], seed: int) -> tuple[int, ...]:
    """Return the four random words of one counter, computed with Python integers.

    The key is (low 32 bits, high 32 bits) of the seed.
    """
    a, b, c, d = counter
    key0, key1 = seed % 2**32, seed // 2**32
    for _ in range(10):
        high0, low0 = divmod(a * 0xD2511F53, 2**32)
        high1, low1 = divmod(c * 0xCD9E8D57, 2**32)
        a, b, c, d = high1 ^ b ^ key0, low1, high0 ^ d ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) % 2**32, (key1 + 0xBB67AE85) % 2**32
    return a, b, c, d


def philox_torch(counter: tuple[int, int, int, int], seed: int) -> tuple[int, ...]:
    """Return the four random words of one counter, computed with torch."""
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    return tuple(int(word) for word in philox4x32((c0, c1, c2, c3), seed))


@pytest.mark.parametrize(("counter", "seed", "expected"), PUBLISHED_VECTORS)
def test_equals_published_vectors(counter: tuple[int, int, int, int], seed: int, expected: tuple[int, ...]) -> None:
    assert philox_torch(counter, seed) == expected
    assert philox_integers(counter, seed) == expected


@given(counter=st.tuples(words, words, words, words), seed=st.integers(0, 2**63 - 1))
def test_torch_equals_python_integers(counter: tuple[int, int, int, int], seed: int) -> None:
    assert philox_torch(counter, seed) == philox_integers(counter, seed)


def test_counters_are_broadcast() -> None:
    rows, columns = torch.arange(3)[:, None], torch.arange(5)
    zero = torch.tensor(0)
    for i, word in enumerate(philox4x32((zero, rows, columns, zero), 7)):
        assert word.shape == (3, 5)
        assert int(word[2, 4]) == philox_integers((0, 2, 4, 0), 7)[i]


@pytest.mark.parametrize(
    ("seed", "step", "steps", "message"),
    [
        (-1, 0, 1, "seed=-1"),
        (2**63, 0, 1, f"seed={2**63}"),
        (0, -1, 1, "step=-1"),
        (0, 2**32, 1, f"step={2**32}"),
        (0, 2**32 - 1, 2, f"step={2**32 - 1} with steps=2"),
        (0, 0, -1, "steps=-1"),
    ],
)
def test_error_names_the_counter_out_of_range(seed: int, step: int, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_counters(seed, step, steps)


def test_largest_counters_are_accepted() -> None:
    check_counters(2**63 - 1, 2**32 - 1, 1)
    check_counters(0, 2**32, 0)  # without steps no counter is used, so `step` may be one past the largest
