"""recommend() compared with a plain loop. SessionRecommender, which gets events one by one, compared with recommend().

A session is live while SessionRecommender holds its hidden state. ExactNetwork has no rounding errors.
"""

from __future__ import annotations

import gc
import io
import logging
import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from exact_network import ExactNetwork
from hypothesis import given, settings
from hypothesis import strategies as st
from native import max_examples

from gru4rec_fast import ops
from gru4rec_fast.data import SessionStore, Vocabulary
from gru4rec_fast.data.vocabulary import STRING
from gru4rec_fast.evaluation import batches
from gru4rec_fast.models import SessionRecommender, recommend
from gru4rec_fast.nn import SessionNetwork

N_ITEMS = 13
VOCABULARY = Vocabulary([f"item-{n}" for n in range(N_ITEMS)])
NETWORK = ExactNetwork(N_ITEMS, seed=2)
index_lists = st.lists(st.integers(0, N_ITEMS - 1), min_size=1, max_size=9)


def item_ids(session: list[int]) -> list[str]:
    """Return the ids of item indices."""
    return [f"item-{n}" for n in session]


def expected_best(session: list[int], k: int, excluded: set[int]) -> tuple[list[str], list[float]]:
    """Return ids and scores of the k best items that are not excluded, sorted by score, then by index."""
    scores = NETWORK.scores_after(session).tolist()
    order = sorted((n for n in range(N_ITEMS) if n not in excluded), key=lambda n: (-scores[n], n))[:k]
    return item_ids(order), [scores[n] for n in order]


@settings(deadline=None, max_examples=max_examples(50))
@given(
    st.lists(index_lists, min_size=1, max_size=12), st.integers(1, 4), st.integers(1, 13), st.booleans(), st.booleans()
)
def test_recommend_equals_a_plain_loop(
    sessions: list[list[int]], k: int, batch_size: int, exclude_seen: bool, with_exclude: bool
) -> None:
    exclude: set[int] = {3, 7} if with_exclude else set()
    result = recommend(
        NETWORK,
        VOCABULARY,
        [item_ids(session) for session in sessions],
        k,
        exclude_seen=exclude_seen,
        exclude=item_ids(sorted(exclude)) if with_exclude else None,
        batch_size=batch_size,
    )
    for session, items, scores, count in zip(sessions, *result, strict=True):
        excluded = exclude | (set(session) if exclude_seen else set())
        assert (items[:count].tolist(), scores[:count].tolist()) == expected_best(session, k, excluded)
        assert count == min(k, N_ITEMS - len(excluded))


def test_sessions_longer_than_one_call_of_the_network() -> None:
    """recommend() calls the network several times for the events of long sessions."""
    rng = np.random.default_rng(0)
    sessions = [rng.integers(N_ITEMS, size=size).tolist() for size in (1, 63, 64, 65, 128, 129, 300, 2)]
    result = recommend(NETWORK, VOCABULARY, [item_ids(session) for session in sessions], 5)
    for session, items in zip(sessions, result.items, strict=True):
        assert items.tolist() == expected_best(session, 5, set())[0]


def test_the_cost_of_recommending_depends_on_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """One long session among short ones neither makes the network process padding nor sets the size of `exclude`."""
    rng = np.random.default_rng(0)
    sessions = [rng.integers(N_ITEMS, size=size).tolist() for size in [3, 1, 2, 5] * 30 + [9_000]]
    lists = [item_ids(session) for session in sessions]
    network = ExactNetwork(N_ITEMS, seed=2)
    expected = recommend(network, VOCABULARY, lists, 4, exclude_seen=True)
    assert network.n_inputs < 2 * sum(map(len, sessions)) and network.n_calls < 12
    n_padded: list[int] = []
    search = ops.top_k

    def counting_search(*arguments: Any, impl: str) -> Any:
        n_padded.append(arguments[4].numel())
        return search(*arguments, impl=impl)

    monkeypatch.setattr(ops, "top_k", counting_search)
    monkeypatch.setattr(batches, "_PADDED_ELEMENTS", 1 << 12)
    result = recommend(network, VOCABULARY, lists, 4, exclude_seen=True)
    assert n_padded == [9_000, 120 * 5]
    for array, expected_array in zip(result, expected, strict=True):
        np.testing.assert_array_equal(array, expected_array)
    for session, items, count in zip(sessions, result.items, result.counts, strict=True):
        assert items[:count].tolist() == expected_best(session, 4, set(session))[0]


