"""Open the logs, graphs and checkouts of public code in the folder that prepare_folder.py writes."""

from __future__ import annotations

from pathlib import Path

from gpu.results import MissingInput
from gru4rec_fast.data import InteractionGraph, SessionStore


class PreparedFolder:
    """A folder that prepare_folder.py wrote. Each method raises `MissingInput` if the folder lacks what it returns.

    path: the folder; None means that there is no folder.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def sessions(self, name: str) -> SessionStore:
        """Open the training log `name`."""
        return SessionStore.open(self._find("data", name, "train"))

    def graph(self, name: str, part: str = "train") -> InteractionGraph:
        """Open the graph of user-item interactions `name`; `part` is "train" or "test"."""
        return InteractionGraph.open(self._find("data", name, part))

    def peer(self, name: str) -> Path:
        """Return the path of a checkout: `name` is "official", "ngcf" or "lightgcn"."""
        return self._find("peers", name)

    def _find(self, *parts: str) -> Path:
        name = "/".join(parts)
        if self._path is None:
            raise MissingInput(f"no prepared folder was given ({name} is needed)")
        path = self._path.joinpath(*parts)
        if not path.is_dir():
            raise MissingInput(f"no {name} in the prepared folder")
        return path
