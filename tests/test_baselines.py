"""Baselines: scores against plain loops over lists, evaluations against ranks by definition, files, errors."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from native import max_examples
from run_cli import cli
from torch import Tensor

from gru4rec_fast import InteractionGraph, SessionStore
from gru4rec_fast.cli.registry import BASELINES
from gru4rec_fast.evaluation import METRICS, metrics_from_ranks, popularity_metrics, scores
from gru4rec_fast.evaluation.scores import SparseScores
from gru4rec_fast.models import (
    AssociationRules,
    Baseline,
    CandidatePool,
    ContentSimilarity,
    HighestRated,
    ItemKNN,
    MostPopular,
    SequentialRules,
    SessionKNN,
)
from gru4rec_fast.models.baselines import item_to_item
from gru4rec_fast.training import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint

sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than two events and are skipped")

PAGE = (Path(__file__).parents[1] / "docs" / "baselines.md").read_text()
N_ITEMS = 7
Sessions = list[list[int]]
logs = st.lists(st.lists(st.integers(0, N_ITEMS - 1), min_size=1, max_size=6), min_size=1, max_size=9)
histories = st.lists(st.integers(0, N_ITEMS - 1), min_size=1, max_size=6)
MODELS: list[Baseline] = [
    MostPopular(),
    MostPopular(in_session=True),
    AssociationRules(),
    AssociationRules(measure="lift", n_last=2, min_count=2),
    AssociationRules(measure="support", n_last=3, n_neighbors=2),
    SequentialRules(),
    SequentialRules(steps=2, n_last=2, n_neighbors=3),
    ItemKNN(),
    ItemKNN(n_neighbors=2, shrinkage=0, n_last=3),
    SessionKNN(),
    SessionKNN(n_neighbors=2, n_recent=3),
]
FOR_USERS = [model for model in MODELS if isinstance(model, AssociationRules | ItemKNN)] + [MostPopular()]
models = pytest.mark.parametrize("model", MODELS, ids=repr)


def make_store(sessions: Sessions, end_times: list[int] | None = None) -> SessionStore:
    offsets = np.cumsum([0, *map(len, sessions)])
    items = np.array([item for session in sessions for item in session])
    return SessionStore.from_arrays(
        items, offsets, n_items=N_ITEMS, start_times=[0] * len(sessions), end_times=end_times or [0] * len(sessions)
    )


def make_graph(users: Sessions) -> InteractionGraph:
    pairs = sorted({(user, item) for user, items in enumerate(users) for item in items})
    return InteractionGraph.from_arrays(*zip(*pairs, strict=True), n_users=len(users), n_items=N_ITEMS)


def all_scores(model: Baseline, queries: Any, **options: Any) -> np.ndarray:
    """Return the scores of all items for each query, [n, N_ITEMS]."""
    best = model.recommend(queries, k=N_ITEMS, exclude_seen=False, **options)
    result = np.full(best.scores.shape, np.nan)
    np.put_along_axis(result, best.items, best.scores, axis=1)
    return result


# Oracles: the score of each item after the events of a session, or for the items of a user.

Rule = Callable[[Sessions], dict[tuple[int, int], float]]


def co_occurrence_rule(model: Any, score: Callable[[int, int, int, int], float]) -> Rule:
    """Return a function that returns the scores of all pairs of items, by counts of the common, of each, of all."""

    def scores_of(sessions: Sessions) -> dict[tuple[int, int], float]:
        sets = [set(session) for session in sessions]
        common = Counter(pair for items in sets for a, b in combinations(items, 2) for pair in ((a, b), (b, a)))
        n_with = Counter(item for items in sets for item in items)
        return {(a, b): score(c, n_with[a], n_with[b], len(sets)) for (a, b), c in common.items()}

    return scores_of


def sequential_rule(steps: int) -> Rule:
    def scores_of(sessions: Sessions) -> dict[tuple[int, int], float]:
        sums: dict[tuple[int, int], Fraction] = {}
        for session in sessions:
            for i, first in enumerate(session):
                for j in range(i + 1, min(i + steps + 1, len(session))):
                    sums[first, session[j]] = sums.get((first, session[j]), Fraction(0)) + Fraction(1, j - i)
        total: dict[int, Fraction] = {}
        for (first, _), value in sums.items():
            total[first] = total.get(first, Fraction(0)) + value
        return {(first, second): float(value / total[first]) for (first, second), value in sums.items()}

    return scores_of


def rule_of(model: Any) -> Rule:
    if isinstance(model, SequentialRules):
        return sequential_rule(model.steps)
    if isinstance(model, ItemKNN):
        s = model.shrinkage
        return co_occurrence_rule(model, lambda c, a, b, n: c / sqrt((a + s) * (b + s)))
    rules: dict[str, Callable[[int, int, int, int], float]] = {
        "support": lambda c, a, b, n: c / n,
        "confidence": lambda c, a, b, n: c / a,
        "lift": lambda c, a, b, n: c * n / (a * b),
    }
    least = model.min_count
    return co_occurrence_rule(model, lambda c, a, b, n: rules[model.measure](c, a, b, n) if c >= least else 0.0)


def item_to_item_scores(model: Any, sessions: Sessions, last_items: list[int]) -> list[float]:
    pairs = {pair: score for pair, score in rule_of(model)(sessions).items() if score > 0}
    result = [0.0] * N_ITEMS
    for first in set(last_items):
        # Equal scores of different formulas' rounding are rounded alike, so that the cut is the same.
        row = sorted(((-round(score, 12), b, score) for (a, b), score in pairs.items() if a == first))
        for _, second, score in row[: model.n_neighbors]:
            result[second] += score
    return result


def session_knn_scores(model: SessionKNN, sessions: Sessions, ends: list[int], history: list[int]) -> list[float]:
    weight = {item: Fraction(position, len(history)) for position, item in enumerate(history, 1)}
    recent_first = sorted(range(len(sessions)), key=lambda s: (-ends[s], -s))
    candidates = [s for s in recent_first if set(sessions[s]) & set(history)][: model.n_recent]
    similarity = {s: sum(weight[item] for item in set(sessions[s]) & set(history)) for s in candidates}
    neighbors = sorted(candidates, key=lambda s: -similarity[s])[: model.n_neighbors]  # stable: the most recent first
    return [float(sum(similarity[s] for s in neighbors if item in sessions[s])) for item in range(N_ITEMS)]


def most_popular_scores(model: MostPopular, sessions: Sessions, history: list[int]) -> list[float]:
    support = Counter(item for session in sessions for item in session)
    first = max(support.values()) + 1 if model.in_session else 0
    return [support[item] + first * history.count(item) for item in range(N_ITEMS)]


def expected_scores(model: Baseline, sessions: Sessions, ends: list[int], history: list[int]) -> list[float]:
    if isinstance(model, MostPopular):
        return most_popular_scores(model, sessions, history)
    if isinstance(model, SessionKNN):
        return session_knn_scores(model, sessions, ends, history)
    return item_to_item_scores(model, sessions, history[-model.n_last :])  # type: ignore[attr-defined]


@models
@settings(max_examples=max_examples(40), deadline=None)
@given(sessions=logs, data=st.data(), queries=st.lists(histories, min_size=1, max_size=4))
def test_scores_equal_plain_loops(model: Baseline, sessions: Sessions, data: Any, queries: Sessions) -> None:
    ends = data.draw(st.lists(st.integers(0, 3), min_size=len(sessions), max_size=len(sessions)))
    model.fit(make_store(sessions, ends))
    expected = [expected_scores(model, sessions, ends, history) for history in queries]
    np.testing.assert_allclose(all_scores(model, queries), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("model", FOR_USERS, ids=repr)
@settings(max_examples=max_examples(40), deadline=None)
@given(users=logs)
def test_scores_of_users_equal_plain_loops(model: Baseline, users: Sessions) -> None:
    """A user's items are all used, and in no order."""
    model.fit(make_graph(users))
    distinct = [sorted(set(items)) for items in users]
    if isinstance(model, MostPopular):
        expected = [most_popular_scores(model, distinct, items) for items in distinct]
    else:
        expected = [item_to_item_scores(model, distinct, items) for items in distinct]
    np.testing.assert_allclose(all_scores(model, range(len(users))), expected, rtol=1e-12, atol=0)