def test_items_left_out_of_all_rows_are_not_repeated_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    excludes: list[Any] = []
    search = ops.top_k

    def recording_search(*arguments: Any, impl: str) -> Any:
        excludes.append(arguments[4])
        return search(*arguments, impl=impl)

    monkeypatch.setattr(ops, "top_k", recording_search)
    recommend(NETWORK, VOCABULARY, [["item-1"], ["item-2"]], 4, exclude=item_ids([3, 7]))
    assert excludes == [None]


def test_a_recommender_made_in_inference_mode_works_outside_of_it() -> None:
    with torch.inference_mode():
        recommender = SessionRecommender(NETWORK, VOCABULARY)
        recommender.observe("a", "item-1")
    recommender.observe("a", "item-2")
    recommender.load_state_dict(recommender.state_dict())
    with torch.inference_mode():
        recommender.observe_many("ab", item_ids([3, 4]))
    assert recommender.recommend("a", 3).items[0].tolist() == expected_best([1, 2, 3], 3, set())[0]
    assert recommender.recommend("b", 3).items[0].tolist() == expected_best([4], 3, set())[0]


def test_a_store_gives_the_same_result_as_lists() -> None:
    sessions = [[1, 2, 3], [4], [5, 6]]
    store = SessionStore.from_arrays([1, 2, 3, 4, 5, 6], [0, 3, 4, 6], vocabulary=VOCABULARY)
    lists = recommend(NETWORK, VOCABULARY, [item_ids(session) for session in sessions], 4)
    np.testing.assert_array_equal(recommend(NETWORK, VOCABULARY, store, 4).items, lists.items)
    other = SessionStore.from_arrays([1, 2], [0, 2], n_items=N_ITEMS)
    with pytest.raises(ValueError, match="the store has another vocabulary"):
        recommend(NETWORK, VOCABULARY, other, 4)


def test_unknown_items_are_an_error_or_skipped() -> None:
    sessions = [["item-1"], ["item-2", "item-99", "item-3"]]
    with pytest.raises(ValueError, match="session 1: item 'item-99' is not in the vocabulary"):
        recommend(NETWORK, VOCABULARY, sessions, 3)
    message = r"item ' item-2\\t' is not in .* training data \('item-2', without blanks around it, is\)"
    with pytest.raises(ValueError, match=message):
        recommend(NETWORK, VOCABULARY, [[" item-2\t"]], 3)
    result = recommend(NETWORK, VOCABULARY, sessions, 3, unknown="skip")
    assert result.items[1].tolist() == expected_best([2, 3], 3, set())[0]
    result = recommend(NETWORK, VOCABULARY, [["item-1"], ["item-99"], []], 3, unknown="skip")
    assert result.counts.tolist() == [3, 0, 0]
    assert result.items[0].tolist() == expected_best([1], 3, set())[0]
    assert (result.items[1:] == "").all() and (result.scores[1:] == -np.inf).all()
    with pytest.raises(ValueError, match="'exclude': item 'item-99' is not in the vocabulary"):
        recommend(NETWORK, VOCABULARY, [["item-1"]], 3, exclude=["item-99"])
    result = recommend(NETWORK, VOCABULARY, [["item-1"]], 3, exclude=["item-99"], unknown="skip")
    assert result.items[0].tolist() == expected_best([1], 3, set())[0]
    with pytest.raises(TypeError, match="holds strings as ids, but integers"):
        recommend(NETWORK, VOCABULARY, [[1, 2]], 3)


