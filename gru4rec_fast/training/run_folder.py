"""The folder a training writes into: its last and best checkpoints and its curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gru4rec_fast.training.checkpoint import Checkpoint, save_checkpoint
from gru4rec_fast.training.curves import write_csv, write_curves
from gru4rec_fast.training.place import TrainingDiverged
from gru4rec_fast.training.state import model_tensors

LAST, BEST = "last.safetensors", "best.safetensors"


class RunFolder:
    """Writes a training's files, or nothing where there is no folder.

    Args:
        path: the folder, made when the first file is written; None: nothing is written.
        identity: format, config and tensors that go into every checkpoint, so that its reader knows the model.
    """

    def __init__(self, path: str | Path | None, identity: Checkpoint):
        self.path = None if path is None else Path(path)
        self.identity = identity
        self.last_saved: Path | None = None

    def start_over(self) -> None:
        """Remove an earlier training's checkpoints, so that its best is not taken for this one's."""
        if self.path is not None:
            for name in (LAST, BEST):
                (self.path / name).unlink(missing_ok=True)

    def save_last(self, network: nn.Module, state: dict[str, Tensor], progress: dict[str, Any]) -> Path | None:
        """Write everything that is needed to go on; weights that are no numbers never replace a good file.

        Raises:
            TrainingDiverged: a weight is NaN or infinite.
            OSError: the file cannot be written.
        """
        if self.path is None:
            return None
        for name, parameter in network.named_parameters():
            if not all(math.isfinite(extreme) for extreme in torch.aminmax(parameter.detach())):
                raise TrainingDiverged(f"{name} holds NaN or infinite weights")
        tensors = self.identity.tensors | model_tensors(network) | state
        self.last_saved = save_checkpoint(self.path / LAST, replace(self.identity, tensors=tensors, progress=progress))
        return self.last_saved

    def save_best(self, network: nn.Module, history: Sequence[dict[str, Any]]) -> None:
        """Write the model alone, without what is needed to train on."""
        if self.path is not None:
            tensors = self.identity.tensors | model_tensors(network)
            progress = {"history": list(history)}
            save_checkpoint(self.path / BEST, replace(self.identity, tensors=tensors, progress=progress))

    def write_csv(self, history: Sequence[dict[str, Any]]) -> None:
        """Write the curves as far as they go, as CSV."""
        if self.path is not None:
            write_csv(history, self.path / "curves.csv")

    def write_curves(self, history: Sequence[dict[str, Any]]) -> None:
        """Write the curves as CSV and PNG."""
        if self.path is not None and history:
            write_curves(history, self.path)
