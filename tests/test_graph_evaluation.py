"""evaluate_graph: compared with a loop over plain lists; errors for wrong input."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import max_examples

from gru4rec_fast import InteractionGraph, _backend, ops
from gru4rec_fast.evaluation import GRAPH_METRICS, batches, evaluate_graph

needs_native = pytest.mark.skipif(_backend.resolve("auto", "top_k", "cpu") != "native", reason="no native top_k")
impls = pytest.mark.parametrize("impl", ["reference", pytest.param("native", marks=needs_native)])


def random_graphs(n_users: int, n_items: int, n_draws: int, seed: int) -> tuple[InteractionGraph, InteractionGraph]:
    """Return a training and a test graph with the same indices. Each is made of `n_draws` random interactions."""
    rng = np.random.default_rng(seed)
    pairs = [(rng.integers(n_users, size=n_draws), rng.integers(n_items, size=n_draws)) for _ in range(2)]
    train, test = (InteractionGraph.from_arrays(u, i, n_users=n_users, n_items=n_items) for u, i in pairs)
    return train, InteractionGraph.from_arrays(*test.interactions(), user_ids=train.users, item_ids=train.items)


def metrics_by_definition(
    embeddings: torch.Tensor, train: InteractionGraph, test: InteractionGraph, cutoffs: tuple[int, ...]
) -> tuple[dict[str, float], int, int]:
    """Return the metrics, the number of evaluated users and the number of targets.

    Targets are the test items that the user does not have in training. Rank r is counted from 0.
    """
    users, items = embeddings.split([train.n_users, train.n_items])
    values_by_metric: dict[str, list[float]] = {}
    n_targets = 0
    for user in range(train.n_users):
        trained = set(train.items_of(user).tolist())
        targets = set(test.items_of(user).tolist()) - trained
        if not targets:
            continue
        n_targets += len(targets)
        score = (items @ users[user]).tolist()
        ranking = sorted((i for i in range(train.n_items) if i not in trained), key=lambda i: (-score[i], i))
        for k in cutoffs:
            hits = [item in targets for item in ranking[:k]]
            ideal = sum(1 / math.log2(r + 2) for r in range(min(k, len(targets))))
            precisions = [sum(hits[: r + 1]) / (r + 1) for r in range(len(hits))]
            values = {
                "recall": sum(hits) / len(targets),
                "mrr": max((hit / (r + 1) for r, hit in enumerate(hits)), default=0.0),
                "ndcg": sum(hit / math.log2(r + 2) for r, hit in enumerate(hits)) / ideal,
                "precision": sum(hits) / k,
                "hitrate": float(any(hits)),
                "map": sum(p for p, hit in zip(precisions, hits, strict=True) if hit) / min(k, len(targets)),
            }
            for name, value in values.items():
                values_by_metric.setdefault(f"{name}@{k}", []).append(value)
    n_users = len(values_by_metric.get(f"recall@{cutoffs[0]}", []))
    return {name: sum(all_values) / n_users for name, all_values in values_by_metric.items()}, n_users, n_targets


@impls
@settings(max_examples=max_examples(60), deadline=None)
@given(
    # n_users, n_items, n_draws, seed
    graph_arguments=st.tuples(st.integers(1, 8), st.integers(1, 12), st.integers(1, 40), st.integers(0, 10**6)),
    cutoffs=st.sets(st.integers(1, 15), min_size=1, max_size=4),
    batch_size=st.integers(1, 9),
)
def test_metrics_equal_their_definition(
    impl: str, graph_arguments: tuple[int, int, int, int], cutoffs: set[int], batch_size: int
) -> None:
    """Embeddings are small integers, so that scores are exact and many scores are equal."""
    train, test = random_graphs(*graph_arguments)
    generator = torch.Generator().manual_seed(graph_arguments[3])
    embeddings = torch.randint(-2, 3, (train.n_nodes, 3), generator=generator).double()
    expected, n_users, n_targets = metrics_by_definition(embeddings, train, test, tuple(sorted(cutoffs)))
    options: dict[str, Any] = {"cutoffs": cutoffs, "batch_size": batch_size, "impl": impl}
    if not n_users:
        with pytest.raises(ValueError, match="no user has a test item"):
            evaluate_graph(embeddings, train, test, **options)
        return
    report = evaluate_graph(embeddings, train, test, **options)
    assert report.metrics == pytest.approx(expected, rel=1e-12)
    assert list(report.metrics) == [f"{name}@{k}" for k in sorted(cutoffs) for name in GRAPH_METRICS]
    assert (report.n_users, report.n_targets, report.n_items) == (n_users, n_targets, train.n_items)
    n_dropped = report.dropped.get("interactions_already_in_training", 0)
    assert n_targets + n_dropped == test.n_edges
    assert report.metrics == evaluate_graph(embeddings, train, test, cutoffs=cutoffs, impl=impl).metrics


@impls
@settings(max_examples=max_examples(30), deadline=None)
@given(
    degrees=st.lists(st.sampled_from([0, 1, 2, 30, 60]), min_size=1, max_size=40),
    limit=st.sampled_from([1, 16, 64, 200]),
)
def test_the_cost_of_leaving_items_out_depends_on_the_edges(impl: str, degrees: list[int], limit: int) -> None:
    """The padding of the left-out items is limited, and the metrics have the same bits."""
    items = np.concatenate([np.random.default_rng(user).permutation(70)[:n] for user, n in enumerate(degrees)])
    users = np.repeat(np.arange(len(degrees)), degrees)
    if not len(users):
        users, items = np.array([0]), np.array([0])
    train = InteractionGraph.from_arrays(users, items, n_users=len(degrees), n_items=70)
    test = InteractionGraph.from_arrays(
        np.repeat(np.arange(len(degrees)), 70), np.tile(np.arange(70), len(degrees)), n_users=len(degrees), n_items=70
    )
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randint(-2, 3, (train.n_nodes, 3), generator=generator).double()
    expected = evaluate_graph(embeddings, train, test, impl=impl)
    n_padded: list[int] = []
    search = ops.top_k

    def counting_search(*arguments: Any, impl: str) -> Any:
        n_padded.append(0 if arguments[4] is None else arguments[4].numel())
        return search(*arguments, impl=impl)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "_PADDED_ELEMENTS", limit)
        patch.setattr(ops, "top_k", counting_search)
        assert evaluate_graph(embeddings, train, test, impl=impl) == expected
    assert all(n <= max(limit, max(degrees)) for n in n_padded)
    # Of two calls in order, the rows of the first are at least as long as those of the second: padding is bounded.
    assert sum(n_padded[1:]) <= sum(degrees) + limit


@impls
def test_metrics_of_a_perfect_ranking_are_one(impl: str) -> None:
    """Item embeddings are one-hot vectors; the embedding of a user is the sum over the user's test items."""
    train, test = random_graphs(20, 60, n_draws=100, seed=0)
    users, items = test.interactions()
    embeddings = torch.zeros(80, 60)
    embeddings[users, items] = 1
    embeddings[20 + torch.arange(60), torch.arange(60)] = 1
    metrics = evaluate_graph(embeddings, train, test, cutoffs=(20,), impl=impl).metrics
    assert metrics["recall@20"] == metrics["ndcg@20"] == metrics["hitrate@20"] == metrics["map@20"] == 1


