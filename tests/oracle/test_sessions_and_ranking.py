"""Session-parallel mini-batches and ranks, on examples that can be checked by hand."""

import numpy as np
import pytest

from .ranking import metrics, ranks
from .sessions import session_steps, split


def test_lane_whose_session_ends_takes_the_next_one():
    steps = list(session_steps([[1, 2], [3, 4, 5], [6, 7, 8], [9, 10]], lanes=2))
    assert [list(step.inputs) for step in steps] == [[1, 3], [6, 4], [7, 9]]
    assert [list(step.targets) for step in steps] == [[2, 4], [7, 5], [8, 10]]
    assert [list(step.reset) for step in steps] == [[True, True], [True, False], [False, True]]


def test_lanes_continue_in_order_and_become_dead():
    steps = list(session_steps([[1, 2], [3, 4], [5, 6, 7]], lanes=2))
    assert [list(step.inputs) for step in steps] == [[1, 3], [5, -1], [6, -1]]
    assert [list(step.reset) for step in steps] == [[True, True], [True, False], [False, False]]
    assert len(list(session_steps([[1, 2], [3, 4], [5, 6, 7]], lanes=2, min_live=2))) == 1
    assert [list(step.inputs) for step in session_steps([[1, 2]], lanes=3)] == [[1, -1, -1]]


@pytest.mark.parametrize("lanes", [1, 2, 5, 40])
def test_every_event_occurs_once_per_epoch(lanes):
    rng = np.random.default_rng(lanes)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(2, 9, size=30))])
    steps = list(session_steps(split(np.arange(offsets[-1]), offsets), lanes))
    inputs = np.concatenate([step.inputs[step.live] for step in steps])
    targets = np.concatenate([step.targets[step.live] for step in steps])
    last_events = offsets[1:] - 1
    np.testing.assert_array_equal(np.sort(inputs), np.setdiff1d(np.arange(offsets[-1]), last_events))
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(np.sort(np.concatenate([step.inputs[step.reset] for step in steps])), offsets[:-1])


def test_ranks_with_ties():
    scores = np.array([[5.0, 3.0, 3.0, 3.0, 1.0]] * 2)
    targets = np.array([2, 4])
    assert list(ranks(scores, targets, "standard")) == [2, 5]
    assert list(ranks(scores, targets, "conservative")) == [4, 5]
    assert list(ranks(scores, targets, "median")) == [3, 5]
    with pytest.raises(ValueError, match="NaN"):
        ranks(np.array([[np.nan, 1.0]]), np.array([1]))


def test_metrics_equal_hand_computed_means():
    values = metrics(np.array([1.0, 3.0, 7.0, 2.0]), k=3)
    expected = {
        "recall@3": 3 / 4,
        "hitrate@3": 3 / 4,
        "precision@3": 3 / 4 / 3,
        "mrr@3": (1 + 1 / 3 + 1 / 2) / 4,
        "map@3": (1 + 1 / 3 + 1 / 2) / 4,
        "ndcg@3": (1 + 1 / 2 + 1 / np.log2(3)) / 4,
    }
    assert values == pytest.approx(expected, rel=1e-15)
