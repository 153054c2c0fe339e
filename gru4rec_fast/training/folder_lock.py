"""A lock on a training's folder, so that one training at a time writes to it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
# Enough for a second attempt, if the previous holder removed the file between our opening and our locking it.
SECONDS_TO_WAIT = 0.1

logger = logging.getLogger("gru4rec_fast")


@contextmanager
def exclusive(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Lock `folder` against other threads and processes inside the context; None: do nothing.

    A missing folder is created, and removed at the end if nothing was written to it. Such contexts nest in one thread.
    The lock is an operating-system lock on a file in the folder; it ends with the process.

    Raises:
        OSError: another training has locked the folder, or it cannot be created or written to.
    """
    if folder is None:
        yield
        return
    folder = Path(folder)
    is_new = not folder.is_dir()
    path = folder.resolve() / LOCK
    # One object per path, so that contexts nest. No soft lock as a fallback, since it would outlive its process.
    lock = FileLock(path, timeout=SECONDS_TO_WAIT, is_singleton=True, fallback_to_soft=False)
    if lock.is_locked:  # by this thread
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _acquire(lock, folder)
        try:
            yield
        finally:
            with suppress(OSError):  # Windows cannot remove an open file
                path.unlink()  # while it is locked: a waiting process then opens a new file
            lock.release()
    finally:
        if is_new:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _acquire(lock: FileLock, folder: Path) -> None:
    open(folder / LOCK, "ab").close()  # raises the errors of the folder; those below are of the lock
    try:
        lock.acquire()
    except Timeout:
        raise OSError(f"another training is writing to {folder}: wait for its end, or choose another folder") from None
    except OSError as error:  # a file system without locks
        _warn(folder, str(error))


@cache  # once, not for every nested context
def _warn(folder: Path, reason: str) -> None:
    logger.warning("%s cannot be locked (%s): let no other training write there", folder, reason)
