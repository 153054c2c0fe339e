"""Bootstrap intervals of metrics, and a paired test between two runs, from the values of each session or user."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import polars

_SUFFIXES = (".parquet", ".tsv")


def write_values(values: polars.DataFrame, path: str | Path) -> None:
    """Write `Report.per_session` to a .parquet or .tsv file. Raises ValueError for another suffix."""
    from gru4rec_fast._atomic_writes import replace_file

    suffix = check_suffix(path)
    with replace_file(Path(path)) as temporary:
        if suffix == ".parquet":
            values.write_parquet(temporary)
        else:
            values.write_csv(temporary, separator="\t")


def check_suffix(path: str | Path) -> str:
    """Return the suffix of a file of values; ValueError unless it is .parquet or .tsv."""
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"{path}: the values of sessions or users are in a {' or '.join(_SUFFIXES)} file")
    return suffix


def bootstrap(
    values: polars.DataFrame | str | Path, *, n_resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> polars.DataFrame:
    """Return the mean and a percentile bootstrap interval of each metric (Efron & Tibshirani 1993, chapter 13).

    Sessions or users are resampled, since the rankings of one of them are not independent.

    Args:
        values: `Report.per_session`, or a file that `write_values` or `evaluate --per-session` wrote.
        n_resamples: number of samples that are drawn with replacement.
        confidence: share of the bootstrap distribution that is in the interval, in (0, 1).
        seed: seed of the samples.

    Returns:
        A table with the columns metric, mean, low and high.

    Raises:
        ValueError: an argument is out of range, or the table is not one of values.
        OSError: the file cannot be read.
    """
    import polars

    frame, name = _read(values)
    metrics, weights, table = _as_arrays(frame, name)
    low, high = _interval(weights, table, n_resamples, confidence, seed)
    return polars.DataFrame({"metric": metrics, "mean": _mean(weights, table), "low": low, "high": high})


def compare(
    first: polars.DataFrame | str | Path,
    second: polars.DataFrame | str | Path,
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> polars.DataFrame:
    """Compare two runs that were evaluated on the same sessions or users.

    The interval is a percentile bootstrap of the difference (second minus first), with the same resampled sessions in
    both runs. The p value is that of the paired randomization test (Smucker, Allan & Carterette, CIKM 2007): the share
    of random exchanges of the two runs within sessions whose absolute difference is at least the observed one, with the
    observed assignment counted as one of them. It is of one metric: several comparisons need a correction.

    Args:
        first, second, n_resamples, confidence, seed: see `bootstrap`.

    Returns:
        A table with the columns metric, first, second, difference, low, high and p_value.

    Raises:
        ValueError: the runs have other sessions, rankings or metrics, or an argument is out of range.
        OSError: a file cannot be read.
    """
    import polars

    (a, a_name), (b, b_name) = _read(first), _read(second)
    if a.columns != b.columns:
        raise ValueError(
            f"{a_name} has the columns {', '.join(a.columns)}, and {b_name} {', '.join(b.columns)}: evaluate both runs "
            "with the same options"
        )
    owner = a.columns[0]
    a, b = a.sort(owner), b.sort(owner)
    if a[owner].to_list() != b[owner].to_list() or a["n_rankings"].to_list() != b["n_rankings"].to_list():
        raise ValueError(
            f"{a_name} and {b_name} have other {owner}s or other numbers of rankings: evaluate both runs on the same "
            "test data, with the same options"
        )
    metrics, weights, table_a = _as_arrays(a, a_name)
    table_b = _as_arrays(b, b_name)[2]
    differences = table_b - table_a
    low, high = _interval(weights, differences, n_resamples, confidence, seed)
    weighted = weights[:, None] * differences
    # The sums of another order of additions may differ by rounding.
    observed = np.abs(weighted.sum(axis=0)) - 1e-9 * np.abs(weighted).sum(axis=0)
    rng = np.random.default_rng([seed, 1])
    n_extreme = np.ones(len(metrics))
    for _ in range(n_resamples):
        signs = rng.integers(2, size=len(weights)) * 2.0 - 1
        n_extreme += np.abs(signs @ weighted) >= observed
    columns = {"first": _mean(weights, table_a), "second": _mean(weights, table_b)}
    columns |= {"difference": _mean(weights, differences), "low": low, "high": high}
    return polars.DataFrame({"metric": metrics, **columns, "p_value": n_extreme / (n_resamples + 1)})


def _read(values: polars.DataFrame | str | Path) -> tuple[polars.DataFrame, str]:
    """Return a table of values, and its name for errors."""
    import polars

    if isinstance(values, polars.DataFrame):
        return values, "the table"
    is_parquet = check_suffix(values) == ".parquet"
    try:
        if is_parquet:
            return polars.read_parquet(values), str(values)
        frame = polars.read_csv(values, separator="\t", infer_schema=False)  # all columns are text, such as the id 007
        return frame.with_columns(polars.col(frame.columns[1:]).cast(polars.Float64)), str(values)
    except polars.exceptions.PolarsError as error:
        raise ValueError(f"{values} is no table of values: {str(error).splitlines()[0]}") from None


def _as_arrays(frame: polars.DataFrame, name: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the names of the metrics, the numbers of rankings [n] and the metrics [n, M] of n sessions or users."""
    owner, *metrics = [column for column in frame.columns if column != "n_rankings"] or [""]
    if owner not in ("session", "user") or "n_rankings" not in frame.columns or not metrics or not len(frame):
        raise ValueError(
            f"{name} is no table of values with the columns session or user, n_rankings, and metrics: write one with "
            "evaluate --per-session, or use the attribute per_session of a Report"
        )
    if frame[owner].n_unique() < len(frame):
        raise ValueError(f"{name} has a {owner} twice: evaluate data in which each {owner} id occurs once")
    return metrics, frame["n_rankings"].to_numpy().astype(float), frame.select(metrics).to_numpy().astype(float)


def _mean(weights: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return the means of the columns of a table [n, M], weighted by the numbers of rankings [n]."""
    return weights @ table / weights.sum()


def _interval(
    weights: np.ndarray, table: np.ndarray, n_resamples: int, confidence: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds [M] of the percentile bootstrap intervals of `_mean`."""
    if n_resamples < 1:
        raise ValueError(f"n_resamples={n_resamples}: must be at least 1")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must be between 0 and 1, as in 0.95")
    if seed < 0:
        raise ValueError(f"seed={seed}: must be at least 0")
    means = np.array([_mean(counts * weights, table) for counts in _resamples(len(weights), n_resamples, seed)])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def _resamples(n: int, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each of n sessions is in each sample of n, int64 [n]."""
    rng = np.random.default_rng(seed)
    for _ in range(n_resamples):
        yield np.bincount(rng.integers(n, size=n), minlength=n)