def test_popularity_in_a_window_counts_sessions_that_end_in_it() -> None:
    day = 86400
    store = make_store([[0, 0, 0, 1], [2, 1], [1, 3]], [0, day, 2 * day])
    assert all_scores(MostPopular(days=1).fit(store), [[5]]).tolist() == [[0, 2, 1, 1, 0, 0, 0]]
    in_session = MostPopular(days=1, in_session=True).fit(store)
    assert in_session.recommend([[5, 0, 0]], k=4).items.tolist() == [[0, 5, 1, 2]]
    milliseconds = make_store([[0], [1]], [0, 2 * day * 1000])
    assert all_scores(MostPopular(days=1, time_unit="ms").fit(milliseconds), [[5]])[0, :2].tolist() == [0, 1]
    with pytest.warns(UserWarning, match="time_unit='ms' has no effect without days"):
        MostPopular(time_unit="ms").fit(store)


# Ratings and texts. Queries are a session, or the first user.

LISTS = [[2, 0, 1, 4], [2]]
DATA_AND_QUERIES = [(make_store(LISTS), [LISTS[0]]), (make_graph(LISTS), [0])]


@settings(max_examples=max_examples(30), deadline=None)
@given(ratings=st.lists(st.tuples(st.integers(0, N_ITEMS - 1), st.integers(-2, 5)), min_size=1, max_size=20))
def test_mean_ratings_have_a_prior(ratings: list[tuple[int, int]]) -> None:
    table = {"ItemId": [item for item, _ in ratings], "Rating": [rating for _, rating in ratings]}
    mean = sum(rating for _, rating in ratings) / len(ratings)
    own = [[rating for item, rating in ratings if item == own_item] for own_item in range(N_ITEMS)]
    expected = [(sum(values) + 3 * mean) / (len(values) + 3) for values in own]
    for data, queries in DATA_AND_QUERIES:
        model = HighestRated(prior_count=3).fit(data, ratings=table)
        np.testing.assert_allclose(all_scores(model, queries), [expected], rtol=1e-12, atol=1e-12)