def test_report_has_counts_and_dropped_interactions() -> None:
    train = InteractionGraph.from_arrays([0, 1], [0, 1], n_items=3)
    test = InteractionGraph.from_arrays(
        [0, 0, 1, 1],
        [0, 2, 2, 2],
        user_ids=train.users,
        item_ids=train.items,
        meta={"dropped": {"interactions_of_unknown_users": 4}},
    )
    report = evaluate_graph(torch.ones(5, 2), train, test, cutoffs=(1, 2))
    assert report.n_users == 2 and report.n_targets == 2
    assert report.dropped == {
        "interactions_of_unknown_users": 4,
        "duplicate_interactions": 1,
        "interactions_already_in_training": 1,
    }
    assert json.loads(report.to_json())["metrics"]["recall@2"] == 1.0
    lines = report.table(terminal=False).splitlines()
    assert lines[1].split() == ["recall@1", "0.0000"] and "4 interactions of unknown users" in lines[-1]
    assert "recall@2" in report.table(terminal=True)


def test_wrong_arguments_are_errors() -> None:
    train, test = random_graphs(4, 6, n_draws=12, seed=1)
    embeddings = torch.ones(10, 2)
    other = InteractionGraph.from_arrays([0], [0], n_users=4, n_items=7)
    for changed, message in (
        ({"cutoffs": ()}, r"cutoffs=\(\)"),
        ({"cutoffs": (0, 5)}, r"cutoffs=\(0, 5\)"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"test": other}, "read it with like=train"),
        ({"embeddings": torch.ones(9, 2)}, r"embeddings must be \[10, D\]"),
        ({"embeddings": torch.full((10, 2), math.nan)}, "NaN score"),
        ({"test": train}, "no user has a test item"),
    ):
        arguments: dict[str, Any] = {"embeddings": embeddings, "train": train, "test": test, **changed}
        with pytest.raises(ValueError, match=message):
            evaluate_graph(**arguments)
