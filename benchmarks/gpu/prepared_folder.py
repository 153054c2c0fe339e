"""Access to the folder that prepare_folder.py writes: FOLDER/data (logs and graphs) and FOLDER/peers (checkouts)."""

from __future__ import annotations

from pathlib import Path

from gpu.results import MissingInput
from gru4rec_fast.data import InteractionGraph, SessionStore


class PreparedFolder:
    """Finds prepared data and checkouts in a folder. Each method raises `MissingInput` if the folder lacks them.

    path: the folder; None means that there is none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def sessions(self, name: str) -> SessionStore:
        """Open a training log."""
        return SessionStore.open(self._find("data", name, "train"))

    def graph(self, name: str, part: str = "train") -> InteractionGraph:
        """Open a graph of interactions; `part` is "train" or "test"."""
        return InteractionGraph.open(self._find("data", name, part))

    def peer(self, name: str) -> Path:
        """Return the path of a peer's checkout."""
        return self._find("peers", name)

    def _find(self, *parts: str) -> Path:
        name = "/".join(parts)
        if self._path is None:
            raise MissingInput(f"no FOLDER with {name}")
        path = self._path.joinpath(*parts)
        if not path.is_dir():
            raise MissingInput(f"no {name} in FOLDER")
        return path
