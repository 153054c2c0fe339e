"""Targets, ties, sampled negatives, groups and values per session, against plain loops and brute force."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
import torch
from exact_network import ExactNetwork
from hypothesis import given, settings
from hypothesis import strategies as st
from native import max_examples

from gru4rec_fast import InteractionGraph, SessionStore
from gru4rec_fast.evaluation import METRICS, Report, beyond_accuracy, evaluate_graph, evaluate_sessions
from gru4rec_fast.evaluation.groups import group_label, groups_of
from gru4rec_fast.evaluation.lists import complete_lists, find_hits
from gru4rec_fast.evaluation.metrics import Hits, metrics_per_ranking
from gru4rec_fast.evaluation.negatives import NegativeSampler, sampled_lists
from gru4rec_fast.evaluation.scores import ProductScores

TIES = ("standard", "conservative", "median")
N_ITEMS = 13
CUTOFFS = (1, 3, 30)  # the last one is larger than the catalogue
SUPPORT = np.array([0, 1, 9, 10, 99, 100, 3, 3, 50, 7, 12, 150, 1000])


def ranks_by_brute_force(scores: dict[int, float], relevant: set[int], ties: str) -> list[float]:
    """Return the ranks of the relevant items, in order: best, worst, or middle over all orders of tied items."""
    ranks = []
    for order in permutations(scores):
        if all(scores[a] >= scores[b] for a, b in pairwise(order)):
            ranks.append([rank for rank, item in enumerate(order, 1) if item in relevant])
    best, worst = ([choose(column) for column in zip(*ranks, strict=True)] for choose in (min, max))
    middle = [(a + b) / 2 for a, b in zip(best, worst, strict=True)]
    return {"standard": best, "conservative": worst, "median": middle}[ties]


def ranks_by_counting(scores: dict[int, float], relevant: set[int], ties: str) -> list[float]:
    """Return the ranks of the relevant items, in order; `test_counting_equals_brute_force` checks it."""
    ranks = []
    for j, item in enumerate(sorted(relevant, key=lambda item: -scores[item]), 1):
        others = [score for other, score in scores.items() if other not in relevant]
        greater, equal = sum(s > scores[item] for s in others), sum(s == scores[item] for s in others)
        ranks.append(j + greater + {"standard": 0, "conservative": equal, "median": equal / 2}[ties])
    return ranks


def metrics_by_definition(ranks: list[float], n: int, cutoffs: tuple[int, ...]) -> dict[str, float]:
    """Return the metrics of one ranking with n relevant items, those that can be ranked at these ranks."""
    values = {}
    for k in cutoffs:
        hits = [rank for rank in ranks if rank <= k]
        ideal = sum(1 / math.log2(1 + rank) for rank in range(1, min(n, k) + 1))
        values |= {
            f"recall@{k}": len(hits) / n,
            f"mrr@{k}": 1 / hits[0] if hits else 0.0,
            f"ndcg@{k}": sum(1 / math.log2(1 + rank) for rank in hits) / ideal,
            f"map@{k}": sum(j / rank for j, rank in enumerate(hits, 1)) / min(n, k),
            f"precision@{k}": len(hits) / k,
            f"hitrate@{k}": float(bool(hits)),
        }
    return values


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def approx(values: Any) -> Any:
    return pytest.approx(values, rel=1e-12)


small_rankings = st.dictionaries(st.integers(0, 8), st.integers(0, 2).map(float), min_size=1, max_size=6)


@settings(max_examples=max_examples(60), deadline=None)
@given(scores=small_rankings, data=st.data(), ties=st.sampled_from(TIES))
def test_ranks_equal_brute_force_over_permutations(scores: dict[int, float], data: st.DataObject, ties: Any) -> None:
    relevant = data.draw(st.sets(st.sampled_from(sorted(scores)), min_size=1))
    expected = ranks_by_brute_force(scores, relevant, ties)
    assert ranks_by_counting(scores, relevant, ties) == expected
    items = sorted(scores, key=lambda item: (-scores[item], item))
    listed = np.array([[*items, -1]]), np.array([[*(scores[item] for item in items), -math.inf]])
    hits = find_hits(listed[1], listed[0], [np.array(sorted(relevant))], 9, ties)
    assert hits.rank.tolist() == expected and hits.order.tolist() == list(range(1, len(expected) + 1))
    by_index = find_hits(listed[1], listed[0], [np.array(sorted(relevant))], 9, None)
    assert by_index.rank.tolist() == [rank for rank, item in enumerate(items, 1) if item in relevant]


def test_metrics_equal_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for n_relevant in (1, 3, 9):
        scores = rng.permutation(30).astype(float)
        relevant = rng.choice(30, n_relevant, replace=False)
        order = np.argsort(-scores)
        hits = find_hits(scores[order][None], order[None], [np.sort(relevant)], 30, "median")
        values = metrics_per_ranking(hits, (5, 30))
        truth = np.isin(np.arange(30), relevant)
        for k in (5, 30):
            assert values[f"ndcg@{k}"] == approx(metrics.ndcg_score([truth], [scores], k=k))
        assert values["map@30"] * 1.0 == approx(metrics.average_precision_score(truth, scores))


@settings(max_examples=max_examples(40), deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=1, max_size=5), st.integers(1, 8)
)  # fmt: skip
def test_lists_have_all_items_with_the_score_at_rank_k(scores: list[list[int]], k: int) -> None:
    table = torch.tensor(scores, dtype=torch.float64)

    def search(rows: np.ndarray, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        values, items = table[torch.from_numpy(rows)].sort(descending=True, stable=True)
        return values[:, :length], items[:, :length]

    seen = []
    for rows, values, items in complete_lists(search, np.arange(len(scores)), k, 6):
        seen += rows.tolist()
        for row, value, item in zip(rows, values, items, strict=True):
            needed = {i for i in range(6) if scores[row][i] >= sorted(scores[row])[::-1][min(k, 6) - 1]}
            assert needed <= set(item.tolist())
            assert value.tolist() == [scores[row][i] for i in item]
    assert sorted(seen) == list(range(len(scores)))


def random_sessions(seed: int, n: int = 30) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(N_ITEMS, size=rng.integers(2, 9)).tolist() for _ in range(n)]


def make_store(sessions: list[list[int]], meta: dict[str, Any] | None = None) -> SessionStore:
    ids = [f"s{number}" for number in range(len(sessions))]
    offsets = np.cumsum([0, *map(len, sessions)])
    return SessionStore.from_arrays(np.concatenate(sessions), offsets, n_items=N_ITEMS, session_ids=ids, meta=meta)


def rankings_by_loop(
    network: ExactNetwork, sessions: list[list[int]], targets: str
) -> list[tuple[int, int, dict[int, float], set[int]]]:
    """Return session, position, scores and relevant items of each ranking."""
    rankings = []
    for number, session in enumerate(sessions):
        for i in range(1, len(session)):
            if targets == "last" and i < len(session) - 1:
                continue
            relevant = set(session[i:]) if targets == "remaining" else {session[i]}
            rankings.append((number, i, dict(enumerate(network.scores_after(session[:i]).tolist())), relevant))
    return rankings


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("targets", ["next", "last", "remaining"])
def test_sessions_equal_a_loop(targets: Any, ties: Any) -> None:
    network, sessions = ExactNetwork(N_ITEMS), [*random_sessions(0), [4, 4], [1, 2]]
    values, groups = [], {name: defaultdict(list) for name in ("length", "position", "popularity")}
    of_session = defaultdict(list)
    n_targets = 0
    for number, position, scores, relevant in rankings_by_loop(network, sessions, targets):
        metrics = metrics_by_definition(ranks_by_counting(scores, relevant, ties), len(relevant), CUTOFFS)
        n_targets += len(relevant)
        values.append(metrics)
        of_session[f"s{number}"].append(metrics)
        groups["length"][group_label(int(groups_of(len(sessions[number]), "length")), "length")].append(metrics)
        groups["position"][group_label(int(groups_of(position, "position")), "position")].append(metrics)
        for label in {group_label(int(groups_of(SUPPORT[item], "popularity")), "popularity") for item in relevant}:
            own = {i for i in relevant if group_label(int(groups_of(SUPPORT[i], "popularity")), "popularity") == label}
            ranks = ranks_by_counting(scores, own, ties)
            groups["popularity"][label].append(metrics_by_definition(ranks, len(own), CUTOFFS))
    options: dict[str, Any] = {"cutoffs": CUTOFFS, "ties": ties, "targets": targets, "support": SUPPORT}
    plain = evaluate_sessions(network, make_store(sessions), **options)
    assert plain.metrics == approx(mean(values))
    assert (plain.n_targets, plain.n_sessions, plain.targets) == (n_targets, len(sessions), targets)
    assert plain.groups == {} and plain.per_session is None and plain.by is None
    for by, expected in groups.items():
        report = evaluate_sessions(network, make_store(sessions), by=by, batch_size=7, per_session=True, **options)
        assert report.metrics == (approx(plain.metrics) if targets == "remaining" else plain.metrics)
        assert list(report.groups) == sorted(expected, key=lambda label: int(label.split("-")[0]))
        for label, rows in expected.items():
            assert report.groups[label] == approx(mean(rows) | {"n": len(rows)}), label
        assert report.per_session is not None
        rows = {row.pop("session"): row for row in report.per_session.to_dicts()}
        assert rows == {name: approx(mean(own) | {"n_rankings": len(own)}) for name, own in of_session.items()}
        assert Report(**json.loads(report.to_json())) == report
        assert "polars" not in report.to_json() and "per_session" not in report.to_json()
        lines = report.table(terminal=False).splitlines()
        header = lines.index("") + 1
        assert lines[header].split() == [by, *report.groups]
        assert lines[header + 1].split()[0] == "recall@1" and lines[-2].split()[0] == "n"


def test_a_network_of_one_score_is_ranked_by_the_rule_for_ties() -> None:
    """All items tie, so that the lists have all items."""
    network = ExactNetwork(N_ITEMS)
    with torch.no_grad():
        network.table.zero_()
        network.bias.zero_()
    store = make_store([[1, 2, 3]])  # targets: {2, 3}, then {3}
    recall = {
        ties: evaluate_sessions(network, store, cutoffs=(2, 12, 13), ties=ties, targets="remaining").metrics
        for ties in TIES
    }
    assert [recall["standard"][f"recall@{k}"] for k in (2, 12, 13)] == [1, 1, 1]
    assert [recall["conservative"][f"recall@{k}"] for k in (2, 12, 13)] == [0, (1 / 2 + 0) / 2, 1]
    assert [recall["median"][f"recall@{k}"] for k in (2, 12, 13)] == [0, 1, 1]  # ranks 6.5, 7.5, and 7


def test_groups_are_formed_by_powers() -> None:
    labels = [group_label(int(group), "popularity") for group in groups_of([0, 1, 9, 10, 99, 100], "popularity")]
    assert labels == ["0", "1-9", "1-9", "10-99", "10-99", "100-999"]
    labels = [group_label(int(group), "position") for group in groups_of([1, 2, 3, 4, 5, 8, 9], "position")]
    assert labels == ["1", "2", "3-4", "3-4", "5-8", "5-8", "9-16"]
    assert [group_label(int(group), "length") for group in groups_of([0, 1, 2], "length")] == ["0-1", "0-1", "2"]


# Sampled negatives.


def test_negatives_are_never_excluded_and_follow_the_weights() -> None:
    excluded = [np.array([1]), np.array([0, 3, 12]), np.array([11, 12])]
    for by in ("uniform", "popularity"):
        sampler = NegativeSampler(20_000, by, SUPPORT, seed=3)
        weights = SUPPORT if by == "popularity" else np.ones(N_ITEMS)
        drawn = sampler.draw(np.array([5, 6, 2**40]), excluded)
        for row, out in zip(drawn, excluded, strict=True):
            p = np.where(np.isin(np.arange(N_ITEMS), out), 0, weights) / np.delete(weights, out).sum()
            counts = np.bincount(row, minlength=N_ITEMS)
            assert not counts[p == 0].any()
            # Chi-square with up to 12 degrees of freedom: above 40 with a probability of less than 1e-4.
            expected = p[p > 0] * sampler.n
            assert ((counts[p > 0] - expected) ** 2 / expected).sum() < 40


def test_a_draw_depends_on_the_ranking_and_the_seed_only() -> None:
    sampler = NegativeSampler(50, "popularity", SUPPORT, seed=1)
    rankings, excluded = np.array([3, 900, 7]), [np.array([2]), np.array([12]), np.array([4, 5])]
    drawn = sampler.draw(rankings, excluded)
    for i in (2, 0, 1):
        assert sampler.draw(rankings[i : i + 1], excluded[i : i + 1]).tolist() == drawn[i : i + 1].tolist()
    other = NegativeSampler(50, "popularity", SUPPORT, seed=2).draw(rankings, excluded)
    assert (other != drawn).any(axis=1).all()


def test_impossible_negatives_are_errors() -> None:
    one = np.eye(1, 4, 2, dtype=int)[0] * 9  # only item 2 has support
    with pytest.raises(ValueError, match="no item is left to draw negatives from"):
        NegativeSampler(5, "popularity", one).draw(np.array([0]), [np.array([2])])
    assert NegativeSampler(2, "popularity", one).draw(np.array([0]), [np.array([1])]).tolist() == [[2, 2]]
    for arguments, message in (
        ({"n": 0, "by": "uniform"}, "negatives=0"),
        ({"n": 5, "by": "random"}, "negatives_by='random': choose one of uniform, popularity"),
        ({"n": 5, "by": "uniform", "seed": -1}, "seed=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            NegativeSampler(support=SUPPORT, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("targets", ["next", "last", "remaining"])
@pytest.mark.parametrize("by", ["uniform", "popularity"])
def test_ranks_among_sampled_negatives_equal_a_loop(targets: Any, by: Any) -> None:
    network, sessions = ExactNetwork(N_ITEMS), random_sessions(3)
    store = make_store(sessions)
    sampler = NegativeSampler(6, by, SUPPORT, seed=5)
    options: dict[str, Any] = {"targets": targets, "support": SUPPORT, "negatives": 6, "negatives_by": by, "seed": 5}
    for ties in TIES:
        values = []
        for number, position, scores, relevant in rankings_by_loop(network, sessions, targets):
            event = int(store.offsets[number]) + position - 1
            (negatives,) = sampler.draw(np.array([event]), [np.array(sorted(relevant))]).tolist()
            # A negative that is drawn twice counts twice.
            candidates = {item: scores[item] for item in relevant}
            candidates |= {(item, i): scores[item] for i, item in enumerate(negatives)}  # type: ignore[misc]
            values.append(metrics_by_definition(ranks_by_counting(candidates, relevant, ties), len(relevant), CUTOFFS))
        report = evaluate_sessions(network, store, cutoffs=CUTOFFS, ties=ties, batch_size=11, **options)
        assert report.metrics == approx(mean(values))
        label = "6 negatives" + (" by popularity" if by == "popularity" else "")
        assert report.sampled == label and f"sampled: {label}" in report.summary()
        assert f"model (sampled: {label})" in report.table(terminal=False).splitlines()[0]
        assert evaluate_sessions(network, store, cutoffs=CUTOFFS, ties=ties, **options).metrics == approx(
            report.metrics
        )
    other = evaluate_sessions(network, store, cutoffs=CUTOFFS, ties=ties, **options | {"seed": 6})
    assert other.metrics != report.metrics


def test_equal_rows_tie_among_sampled_negatives() -> None:
    """In float32, scores of equal rows have the same bits, wherever they are in a list."""
    generator = torch.Generator().manual_seed(0)
    for width in (1, 7, 64, 100):
        weight = torch.randn(1, width, generator=generator).expand(50, width).contiguous()
        queries = torch.randn(9, width, generator=generator)
        negatives = np.random.default_rng(0).integers(1, 50, (9, 31))
        scores, _ = sampled_lists(
            ProductScores(queries, weight, torch.ones(50), "auto"), [np.array([0])] * 9, negatives
        )
        assert (scores == scores[:, :1]).all()
    with pytest.raises(ValueError, match="NaN"):
        sampled_lists(ProductScores(queries * math.nan, weight, None, "auto"), [np.array([0])] * 9, negatives)


# Graphs.


def random_graphs(seed: int) -> tuple[InteractionGraph, InteractionGraph]:
    """Return a training and a test graph; user 7 has no test item, user 6 no training item."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(6, size=40), rng.integers(N_ITEMS, size=40)
    train = InteractionGraph.from_arrays(users, items, n_users=8, n_items=N_ITEMS)
    test_users, test_items = [*rng.integers(7, size=25), 6], [*rng.integers(N_ITEMS, size=25), 3]
    return train, InteractionGraph.from_arrays(test_users, test_items, user_ids=train.users, item_ids=train.items)


