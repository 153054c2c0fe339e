"""The logs that benchmarks play: real ones from beside the checkout, synthetic ones of the same size anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic import synthetic_store

from gru4rec_fast.data import SessionStore

SHARED = Path(__file__).parents[2] / "shared" / "data"
SIZES = {"rsc15_100k": (70_000, 2_933), "diginetica": (900_000, 43_097)}  # events and items of the training logs


class LogShelf:
    """Stores and data frames by name, read once; stores lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stores, self._frames = folder, {}, {}

    def path(self, name: str, part: str) -> Path:
        """The real log; skips the calling test where it is not there."""
        path = SHARED / name / f"{part}.tsv.gz"
        if not path.exists():
            pytest.skip(f"{path} is not there")
        return path

    def store(self, name: str, part: str = "train") -> SessionStore:
        """The real log as a store, a test log by the vocabulary of its training log."""
        if (name, part) not in self._stores:
            vocabulary = None if part == "train" else self.store(name).vocabulary
            self._stores[name, part] = SessionStore.from_events(
                self.path(name, part), vocabulary=vocabulary, out=self._folder / f"{name}-{part}"
            )
        return self._stores[name, part]

    def frame(self, name: str, part: str = "train") -> Any:
        """The real log as a pandas data frame, for the official code."""
        import pandas as pd

        if (name, part) not in self._frames:
            self._frames[name, part] = pd.read_csv(self.path(name, part), sep="\t")
        return self._frames[name, part]

    def synthetic(self, name: str) -> SessionStore:
        """A synthetic log of the real one's size."""
        key = (name, "synthetic")
        if key not in self._stores:
            self._stores[key] = synthetic_store(self._folder / f"{name}-synthetic", *SIZES[name])
        return self._stores[key]
