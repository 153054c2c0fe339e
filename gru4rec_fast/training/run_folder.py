"""The output folder of a training: its last and best checkpoints, its model and its curves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gru4rec_fast._atomic_writes import replace_file
from gru4rec_fast.training.checkpoint import Checkpoint, save_checkpoint
from gru4rec_fast.training.checkpoint_tensors import model_tensors
from gru4rec_fast.training.curves import write_csv, write_curves
from gru4rec_fast.training.earlier_training import (
    BEST_FILE,
    LAST_FILE,
    MODEL_FILE,
    existing_files,
    move_aside,
    prepare_run_folder,
    recover,
    recover_run_folder,
)


def checkpoint_to_resume(folder: str | os.PathLike[str]) -> Path:
    """Return the path of the last checkpoint in a training's folder. Raises FileNotFoundError if there is none."""
    path = Path(folder) / LAST_FILE
    recover_run_folder(path.parent)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: that folder has no training to resume")
    return path


class RunFolder:
    """Writes the files of a training.

    A folder has the files of one training. When the first checkpoint of this training (best or last.safetensors) is
    complete, the files of an earlier training are moved to a hidden subfolder. Once this training has written its first
    last.safetensors, they are moved on to the subfolder `previous`, and replace the files there. If this training ends
    without a last.safetensors, they are moved back, and replace its files (see `earlier_training`).

    Args:
        path: the folder, created when the first file is written; None: nothing is written.
        checkpoint_template: the format, config and tensors of this Checkpoint are copied into every checkpoint file, so
            that a reader can build the model.

    Attributes:
        last_saved: path of the last checkpoint that this training has written or was resumed from; None: there is none.
    """

    def __init__(self, path: str | os.PathLike[str] | None, checkpoint_template: Checkpoint):
        self.path = None if path is None else Path(path)
        self.checkpoint_template = checkpoint_template
        self.last_saved: Path | None = None
        self._files_are_ours = False  # True: this training wrote the files in the folder, or was resumed from them
        self._has_saved = False  # whether this object has written a checkpoint

    def continue_from(self, checkpoint: Path | None) -> None:
        """Continue the training that wrote this checkpoint.

        If the checkpoint is in this folder, the other files in the folder are also files of this training.
        """
        self.last_saved = checkpoint
        if checkpoint is not None and self.path is not None:
            self._files_are_ours = checkpoint.resolve() == (self.path / LAST_FILE).resolve()

    @property
    def has_earlier_training(self) -> bool:
        """Whether the folder has files of an earlier training."""
        return not self._files_are_ours and self.path is not None and bool(existing_files(self.path))

    def prepare(self) -> None:
        """Repair what killed processes left in the folder. The caller must hold the lock of the folder."""
        if self.path is not None and self.path.is_dir():
            prepare_run_folder(self.path)

    def close(self) -> None:
        """Restore the files of an earlier training if this training has written no last.safetensors."""
        if self.path is not None and self.path.is_dir():
            with suppress(OSError):  # the next training in the folder, or a reader, repeats it
                recover(self.path)

    def save_last(self, network: nn.Module, state: dict[str, Tensor], progress: dict[str, Any]) -> Path | None:
        """Write last.safetensors, with all that is needed to resume. Raises OSError if the file cannot be written.

        If this training had ended and was resumed for more epochs, the model that it wrote at its end is removed.
        """
        if self.path is not None:
            if self._files_are_ours:
                (self.path / MODEL_FILE).unlink(missing_ok=True)
            self.last_saved = self._save(LAST_FILE, model_tensors(network) | state, progress)
            with suppress(OSError):  # the next training in the folder, or a reader, repeats it
                recover(self.path)  # finishes the move of earlier files
        return self.last_saved if self.path is not None else None

    def save_best(
        self, network: nn.Module, history: Sequence[dict[str, Any]], maxima: dict[str, Tensor] | None = None
    ) -> Path | None:
        """Write best.safetensors, with the model and the history, but without the state that a resume needs.

        maxima: what `accumulator_maxima` returned.
        """
        if self.path is None:
            return None
        return self._save(BEST_FILE, model_tensors(network, maxima), {"history": list(history)})

    def save_model(
        self,
        network: nn.Module,
        history: Sequence[dict[str, Any]],
        maxima: dict[str, Tensor] | None = None,
        *,
        is_best_selected: bool,
    ) -> Path | None:
        """Write model.safetensors at the end of the training: a copy of best.safetensors, or the model in `network`.

        If nothing was left to train, an existing file is not changed. Returns the path of the file if it was written.

        Args:
            maxima: what `accumulator_maxima` returned.
            is_best_selected: write the model of the best epoch, if the folder has it.
        """
        if self.path is None or not self._files_are_ours:
            return None
        path = self.path / MODEL_FILE
        if not self._has_saved and path.exists():
            return None
        if is_best_selected and (self.path / BEST_FILE).exists():
            with replace_file(path) as temporary:
                shutil.copyfile(self.path / BEST_FILE, temporary)
            return path
        return self._save(MODEL_FILE, model_tensors(network, maxima), {"history": list(history)})

    def write_csv(self, history: Sequence[dict[str, Any]]) -> None:
        """Write the curves so far as CSV."""
        if self.path is not None:
            write_csv(history, self.path / "curves.csv")

    def write_curves(self, history: Sequence[dict[str, Any]]) -> None:
        """Write the curves as CSV and PNG, if this training has written a checkpoint."""
        if self.path is not None and self._files_are_ours and history:
            write_curves(history, self.path)

    def _save(self, name: str, tensors: dict[str, Tensor], progress: dict[str, Any]) -> Path:
        assert self.path is not None
        template = self.checkpoint_template
        checkpoint = replace(template, tensors=template.tensors | tensors, progress=progress)
        before_rename = None if self._files_are_ours else partial(move_aside, self.path)
        path = save_checkpoint(self.path / name, checkpoint, before_rename)
        self._files_are_ours = self._has_saved = True
        return path