@pytest.mark.parametrize("ties", [None, *TIES])
@pytest.mark.parametrize("by", ["popularity", "length", None])
@pytest.mark.parametrize("negatives", [None, 4])
def test_graphs_equal_a_loop(ties: Any, by: Any, negatives: int | None) -> None:
    train, test = random_graphs(2)
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randint(-1, 2, (train.n_nodes, 2), generator=generator).double()
    users, items = embeddings.split([train.n_users, train.n_items])
    support = np.array([sum(item in train.items_of(user) for user in range(8)) for item in range(N_ITEMS)])
    values, groups = {}, defaultdict(list)
    for user in range(8):
        seen = set(train.items_of(user).tolist())
        relevant = set(test.items_of(user).tolist()) - seen
        if not relevant:
            continue
        scores: dict[Any, float] = {i: s for i, s in enumerate((items @ users[user]).tolist()) if i not in seen}
        if negatives is not None:
            sampler = NegativeSampler(negatives, "uniform", support, seed=8)
            (drawn,) = sampler.draw(np.array([user]), [np.array(sorted(seen | relevant))]).tolist()
            scores = {i: scores[i] for i in relevant} | {i + j / 10: scores[i] for j, i in enumerate(drawn)}

        def ranks_of(own: set[int], scores: dict[Any, float] = scores) -> list[float]:
            if ties is not None:
                return ranks_by_counting(scores, own, ties)
            order = sorted(scores, key=lambda item, scores=scores: (-scores[item], item))
            return [float(rank) for rank, item in enumerate(order, 1) if item in own]

        values[str(user)] = metrics_by_definition(ranks_of(relevant), len(relevant), CUTOFFS)
        if by == "length":
            groups[group_label(int(groups_of(len(seen), by)), by)].append(values[str(user)])
        elif by == "popularity":
            own_groups = {item: group_label(int(groups_of(support[item], by)), by) for item in relevant}
            for label in set(own_groups.values()):
                own = {item for item in relevant if own_groups[item] == label}
                groups[label].append(metrics_by_definition(ranks_of(own), len(own), CUTOFFS))
    options: dict[str, Any] = {"cutoffs": CUTOFFS, "ties": ties, "by": by, "negatives": negatives, "seed": 8}
    report = evaluate_graph(embeddings, train, test, batch_size=3, per_user=True, **options)
    assert report.metrics == approx(mean(list(values.values())))
    assert set(report.groups) == set(groups) and (by is None or len(groups) > 1)
    for label, rows in groups.items():
        assert report.groups[label] == approx(mean(rows) | {"n": len(rows)}), label
    assert report.per_session is not None
    rows = {row.pop("user"): row for row in report.per_session.to_dicts()}
    assert rows == {user: approx(own | {"n_rankings": 1}) for user, own in values.items()}
    assert report == evaluate_graph(embeddings, train, test, **options)
    assert (report.sampled, report.ties) == (None if negatives is None else "4 negatives", ties)


