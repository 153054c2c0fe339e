"""recommend(candidates=, exclude=) returns the result of a plain loop, and its cost depends on the candidates only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from exact_network import ExactNetwork
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_growth import growth, needs_plain_allocator, needs_statm, quick_garbage_collections, resident_bytes
from native import max_examples

from gru4rec_fast import LightGCN, ops
from gru4rec_fast.data import InteractionGraph, Vocabulary
from gru4rec_fast.models import ByteLimitedCache, CandidatePool, Recommendations, SessionRecommender, recommend
from gru4rec_fast.nn import SessionNetwork

N_ITEMS = 13
VOCABULARY = Vocabulary(np.arange(N_ITEMS) * 10)
NETWORK = ExactNetwork(N_ITEMS, seed=2)
SESSIONS = [[10, 20], [30], [40, 50, 40]]
index_sets = st.sets(st.integers(0, N_ITEMS - 1))


def expected_best(session: list[int], k: int, allowed: set[int], excluded: set[int]) -> list[tuple[int, float]]:
    """Return ids and scores of the k best allowed items, sorted by score, then by index. Items are given as ids."""
    scores = NETWORK.scores_after([item // 10 for item in session]).tolist()
    items = sorted(allowed - excluded, key=lambda item: (-scores[item // 10], item))
    return [(item, scores[item // 10]) for item in items[:k]]


def check(result: Recommendations, k: int, allowed: list[set[int]], excluded: list[set[int]]) -> None:
    """Compare the result for `SESSIONS` with a plain loop."""
    assert result.items.shape == (len(SESSIONS), k)
    for row, session in enumerate(SESSIONS):
        expected = expected_best(session, k, allowed[row], excluded[row])
        count = result.counts[row]
        assert [*zip(result.items[row, :count], result.scores[row, :count], strict=True)] == expected
        assert (result.items[row, count:] == -1).all() and (result.scores[row, count:] == -np.inf).all()


@settings(deadline=None, max_examples=max_examples(100))
@given(
    st.one_of(st.none(), index_sets, st.tuples(*[index_sets] * 3)),
    st.one_of(st.none(), index_sets, st.tuples(*[index_sets] * 3)),
    st.integers(1, N_ITEMS),
    st.integers(1, 3),
    st.booleans(),
)
def test_candidates_equal_a_plain_loop(candidates: Any, exclude: Any, k: int, batch_size: int, seen: bool) -> None:
    """Each list is for all rows or for each row; recommend and SessionRecommender return the same."""

    def ids_per_row(lists: Any, missing: set[int]) -> tuple[Any, list[set[int]]]:
        if lists is None:
            return None, [missing] * 3
        if isinstance(lists, set):
            return [item * 10 for item in lists], [{item * 10 for item in lists}] * 3
        ids = [{item * 10 for item in row} for row in lists]
        return ids, ids

    candidates, allowed = ids_per_row(candidates, set(VOCABULARY.ids.tolist()))
    exclude, excluded = ids_per_row(exclude, set())
    if seen:
        excluded = [row | set(session) for row, session in zip(excluded, SESSIONS, strict=True)]
    options: dict[str, Any] = {"candidates": candidates, "exclude": exclude, "exclude_seen": seen}
    check(recommend(NETWORK, VOCABULARY, SESSIONS, k, batch_size=batch_size, **options), k, allowed, excluded)
    live = SessionRecommender(NETWORK, VOCABULARY)
    for name, session in enumerate(SESSIONS):
        live.observe_many([name] * len(session), session)
    check(live.recommend(range(3), k, **options), k, allowed, excluded)


def test_forms_of_candidates() -> None:
    """A list of ids is for all rows, a list of lists has one for each row."""
    pool = CandidatePool(VOCABULARY, [70, 30, 70, 0])
    assert pool.indices.tolist() == [0, 3, 7] and len(pool) == 3 and pool.nbytes == 24
    with pytest.raises(ValueError, match="read-only"):
        pool.indices[0] = 5
    equal_forms: list[Any] = [
        [70, 30, 0, 30], (70, 30, 0), {70, 30, 0}, np.array([70, 30, 0]), torch.tensor([70, 30, 0]), iter([70, 30, 0]),
        np.array([70, 30, 0], object), pool, [pool] * 3, [[70, 30, 0]] * 3, np.array([[70, 30, 0]] * 3),
        ((70, 30, 0), pool, np.array([0, 30, 70])),
    ]  # fmt: skip
    for candidates in equal_forms:
        check(recommend(NETWORK, VOCABULARY, SESSIONS, 4, candidates=candidates), 4, [{70, 30, 0}] * 3, [set()] * 3)
    for none in ([], [[], [], []], CandidatePool(VOCABULARY, [])):
        assert recommend(NETWORK, VOCABULARY, SESSIONS, 4, candidates=none).counts.tolist() == [0, 0, 0]
    assert recommend(NETWORK, VOCABULARY, [], 4, candidates=[10]).items.shape == (0, 4)
    one_row = recommend(NETWORK, VOCABULARY, SESSIONS[:1], 4, candidates=[[10, 20]], exclude=[[20]])
    assert one_row.items.tolist() == [[10, -1, -1, -1]]


def test_string_ids() -> None:
    vocabulary = Vocabulary([f"item-{n}" for n in range(N_ITEMS)])
    sessions = [["item-1"], ["item-2"]]
    shared = recommend(NETWORK, vocabulary, sessions, 2, candidates=["item-7", "item-3"])
    assert {*shared.items[0]} == {*shared.items[1]} == {"item-7", "item-3"}
    rows = recommend(NETWORK, vocabulary, sessions, 2, candidates=[["item-7"], {"item-3", "item-4"}])
    assert rows.items[0].tolist() == ["item-7", ""] and {*rows.items[1]} == {"item-3", "item-4"}


def test_unknown_candidates_are_an_error_or_skipped() -> None:
    with pytest.raises(ValueError, match="argument 'candidates': item 999 is not in the vocabulary"):
        recommend(NETWORK, VOCABULARY, SESSIONS, 2, candidates=[10, 999])
    for name in ("candidates", "exclude"):
        lists: dict[str, Any] = {name: [[10], [999], [20]]}
        with pytest.raises(ValueError, match=rf"argument '{name}\[1\]': item 999 is not in the vocabulary"):
            recommend(NETWORK, VOCABULARY, SESSIONS, 2, **lists)
    with pytest.raises(ValueError, match="item 999 is not in the vocabulary"):
        CandidatePool(VOCABULARY, [999])
    skipped = recommend(NETWORK, VOCABULARY, SESSIONS, 2, candidates=[[10], [999], [20]], unknown="skip")
    assert skipped.counts.tolist() == [1, 0, 1]
    assert len(CandidatePool(VOCABULARY, [999, 10], unknown="skip")) == 1


def test_error_names_the_argument() -> None:
    for candidates in (10, "item-1", b"x", np.int64(3)):
        with pytest.raises(ValueError, match=r"candidates=.*: give a list \(or set, or array\) of item ids"):
            recommend(NETWORK, VOCABULARY, SESSIONS, 2, candidates=candidates)  # type: ignore[arg-type]
    for name in ("candidates", "exclude"):
        short: dict[str, Any] = {name: [[10], [20]]}
        with pytest.raises(ValueError, match=f"{name} has 2 lists of ids for 3 rows: give one list for each row"):
            recommend(NETWORK, VOCABULARY, SESSIONS, 2, **short)
        mixed: dict[str, Any] = {name: [10, [20], [30]]}
        with pytest.raises(ValueError, match=f"{name}=.* has both ids and lists of ids"):
            recommend(NETWORK, VOCABULARY, SESSIONS, 2, **mixed)
    with pytest.raises(TypeError, match=r"candidates: item ids: .*integers as ids, but strings"):
        recommend(NETWORK, VOCABULARY, SESSIONS, 2, candidates=["10"])
    with pytest.raises(TypeError, match=r"candidates\[1\]: item ids"):
        recommend(NETWORK, VOCABULARY, SESSIONS, 2, candidates=[[10], ["10"], [10]])
    with pytest.raises(ValueError, match="the pool was made with another vocabulary"):
        recommend(NETWORK, VOCABULARY, SESSIONS, 2, candidates=CandidatePool(Vocabulary([10, 20]), [10]))
    equal = CandidatePool(Vocabulary(VOCABULARY.ids.copy()), [10])
    assert recommend(NETWORK, VOCABULARY, SESSIONS, 2, candidates=equal).counts.tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_have_the_bits_of_the_whole_catalogue(dtype: torch.dtype, native_library: None) -> None:
    network = SessionNetwork(3_000, [33], dtype=dtype, seed=1)
    vocabulary, rng = Vocabulary(np.arange(3_000)), np.random.default_rng(0)
    sessions = [rng.integers(3_000, size=size).tolist() for size in (3, 1, 5, 2, 2)]
    whole = recommend(network, vocabulary, sessions, 3_000)
    candidates = [rng.choice(3_000, size=size, replace=False).tolist() for size in (1, 700, 2_000, 20, 0)]
    for lists in (candidates, [candidates[1]] * 5, [candidates[2]] * 5):
        result = recommend(network, vocabulary, sessions, 30, candidates=lists)
        for row, allowed in enumerate(lists):
            kept = np.isin(whole.items[row], allowed)
            assert result.items[row, : result.counts[row]].tolist() == whole.items[row][kept][:30].tolist()
            assert result.scores[row, : result.counts[row]].tolist() == whole.scores[row][kept][:30].tolist()


def record_searches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list that gets the numbers of queries and of table rows of each top-k search."""
    sizes: list[tuple[int, int]] = []
    search: Callable[..., Any] = ops.top_k

    def recording_search(hidden: Any, weight: Any, *arguments: Any, impl: str) -> Any:
        sizes.append((len(hidden), len(weight)))
        return search(hidden, weight, *arguments, impl=impl)

    monkeypatch.setattr(ops, "top_k", recording_search)
    return sizes


