"""Philox equals the published test vectors; draws equal exact integer arithmetic and pass a chi-square test."""

import numpy as np
import pytest
from scipy.stats import chisquare

from .philox import bernoulli_keep, draw_negatives, philox4x32, table_distribution, wanted_distribution

ONES = 0xFFFFFFFF
# Counter, key and result, from the file kat_vectors ("known-answer tests") of the Random123 library.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

# An alias table of five items with probabilities 6/20, 5/20, 4/20, 3/20 and 2/20. Each of the five columns has
# probability 4/20. With a threshold of 4 * 2^29 = 2^31, a column always yields its own item, never its alias.
THRESHOLD = np.array([4, 4, 4, 3, 2]) * 2**29
ALIAS = np.array([0, 1, 2, 1, 0])


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_equals_known_answers(counter, key, result):
    assert tuple(philox4x32(counter, key)) == result


def test_counter_words_are_broadcast():
    words = philox4x32((7, np.arange(3)[:, None], np.arange(5), 9), (1, 2))
    assert words.shape == (3, 5, 4)
    assert np.array_equal(words[2, 4], philox4x32((7, 2, 4, 9), (1, 2)))


def test_dropout_compares_word_0_and_uses_64_bit_seeds():
    seed, p = (5 << 32) + 3, 0.3
    keep = bernoulli_keep(p, seed=seed, stream=2, step=11, lanes=4, units=6)
    words = [[philox4x32((2, 11, lane, unit), (3, 5))[0] for unit in range(6)] for lane in range(4)]
    assert np.array_equal(keep, [[word >= int(p * 2**32) for word in row] for row in words])
    large = bernoulli_keep(p, seed=seed, stream=2, step=11, lanes=200, units=500)
    assert large.mean() == pytest.approx(1 - p, abs=4 * np.sqrt(p * (1 - p) / large.size))  # four standard deviations


def test_negatives_equal_exact_integer_arithmetic():
    items = draw_negatives(THRESHOLD, ALIAS, 50, seed=2**40 + 1, step=6)
    for i, item in enumerate(items):
        w0, w1, w2, _ = (int(word) for word in philox4x32((0, 6, i, 0), (1, 2**8)))
        column = ((w0 << 32) + w1) * 5 >> 64
        assert item == (column if w2 >> 1 < THRESHOLD[column] else ALIAS[column])


def test_negatives_have_the_probabilities_of_the_table():
    expected = wanted_distribution(np.array([36, 25, 16, 9, 4]), alpha=0.5)
    np.testing.assert_allclose(table_distribution(THRESHOLD, ALIAS), expected, rtol=1e-15)
    items = np.concatenate([draw_negatives(THRESHOLD, ALIAS, 20_000, seed=1, step=step) for step in range(10)])
    assert chisquare(np.bincount(items), expected * len(items)).pvalue > 1e-3
