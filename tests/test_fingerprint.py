"""log_fingerprint: equal for the same log in memory and on disk, different for other logs."""

import sys
from pathlib import Path

import numpy as np
import pytest
from markov import markov_store

from gru4rec_fast.data import SessionStore
from gru4rec_fast.profiling.device_memory import memory_meter
from gru4rec_fast.training import log_fingerprint


def test_a_saved_log_has_the_same_fingerprint(tmp_path: Path):
    store = markov_store()
    store.save(tmp_path / "store")
    opened = SessionStore.open(tmp_path / "store")
    assert isinstance(opened.items, np.memmap)
    assert log_fingerprint(opened) == log_fingerprint(store) == log_fingerprint(markov_store())


def test_other_logs_have_other_fingerprints():
    items, offsets = np.array([0, 1, 2, 0, 2, 1]), np.array([0, 3, 6])
    store = SessionStore.from_arrays(items, offsets)
    swapped = SessionStore.from_arrays(items[[0, 1, 2, 0, 1, 2]], offsets)
    other_offsets = SessionStore.from_arrays(items, np.array([0, 2, 6]))
    other_support = SessionStore.from_arrays(items, offsets)
    # The support also counts the events of sessions that were dropped because they have one event.
    other_support.support = other_support.support + 1
    assert len({log_fingerprint(log) for log in (store, swapped, other_offsets, other_support)}) == 4


def test_a_slice_of_a_memory_map_has_the_fingerprint_of_its_sessions(tmp_path: Path):
    store = SessionStore.from_arrays([0, 1, 2, 0, 2, 1], [0, 3, 6])
    store.save(tmp_path / "store")
    opened, second_session = SessionStore.open(tmp_path / "store"), SessionStore.from_arrays([0, 2, 1], [0, 3])
    opened.items, opened.offsets, opened.support = opened.items[3:], second_session.offsets, second_session.support
    assert log_fingerprint(opened) == log_fingerprint(second_session)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc (Linux)")
def test_the_fingerprint_of_a_memory_mapped_log_does_not_load_its_pages(tmp_path: Path):
    n_events = 1 << 24  # 64 MiB of items
    SessionStore.from_arrays(np.arange(n_events) % 7, np.arange(0, n_events + 1, 16)).save(tmp_path / "store")
    store = SessionStore.open(tmp_path / "store")
    baseline, _ = memory_meter().reset()
    log_fingerprint(store)
    _, peak = memory_meter().read()
    assert peak - baseline < 16 << 20  # 16 MiB
    # Check that the meter would have shown the pages: read all items through the map.
    assert int(np.asarray(store.items).max()) == 6
    current, _ = memory_meter().read()
    assert current - baseline > 48 << 20
