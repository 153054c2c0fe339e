"""Move the files of an earlier training to the subfolder `previous`, so that a killed process loses none of them.

The folders below are a journal. The move has four steps, and `recover_run_folder` finishes or undoes each of them:

1. The files are moved one by one to MOVING. After a kill they are moved back.
2. MOVING is renamed to MOVED when it has all files. Only then does the new training write its first file. If the new
   training is killed before it has written a last.safetensors, its files are removed and the others moved back.
3. When the new training has its last.safetensors, `previous` is renamed to OUTDATED, and MOVED to `previous`. After a
   kill this step is continued.
4. Files that no training has written are moved from OUTDATED to `previous`. Then OUTDATED is removed.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from gru4rec_fast._atomic_writes import flush_to_disk, remove_abandoned_files
from gru4rec_fast.training.folder_lock import lock_folder

LAST_FILE, BEST_FILE, MODEL_FILE = "last.safetensors", "best.safetensors", "model.safetensors"
REPORT_FILE = "report.json"  # written only by the command line
RUN_FILES = (LAST_FILE, BEST_FILE, MODEL_FILE, REPORT_FILE, "curves.csv", "curves.png")
PREVIOUS = "previous"
MOVING, MOVED, OUTDATED = ".previous.moving", ".previous.moved", ".previous.outdated"


def existing_files(folder: Path) -> list[str]:
    """Return the names of the files of a training in a folder."""
    return [name for name in RUN_FILES if (folder / name).exists()]


def move_aside(folder: Path) -> None:
    """Move the files of a training out of the folder (steps 1 and 2). The caller must hold the lock of the folder."""
    names = existing_files(folder)
    if not names:
        return
    (folder / PREVIOUS).mkdir(exist_ok=True)  # fails here rather than in step 3 if `previous` is a file
    (folder / MOVING).mkdir()
    for name in names:
        os.replace(folder / name, folder / MOVING / name)
    flush_to_disk(folder / MOVING)
    os.rename(folder / MOVING, folder / MOVED)
    flush_to_disk(folder)


def recover(folder: Path) -> None:
    """Finish the move if the folder has a new last.safetensors, else undo it. The caller must hold the lock."""
    moving, moved, outdated, previous = (folder / name for name in (MOVING, MOVED, OUTDATED, PREVIOUS))
    if moved.is_dir() and not (folder / LAST_FILE).exists():
        for name in existing_files(folder):  # of the new training
            (folder / name).unlink()
        os.rename(moved, moving)
    if moving.is_dir():
        for path in moving.iterdir():
            os.replace(path, folder / path.name)
        moving.rmdir()
    if moved.is_dir():
        if previous.exists():
            os.rename(previous, outdated)
        os.rename(moved, previous)
        flush_to_disk(folder)
    if outdated.is_dir():
        if not previous.exists():
            os.rename(outdated, previous)
        else:
            for path in outdated.iterdir():
                if path.name not in RUN_FILES:
                    os.replace(path, previous / path.name)
            shutil.rmtree(outdated)


def recover_run_folder(path: Path) -> None:
    """Finish or undo what a killed training began in a folder; `path` may also be the folder's subfolder `previous`.

    Does nothing while a training is writing to the folder.
    """
    for folder in [path, path.parent] if path.name == PREVIOUS else [path]:
        if any((folder / name).is_dir() for name in (MOVING, MOVED, OUTDATED)):
            with suppress(OSError), lock_folder(folder):
                recover(folder)


def prepare_run_folder(folder: Path) -> None:
    """Call `recover`, and remove temporary files of killed processes. The caller must hold the lock of the folder."""
    recover(folder)
    remove_abandoned_files(folder, *RUN_FILES)