# Beyond accuracy.


def beyond_accuracy_by_loop(lists: list[list[int]], support: np.ndarray) -> dict[str, float]:
    counts = Counter(item for row in lists for item in row if item >= 0)
    all_counts, total, n = [counts[item] for item in range(len(support))], counts.total(), len(support)
    by_popularity = sorted(range(n), key=lambda item: -support[item])
    head, covered = set(), 0
    for item in by_popularity:
        if covered < 0.8 * support.sum():
            head.add(item)
            covered += support[item]
    return {
        "coverage": sum(count > 0 for count in all_counts) / n,
        "popularity": sum(count * support[item] for item, count in counts.items()) / total,
        # Half the mean absolute difference of all pairs, divided by the mean.
        "gini": sum(abs(a - b) for a in all_counts for b in all_counts) / n**2 / (2 * total / n),
        "entropy": -sum(count / total * math.log2(count / total) for count in counts.values()),
        "tail": sum(count for item, count in counts.items() if item not in head) / total,
    }


@given(
    st.lists(st.lists(st.integers(-1, 7), min_size=3, max_size=3), min_size=1, max_size=9),
    st.lists(st.integers(0, 50), min_size=8, max_size=8),
)
def test_beyond_accuracy_equals_a_loop(lists: list[list[int]], support: list[int]) -> None:
    if all(item < 0 for row in lists for item in row):
        with pytest.raises(ValueError, match="nothing was recommended"):
            beyond_accuracy(lists, support)
        return
    expected = beyond_accuracy_by_loop(lists, np.array(support))
    assert beyond_accuracy(lists, support) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_beyond_accuracy_of_extreme_lists() -> None:
    one, all_items = beyond_accuracy([[2]] * 5, [1, 1, 8]), beyond_accuracy([[0, 1, 2]], [1, 1, 8])
    assert one == pytest.approx({"coverage": 1 / 3, "popularity": 8, "gini": 2 / 3, "entropy": 0, "tail": 0})
    assert all_items == pytest.approx(
        {"coverage": 1, "popularity": 10 / 3, "gini": 0, "entropy": math.log2(3), "tail": 2 / 3}
    )
    for items, support in (([[3]], [1, 1, 8]), ([[-2]], [1, 1]), ([[0]], [[1, 1]])):
        with pytest.raises(ValueError, match="recommended has items from"):
            beyond_accuracy(items, support)


