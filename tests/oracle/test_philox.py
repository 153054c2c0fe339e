"""Philox equals the published vectors; draws equal big-integer arithmetic and pass chi-square tests."""

import numpy as np
import pytest
from scipy.stats import chisquare

from .philox import bernoulli_keep, draw_negatives, philox4x32, table_distribution, target_distribution

ONES = 0xFFFFFFFF
KNOWN_ANSWERS = [  # from kat_vectors of Random123: counter, key, result
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

# An alias table by hand: five items with probabilities 6, 5, 4, 3, 2 (of 20). A column holds 4 of them = 2^31.
THRESHOLD = np.array([4, 4, 4, 3, 2]) * 2**29
ALIAS = np.array([0, 1, 2, 1, 0])


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(counter, key, result):
    assert tuple(philox4x32(counter, key)) == result


def test_words_do_not_depend_on_their_neighbors():
    words = philox4x32((7, np.arange(3)[:, None], np.arange(5), 9), (1, 2))
    assert words.shape == (3, 5, 4)
    assert np.array_equal(words[2, 4], philox4x32((7, 2, 4, 9), (1, 2)))


def test_dropout_keeps_by_word_0_under_the_whole_seed():
    seed, p = (5 << 32) + 3, 0.3
    keep = bernoulli_keep(p, seed=seed, stream=2, step=11, lanes=4, units=6)
    words = [[philox4x32((2, 11, lane, unit), (3, 5))[0] for unit in range(6)] for lane in range(4)]
    assert np.array_equal(keep, [[word >= int(p * 2**32) for word in row] for row in words])
    many = bernoulli_keep(p, seed=seed, stream=2, step=11, lanes=200, units=500)
    assert many.mean() == pytest.approx(1 - p, abs=4 * np.sqrt(p * (1 - p) / many.size))


def test_draws_follow_the_definition():
    drawn = draw_negatives(THRESHOLD, ALIAS, 50, seed=2**40 + 1, step=6)
    for i, item in enumerate(drawn):
        w0, w1, w2, _ = (int(word) for word in philox4x32((0, 6, i, 0), (1, 2**8)))
        column = ((w0 << 32) + w1) * 5 >> 64
        assert item == (column if w2 >> 1 < THRESHOLD[column] else ALIAS[column])


def test_frequencies():
    expected = target_distribution(np.array([36, 25, 16, 9, 4]), alpha=0.5)
    np.testing.assert_allclose(table_distribution(THRESHOLD, ALIAS), expected, rtol=1e-15)
    drawn = np.concatenate([draw_negatives(THRESHOLD, ALIAS, 20_000, seed=1, step=step) for step in range(10)])
    assert chisquare(np.bincount(drawn), expected * len(drawn)).pvalue > 1e-3
