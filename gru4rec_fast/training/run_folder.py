"""The output folder of a training: its last and best checkpoints and its curves."""

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
MODEL_FILE, REPORT_FILE = "model.safetensors", "report.json"  # written by the command line
RUN_FILES = (LAST, BEST, MODEL_FILE, REPORT_FILE, "curves.csv", "curves.png")
PREVIOUS = "previous"


def checkpoint_to_resume(folder: str | os.PathLike[str]) -> Path:
    """Return the path of the last checkpoint in a training's folder. Raises FileNotFoundError if there is none."""
    path = Path(folder) / LAST
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: there is no training to go on with in that folder")
    return path


class RunFolder:
    """Writes a training's files.

    A folder has the files of one training. The files of an earlier training are moved to the subfolder `previous`,
    whose files are replaced, once the first checkpoint of this training is on the disk.

    Args:
        path: the folder, created when the first file is written; None: nothing is written.
        identity: format, config and tensors that every checkpoint stores, so that its reader can build the model.

    Attributes:
        last_saved: the last good checkpoint: of this training, or the one that it was resumed from; or None.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: Checkpoint):
        self.path = None if path is None else Path(path)
        self.identity = identity
        self.last_saved: Path | None = None
        self._is_ours = False

    def continue_from(self, checkpoint: Path | None) -> None:
        """Continue the training that wrote this checkpoint; if it is in this folder, the folder's files are ours."""
        self.last_saved = checkpoint
        if checkpoint is not None and self.path is not None:
            self._is_ours = checkpoint.resolve() == (self.path / LAST).resolve()

    @property
    def holds_another(self) -> bool:
        """Whether the folder has files of another training."""
        return not self._is_ours and bool(self._existing_files())

    def save_last(self, network: nn.Module, state: dict[str, Tensor], progress: dict[str, Any]) -> Path | None:
        """Write everything that is needed to resume. Raises OSError if the file cannot be written."""
        if self.path is not None:
            self.last_saved = self._save(LAST, model_tensors(network) | state, progress)
        return self.last_saved if self.path is not None else None

    def save_best(self, network: nn.Module, history: Sequence[dict[str, Any]]) -> None:
        """Write the model and the history, without what is needed to resume."""
        if self.path is not None:
            self._save(BEST, model_tensors(network), {"history": list(history)})

    def write_csv(self, history: Sequence[dict[str, Any]]) -> None:
        """Write the curves up to now, as CSV."""
        if self.path is not None:
            write_csv(history, self.path / "curves.csv")

    def write_curves(self, history: Sequence[dict[str, Any]]) -> None:
        """Write the curves as CSV and PNG, if this training has written a checkpoint."""
        if self.path is not None and self._is_ours and history:
            write_curves(history, self.path)

    def _save(self, name: str, tensors: dict[str, Tensor], progress: dict[str, Any]) -> Path:
        assert self.path is not None
        checkpoint = replace(self.identity, tensors=self.identity.tensors | tensors, progress=progress)
        path = save_checkpoint(self.path / name, checkpoint, None if self._is_ours else self._move_earlier_files)
        self._is_ours = True
        return path

    def _existing_files(self) -> list[str]:
        return [] if self.path is None else [name for name in RUN_FILES if (self.path / name).exists()]

    def _move_earlier_files(self) -> None:
        assert self.path is not None
        existing, previous = self._existing_files(), self.path / PREVIOUS
        if existing:
            previous.mkdir(exist_ok=True)
            for name in RUN_FILES:
                if name in existing:
                    os.replace(self.path / name, previous / name)
                else:
                    (previous / name).unlink(missing_ok=True)
