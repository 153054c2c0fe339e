"""Read the session logs of the benchmarks from ../shared/data, and make synthetic logs of the same sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic import synthetic_store

from gru4rec_fast.data import SessionStore

SHARED = Path(__file__).parents[2] / "shared" / "data"
# Numbers of events and items of the training logs.
SIZES = {"rsc15_100k": (70_000, 2_933), "diginetica": (900_000, 43_097)}


class SessionLogs:
    """Provides session logs by name, as stores or data frames. Each log is read once; stores are written to `folder`.

    In all methods, `name` is a key of SIZES and `part` is "train" or "test".
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._stores, self._frames = folder, {}, {}

    def path(self, name: str, part: str) -> Path:
        """Return the path of a real log; skip the calling test if the file does not exist."""
        path = SHARED / name / f"{part}.tsv.gz"
        if not path.exists():
            pytest.skip(f"{path} does not exist")
        return path

    def store(self, name: str, part: str = "train") -> SessionStore:
        """Return a real log as a store. A test log gets the vocabulary of the training log."""
        if (name, part) not in self._stores:
            vocabulary = None if part == "train" else self.store(name).vocabulary
            self._stores[name, part] = SessionStore.from_events(
                self.path(name, part), vocabulary=vocabulary, out=self._folder / f"{name}-{part}"
            )
        return self._stores[name, part]

    def frame(self, name: str, part: str = "train") -> Any:
        """Return a real log as a pandas data frame, which the official code reads."""
        import pandas as pd

        if (name, part) not in self._frames:
            self._frames[name, part] = pd.read_csv(self.path(name, part), sep="\t")
        return self._frames[name, part]

    def synthetic(self, name: str) -> SessionStore:
        """Return a synthetic training log with as many events and items as the real one."""
        key = (name, "synthetic")
        if key not in self._stores:
            self._stores[key] = synthetic_store(self._folder / f"{name}-synthetic", *SIZES[name])
        return self._stores[key]
