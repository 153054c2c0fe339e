"""Summarize a metric over the trainings with several seeds."""

import statistics
from collections.abc import Sequence


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return the mean and the standard deviation as a cell of a table; the deviation of one value is 0."""
    return f"{statistics.mean(values):.4g} +- {statistics.stdev(values) if len(values) > 1 else 0:.2g}"
