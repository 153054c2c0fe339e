"""The command `gru4rec-fast demo`, and the synthetic sessions that it trains on."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from run_cli import cli
from scipy.stats import chisquare

from gru4rec_fast.data import SessionStore
from gru4rec_fast.data.sessions.synthetic import EVENT_INTERVAL_S, markov_events, markov_sessions


def transitions(events: dict[str, np.ndarray]) -> np.ndarray:
    """Return the pairs of consecutive items in sessions, [n, 2]."""
    pairs = np.stack([events["ItemId"][:-1], events["ItemId"][1:]], axis=1)
    return pairs[events["SessionId"][:-1] == events["SessionId"][1:]]


def test_events_have_the_requested_lengths_items_and_times() -> None:
    events = markov_events(2000, 50, mean_length=5, seed=3)
    lengths = np.bincount(events["SessionId"])[1:]
    assert len(lengths) == 2000 and lengths.min() == 2
    # A length is 1 plus a geometric number with mean 4 and variance 12. The tolerance is five standard errors.
    assert abs(lengths.mean() - 5) < 5 * np.sqrt(12 / 2000)
    assert all(column.dtype == np.int64 for column in events.values())
    assert events["ItemId"].min() >= 1 and events["ItemId"].max() <= 50
    same_session = events["SessionId"][:-1] == events["SessionId"][1:]
    assert (np.diff(events["Time"])[same_session] == EVENT_INTERVAL_S).all()


def test_the_seed_determines_the_events() -> None:
    events, same_seed, other_seed = (markov_events(50, 20, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(events[name], same_seed[name]) for name in events)
    assert not np.array_equal(events["ItemId"], other_seed["ItemId"])


def test_popularity_follows_zipf() -> None:
    """With p_follow=0, every item is drawn by popularity."""
    events = markov_events(20_000, 30, p_follow=0, zipf_exponent=1.2, seed=5)
    counts = np.sort(np.bincount(events["ItemId"], minlength=31)[1:])[::-1]
    expected = np.arange(1, 31) ** -1.2
    assert chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > 1e-3


def test_an_item_has_n_successors() -> None:
    """With probability `p_follow`, the next item is a successor of the current one. Otherwise it may be any item."""
    n_followers = {}  # p_follow -> number of distinct items that follow each item
    for p_follow in (0.0, 1.0):
        pairs = np.unique(transitions(markov_events(5000, 40, n_successors=3, p_follow=p_follow, seed=7)), axis=0)
        n_followers[p_follow] = np.bincount(pairs[:, 0], minlength=41)[1:]
    assert n_followers[1.0].max() == 3
    assert n_followers[0.0].min() > 10


def test_training_validation_and_test_sessions_are_ordered_by_time() -> None:
    train, validation, test = markov_sessions(500, 40, parts=(0.8, 0.1, 0.1), seed=2)
    assert (train.n_sessions, validation.n_sessions, test.n_sessions) == (400, 50, 50)
    assert train.vocabulary == validation.vocabulary == test.vocabulary
    assert train.support.min() > 0
    assert train.start_times[-1] < validation.start_times[0] <= validation.start_times[-1] < test.start_times[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_sessions": 0}, "n_sessions=0"),
        ({"n_items": 0}, "n_items=0"),
        ({"n_successors": 0}, "n_successors=0"),
        ({"p_follow": 1.5}, "p_follow=1.5"),
        ({"mean_length": 2}, "mean_length=2"),
        ({"parts": (1, 0)}, "each part must get at least one"),
        ({"n_sessions": 3, "parts": (0.99, 0.01)}, "each part must get at least one"),
    ],
)
def test_arguments_out_of_range_are_errors(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        markov_sessions(**{"n_sessions": 10, **arguments})


def test_the_demo_beats_popularity(tmp_path: Path) -> None:
    ran = cli("demo", "--out", tmp_path / "demo", "--sessions", "4000", "--epochs", "2")
    assert ran.exit_code == 0, ran.stderr
    assert not ran.control_characters()
    header, *rows = ran.stdout.splitlines()
    assert header.split() == ["metric", "model", "popularity", "random"]
    table = {row.split()[0]: [float(value) for value in row.split()[1:]] for row in rows[:2]}
    assert list(table) == ["recall@20", "mrr@20"]
    for model, popularity, random in table.values():
        assert model > 1.5 * popularity and popularity > 2 * random
    curves = tmp_path / "demo/curves.png"
    assert f"training curves: {curves}" in ran.stdout
    assert curves.read_bytes().startswith(b"\x89PNG") and curves.stat().st_size > 10_000
    assert ran.stderr.count("epoch ") == 2

    # A second run keeps the files of the first run in previous/, and prints the same metrics.
    second = cli("demo", "--out", tmp_path / "demo", "--sessions", "4000", "--epochs", "2")
    assert (tmp_path / "demo/previous/model.safetensors").exists()
    assert second.stdout.splitlines()[:3] == ran.stdout.splitlines()[:3]


def test_the_command_that_the_demo_suggests_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = cli("demo", "--sessions", "300", "--epochs", "1")
    assert ran.exit_code == 0, ran.stderr
    (suggestion,) = [line for line in ran.stdout.splitlines() if line.startswith("next: gru4rec-fast ")]
    suggested = cli(*suggestion.removeprefix("next: gru4rec-fast ").split())
    assert suggested.exit_code == 0, suggested.stderr
    rows = Path("recommended.tsv").read_text().splitlines()
    assert len(rows) == 1 + 5 * SessionStore.open("demo_run/test").n_sessions  # a header, and 5 items for each session
