"""The synthetic logs and stores of the memory benchmarks (benchmarks/synthetic.py) have the requested sizes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from gru4rec_fast.data import SessionStore


@pytest.fixture
def synthetic(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import benchmarks/synthetic.py as a module, and let it write logs in chunks of 1000 events."""
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "synthetic.py"
    spec = importlib.util.spec_from_file_location("synthetic", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "synthetic", module)  # dataclasses look up their module in sys.modules
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CHUNK_EVENTS", 1000)
    return module


@pytest.mark.parametrize("n_events", [2, 3, 999, 1000, 1001, 1002, 25_003])  # a chunk has 1000 events
def test_store_has_the_requested_sizes_and_distribution(tmp_path: Path, synthetic: ModuleType, n_events: int) -> None:
    store = synthetic.synthetic_store(tmp_path / "store", n_events, n_items=50, seed=3)
    assert (store.n_events, store.n_items, store.n_short_sessions) == (n_events, 50, 0)
    assert store.n_targets == n_events - store.n_sessions
    recomputed = SessionStore.from_arrays(store.items, store.offsets, n_items=50)
    assert recomputed.support.tolist() == store.support.tolist() and recomputed.n_targets == store.n_targets
    if n_events > 10_000:  # enough events for averages
        assert n_events / store.n_sessions == pytest.approx(synthetic.MEAN_LENGTH, rel=0.05)
        popularity = np.arange(1, 51) ** -synthetic.ZIPF_EXPONENT
        assert store.support == pytest.approx(n_events * popularity / popularity.sum(), rel=0.3)


def test_log_and_store_have_the_same_sizes_and_support(tmp_path: Path, synthetic: ModuleType) -> None:
    synthetic.synthetic_log(tmp_path / "log.tsv", n_events=5003, n_items=50, seed=3)
    log = SessionStore.from_events(tmp_path / "log.tsv")
    store = synthetic.synthetic_store(tmp_path / "store", n_events=5003, n_items=50, seed=3)
    assert (log.n_events, log.n_sessions) == (store.n_events, store.n_sessions)
    # Items that were not drawn have support 0 in the store and do not occur in the log.
    assert sorted(log.support.tolist()) == sorted(count for count in store.support.tolist() if count)