def cosine_of_texts(texts: dict[int, str], n_gram: int, min_texts: int) -> dict[tuple[int, int], float]:
    """Return the similarities of the texts of different items."""
    counts = {}
    for item, text in texts.items():
        words = re.findall(r"\w\w+", text.lower())
        runs = [" ".join(words[i : i + n]) for n in range(1, n_gram + 1) for i in range(len(words) - n + 1)]
        counts[item] = Counter(runs)
    n_with = Counter(term for terms in counts.values() for term in terms)
    idf = {term: log((1 + len(texts)) / (1 + n)) + 1 for term, n in n_with.items() if n >= min_texts}
    vectors = {item: {t: c * idf[t] for t, c in terms.items() if t in idf} for item, terms in counts.items()}
    norm = {item: sqrt(sum(value**2 for value in vector.values())) for item, vector in vectors.items()}
    return {
        (a, b): sum(value * vectors[b].get(term, 0.0) for term, value in vectors[a].items()) / (norm[a] * norm[b])
        for a in texts
        for b in texts
        if a != b and norm[a] and norm[b]
    }


@pytest.mark.parametrize(("n_gram", "min_texts", "n_last"), [(1, 1, 1), (2, 1, 2), (1, 2, 3)])
@settings(max_examples=max_examples(20), deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(["red", "Blue", "car", "a"]), max_size=4), min_size=5, max_size=8))
def test_similarities_of_texts_equal_plain_loops(
    n_gram: int, min_texts: int, n_last: int, texts: list[list[str]]
) -> None:
    """Texts of several rows of an item are joined; two items have no row."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    table = {"ItemId": [number % (N_ITEMS - 2) for number in range(len(texts))], "Text": [*map(" ".join, texts)]}
    joined: dict[int, str] = {}
    for item, text in zip(*table.values(), strict=True):
        joined[item] = f"{joined.get(item, '')} {text}".strip()
    pairs = cosine_of_texts({item: text for item, text in joined.items() if text}, n_gram, min_texts)
    assume(pairs)
    model = ContentSimilarity(n_gram=n_gram, min_texts=min_texts, n_last=n_last)
    for data, queries in DATA_AND_QUERIES:
        last_items = LISTS[0][-n_last:] if isinstance(data, SessionStore) else LISTS[0]
        expected = [sum(pairs.get((first, second), 0.0) for first in last_items) for second in range(N_ITEMS)]
        scores = all_scores(model.fit(data, texts=table), queries)
        np.testing.assert_allclose(scores, [expected], rtol=1e-12, atol=1e-15)


def test_wrong_ratings_and_texts_are_errors() -> None:
    store = make_store([[0, 1]])
    model = HighestRated()
    with pytest.raises(ValueError, match=r"there are no ratings: give ratings= \(--ratings\), a file or table"):
        model.fit(store)
    with pytest.raises(ValueError, match=r"no column 'Rating'.*the nearest is 'rating'"):
        model.fit(store, ratings={"ItemId": [0], "rating": [1]})
    with pytest.raises(ValueError, match=r"column 'Rating', row 2 .*: a rating must be a finite number"):
        model.fit(store, ratings={"ItemId": [0, 1], "Rating": [1.0, float("nan")]})
    with pytest.raises(ValueError, match="ratings must be numbers, not Boolean"):
        model.fit(store, ratings={"ItemId": [0], "Rating": [True]})
    with pytest.raises(ValueError, match="no item of the ratings is in the training data"):
        model.fit(store, ratings={"ItemId": [70], "Rating": [1]})
    assert model.vocabulary is None  # errors leave the model as it was
    with pytest.warns(UserWarning, match="ignored: 1 rating of items that are not in the training data"):
        model.fit(store, ratings={"ItemId": [70, 0], "Rating": [1, 2]})
    with pytest.raises(ValueError, match=r"prior_count=0\.0: must be positive"):
        HighestRated(prior_count=0)
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    with pytest.raises(ValueError, match="there are no texts: give texts="):
        ContentSimilarity().fit(store)
    with pytest.raises(ValueError, match="texts: no term is left with min_texts=2"):
        ContentSimilarity(min_texts=2).fit(store, texts={"ItemId": [0, 1], "Text": ["red", "blue"]})
    with pytest.raises(ValueError, match="texts: no term is left with min_texts=1"):
        ContentSimilarity().fit(store, texts={"ItemId": [0, 1], "Text": ["", None]})


# Evaluation. Ranks are computed from the scores of single sessions.


def rank(row: np.ndarray, target: int, ties: str) -> float:
    greater, equal = sum(row > row[target]), sum(row == row[target]) - 1
    return float(1 + greater + {"standard": 0, "conservative": equal, "median": equal / 2}[ties])


@pytest.mark.parametrize("targets", ["next", "last"])
@pytest.mark.parametrize("ties", ["standard", "conservative", "median"])
@models
@settings(max_examples=max_examples(10), deadline=None)
@given(sessions=logs, test=logs)
def test_evaluation_equals_ranks_by_definition(
    model: Baseline, ties: str, targets: str, sessions: Sessions, test: Sessions
) -> None:
    test = [*test, [0, 1]]  # at least one session has a target
    model.fit(make_store(sessions))
    report = model.evaluate(make_store(test), cutoffs=(1, 3, N_ITEMS), ties=ties, targets=targets)
    prefixes = [
        (session[:n], session[n])
        for session in test
        for n in range(1, len(session))
        if targets == "next" or n == len(session) - 1
    ]
    ranks = [rank(all_scores(model, [history])[0], target, ties) for history, target in prefixes]
    assert report.metrics == pytest.approx(metrics_from_ranks(torch.tensor(ranks), (1, 3, N_ITEMS)), rel=1e-12)
    assert report.n_targets == len(prefixes)


@models
def test_other_protocols_agree_with_the_ranks_of_single_targets(model: Baseline) -> None:
    """Lists of the best items give the same ranks: all remaining targets of sessions of two events, by group."""
    rng = np.random.default_rng(0)
    sessions = [rng.integers(0, N_ITEMS, n).tolist() for n in (1, 2, 3, 4, 2, 5, 6, 2)]
    pairs = [rng.integers(0, N_ITEMS, 2).tolist() for _ in range(30)]
    model.fit(make_store(sessions))
    store = make_store(pairs)
    single = model.evaluate(store, cutoffs=(1, 3), by="popularity", beyond_accuracy=True, per_session=True)
    lists = model.evaluate(store, cutoffs=(1, 3), targets="remaining", by="popularity")
    assert lists.metrics == pytest.approx(single.metrics, rel=1e-12)
    assert lists.groups == {group: pytest.approx(values) for group, values in single.groups.items()}
    assert single.beyond_accuracy["coverage@3"] > 0 and single.per_session is not None
    assert len(single.per_session) == 30
    every_item = model.evaluate(store, cutoffs=(1, 3), negatives=2000)  # draws every item, many times
    assert every_item.metrics["recall@1"] <= single.metrics["recall@1"]


@settings(max_examples=max_examples(30), deadline=None)
@given(sessions=logs, test=logs, ties=st.sampled_from(["standard", "conservative", "median"]))
def test_popularity_equals_the_baseline_of_reports_to_the_bit(sessions: Sessions, test: Sessions, ties: str) -> None:
    model = MostPopular().fit(make_store(sessions))
    store = make_store([*test, [0, 1]])
    report = model.evaluate(store, cutoffs=(1, 5), ties=ties, baselines=True)
    assert model.support is not None
    assert report.metrics == popularity_metrics(store, model.support, (1, 5), ties) == report.baselines["popularity"]  # type: ignore[arg-type]


@pytest.mark.parametrize("ties", [None, "conservative"])
@pytest.mark.parametrize("model", FOR_USERS, ids=repr)
@settings(max_examples=max_examples(20), deadline=None)
@given(users=logs, data=st.data())
def test_evaluation_of_users_equals_its_definition(
    model: Baseline, ties: str | None, users: Sessions, data: Any
) -> None:
    """One unseen item is relevant to each user who lacks one."""
    model.fit(make_graph(users))
    assert model.graph is not None
    rows, targets = all_scores(model, range(len(users))), {}
    for user, items in enumerate(users):
        if unseen := sorted({*range(N_ITEMS)} - {*items}):
            targets[user] = data.draw(st.sampled_from(unseen))
    if not targets:
        return
    ranks = []
    for user, target in targets.items():
        row = np.delete(rows[user], users[user])
        own = target - sum(item < target for item in set(users[user]))
        ranks.append(1 + sum(row > row[own]) + sum(row[:own] == row[own]) if ties is None else rank(row, own, ties))
    ids: dict[str, Any] = {"user_ids": model.graph.users, "item_ids": model.graph.items}
    test = InteractionGraph.from_arrays(list(targets), list(targets.values()), **ids)
    report = model.evaluate(test, cutoffs=(1, 3), ties=ties)
    assert report.metrics == pytest.approx(metrics_from_ranks(torch.tensor(ranks), (1, 3)), rel=1e-12)
    assert report.n_users == report.n_targets == len(targets)


def test_the_size_of_calls_does_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    train, test = (make_store([rng.integers(0, N_ITEMS, n).tolist() for n in range(1, 12)]) for _ in range(2))

    def results() -> list[Any]:
        fitted = [type(model)(**model.get_params()).fit(train) for model in MODELS]
        return [(model.evaluate(test, beyond_accuracy=True), model.recommend(test, k=5)) for model in fitted]

    expected = results()
    for module, name in (
        (scores, "_ITEMS_PER_CALL"),
        (scores, "_QUERIES_PER_CALL"),
        (scores, "_DENSE_ELEMENTS"),
        (item_to_item, "_ITEMS_PER_PRODUCT"),
    ):
        monkeypatch.setattr(module, name, 3)
    for (report, best), (other_report, other_best) in zip(expected, results(), strict=True):
        assert report == other_report
        assert all(map(np.array_equal, best, other_best))


@settings(max_examples=max_examples(100), deadline=None)
@given(seed=st.integers(0, 10**6), n_queries=st.integers(0, 5), density=st.sampled_from([0.0, 0.3, 1.0]))
def test_sparse_scores_equal_dense_ones(seed: int, n_queries: int, density: float) -> None:
    """Few values, also negative ones, so that many scores are equal."""
    rng = np.random.default_rng(seed)
    added = rng.integers(-2, 3, (n_queries, N_ITEMS)) * (rng.random((n_queries, N_ITEMS)) < density)
    item_scores = rng.integers(-1, 2, N_ITEMS).astype(float)
    dense, targets = added + item_scores, rng.integers(0, N_ITEMS, n_queries)
    lists = SparseScores(sparse.csr_array(added.astype(float)), item_scores, np.sort(item_scores))
    greater, equal = lists.target_rank(targets)
    assert greater.tolist() == [int(sum(row > row[t])) for row, t in zip(dense, targets, strict=True)]
    assert equal.tolist() == [int(sum(row == row[t])) - 1 for row, t in zip(dense, targets, strict=True)]
    items = rng.integers(0, N_ITEMS, (n_queries, 4))
    assert np.array_equal(lists.of_items(items).numpy(), np.take_along_axis(dense, items, axis=1))
    excluded = [rng.integers(0, N_ITEMS, 3) for _ in range(n_queries)]
    best_scores, best = lists.top_k(5, excluded)
    for row, left_out, own_scores, own in zip(dense, excluded, best_scores.tolist(), best.tolist(), strict=True):
        order = sorted({*range(N_ITEMS)} - {*left_out.tolist()}, key=lambda item: (-row[item], item))[:5]
        assert own == [*order, -1, -1, -1][:5]
        assert own_scores == [*row[order].tolist(), -np.inf, -np.inf, -np.inf][:5]


# Recommending.


def test_recommend_leaves_out_items_and_skips_unknown_ids() -> None:
    model = ItemKNN(shrinkage=0).fit(make_store([[0, 1, 2, 3], [0, 1], [0, 2], [1, 4]]))
    session = [3, 0]
    full = model.recommend([session], k=N_ITEMS)
    assert full.items.tolist() == [[2, 1, 3, 0, 4, 5, 6]] and full.counts.tolist() == [N_ITEMS]
    assert model.recommend([session], k=5, exclude_seen=True).items.tolist() == [[2, 1, 4, 5, 6]]
    best = model.recommend([session, [1]], k=3, exclude=[[1, 2], []], candidates=[1, 2, 3, 4])
    assert best.items.tolist() == [[3, 4, -1], [3, 4, 2]] and best.counts.tolist() == [2, 3]
    assert model.vocabulary is not None
    pool = CandidatePool(model.vocabulary, [6, 2])
    assert model.recommend([session], k=2, candidates=pool).items.tolist() == [[2, 6]]
    with pytest.raises(ValueError, match="session 1: item 99 is not in the vocabulary"):
        model.recommend([[0], [99]])
    skipped = model.recommend([[99], [99, 0]], k=1, unknown="skip")
    assert skipped.items.tolist() == [[-1], [2]] and skipped.counts.tolist() == [0, 1]
    with pytest.raises(ValueError, match="k=8: choose 1 to 7"):
        model.recommend([[0]], k=8)


def test_recommend_to_users_leaves_out_what_they_have() -> None:
    model = MostPopular().fit(make_graph([[0, 1], [0, 2], [0, 1, 3]]))
    assert model.recommend([1, 2], k=3).items.tolist() == [[1, 3, 4], [2, 4, 5]]
    assert model.recommend([1], k=3, exclude_seen=False).items.tolist() == [[0, 1, 2]]
    best = model.recommend([7, 0], k=1, unknown="skip")
    assert best.counts.tolist() == [0, 1] and best.items.tolist() == [[-1], [2]]
    with pytest.raises(ValueError, match="user 7 is not in the vocabulary"):
        model.recommend([7])


def test_files_and_tables_are_read(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    log = pandas.DataFrame({"s": [1, 1, 2, 2], "item": ["a", "b", "a", "b"], "Time": [1, 2, 3, 4]})
    names: dict[str, Any] = {"session_key": "s", "item_key": "item"}
    model = SequentialRules().fit(log, **names)
    assert model.recommend([["a"]], k=1).items.tolist() == [["b"]]
    assert model.evaluate(log, **names).metrics["recall@20"] == 1.0
    users = AssociationRules().fit(log, interactions=True, user_key="s", item_key="item")
    assert users.graph is not None and users.graph.n_users == 2
    with pytest.raises(TypeError, match="unknown argument 'sesion_key'"):
        model.fit(log, sesion_key="s")


# Files.


def assert_same_after_loading(model: Baseline, queries: Any, folder: Path) -> None:
    loaded = type(model).load(model.save(folder / "model.safetensors"))
    assert loaded.get_params() == model.get_params()
    assert all(map(np.array_equal, model.recommend(queries, k=5), loaded.recommend(queries, k=5)))
    again = load_checkpoint(loaded.save(folder / "again.safetensors"), model.file_format)
    first = load_checkpoint(folder / "model.safetensors", model.file_format)
    assert again.config == first.config and again.tensors.keys() == first.tensors.keys()
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in first.tensors.items())


def test_loaded_models_of_ratings_and_texts_give_the_same_bits(tmp_path: Path) -> None:
    table = {"ItemId": [0, 1, 2, 2], "Rating": [1.0, 2.5, 3.0, 4.0], "Text": ["red car", "blue car", "red", "sea"]}
    for data, queries in DATA_AND_QUERIES:
        assert_same_after_loading(HighestRated().fit(data, ratings=table), queries, tmp_path)
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
        assert_same_after_loading(ContentSimilarity().fit(data, texts=table), queries, tmp_path)


@pytest.mark.parametrize("is_graph", [False, True], ids=["sessions", "users"])
@models
def test_a_loaded_model_gives_the_same_bits(model: Baseline, is_graph: bool, tmp_path: Path) -> None:
    if is_graph and (model._needs_sessions or getattr(model, "in_session", False)):
        return
    rng = np.random.default_rng(2)
    lists = [rng.integers(0, N_ITEMS, n).tolist() for n in (1, 2, 3, 4, 2, 5, 6, 2)]
    model.fit(make_graph(lists) if is_graph else make_store(lists, rng.integers(0, 5, 8).tolist()))
    assert_same_after_loading(model, range(8) if is_graph else lists, tmp_path)


@models
def test_parameters_that_change_after_fit_have_no_effect_before_the_next(model: Baseline, tmp_path: Path) -> None:
    lists = [[0, 1, 2, 1], [2, 3, 1], [1, 2]]
    fitted = type(model)(**model.get_params()).fit(make_store(lists))
    before = fitted.recommend(lists, k=5)
    changes = {"n_last": 4, "n_recent": 1, "n_neighbors": 1, "in_session": not getattr(model, "in_session", False)}
    fitted.set_params(**{name: value for name, value in changes.items() if name in model.names()})
    assert fitted.get_params() != model.get_params()
    assert all(map(np.array_equal, before, fitted.recommend(lists, k=5)))
    assert type(model).load(fitted.save(tmp_path / "model.safetensors")).get_params() == model.get_params()


@pytest.mark.parametrize(
    ("cls", "name", "change", "message"),
    [
        (ItemKNN, "offsets", lambda t: torch.cat([t[:-1], t.new_tensor([-(2**30)])]), "do not fit the number of entr"),
        (ItemKNN, "offsets", lambda t: t.clone().index_fill_(0, torch.tensor([1]), 10**9), "the offsets decrease"),
        (ItemKNN, "offsets", lambda t: t.bool(), "indices and offsets must be integers"),
        (ItemKNN, "indices", lambda t: t.float(), "indices and offsets must be integers"),
        (ItemKNN, "indices", lambda t: t.flip(0), "the indices of a row do not ascend"),
        (ItemKNN, "indices", lambda t: t * 0, "the indices of a row do not ascend"),
        (ItemKNN, "indices", lambda t: t - 1, "an index is not one of 7 items"),
        (SessionKNN, "offsets", lambda t: t[:-1], "do not fit the number of entries"),
        (SessionKNN, "data", lambda t: 2 * t, "the entries of the matrix must be 1"),
    ],
)
def test_damaged_matrices_are_errors(
    tmp_path: Path, cls: type[Baseline], name: str, change: Callable[[Tensor], Tensor], message: str
) -> None:
    path = cls().fit(make_store([[0, 1, 2], [3, 4, 5, 1]])).save(tmp_path / "model.safetensors")
    good = load_checkpoint(path, cls.file_format)
    tensors = good.tensors | {f"matrix.{name}": change(good.tensors[f"matrix.{name}"])}
    save_checkpoint(path, Checkpoint(good.format, good.config, tensors=tensors))
    with pytest.raises(CheckpointError, match=message):
        cls.load(path)


def test_scores_that_are_not_finite_are_an_error() -> None:
    log = {"SessionId": [1, 1], "ItemId": [1, 2], "Time": [1, 2], "Rating": [1e308, 1.5e308]}
    model = HighestRated()
    with pytest.raises(ValueError, match="a score is not finite"):
        model.fit(log)
    assert model.vocabulary is None
    with pytest.raises(ValueError, match="a score is not finite"):
        HighestRated(prior_count=1e308).fit(log | {"Rating": [4, 5]})


def test_columns_of_other_data_are_an_error() -> None:
    log = {"SessionId": [1, 1], "UserId": [1, 1], "ItemId": [1, 2], "Time": [1, 2]}
    with pytest.raises(TypeError, match="user_key has no effect on sessions: leave it out"):
        ItemKNN().fit(log, user_key="UserId")
    with pytest.raises(TypeError, match="session_key has no effect on interactions: leave it out"):
        ItemKNN().fit(log, interactions=True, session_key="SessionId")


def test_damaged_files_are_errors(tmp_path: Path) -> None:
    path = ItemKNN().fit(make_store([[0, 1, 2]])).save(tmp_path / "model.safetensors")
    good = load_checkpoint(path, ItemKNN.file_format)
    changes: dict[str, Any] = {
        "matrix.indices": lambda t: t + N_ITEMS,
        "matrix.offsets": lambda t: t.flip(0),
        "matrix.data": lambda t: t * torch.nan,
        "item_scores": lambda t: t[1:],
        "support": lambda t: t.float(),
    }
    for name, change in changes.items():
        tensors = good.tensors | {name: change(good.tensors[name])}
        save_checkpoint(tmp_path / "damaged", Checkpoint(good.format, good.config, tensors=tensors))
        with pytest.raises(CheckpointError, match="damaged"):
            ItemKNN.load(tmp_path / "damaged")
        missing = {key: tensor for key, tensor in good.tensors.items() if key != name}
        save_checkpoint(tmp_path / "damaged", Checkpoint(good.format, good.config, tensors=missing))
        with pytest.raises(CheckpointError, match="damaged"):
            ItemKNN.load(tmp_path / "damaged")
    fewer = {"matrix.data": torch.ones(0, dtype=torch.float64), "matrix.indices": torch.zeros(0, dtype=torch.int64)}
    tensors = good.tensors | fewer | {"matrix.offsets": torch.zeros(3, dtype=torch.int64)}
    save_checkpoint(tmp_path / "damaged", Checkpoint(good.format, good.config, tensors=tensors))
    with pytest.raises(CheckpointError, match="the scores are not of 7 items"):
        ItemKNN.load(tmp_path / "damaged")
    with pytest.raises(CheckpointError, match=r"is a checkpoint of gru4rec_fast\.ItemKNN, not of"):
        SessionKNN.load(path)
    with pytest.raises(FileNotFoundError):
        ItemKNN.load(tmp_path / "none")


# Documentation.


@pytest.fixture
def log_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with the logs of the examples: 50 sessions, or 8 users, of 20 items."""
    pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    items = {name: rng.integers(0, 20, 200) for name in ("train", "test", "interactions", "test_interactions")}
    for name, ids in items.items():
        columns = {
            "SessionId": np.arange(200) // 4,
            "UserId": np.arange(200) % 8,
            "ItemId": ids,
            "Time": np.arange(200),
            "Rating": rng.integers(1, 6, 200),
        }
        pandas.DataFrame(columns).to_csv(f"{name}.tsv", sep="\t", index=False)
    names = [" ".join(rng.choice(["red", "blue", "car", "sea"], 2)) for _ in range(20)]
    pandas.DataFrame({"ItemId": range(20), "Title": names}).to_csv("items.tsv", sep="\t", index=False)
    return tmp_path


