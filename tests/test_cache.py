"""ByteLimitedCache: limits, expiry, statistics, read-only values, threads."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import max_examples

from gru4rec_fast.data import Vocabulary
from gru4rec_fast.models import ByteLimitedCache, CandidatePool, Recommendations, size_in_bytes


class Clock:
    """A clock that a test sets."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@settings(deadline=None, max_examples=max_examples(100))
@given(st.lists(st.tuples(st.sampled_from("pgt"), st.integers(0, 5), st.integers(1, 60)), max_size=60))
def test_equals_a_plain_model(steps: list[tuple[str, int, int]]) -> None:
    """Puts (p), lookups (g) and steps of time (t), compared with a model that searches all values."""
    clock, expected = Clock(), OrderedDict[int, tuple[int, float]]()  # key -> (size, time of put), least recent first
    cache, counts = ByteLimitedCache(100, time_to_live=50, clock=clock), dict.fromkeys(("hit", "miss", "old", "out"), 0)
    for action, key, number in steps:
        if action == "t":
            clock.seconds += number
        elif action == "g":
            alive = key in expected and clock.seconds - expected[key][1] < 50
            counts["hit" if alive else "miss"] += 1
            if alive:
                expected.move_to_end(key)
                assert len(cache.get(key)) == expected[key][0]
            else:
                counts["old"] += expected.pop(key, None) is not None
                assert cache.get(key, "missing") == "missing"
        else:
            cache.put(key, np.zeros(number, np.int8))
            expected.pop(key, None)
            if sum(size for size, _ in expected.values()) + number > 100:
                for old in [k for k, (_, put_at) in expected.items() if clock.seconds - put_at >= 50]:
                    del expected[old]
                    counts["old"] += 1
            while sum(size for size, _ in expected.values()) + number > 100:
                expected.popitem(last=False)
                counts["out"] += 1
            expected[key] = number, clock.seconds
        size = sum(size for size, _ in expected.values())
        assert size <= 100
        statistics = cache.statistics()
        assert statistics == (len(expected), size, counts["hit"], counts["miss"], counts["out"], counts["old"], 0)
    assert len(cache) == len(expected)


def test_values_without_time_to_live_do_not_expire() -> None:
    clock = Clock()
    cache = ByteLimitedCache(100, clock=clock)
    cache.put("a", 1)
    clock.seconds = 1e12
    assert cache.get("a") == 1 and cache.remove("a") and not cache.remove("a") and cache.get("a") is None


def test_arrays_are_read_only() -> None:
    array, tensor = np.arange(3), torch.arange(3)
    result = Recommendations(np.arange(2)[None], np.ones((1, 2)), np.array([2]))
    cache = ByteLimitedCache(1000)
    value = cache.put("key", (array, [array], {"x": array}, tensor, result))
    assert cache.get("key") is value
    arrays = [value[0], value[1][0], value[2]["x"], *value[4]]
    assert isinstance(value[4], Recommendations) and not any(each.flags.writeable for each in arrays)
    with pytest.raises(ValueError, match="read-only"):
        value[0][0] = 7
    assert value[3] is tensor and array.flags.writeable and np.shares_memory(value[0], array)


def test_size_in_bytes() -> None:
    array, vocabulary = np.zeros((10, 4)), Vocabulary([1, 2, 3])
    cases: list[tuple[Any, int]] = [
        (array, 320), (array[:2], 320), (array[:2].T.view(), 320), (array[:2].copy(), 64), (torch.zeros(8), 32),
        (torch.zeros(8)[:2], 32), ((array, [torch.zeros(8)], {"a": array}), 672),
        (CandidatePool(vocabulary, [3, 1]), 16), (None, 8), (7, 8), (0.5, 8), ("text", "text".__sizeof__()),
    ]  # fmt: skip
    for value, size in cases:
        assert size_in_bytes(value) == size
    with pytest.raises(TypeError, match="the size of a Vocabulary is unknown: give the cache size_of="):
        ByteLimitedCache(10).put("a", vocabulary)
    cache = ByteLimitedCache(10, size_of=len)
    assert cache.put("a", vocabulary) is vocabulary and cache.statistics().bytes == 3


def test_value_that_is_too_large_is_returned_and_not_stored(caplog: pytest.LogCaptureFixture) -> None:
    cache = ByteLimitedCache(100)
    cache.put("small", np.zeros(10, np.int8))
    with caplog.at_level(logging.WARNING, logger="gru4rec_fast"):
        for _ in range(2):
            assert len(cache.get_or_compute("large", lambda: np.zeros(101, np.int8))) == 101
    assert [record.message for record in caplog.records] == [
        "ByteLimitedCache: the value of 'large' has 101 bytes and is not stored, because max_bytes=100 "
        "(further ones are counted in statistics())"
    ]
    assert cache.statistics() == (1, 10, 0, 2, 0, 0, 2) and cache.get("small") is not None
    for arguments in ({"max_bytes": 0}, {"max_bytes": 5, "time_to_live": 0}):
        with pytest.raises(ValueError, match="=0: must be positive"):
            ByteLimitedCache(**arguments)
    with pytest.raises(TypeError, match="max_bytes='100': must be a number"):
        ByteLimitedCache("100")  # type: ignore[arg-type]


def test_a_value_is_computed_once_by_several_threads() -> None:
    cache, n_computed, n_threads, barrier = ByteLimitedCache(1000), [0] * 3, 8, threading.Barrier(8)

    def computation(key: int) -> Callable[[], np.ndarray]:
        def compute() -> np.ndarray:
            n_computed[key] += 1
            time.sleep(0.02)
            return np.full(3, key)

        return compute

    def request() -> list[int]:
        barrier.wait()
        return [int(cache.get_or_compute(key, computation(key))[0]) for key in range(3)]

    with ThreadPoolExecutor(n_threads) as threads:
        results = [future.result() for future in [threads.submit(request) for _ in range(n_threads)]]
    assert results == [[0, 1, 2]] * n_threads and n_computed == [1, 1, 1]
    statistics = cache.statistics()
    assert (statistics.misses, statistics.hits) == (3, 3 * n_threads - 3)


def test_errors_of_a_computation_reach_all_threads() -> None:
    cache, started, go_on = ByteLimitedCache(1000), threading.Event(), threading.Event()

    def fail() -> int:
        started.set()
        go_on.wait(10)
        raise OSError("no records")

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(cache.get_or_compute, "key", fail)
        assert started.wait(10)
        second = threads.submit(cache.get_or_compute, "key", lambda: pytest.fail("is computed by the first thread"))
        while cache.statistics().hits == 0:  # until the second thread waits
            time.sleep(0.001)
        go_on.set()
        for future in (first, second):
            with pytest.raises(OSError, match="no records"):
                future.result()
    assert cache.get_or_compute("key", lambda: 5) == 5
    with pytest.raises(RuntimeError, match="the computation of 'a' asks the cache for 'a'"):
        cache.get_or_compute("a", lambda: cache.get_or_compute("a", lambda: 1))
