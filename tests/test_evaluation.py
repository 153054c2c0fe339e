"""Evaluation of session models, compared exactly with a plain loop over sessions; metrics, baselines and reports."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from exact_network import ExactNetwork  # its weights are small integers, so it has no rounding errors
from hypothesis import given, settings
from hypothesis import strategies as st
from native import max_examples

from gru4rec_fast.data import SessionStore
from gru4rec_fast.evaluation import (
    METRICS,
    RankMetrics,
    Report,
    evaluate_sessions,
    metrics_from_ranks,
    popularity_metrics,
    random_metrics,
    ranks_from_counts,
)
from gru4rec_fast.nn import SessionNetwork

N_ITEMS = 13
TIES = ("standard", "conservative", "median")


def metrics_by_definition(ranks: list[float], k: int) -> dict[str, float]:
    """Return the mean metrics at cutoff k, by their general definitions, for queries with one relevant item each.

    Each rank is an integer, the rank of a query's relevant item.
    """
    sums = dict.fromkeys(METRICS, 0.0)
    for rank in ranks:
        relevance = [1 if position == rank else 0 for position in range(1, k + 1)]
        hits = np.cumsum(relevance)
        sums["recall"] += hits[-1] / 1
        sums["hitrate"] += float(hits[-1] > 0)
        sums["precision"] += hits[-1] / k
        sums["mrr"] += max(r / position for position, r in enumerate(relevance, 1))
        sums["map"] += sum(r * hits[position - 1] / position for position, r in enumerate(relevance, 1))
        dcg = sum(r / math.log2(position + 1) for position, r in enumerate(relevance, 1))
        sums["ndcg"] += dcg / (1 / math.log2(2))
    return {f"{name}@{k}": total / len(ranks) for name, total in sums.items()}


def random_sessions(seed: int = 0, n: int = 40) -> list[list[int]]:
    """Return n sessions of 2 to 8 random items."""
    rng = np.random.default_rng(seed)
    return [rng.integers(N_ITEMS, size=rng.integers(2, 9)).tolist() for _ in range(n)]


def make_store(sessions: list[list[int]], dropped: dict[str, int] | None = None) -> SessionStore:
    """Return a store of these sessions. `dropped` counts what was left out when the log was read."""
    offsets = np.cumsum([0, *map(len, sessions)])
    return SessionStore.from_arrays(np.concatenate(sessions), offsets, n_items=N_ITEMS, meta={"dropped": dropped or {}})


def ranks_by_loop(scores_after: Callable[[list[int]], Any], sessions: list[list[int]], ties: str) -> list[float]:
    """Return the rank of each target. `scores_after(events)` returns the scores of all items after these events."""
    ranks = []
    for session in sessions:
        for i in range(1, len(session)):
            scores = scores_after(session[:i]).tolist()
            target_score = scores.pop(session[i])
            greater, equal = sum(x > target_score for x in scores), sum(x == target_score for x in scores)
            ranks.append(1 + greater + {"standard": 0, "conservative": equal, "median": equal / 2}[ties])
    return ranks


def test_metrics_equal_their_definition() -> None:
    ranks = [1, 1, 2, 3, 5, 7, 10, 11, 400]
    metrics = metrics_from_ranks(torch.tensor(ranks), cutoffs=(1, 5, 10))
    expected = metrics_by_definition(ranks, 1) | metrics_by_definition(ranks, 5) | metrics_by_definition(ranks, 10)
    assert metrics == pytest.approx(expected, rel=1e-14)
    assert set(metrics) == {f"{name}@{k}" for name in METRICS for k in (1, 5, 10)}


def test_metrics_of_half_ranks_are_not_rounded() -> None:
    metrics = metrics_from_ranks(torch.tensor([1.5, 20.5, 20.0]), cutoffs=(20,))
    assert metrics["recall@20"] == 2 / 3
    assert metrics["mrr@20"] == pytest.approx((1 / 1.5 + 1 / 20) / 3)


def test_ranks_from_counts_follow_the_rule_for_ties() -> None:
    greater, equal = torch.tensor([0, 4, 2]), torch.tensor([0, 3, 2])
    assert ranks_from_counts(greater, equal, "standard").tolist() == [1, 5, 3]
    assert ranks_from_counts(greater, equal, "conservative").tolist() == [1, 8, 5]
    assert ranks_from_counts(greater, equal, "median").tolist() == [1, 6.5, 4]
    with pytest.raises(ValueError, match="ties='worst': choose one of standard, conservative, median"):
        ranks_from_counts(greater, equal, "worst")  # type: ignore[arg-type]


@given(st.lists(st.integers(2, 100), min_size=1, max_size=50), st.integers(0, 50))
def test_metrics_do_not_depend_on_the_batches(doubled_ranks: list[int], split: int) -> None:
    ranks = torch.tensor(doubled_ranks, dtype=torch.float64) / 2
    expected = metrics_from_ranks(ranks, (20, 3))
    in_two_batches = RankMetrics((3, 20))
    in_two_batches.update(ranks[split:])
    in_two_batches.update(ranks[:split])
    assert in_two_batches.compute() == expected
    with_counts = RankMetrics((3, 20))
    with_counts.update(*ranks.unique(return_counts=True))
    assert with_counts.compute() == expected


@pytest.mark.parametrize("rank", [0.0, 0.5, -3.0, 1.25, math.nan])
def test_values_that_are_not_ranks_are_errors(rank: float) -> None:
    with pytest.raises(ValueError, match="ranks must be at least 1 and multiples of 1/2"):
        metrics_from_ranks(torch.tensor([rank]))


def test_metrics_without_targets_or_cutoffs_are_errors() -> None:
    with pytest.raises(ValueError, match="no target was ranked"):
        RankMetrics().compute()
    for cutoffs in ((), (0,), (20, -1)):
        with pytest.raises(ValueError, match="cutoffs="):
            RankMetrics(cutoffs)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("batch_size", [1, 3, 512])
def test_evaluate_sessions_equals_a_loop_over_sessions(ties: str, batch_size: int) -> None:
    sessions = random_sessions()
    network = ExactNetwork(N_ITEMS)
    ranks = ranks_by_loop(network.scores_after, sessions, ties)
    report = evaluate_sessions(network, make_store(sessions), cutoffs=(1, 5), ties=ties, batch_size=batch_size)  # type: ignore[arg-type]
    assert report.metrics == metrics_from_ranks(torch.tensor(ranks), (1, 5))
    assert report.n_targets == len(ranks) == sum(map(len, sessions)) - len(sessions)
    assert report.n_sessions == len(sessions)


@settings(max_examples=max_examples(30), deadline=None)
@given(
    st.lists(st.lists(st.integers(0, N_ITEMS - 1), min_size=2, max_size=12), min_size=1, max_size=12),
    st.integers(1, 14),
)
def test_evaluation_of_random_sessions_equals_a_loop(sessions: list[list[int]], batch_size: int) -> None:
    network = ExactNetwork(N_ITEMS, seed=1)
    ranks = ranks_by_loop(network.scores_after, sessions, "median")
    report = evaluate_sessions(network, make_store(sessions), ties="median", batch_size=batch_size)
    assert report.metrics == metrics_from_ranks(torch.tensor(ranks))


def test_sessions_longer_than_a_block_equal_a_loop() -> None:
    """Hidden states are passed from block to block, and reset where a session starts.

    A block holds the steps that the network computes in one call, usually of at most 512 hidden states. With
    batch_size=700, it holds one step of 700 sessions.
    """
    rng = np.random.default_rng(3)
    sessions = [rng.integers(N_ITEMS, size=size).tolist() for size in (40, 3, 25, 2, 9) * 200]
    network = ExactNetwork(N_ITEMS)
    report = evaluate_sessions(network, make_store(sessions), cutoffs=(3,), batch_size=700)
    expected = metrics_from_ranks(torch.tensor(ranks_by_loop(network.scores_after, sessions, "conservative")), (3,))
    assert report.metrics == expected


@settings(max_examples=max_examples(15), deadline=None)
@given(st.lists(st.sampled_from([2, 3, 4, 40, 300]), min_size=1, max_size=12), st.sampled_from([1, 4, 64]))
def test_the_cost_of_an_evaluation_depends_on_the_events(lengths: list[int], batch_size: int) -> None:
    """At most half of the network's work is padding, and the number of calls is small: few calls compute one step."""
    rng = np.random.default_rng(0)
    sessions = [rng.integers(N_ITEMS, size=size).tolist() for size in lengths]
    network = ExactNetwork(N_ITEMS)
    report = evaluate_sessions(network, make_store(sessions), batch_size=batch_size)
    assert report.metrics == metrics_from_ranks(
        torch.tensor(ranks_by_loop(network.scores_after, sessions, "conservative"))
    )
    n_targets = sum(lengths) - len(lengths)
    assert n_targets <= network.n_inputs < 2 * n_targets
    # A call computes up to 512 hidden states, or ends where half of its sessions end.
    n_batches = -(-len(lengths) // batch_size)
    assert network.n_calls <= 2 * n_targets / 512 + n_batches * (1 + math.log2(batch_size) + 1)


def test_the_number_of_sessions_sorted_at_a_time_does_not_change_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions are sorted by length, a limited number at a time."""
    store = make_store(random_sessions())
    expected = evaluate_sessions(ExactNetwork(N_ITEMS), store)
    monkeypatch.setattr("gru4rec_fast.evaluation.sessions._SESSIONS_PER_SORT", 7)
    assert evaluate_sessions(ExactNetwork(N_ITEMS), store, batch_size=3) == expected


def test_a_damaged_store_is_an_error() -> None:
    for damaged_item in (-1, N_ITEMS):
        for position in (1, 3):  # event 3 is only a target
            store = make_store([[1, 2, 3, 4]])
            store.items = store.items.copy()
            store.items[position] = damaged_item
            with pytest.raises(ValueError, match=rf"{damaged_item}.*{N_ITEMS} items"):
                evaluate_sessions(ExactNetwork(N_ITEMS), store)


@pytest.mark.parametrize("embedding", ["constrained", "separate", "none"])
def test_the_session_network_equals_a_loop_over_sessions(embedding: str) -> None:
    """Dropout must be off during the evaluation. The expected scores are computed session by session."""
    network = SessionNetwork(
        N_ITEMS, [6, 5], embedding=embedding, embedding_dim=4, dropout_p_embed=0.5, dropout_p_hidden=0.5,
        dtype=torch.float64,
    )  # fmt: skip
    table, bias = network.output_weight.detach().numpy(), network.output_bias.detach().numpy()

    def scores_after(session: list[int]) -> np.ndarray:
        with torch.no_grad():
            hidden, _ = network(torch.tensor(session)[:, None], network.initial_state(1))
        return table @ hidden[-1, 0].numpy() + bias

    sessions = random_sessions(4)
    network.eval()
    ranks = ranks_by_loop(scores_after, sessions, "conservative")
    network.train()
    report = evaluate_sessions(network, make_store(sessions), cutoffs=(1, 5), batch_size=7)
    assert report.metrics == metrics_from_ranks(torch.tensor(ranks), (1, 5))


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_is_restored(training: bool) -> None:
    network = ExactNetwork(N_ITEMS).train(training)
    store = make_store(random_sessions())
    first, second = evaluate_sessions(network, store), evaluate_sessions(network, store)
    assert first == second == evaluate_sessions(network.eval(), store)
    network.train(training)
    # The mode is restored after an error, too.
    with torch.no_grad():
        network.table.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN score"):
        evaluate_sessions(network, store)
    assert network.training == training


@pytest.mark.parametrize("ties", TIES)
def test_popularity_metrics_equal_a_loop(ties: str) -> None:
    sessions, support = random_sessions(5), np.random.default_rng(1).integers(6, size=N_ITEMS)
    ranks = ranks_by_loop(lambda _: torch.from_numpy(support), sessions, ties)
    metrics = popularity_metrics(make_store(sessions), support, (1, 5, 20), ties)  # type: ignore[arg-type]
    assert metrics == metrics_from_ranks(torch.tensor(ranks), (1, 5, 20))


def test_popularity_ignores_sessions_of_fewer_than_two_events() -> None:
    offsets = [0, 0, 1, 4, 4]  # sessions of 0, 1, 3 and 0 events
    store = SessionStore.from_arrays([2, 0, 1, 2], offsets, n_items=3)
    assert popularity_metrics(store, [9, 5, 1], (1, 2))["recall@2"] == 0.5  # targets: item 1 (rank 2), item 2 (rank 3)


def test_random_metrics_are_means_over_all_ranks() -> None:
    for n_items in (3, 50):
        ranks = torch.arange(1, n_items + 1)
        assert random_metrics(n_items, (1, 20)) == metrics_from_ranks(ranks, (1, 20))
    assert random_metrics(10**7)["recall@20"] == pytest.approx(2e-6)


def test_cutoffs_may_be_one_number_and_others_are_errors() -> None:
    assert RankMetrics(5).cutoffs == RankMetrics([np.int64(5)]).cutoffs == (5,)
    for cutoffs in ("20", [5.5], ["5"], None, 0, []):
        with pytest.raises(ValueError, match=r"cutoffs=.*: give at least one whole number, each at least 1"):
            RankMetrics(cutoffs)  # type: ignore[arg-type]


def test_report_has_baselines_and_dropped_events() -> None:
    sessions = random_sessions()
    store = make_store(sessions, {"unseen_items": 1, "unseen_item_events": 1234, "duplicates": 0})
    support = np.arange(N_ITEMS)
    reported: list[int] = []
    report = evaluate_sessions(
        ExactNetwork(N_ITEMS), store, cutoffs=(5,), baselines=True, support=support, progress=reported.append
    )
    assert reported[-1] == report.n_targets
    assert report.baselines["popularity"] == popularity_metrics(store, support, (5,))
    assert report.baselines["random"]["recall@5"] == 5 / N_ITEMS
    lines = report.table(terminal=False).splitlines()
    assert lines[0].split() == ["metric", "model", "popularity", "random"]
    assert lines[1].split() == [
        "recall@5",
        *(f"{metrics['recall@5']:.4f}" for metrics in (report.metrics, *report.baselines.values())),
    ]
    assert len(lines) == 1 + len(METRICS) + 1  # the header and a summary
    assert f"{report.n_targets:,} targets of 40 sessions" in lines[-1]
    assert "dropped: 1,234 events of 1 item that is not in the training data" in lines[-1]
    assert "duplicates" not in lines[-1]
    table = report.table(terminal=True)
    assert "\x1b[" in table and all(text in table for text in ("recall@5", "popularity", "ndcg@5"))
    assert Report(**json.loads(report.to_json())) == report


def test_sessions_of_one_event_are_counted_as_dropped() -> None:
    store = make_store([[1], [2, 3], [4]])
    with pytest.warns(UserWarning, match="2 of 3 sessions have fewer than two events"):
        report = evaluate_sessions(ExactNetwork(N_ITEMS), store)
    assert (report.n_sessions, report.n_targets) == (1, 1)
    assert report.dropped == {"sessions_too_short_to_evaluate": 2}


def test_wrong_arguments_are_errors() -> None:
    network, store = ExactNetwork(N_ITEMS), make_store(random_sessions())
    with pytest.raises(ValueError, match="the store has 13 items, the model 12: read the test log with vocabulary="):
        evaluate_sessions(ExactNetwork(12), store)
    with pytest.raises(ValueError, match="baselines=True needs support="):
        evaluate_sessions(network, store, baselines=True)
    with pytest.raises(ValueError, match=r"support must have one number per item, \[13\]"):
        evaluate_sessions(network, store, baselines=True, support=[1, 2])
    with pytest.raises(ValueError, match="ties='best'"):
        evaluate_sessions(network, store, ties="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size=0"):
        evaluate_sessions(network, store, batch_size=0)
    with pytest.raises(ValueError, match="none of the 2 sessions has two events"):
        evaluate_sessions(network, make_store([[1], [2]]))
