"""Estimate by how much a quantity grows per step, from samples that fluctuate."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

_MAX_BLOCKS = 64
_MIN_BLOCKS = 24  # with fewer blocks there is no estimate
_Z = 3.29  # quantile of the normal distribution for a two-sided confidence of 99.9 %, since the test is repeated


class Growth(NamedTuple):
    """Growth per step, in bytes or in objects, with the bounds of its 99.9 % confidence interval.

    is_steady: whether the lower bounds of the whole time and of its second half are both above the threshold.
    """

    per_step: float
    low: float
    high: float
    is_steady: bool


class GrowthEstimator:
    """Estimates the growth per step in bounded memory.

    The samples are joined to at most 64 blocks of equal numbers of samples, and the smallest sample of a block is kept:
    memory that is in use only for some time then has no effect. The growth is the Theil-Sen slope of these minima (the
    median of the slopes between all pairs; Sen, JASA 63, 1968), with the confidence interval of Kendall's statistic. A
    single increase, e.g. of a cache, changes neither much.

    Args:
        threshold: growth per step up to which there is no leak.
        samples_per_block: number of samples in each of the first blocks.
    """

    def __init__(self, threshold: float, samples_per_block: int = 8) -> None:
        self._threshold = threshold
        self._samples_per_block = samples_per_block
        self._blocks: list[tuple[float, float]] = []  # (last step, smallest sample) of each complete block
        self._n_samples, self._smallest = 0, math.inf  # of the block that is not complete

    def add(self, step: int, value: float) -> bool:
        """Add the sample of a step; return whether it completed a block."""
        self._smallest = min(self._smallest, value)
        self._n_samples += 1
        if self._n_samples < self._samples_per_block:
            return False
        self._blocks.append((step, self._smallest))
        self._n_samples, self._smallest = 0, math.inf
        if len(self._blocks) == _MAX_BLOCKS:
            pairs = zip(self._blocks[::2], self._blocks[1::2], strict=True)
            self._blocks = [(last, min(a, b)) for (_, a), (last, b) in pairs]
            self._samples_per_block *= 2
        return True

    def estimate(self) -> Growth | None:
        """Return the growth; None while there are too few samples."""
        if len(self._blocks) < _MIN_BLOCKS:
            return None
        whole, later = _slope(self._blocks), _slope(self._blocks[len(self._blocks) // 2 :])
        return Growth(*whole, is_steady=min(whole[1], later[1]) > self._threshold)


def _slope(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the Theil-Sen slope of points and its confidence interval."""
    x, y = np.array(points, dtype=np.float64).T
    first, second = np.triu_indices(len(x), k=1)
    slopes = np.sort((y[second] - y[first]) / (x[second] - x[first]))
    n = len(x)
    distance = _Z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(0, math.floor((len(slopes) - distance) / 2))
    high = min(len(slopes) - 1, math.ceil((len(slopes) + distance) / 2))
    return float(np.median(slopes)), float(slopes[low]), float(slopes[high])