def test_error_names_the_argument() -> None:
    with pytest.raises(ValueError, match="session 1 is empty"):
        recommend(NETWORK, VOCABULARY, [["item-1"], []], 3)
    for k in (0, 14):
        with pytest.raises(ValueError, match=f"k={k}: choose 1 to 13"):
            recommend(NETWORK, VOCABULARY, [["item-1"]], k)
    for exclude in ("session", "item-1", 3, np.int64(3), b"item-1"):
        with pytest.raises(
            ValueError, match=r"exclude=.*: give a list \(or set, or array\) of item ids, or exclude_seen=True"
        ):
            recommend(NETWORK, VOCABULARY, [["item-1"]], 3, exclude=exclude)  # type: ignore[arg-type]
    for sessions in (["item-1", "item-2"], [3, 4], np.array([3, 4])):
        with pytest.raises(
            ValueError, match=r"sessions: one of them is .*: give a list of sessions, each a list of item"
        ):
            recommend(NETWORK, VOCABULARY, sessions, 3)  # type: ignore[arg-type]
    for sessions in ("item-1", 3):
        with pytest.raises(ValueError, match=r"sessions=.*: give a list of sessions"):
            recommend(NETWORK, VOCABULARY, sessions, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown='ignore': choose 'error' or 'skip'"):
        recommend(NETWORK, VOCABULARY, [["item-1"]], 3, unknown="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the network has 12 items, the vocabulary 13"):
        recommend(ExactNetwork(12), VOCABULARY, [["item-1"]], 3)
    with pytest.raises(ValueError, match="batch_size=0"):
        recommend(NETWORK, VOCABULARY, [["item-1"]], 3, batch_size=0)


def test_sessions_and_exclude_may_be_any_iterable() -> None:
    expected = expected_best([1, 2], 4, {3, 7})[0]
    ids = ["item-3", "item-7"]
    for exclude in (ids, tuple(ids), set(ids), dict.fromkeys(ids), np.array(ids), np.array(ids, STRING), iter(ids)):
        assert recommend(NETWORK, VOCABULARY, [["item-1", "item-2"]], 4, exclude=exclude).items[0].tolist() == expected
    for empty in ([], set(), np.array([], int)):
        result = recommend(NETWORK, VOCABULARY, [["item-1", "item-2"]], 4, exclude=empty)
        assert result.items[0].tolist() == expected_best([1, 2], 4, set())[0]
    session = ("item-1", "item-2")
    for sessions in (
        [session], (session,), iter([session]), np.array([session]), [np.array(session)], [iter(session)],
        [dict.fromkeys(session)],
    ):  # fmt: skip
        result = recommend(NETWORK, VOCABULARY, sessions, 4, exclude=ids)  # type: ignore[arg-type]
        assert result.items[0].tolist() == expected


@pytest.mark.parametrize("kind", ["strings", "integers"])
def test_counts_of_rows_with_fewer_than_k_items(kind: str) -> None:
    vocabulary = VOCABULARY if kind == "strings" else Vocabulary(np.arange(N_ITEMS) * 10)
    sizes = (1, 11, 12, 13)  # of 13 items, 12, 2, 1 and 0 are left
    sessions = [vocabulary.ids[:size].tolist() for size in sizes]
    items, scores, counts = recommend(NETWORK, vocabulary, sessions, 3, exclude_seen=True)
    assert counts.dtype == np.int64 and counts.tolist() == [3, 2, 1, 0]
    valid = np.arange(3) < counts[:, None]
    assert np.array_equal(~valid, scores == -np.inf)
    assert (items[~valid] == ("" if kind == "strings" else -1)).all()
    for size, row, count in zip(sizes, items, counts, strict=True):
        expected = expected_best(list(range(size)), 3, set(range(size)))[0]
        indices = vocabulary.index_of(row[:count]).tolist()
        assert item_ids(indices) == expected
    recommender = SessionRecommender(NETWORK, vocabulary)
    for name, session in enumerate(sessions):
        recommender.observe_many([name] * len(session), session)
    live_result = recommender.recommend(range(4), 3, exclude_seen=True)
    for array, live_array in zip((items, scores, counts), live_result, strict=True):
        np.testing.assert_array_equal(array, live_array)


@pytest.mark.parametrize("kind", ["integers", "strings"])
def test_to_frame_has_one_row_for_each_valid_item(kind: str) -> None:
    vocabulary = VOCABULARY if kind == "strings" else Vocabulary(np.arange(N_ITEMS) * 10)
    ids = vocabulary.ids.tolist()
    # The second session, which is skipped, has no row, and the third one has all items but those of the session.
    sessions = [[ids[0]], ["unknown" if kind == "strings" else 7], [ids[1], ids[2], ids[1]]]
    result = recommend(NETWORK, vocabulary, sessions, N_ITEMS, exclude_seen=True, unknown="skip")
    frame = result.to_frame()
    assert list(frame.columns) == ["query", "rank", "item", "score"]
    assert frame["query"].tolist() == [0] * (N_ITEMS - 1) + [2] * (N_ITEMS - 2)
    assert frame["rank"].tolist() == [*range(1, N_ITEMS), *range(1, N_ITEMS - 1)]
    assert frame["item"].tolist() == [*result.items[0, :-1].tolist(), *result.items[2, :-2].tolist()]
    assert frame["score"].tolist() == [*result.scores[0, :-1].tolist(), *result.scores[2, :-2].tolist()]
    assert frame["score"].dtype == result.scores.dtype and frame["rank"].dtype == frame["query"].dtype == np.int64
    assert (frame["item"].dtype == np.int64) == (kind == "integers")
    items = pd.DataFrame({"item": ids, "title": [f"title of {n}" for n in range(N_ITEMS)]})
    assert len(frame.merge(items)) == len(frame), "items cannot be joined by their ids"

    for users in (["a", "b", "c"], np.array([4, 5, 6])):
        named = result.to_frame(users, query_name="user")
        assert list(named.columns) == ["user", "rank", "item", "score"]
        assert named["user"].tolist() == [users[row] for row in frame["query"]]
        assert named.drop(columns="user").equals(frame.drop(columns="query"))


def test_to_frame_of_nothing_and_with_bad_arguments() -> None:
    empty = recommend(NETWORK, VOCABULARY, [["unknown"]], 3, unknown="skip")
    assert list(empty.to_frame().columns) == ["query", "rank", "item", "score"] and empty.to_frame().empty
    with pytest.raises(ValueError, match="queries has 2 ids for 1 rows of recommendations"):
        empty.to_frame([1, 2])
    with pytest.raises(TypeError, match="queries: ids must be all integers or all strings"):
        empty.to_frame([1.5])
    with pytest.raises(ValueError, match="query_name='item' is the name of another column"):
        empty.to_frame(query_name="item")


def test_no_sessions_give_no_rows() -> None:
    result = recommend(NETWORK, VOCABULARY, [], 3)
    assert result.items.shape == result.scores.shape == (0, 3)
    assert result.counts.shape == (0,)


@settings(deadline=None, max_examples=max_examples(50))
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, N_ITEMS - 1)), min_size=1, max_size=40))
def test_live_sessions_give_the_same_result_as_recommend(events: list[tuple[str, int]]) -> None:
    """The events of several sessions are interleaved, and added one by one or all in one call."""
    one_by_one, in_one_call = (SessionRecommender(NETWORK, VOCABULARY, capacity=5) for _ in range(2))
    for name, item in events:
        one_by_one.observe(name, f"item-{item}")
    in_one_call.observe_many([name for name, _ in events], item_ids([item for _, item in events]))
    sessions = {name: [item for other, item in events if other == name] for name, _ in events}
    expected = recommend(
        NETWORK, VOCABULARY, [item_ids(session) for session in sessions.values()], 4, exclude_seen=True
    )
    for recommender in (one_by_one, in_one_call):
        result = recommender.recommend(sessions, 4, exclude_seen=True)
        np.testing.assert_array_equal(result.items, expected.items)
        np.testing.assert_array_equal(result.scores, expected.scores)


