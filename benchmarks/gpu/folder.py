"""What a comparison needs beside the package: FOLDER/data and FOLDER/peers, as prepare_folder.py makes them."""

from __future__ import annotations

from pathlib import Path

from gpu.results import Missing
from gru4rec_fast.data import InteractionGraph, SessionStore


class Folder:
    """Prepared data and checkouts of peers, looked for when a row asks; `path` None: there is nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def sessions(self, name: str) -> SessionStore:
        """The training log of that name."""
        return SessionStore.open(self._find("data", name, "train"))

    def graph(self, name: str, part: str = "train") -> InteractionGraph:
        """The graph of that name, of the training or of the test interactions."""
        return InteractionGraph.open(self._find("data", name, part))

    def peer(self, name: str) -> Path:
        """A peer's checkout."""
        return self._find("peers", name)

    def _find(self, *parts: str) -> Path:
        name = "/".join(parts)
        if self._path is None:
            raise Missing(f"no FOLDER with {name}")
        path = self._path.joinpath(*parts)
        if not path.is_dir():
            raise Missing(f"no {name} in FOLDER")
        return path