@pytest.mark.parametrize("targets", ["next", "last", "remaining"])
@pytest.mark.parametrize("negatives", [None, 3])
def test_recommended_items_of_an_evaluation_equal_a_loop(targets: Any, negatives: int | None) -> None:
    network, sessions = ExactNetwork(N_ITEMS), random_sessions(7)
    report = evaluate_sessions(
        network, make_store(sessions), cutoffs=CUTOFFS, targets=targets, support=SUPPORT, beyond_accuracy=True,
        negatives=negatives,
    )  # fmt: skip
    expected = {}
    for k in CUTOFFS:
        lists = [
            sorted(scores, key=lambda item: (-scores[item], item))[:k]
            for _, _, scores, _ in rankings_by_loop(network, sessions, targets)
        ]
        expected |= {f"{name}@{k}": value for name, value in beyond_accuracy_by_loop(lists, SUPPORT).items()}
    assert report.beyond_accuracy == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert "coverage@3" in report.table(terminal=False)


@pytest.mark.parametrize("options", [{}, {"ties": "median"}, {"negatives": 3}])
def test_recommended_items_of_a_graph_equal_a_loop(options: dict[str, Any]) -> None:
    train, test = random_graphs(4)
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randint(-1, 2, (train.n_nodes, 2), generator=generator).double()
    report = evaluate_graph(embeddings, train, test, cutoffs=(2, 30), beyond_accuracy=True, **options)
    support = np.diff(train.offsets)[train.n_users :]
    for k in (2, 30):
        lists = []
        for user in range(8):
            if set(test.items_of(user).tolist()) - set(train.items_of(user).tolist()):
                scores = (embeddings[8:] @ embeddings[user]).tolist()
                unseen = [i for i in range(N_ITEMS) if i not in train.items_of(user)]
                lists.append(sorted(unseen, key=lambda i, scores=scores: (-scores[i], i))[:k])
        for name, value in beyond_accuracy_by_loop(lists, support).items():
            assert report.beyond_accuracy[f"{name}@{k}"] == pytest.approx(value, rel=1e-9, abs=1e-12)


