"""Bootstrap intervals, the paired test and metrics of ratings, compared with SciPy, scikit-learn and plain loops."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_cli import cli

from gru4rec_fast.evaluation import bootstrap, compare, rating_metrics, write_values


def table(values: Any, n_rankings: Any = None, owner: str = "session") -> polars.DataFrame:
    """Return a table of values of one metric."""
    n = len(values)
    ids = [f"s{number}" for number in range(n)]
    counts = [1] * n if n_rankings is None else n_rankings
    return polars.DataFrame({owner: ids, "n_rankings": counts, "recall@20": np.asarray(values, float)})


def test_interval_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).random(200) ** 2
    row = bootstrap(table(values), n_resamples=20_000, confidence=0.9).row(0, named=True)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile",
                               rng=np.random.default_rng(1)).confidence_interval  # fmt: skip
    assert (row["metric"], row["mean"]) == ("recall@20", pytest.approx(values.mean()))
    # The bounds have a standard error of about 2 % of the standard error of the mean.
    tolerance = 0.1 * values.std() / 200**0.5
    assert row["low"] == pytest.approx(expected.low, abs=tolerance)
    assert row["high"] == pytest.approx(expected.high, abs=tolerance)


def test_sessions_are_weighted_by_their_rankings_and_resampled_as_a_whole() -> None:
    """With two sessions there are four samples, of three different means."""
    frame = table([1, 0], n_rankings=[3, 1])
    row = bootstrap(frame, n_resamples=4000, confidence=0.4).row(0, named=True)
    assert row["mean"] == 0.75 and (row["low"], row["high"]) == (0.75, 0.75)  # means 0, 0.75 (half of all), 1
    row = bootstrap(frame, n_resamples=4000, confidence=0.9).row(0, named=True)
    assert (row["low"], row["high"]) == (0, 1)
    assert bootstrap(frame, seed=3).equals(bootstrap(frame, seed=3))


def test_p_value_equals_the_exact_randomization_test() -> None:
    rng = np.random.default_rng(4)
    counts, a = rng.integers(1, 6, 8), rng.integers(4, size=8) / 4
    b = a + rng.integers(-1, 3, 8) / 4
    row = compare(table(a, counts), table(b, counts), n_resamples=20_000).row(0, named=True)
    weighted = counts * (b - a)
    exact = np.mean([abs(np.dot(signs, weighted)) >= abs(weighted.sum()) for signs in product((-1, 1), repeat=8)])
    assert 0.01 < exact < 0.9
    assert row["p_value"] == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))
    assert row["difference"] == pytest.approx(row["second"] - row["first"]) == weighted.sum() / counts.sum()
    assert row["low"] <= row["difference"] <= row["high"]


def test_p_value_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(5)
    a = rng.random(40)
    b = a + rng.normal(0.05, 0.15, 40)
    expected = stats.permutation_test((b, a), lambda x, y: np.mean(x - y), permutation_type="samples",
                                      n_resamples=20_000, rng=np.random.default_rng(1)).pvalue  # fmt: skip
    row = compare(table(a, owner="user"), table(b, owner="user"), n_resamples=20_000).row(0, named=True)
    assert 0.01 < expected < 0.5 and row["p_value"] == pytest.approx(expected, abs=0.015)


def test_equal_runs_and_opposite_orders() -> None:
    values = table([0.2, 0.4, 1.0])
    assert compare(values, values.reverse(), n_resamples=50).row(0)[1:] == pytest.approx(
        (8 / 15, 8 / 15, 0, 0, 0, 1)
    )  # rows are matched by id
    far = compare(table([0.0] * 30), table([1.0] * 30), n_resamples=99).row(0, named=True)
    assert (far["difference"], far["low"], far["high"], far["p_value"]) == (1, 1, 1, 0.01)


def test_wrong_tables_are_errors(tmp_path: Path) -> None:
    good = table([1, 0, 0])
    for frame, message in (
        (good.head(0), "the table is no table of values"),
        (good.drop("recall@20"), "the table is no table of values"),
        (good.drop("n_rankings"), "no table of values with the columns session or user, n_rankings"),
        (good.rename({"session": "visitor"}), "no table of values"),
        (polars.concat([good, good]), "the table has a session twice"),
    ):
        with pytest.raises(ValueError, match=message):
            bootstrap(frame)
    for other, message in (
        (good.head(2), "have other sessions or other numbers of rankings"),
        (table([1, 0, 0], [1, 2, 1]), "have other sessions or other numbers of rankings"),
        (good.rename({"recall@20": "recall@10"}), "recall@20, and the table session, n_rankings, recall@10"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(good, other)
    for options, message in (
        ({"n_resamples": 0}, "n_resamples=0"),
        ({"confidence": 95}, "confidence=95: must be between 0 and 1"),
        ({"seed": -1}, "seed=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            bootstrap(good, **options)
    for path in ("values.json", tmp_path / "values"):
        with pytest.raises(ValueError, match=r"are in a \.parquet or \.tsv file"):
            bootstrap(path)
        with pytest.raises(ValueError, match=r"are in a \.parquet or \.tsv file"):
            write_values(good, path)


@pytest.mark.parametrize("suffix", [".parquet", ".tsv"])
def test_files_have_the_same_values_and_text_ids(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    ids = ["007", "7", "a\tb", ' "x"', "é"]
    values = polars.DataFrame({"session": ids, "n_rankings": [1, 2, 3, 4, 5], "mrr@5": rng.random(5)})
    other = values.with_columns(polars.col("mrr@5") / 3)
    for name, frame in (("a", values), ("b", other)):
        write_values(frame, tmp_path / f"{name}{suffix}")
    expected = compare(values, other)
    assert compare(tmp_path / f"a{suffix}", str(tmp_path / f"b{suffix}")).equals(expected)
    ran = cli("compare", tmp_path / f"a{suffix}", tmp_path / f"b{suffix}", "--json", tmp_path / "c.json")
    assert ran.exit_code == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0].split() == ["metric", "first", "second", "difference", "low", "high", "p_value"]
    assert lines[1].split() == ["mrr@5", *(f"{value:.4f}" for value in expected.row(0)[1:])]
    assert "95% confidence; 1,000 resamples" in lines[2]
    assert polars.read_json(tmp_path / "c.json")["metrics"][0][0] == expected.row(0, named=True)
    ran = cli("compare", tmp_path / f"a{suffix}", "--confidence", "0.5", "--n-resamples", "10", "--seed", "2")
    row = bootstrap(values, confidence=0.5, n_resamples=10, seed=2).row(0)
    assert ran.stdout.splitlines()[1].split() == ["mrr@5", *(f"{value:.4f}" for value in row[1:])]


def test_errors_of_the_command(tmp_path: Path) -> None:
    for name in ("none.parquet", "none.tsv"):
        assert name in cli("compare", tmp_path / name).error_line
    (tmp_path / "x.tsv").write_text("session\tn_rankings\na\t1\n")
    assert "x.tsv is no table of values" in cli("compare", tmp_path / "x.tsv").error_line
    (tmp_path / "y.tsv").write_text("session\tn_rankings\tmrr@5\na\t1\thigh\n")
    assert "y.tsv is no table of values: " in cli("compare", tmp_path / "y.tsv").error_line
    (tmp_path / "x.parquet").write_text("no parquet")
    assert "x.parquet is no table of values: " in cli("compare", tmp_path / "x.parquet").error_line


# Ratings.


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=30),
    st.one_of(st.none(), st.floats(-5, 5)),
)
def test_rating_metrics_equal_a_loop(pairs: list[tuple[float, float]], threshold: float | None) -> None:
    n = len(pairs)
    mse = sum((p - r) ** 2 for p, r in pairs) / n
    expected = {"mae": sum(abs(p - r) for p, r in pairs) / n, "mse": mse, "rmse": math.sqrt(mse)}
    if threshold is not None:
        positive = [(p >= threshold, r >= threshold) for p, r in pairs]
        found, predicted, true = (sum(map(f, positive)) for f in (all, lambda x: x[0], lambda x: x[1]))
        expected["accuracy"] = sum(p == r for p, r in positive) / n
        precision, recall = found / predicted if predicted else 0, found / true if true else 0
        expected["f1"] = 2 * precision * recall / (precision + recall) if found else 0
    assert rating_metrics(*zip(*pairs, strict=True), threshold=threshold) == pytest.approx(expected, abs=1e-12)


def test_rating_metrics_equal_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    true = rng.integers(1, 6, 500)
    predicted = true + rng.normal(0, 1, 500)
    values = rating_metrics(predicted, true, threshold=4)
    assert values == pytest.approx(
        {
            "mae": metrics.mean_absolute_error(true, predicted),
            "mse": metrics.mean_squared_error(true, predicted),
            "rmse": metrics.mean_squared_error(true, predicted) ** 0.5,
            "accuracy": metrics.accuracy_score(true >= 4, predicted >= 4),
            "f1": metrics.f1_score(true >= 4, predicted >= 4),
        }
    )


def test_wrong_ratings_are_errors() -> None:
    for predictions, ratings in (([1, 2], [1]), ([], []), ([[1]], [[1]])):
        with pytest.raises(ValueError, match="give two arrays"):
            rating_metrics(predictions, ratings)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="must be finite numbers"):
            rating_metrics([1.0, bad], [1.0, 2.0])