def test_only_the_candidates_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with the same list are searched together; a list of which all items are excluded is not searched."""
    sizes, pool = record_searches(monkeypatch), CandidatePool(VOCABULARY, [0, 10])
    recommend(NETWORK, VOCABULARY, SESSIONS, 3, candidates=[70, 30, 0, 70])
    recommend(NETWORK, VOCABULARY, SESSIONS, 3, candidates=[pool, [50], pool], exclude=[50, 10])
    recommend(NETWORK, VOCABULARY, SESSIONS, 3, candidates=[70, 30, 0], batch_size=2)
    assert sizes == [(3, 3), (2, 1), (2, 3), (1, 3)]


def test_graph_models() -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(20, size=150), rng.integers(40, size=150)
    graph = InteractionGraph.from_arrays(users, items, n_users=20, n_items=40)
    model = LightGCN(embedding_dim=8, n_layers=1, n_epochs=1, batch_size=64, seed=0).fit(graph, progress=False)
    assert model.graph is not None
    whole = model.recommend([3, 5], 40)
    candidates, exclude = [[1, 5, 9, 30, 31], [2, 3, 4]], [[9], [4]]
    result = model.recommend([3, 5], 40, candidates=candidates, exclude=exclude)
    for row in range(2):
        kept = np.isin(whole.items[row], [*{*candidates[row]} - {*exclude[row]}])
        assert result.items[row, : result.counts[row]].tolist() == whole.items[row][kept].tolist()
        assert 0 < result.counts[row] == kept.sum()
    pool = CandidatePool(model.graph.items, [1, 2, 3, 4])
    assert {*model.recommend([3, 5], 4, candidates=pool, exclude_seen=False).items[1]} == {1, 2, 3, 4}
    similar = model.similar_items([3, 7], 4, candidates=pool)
    assert {*similar.items[0]} == {1, 2, 4, -1} and {*similar.items[1]} == {1, 2, 3, 4}


@needs_statm
@needs_plain_allocator
def test_requests_for_cached_records_leave_the_memory_flat(native_library: None) -> None:
    """2,000 requests, each of another user, with 50,000 candidates and 50,000 records from the cache."""
    n_items, width = 120_000, 8
    network, vocabulary = SessionNetwork(n_items, [width], seed=0), Vocabulary(np.arange(n_items))
    live = SessionRecommender(network, vocabulary, capacity=100)
    cache, samples = ByteLimitedCache(4 << 20), []
    with quick_garbage_collections():
        for user in range(2_000):
            live.observe(user, user % n_items)
            pool = cache.get_or_compute("pool", lambda: CandidatePool(vocabulary, np.arange(50_000)))
            records = cache.get_or_compute("records", lambda: np.arange(50_000))
            result = live.recommend([user], 20, candidates=pool)
            assert len(records[result.items[0]]) == 20
            if user % 50 == 0:
                samples.append(resident_bytes())
    assert cache.statistics()[:4] == (2, 800_000, 3_998, 2)  # entries, bytes, hits, misses
    assert growth(samples) / 50 < 1_000, "bytes per request; the pool alone has 400,000"