def test_the_least_recently_used_session_is_evicted(caplog: pytest.LogCaptureFixture) -> None:
    recommender = SessionRecommender(NETWORK, VOCABULARY, capacity=3)
    with caplog.at_level(logging.WARNING, logger="gru4rec_fast"):
        recommender.observe_many("abc", item_ids([1, 2, 3]))
        recommender.observe("a", "item-4")
        recommender.recommend(["b"], 2)
        assert not caplog.records
        recommender.observe("d", "item-5")  # evicts c, which was used least recently
        assert [name in recommender for name in "abcd"] == [True, True, False, True]
        recommender.observe_many("ec", item_ids([6, 7]))  # evicts a, then b
        assert [name in recommender for name in "abcde"] == [False, False, True, True, True]
    assert recommender.n_evicted == 3
    assert len([r for r in caplog.records if "capacity=3 is reached with 3 live" in r.message]) == 1
    assert (
        recommender.recommend(["c"], 3).items[0].tolist() == expected_best([7], 3, set())[0]
    )  # c started again from an empty state
    with pytest.raises(ValueError, match="session 'a' is not live"):
        recommender.recommend(["c", "a"], 3)


@settings(deadline=None)
@given(
    st.integers(1, 4),
    st.none() | st.integers(1, 4000),
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, N_ITEMS - 1)), max_size=30),
)
def test_observe_many_equals_observe_for_each_event(
    capacity: int, max_bytes: int | None, events: list[tuple[str, int]]
) -> None:
    """This also holds if a call has more sessions than the capacity, so that some are evicted within it."""
    one_by_one, in_one_call = (
        SessionRecommender(NETWORK, VOCABULARY, capacity, max_bytes=max_bytes, clock=lambda: 0.0) for _ in range(2)
    )
    for name, item in events:
        one_by_one.observe(name, f"item-{item}")
    in_one_call.observe_many([name for name, _ in events], item_ids([item for _, item in events]))
    state, expected = in_one_call.state_dict(), one_by_one.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(state.pop("states"), expected.pop("states"), strict=True))
    assert state == expected
    assert (in_one_call.n_bytes <= (max_bytes or 4000)) or len(in_one_call) == 1