def test_the_examples_of_the_page_run(log_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples, namespace = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL), {}
    assert len(examples) == 3
    for example in examples:
        exec(compile(example, "docs/baselines.md", "exec"), namespace)
    assert "MostPopular(days=7.0)" in capsys.readouterr().out and len(namespace["best"].items) == 1


def test_the_commands_of_the_page_run(log_folder: Path) -> None:
    lines = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 10
    for line in lines:
        ran = cli(*shlex.split(line)[1:])
        assert ran.exit_code == 0, ran.stderr
    assert sorted(path.name for path in Path("run_knn").iterdir()) == ["model.safetensors", "report.json"]
    report = json.loads(Path("run_knn/report.json").read_text())
    model = SessionKNN.load("run_knn/model.safetensors")
    assert model.evaluate("test.tsv", cutoffs=(5, 20)).metrics == report["metrics"] == report["evaluation"]["metrics"]
    assert report["parameters"] == model.to_dict() and report["data"]["train"]["n_sessions"] == 50
    assert len(Path("recommended.tsv").read_text().splitlines()) == 1 + 50 * 10


# Command line.


@pytest.mark.parametrize("name", BASELINES)
def test_evaluate_gives_the_metrics_of_train(log_folder: Path, name: str) -> None:
    options = ["--texts", "items.tsv", "--text-key", "Title"] if name == "content-similarity" else []
    ran = cli("train", "train.tsv", "--model", name, "--test", "test.tsv", "--out", "run", *options)
    assert ran.exit_code == 0 and "run: wrote model.safetensors, report.json\n" in ran.stderr, ran.stderr
    again = cli("evaluate", "run", "test.tsv", "--json", "evaluation.json")
    assert again.stdout == ran.stdout
    evaluation, report = (json.loads(Path(path).read_text()) for path in ("evaluation.json", "run/report.json"))
    assert evaluation["metrics"] == report["metrics"]
    replaced = cli("train", "train.tsv", "--model", name, "--params", "run/report.json", "--out", "run", *options)
    assert replaced.exit_code == 0, replaced.stderr


