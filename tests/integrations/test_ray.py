"""Logs that Ray Data writes as part files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install ray pandas pyarrow")

import ray

from gru4rec_fast import SessionStore
from gru4rec_fast.data.sessions.synthetic import markov_events

EVENTS = markov_events(300, 40, seed=1)


@pytest.fixture(scope="module")
def dataset() -> Iterator[object]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    rows = [dict(zip(EVENTS, map(int, row), strict=True)) for row in zip(*EVENTS.values(), strict=True)]
    yield ray.data.from_items(rows).repartition(4)
    ray.shutdown()


@pytest.mark.parametrize("file_type", ["parquet", "csv"])
def test_parts_of_ray_data(tmp_path: Path, dataset: object, file_type: str) -> None:
    folder = tmp_path / "log"
    getattr(dataset, f"write_{file_type}")(str(folder))
    assert len([*folder.iterdir()]) == 4
    store, expected = SessionStore.from_events(folder), SessionStore.from_events(EVENTS)
    for name in ("items", "offsets", "start_times", "support"):
        np.testing.assert_array_equal(getattr(store, name), getattr(expected, name))