class Clock:
    """A clock that a test sets."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_sessions_without_a_recent_event_are_evicted() -> None:
    """The age counts from the last event; a request for recommendations does not change it."""
    clock = Clock()
    recommender = SessionRecommender(NETWORK, VOCABULARY, max_age=10, clock=clock)
    recommender.observe_many("abc", item_ids([1, 2, 3]))
    clock.seconds = 6
    recommender.observe("b", "item-4")
    recommender.recommend("ac", 3)
    clock.seconds = 10
    assert len(recommender) == 3  # not older than max_age
    saved = recommender.state_dict()
    clock.seconds = 10.5
    assert [name in recommender for name in "abc"] == [False, True, False]
    with pytest.raises(ValueError, match="session 'a' is not live"):
        recommender.recommend("a", 3)
    recommender.observe("a", "item-5")  # starts again
    assert recommender.recommend("a", 3).items[0].tolist() == expected_best([5], 3, set())[0]
    assert recommender.evictions == {"capacity": 0, "age": 2, "bytes": 0}
    clock.seconds = 1_000
    assert len(recommender) == 0 and recommender.n_bytes == 0

    # Ages survive saving and loading, also on a machine with another clock.
    other_clock = Clock()
    loaded = SessionRecommender(NETWORK, VOCABULARY, max_age=10, clock=other_clock)
    loaded.load_state_dict(saved)
    assert len(loaded) == 3
    other_clock.seconds = 5
    assert [name in loaded for name in "abc"] == [False, True, False]
    saved["ages"] = None  # in the state dict of version 0.1, there are neither ages nor causes of evictions
    del saved["evictions"]
    loaded.load_state_dict(saved | {"n_evicted": 7})
    assert len(loaded) == 3 and loaded.evictions == {"capacity": 7, "age": 0, "bytes": 0}


def test_max_bytes_evicts_the_least_recently_used_sessions(caplog: pytest.LogCaptureFixture) -> None:
    recommender = SessionRecommender(NETWORK, VOCABULARY)
    recommender.observe_many("abc", item_ids([1, 2, 3]))
    limited = SessionRecommender(NETWORK, VOCABULARY, max_bytes=recommender.n_bytes)
    with caplog.at_level(logging.WARNING, logger="gru4rec_fast"):
        limited.observe_many("abc", item_ids([1, 2, 3]))
        limited.recommend("a", 2)
        assert len(limited) == 3 and not caplog.records
        limited.observe_many("dc", item_ids([4, 3]))  # evicts b, then nothing: c has item-3
    assert [name in limited for name in "abcd"] == [True, False, True, True]
    assert "max_bytes=" in caplog.records[0].message and len(caplog.records) == 1
    limited.observe_many("d" * 9, item_ids([*range(9)]))  # a longer session needs the memory of another one
    assert [name in limited for name in "acd"] == [False, True, True]
    assert limited.evictions == {"capacity": 0, "age": 0, "bytes": 2} and limited.n_evicted == 2
    assert limited.recommend("d", 3).items[0].tolist() == expected_best([4, *range(9)], 3, set())[0]
    tiny = SessionRecommender(NETWORK, VOCABULARY, max_bytes=1)
    tiny.observe_many("ab", item_ids([1, 2]))
    assert len(tiny) == 1 and "b" in tiny
    tiny.load_state_dict(recommender.state_dict())
    assert len(tiny) == 1 and "c" in tiny
    for limit in ({"max_bytes": 0}, {"max_age": -1.0}):
        with pytest.raises(ValueError, match="must be positive"):
            SessionRecommender(NETWORK, VOCABULARY, **limit)  # type: ignore[arg-type]


def test_n_bytes_is_the_memory_of_the_sessions() -> None:
    """Compared with the memory that Python and the state tensors take; unused rows are at most a third."""
    network, n = ExactNetwork(20_000, width=64), 3_000
    vocabulary, rng = Vocabulary(np.arange(20_000)), np.random.default_rng(0)
    events = rng.integers(20_000, size=(20, n))
    names = np.arange(1_000, 1_000 + n)
    gc.collect()
    tracemalloc.start()
    recommender = SessionRecommender(network, vocabulary)
    for step in events:
        recommender.observe_many(names.tolist(), step.tolist())
    gc.collect()
    python_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    row_bytes = 64 * 8
    rows = len(recommender._states[0])
    assert n <= rows <= n + n // 3 + 16
    assert recommender.n_bytes == pytest.approx(python_bytes + n * row_bytes, rel=0.15)
    expected = recommender.recommend(names[-5:], 5)
    for name in names[:-5].tolist():
        recommender.end(name)
    assert len(recommender._states[0]) <= 5 + 17 and len(recommender) == 5
    np.testing.assert_array_equal(recommender.recommend(names[-5:], 5).scores, expected.scores)


def test_a_log_sorted_by_session_is_observed_in_few_calls() -> None:
    """The events of a session are in successive calls of the network, together with those of other sessions."""
    network = ExactNetwork(N_ITEMS, seed=2)
    sessions = [[1, 2, 3, 4], [5], [6, 7], [8, 9, 10]]
    recommender = SessionRecommender(network, VOCABULARY)
    names = np.repeat(np.arange(len(sessions)), [len(session) for session in sessions]).tolist()
    recommender.observe_many(names, item_ids([item for session in sessions for item in session]))
    assert network.n_calls == 4
    result = recommender.recommend(range(len(sessions)), 3)
    for session, items in zip(sessions, result.items, strict=True):
        assert items.tolist() == expected_best(session, 3, set())[0]


def test_ending_a_session_frees_its_row() -> None:
    recommender = SessionRecommender(NETWORK, VOCABULARY, capacity=1)
    recommender.observe("a", "item-1")
    assert recommender.end("a")
    assert not recommender.end("a")
    recommender.observe("b", "item-2")
    assert (len(recommender), recommender.n_evicted) == (1, 0)
    assert recommender.recommend(["b"], 3).items[0].tolist() == expected_best([2], 3, set())[0]


def test_state_dict_is_saved_and_loaded() -> None:
    saved = SessionRecommender(NETWORK, VOCABULARY, capacity=3)
    saved.observe_many("abcad", item_ids([1, 2, 3, 4, 5]))
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    loaded = SessionRecommender(NETWORK, VOCABULARY, capacity=4)
    loaded.observe("z", "item-9")
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert len(loaded) == 3 and "z" not in loaded and loaded.n_evicted == saved.n_evicted == 1
    for each in (saved, loaded):
        each.observe_many("ae", item_ids([7, 8]))
    for exclude_seen in (False, True):
        result = [each.recommend("ade", 4, exclude_seen=exclude_seen) for each in (saved, loaded)]
        np.testing.assert_array_equal(result[0].items, result[1].items)
        np.testing.assert_array_equal(result[0].scores, result[1].scores)
    assert "c" not in saved and "c" in loaded  # only the recommender of capacity 3 had to evict a session
    with pytest.raises(ValueError, match="3 sessions were saved, but capacity=2"):
        SessionRecommender(NETWORK, VOCABULARY, capacity=2).load_state_dict(saved.state_dict())
    with pytest.raises(ValueError, match="the saved states have shapes"):
        SessionRecommender(ExactNetwork(N_ITEMS, width=4), VOCABULARY).load_state_dict(saved.state_dict())


def test_a_call_with_an_error_adds_no_event() -> None:
    recommender = SessionRecommender(NETWORK, VOCABULARY)
    with pytest.raises(ValueError, match="session 'b': item 'item-99' is not in the vocabulary"):
        recommender.observe_many("ab", ["item-1", "item-99"])
    with pytest.raises(ValueError, match="2 session_ids, but 1 item_ids"):
        recommender.observe_many("ab", ["item-1"])
    assert len(recommender) == 0
    with pytest.raises(ValueError, match="capacity=0"):
        SessionRecommender(NETWORK, VOCABULARY, 0)
    skipping = SessionRecommender(NETWORK, VOCABULARY, unknown="skip")
    skipping.observe_many("abb", ["item-1", "item-99", "item-2"])
    assert skipping.recommend("b", 3).items[0].tolist() == expected_best([2], 3, set())[0]


@pytest.mark.parametrize("embedding", ["constrained", "separate", "none"])
def test_recommending_with_a_session_network_turns_dropout_off(embedding: str) -> None:
    """recommend and SessionRecommender return the same items, and leave the network in training mode."""
    network = SessionNetwork(
        300,
        [8, 6],
        embedding=embedding,
        embedding_dim=5,
        dropout_p_embed=0.5,
        dropout_p_hidden=0.5,
        dtype=torch.float64,
    )
    network.train()
    vocabulary = Vocabulary(np.arange(300) * 10)
    rng = np.random.default_rng(0)
    sessions = [(10 * rng.integers(300, size=size)).tolist() for size in (1, 7, 70, 2, 5)]
    expected = recommend(network, vocabulary, sessions, 20, exclude_seen=True)
    recommender = SessionRecommender(network, vocabulary)
    for step in range(70):
        continuing = [s for s, session in enumerate(sessions) if step < len(session)]
        recommender.observe_many(continuing, [sessions[s][step] for s in continuing])
    result = recommender.recommend(range(len(sessions)), 20, exclude_seen=True)
    np.testing.assert_array_equal(result.items, expected.items)
    # The matrix products have other shapes, so the order of their sums may differ.
    np.testing.assert_allclose(result.scores, expected.scores, rtol=0, atol=1e-14)
    assert network.training
    assert not set(result.items[2].tolist()) & set(sessions[2])
