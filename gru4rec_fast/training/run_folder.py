"""The folder a training writes into: its last and best checkpoints and its curves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gru4rec_fast.training.checkpoint import Checkpoint, save_checkpoint
from gru4rec_fast.training.curves import write_csv, write_curves
from gru4rec_fast.training.state import model_tensors

LAST, BEST = "last.safetensors", "best.safetensors"
MODEL_FILE, REPORT_FILE = "model.safetensors", "report.json"  # what the command line adds
RUN_FILES = (LAST, BEST, MODEL_FILE, REPORT_FILE, "curves.csv", "curves.png")
PREVIOUS = "previous"


def checkpoint_to_resume(folder: str | os.PathLike[str]) -> Path:
    """The last checkpoint in the folder of a training; FileNotFoundError where there is none."""
    path = Path(folder) / LAST
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: there is no training to go on with in that folder")
    return path


class RunFolder:
    """Writes a training's files, or nothing where there is no folder.

    A folder holds the files of one training. Those of an earlier one stay until this one's first checkpoint is on the
    disk, and are then moved to the subfolder `previous`, in place of what was there.

    Args:
        path: the folder, made when the first file is written; None: nothing is written.
        identity: format, config and tensors that go into every checkpoint, so that its reader knows the model.

    Attributes:
        last_saved: the last good checkpoint of this training, in this folder or where it was resumed from; or None.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: Checkpoint):
        self.path = None if path is None else Path(path)
        self.identity = identity
        self.last_saved: Path | None = None
        self._is_ours = False

    def go_on_from(self, checkpoint: Path | None) -> None:
        """Resume the training that wrote this checkpoint; if it stands here, so does the rest of that training."""
        self.last_saved = checkpoint
        if checkpoint is not None and self.path is not None:
            self._is_ours = checkpoint.resolve() == (self.path / LAST).resolve()

    @property
    def holds_another(self) -> bool:
        """Whether files of another training stand here."""
        return not self._is_ours and bool(self._found())

    def save_last(self, network: nn.Module, state: dict[str, Tensor], progress: dict[str, Any]) -> Path | None:
        """Write everything that is needed to go on; OSError where the file cannot be written."""
        if self.path is not None:
            self.last_saved = self._save(LAST, model_tensors(network) | state, progress)
        return self.last_saved if self.path is not None else None

    def save_best(self, network: nn.Module, history: Sequence[dict[str, Any]]) -> None:
        """Write the model alone, without what is needed to train on."""
        if self.path is not None:
            self._save(BEST, model_tensors(network), {"history": list(history)})

    def write_csv(self, history: Sequence[dict[str, Any]]) -> None:
        """Write the curves as far as they go, as CSV."""
        if self.path is not None:
            write_csv(history, self.path / "curves.csv")

    def write_curves(self, history: Sequence[dict[str, Any]]) -> None:
        """Write the curves as CSV and PNG, unless no checkpoint of this training stands beside them."""
        if self.path is not None and self._is_ours and history:
            write_curves(history, self.path)

    def _save(self, name: str, tensors: dict[str, Tensor], progress: dict[str, Any]) -> Path:
        assert self.path is not None
        checkpoint = replace(self.identity, tensors=self.identity.tensors | tensors, progress=progress)
        path = save_checkpoint(self.path / name, checkpoint, None if self._is_ours else self._move_others_aside)
        self._is_ours = True
        return path

    def _found(self) -> list[str]:
        return [] if self.path is None else [name for name in RUN_FILES if (self.path / name).exists()]

    def _move_others_aside(self) -> None:
        assert self.path is not None
        found, previous = self._found(), self.path / PREVIOUS
        if found:
            previous.mkdir(exist_ok=True)
            for name in RUN_FILES:
                if name in found:
                    os.replace(self.path / name, previous / name)
                else:
                    (previous / name).unlink(missing_ok=True)