def test_ratings_of_a_log_without_header_are_read(log_folder: Path) -> None:
    lines = Path("train.tsv").read_text().splitlines()
    Path("ratings.dat").write_text("\n".join(line.replace("\t", "::") for line in lines[1:]))
    columns = lines[0].replace("\t", ",").replace("Rating", "Stars")
    options = ["--separator", "::", "--columns", columns, "--rating-key", "Stars", "--out", "run"]
    ran = cli("train", "ratings.dat", "--model", "highest-rated", *options)
    assert ran.exit_code == 0, ran.stderr
    best = HighestRated.load("run/model.safetensors").recommend([[0]], k=20)
    expected = HighestRated().fit("train.tsv").recommend([[0]], k=20)
    assert (best.items == expected.items).all() and (best.scores == expected.scores).all()


def test_min_rating_leaves_out_ratings(log_folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    options = ["--interactions", "--min-rating", "4", "--prior-count", "1", "--out", "run"]
    ran = cli("train", "interactions.tsv", "--model", "highest-rated", *options)
    assert ran.exit_code == 0, ran.stderr
    log = pandas.read_csv("interactions.tsv", sep="\t")
    kept = log[log.Rating >= 4]
    of_item = kept.groupby("ItemId").Rating
    expected = ((of_item.sum() + kept.Rating.mean()) / (of_item.count() + 1)).to_dict()
    best = HighestRated.load("run/model.safetensors").recommend([0], k=5, exclude_seen=False)
    assert best.scores[0] == pytest.approx([expected[item] for item in best.items[0].tolist()])
    assert best.scores[0][0] == pytest.approx(max(expected.values()))


def test_a_prepared_folder_has_no_ratings(log_folder: Path) -> None:
    assert cli("prepare", "train.tsv", "data").exit_code == 0
    ran = cli("train", "data/train", "--model", "highest-rated")
    assert ran.exit_code == 2 and "data/train is prepared and has no ratings: give --ratings" in ran.error_line


def test_users_get_recommendations_from_a_run_folder(log_folder: Path) -> None:
    ran = cli(
        "train", "interactions.tsv", "--model", "item-knn", "--interactions", "--n-neighbors", "3", "--out", "run"
    )
    assert ran.exit_code == 0, ran.stderr
    Path("users.txt").write_text("3\n5\n")
    Path("candidates.txt").write_text("1\n2\n")
    ran = cli("recommend", "run", "users.txt", "--candidates", "candidates.txt", "--no-exclude-seen", "--k", "2")
    rows = [line.split("\t") for line in ran.stdout.splitlines()]
    assert rows[0] == ["UserId", "Rank", "ItemId", "Score"]
    best = ItemKNN.load("run/model.safetensors").recommend([3, 5], k=2, exclude_seen=False, candidates=[1, 2])
    assert [int(row[2]) for row in rows[1:]] == best.items.ravel().tolist()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train train.tsv --model item_knn", "--model item_knn: choose one of gru4rec, ngcf, lightgcn, most-popular"),
        ("train train.tsv --model item-knn --shrinkage -1", "shrinkage=-1.0: must be at least 0"),
        ("train train.tsv --model item-knn --steps 3", "ItemKNN has no parameter 'steps'"),
        ("train train.tsv --model item-knn --seed 3", "ItemKNN has no parameter 'seed'"),
        ("train train.tsv --model item-knn -ps shrinkag=3", "did you mean 'shrinkage'"),
        ("train train.tsv --model item-knn --threads 1", "--threads has no effect on item-knn"),
        ("train train.tsv --model item-knn --validation test.tsv", "--validation has no effect on item-knn"),
        ("train train.tsv --model item-knn --resume --out run", "--resume has no effect on item-knn"),
        ("train train.tsv --model item-knn --user-key u", "--user-key has no effect on log files of sessions"),
        ("train train.tsv --model item-knn --out used", "used has files of a training (last.safetensors): choose"),
        ("train train.tsv --model session-knn --interactions", "SessionKNN needs sessions, not interactions"),
        ("train train.tsv --interactions", "--interactions is for baselines: gru4rec needs sessions"),
        ("train train.tsv --model item-knn --interactions --test test.tsv --targets last", "--targets is for sessions"),
        ("train train.tsv --item-key I --model item-knn", "I"),
        ("train train.tsv --model item-knn --ratings train.tsv", "--ratings has no effect on item-knn"),
        ("train train.tsv --text-key Title", "--text-key has no effect on gru4rec"),
        ("train train.tsv --model highest-rated --rating-key Stars", "no column 'Stars'"),
        ("train train.tsv --model item-knn --rating-key Stars", "--rating-key has no effect on log files of sessions"),
        ("train train.tsv --model content-similarity", "--model content-similarity needs --texts"),
        ("evaluate model.safetensors test.tsv --device cpu --impl reference", "--impl has no effect on item-knn"),
        ("info --estimate item-knn --n-items 9", "--estimate item-knn: choose one of gru4rec, ngcf, lightgcn"),
    ],
)
def test_wrong_commands_are_errors(log_folder: Path, line: str, message: str) -> None:
    ItemKNN().fit("train.tsv").save("model.safetensors")
    Path("used").mkdir()
    Path("used/last.safetensors").write_bytes(b"")
    ran = cli(*shlex.split(line))
    assert ran.exit_code == 2 and message in ran.error_line
    assert not Path("run").exists()