# Arguments.


def test_wrong_arguments_are_errors() -> None:
    network, store = ExactNetwork(N_ITEMS), make_store(random_sessions(0))
    for changed, message in (
        ({"targets": "first"}, "targets='first': choose one of next, last, remaining"),
        ({"by": "age"}, "by='age': choose one of popularity, length, position"),
        ({"by": "popularity"}, "by='popularity' needs support="),
        ({"beyond_accuracy": True}, "beyond_accuracy=True needs support="),
        ({"negatives": 5, "negatives_by": "popularity"}, "negatives_by='popularity' needs support="),
        ({"negatives": 0}, "negatives=0"),
        ({"negatives": 5, "baselines": True, "support": SUPPORT}, "baselines=True is for one target among all items"),
        ({"targets": "remaining", "baselines": True, "support": SUPPORT}, "baselines=True is for one target"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_sessions(network, store, **changed)
    train, test = random_graphs(0)
    for changed, message in (
        ({"by": "position"}, "by='position': choose one of popularity, length"),
        ({"ties": "best"}, "ties='best'"),
        ({"negatives": 5, "negatives_by": "age"}, "negatives_by='age'"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_graph(torch.ones(train.n_nodes, 2), train, test, **changed)


def test_a_leave_one_out_store_is_evaluated_on_last_events() -> None:
    network, sessions = ExactNetwork(N_ITEMS), random_sessions(0)
    store = make_store(sessions, {"targets": "last"})
    report = evaluate_sessions(network, store)
    assert report == evaluate_sessions(network, make_store(sessions), targets="last")
    assert report.n_targets == len(sessions) and "targets (last)" in report.summary()
    for targets in ("next", "remaining"):
        with pytest.raises(ValueError, match="held out by a leave-one-out split"):
            evaluate_sessions(network, store, targets=targets)  # type: ignore[arg-type]


def test_popularity_of_last_events_equals_a_loop() -> None:
    sessions = [*random_sessions(1), [3]]
    with pytest.warns(UserWarning, match="fewer than two events"):
        report = evaluate_sessions(
            ExactNetwork(N_ITEMS), make_store(sessions), targets="last", baselines=True, support=SUPPORT, cutoffs=(3,)
        )
    scores = dict(enumerate(SUPPORT.tolist()))
    values = [
        metrics_by_definition(ranks_by_counting(scores, {session[-1]}, "conservative"), 1, (3,))
        for session in sessions
        if len(session) > 1
    ]
    assert report.baselines["popularity"] == approx(mean(values))
    assert {name.partition("@")[0] for name in report.metrics} == set(METRICS)


def test_hits_of_one_target_have_the_gains_of_rank_metrics() -> None:
    values = metrics_per_ranking(Hits.of_one_target(torch.tensor([1.0, 2.5, 9.0])), (3,))
    assert values["map@3"].tolist() == values["mrr@3"].tolist() == [1, 0.4, 0]
    assert values["recall@3"].tolist() == values["hitrate@3"].tolist() == [1, 1, 0]