# Errors.


def test_wrong_parameters_are_errors() -> None:
    with pytest.raises(TypeError, match="ItemKNN has no parameter 'n_neighbours'; did you mean 'n_neighbors'"):
        ItemKNN(n_neighbours=3)
    for cls, values, message in (
        (ItemKNN, {"n_neighbors": 0}, "n_neighbors=0: must be at least 1"),
        (ItemKNN, {"shrinkage": -1}, "shrinkage=-1.0: must be at least 0"),
        (AssociationRules, {"measure": "jaccard"}, "measure='jaccard': choose one of confidence, support, lift"),
        (SequentialRules, {"steps": 0}, "steps=0: must be at least 1"),
        (SessionKNN, {"n_recent": 0}, "n_recent=0: must be at least 1"),
        (MostPopular, {"days": 0}, "days=0.0: must be positive, or None for the whole log"),
        (MostPopular, {"time_unit": "h"}, "time_unit='h': choose one of s, ms, us, ns"),
    ):
        with pytest.raises(ValueError, match=message):
            cls(**values)


def test_wrong_use_is_an_error() -> None:
    store, graph = make_store([[0, 1]]), make_graph([[0, 1]])
    model = ItemKNN()
    for call in (lambda: model.recommend([[0]]), lambda: model.evaluate(store), lambda: model.save("model")):
        with pytest.raises(RuntimeError, match=r"this ItemKNN has counted nothing yet: call fit, or ItemKNN\.load"):
            call()
    for cls in (SequentialRules, SessionKNN):
        with pytest.raises(ValueError, match=f"{cls.__name__} needs sessions, not interactions"):
            cls().fit(graph)
    with pytest.raises(ValueError, match="in_session=True needs sessions, not interactions"):
        MostPopular(in_session=True).fit(graph)
    with pytest.raises(ValueError, match="days=2 needs sessions, not interactions"):
        MostPopular(days=2).fit(graph)
    with pytest.raises(ValueError, match="interactions=True: data is a SessionStore"):
        model.fit(store, interactions=True)
    model.fit(store)
    with pytest.raises(ValueError, match="another vocabulary"):
        model.evaluate(SessionStore.from_arrays([0, 1], [0, 2], n_items=2))
    with pytest.raises(TypeError, match="cutoff"):
        model.evaluate(store, cutoff=20)
    assert set(model.evaluate(store, cutoffs=2).metrics) == {f"{name}@2" for name in METRICS}
    with pytest.raises(ValueError, match="interactions"):
        MostPopular(days=1).fit(graph)
    assert model.report(model.evaluate(store))["metrics"]["recall@20"] == 1.0


def test_a_model_without_scipy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scipy.sparse", None)
    with pytest.raises(ImportError, match=r"the baselines need SciPy: pip install 'gru4rec_fast\[baselines\]'"):
        ItemKNN().fit(make_store([[0, 1]]))
