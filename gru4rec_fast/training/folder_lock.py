"""Locks the folder of a training, so that only one training at a time writes to the folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = ".lock"
# Enough for a second attempt, which is needed if another process removes the file between our opening and locking it.
TIMEOUT_S = 0.1

logger = logging.getLogger("gru4rec_fast")


@contextmanager
def lock_folder(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Lock `folder` against other threads and processes inside the context; None: do nothing.

    A missing folder is created, and removed at the end if nothing was written to it. A thread may nest such contexts of
    the same folder. The lock is an operating-system lock on a file in the folder; the system releases it when the
    process ends.

    Raises:
        OSError: another training has locked the folder, or the folder cannot be created or written to.
    """
    if folder is None:
        yield
        return
    folder = Path(folder)
    is_new = not folder.is_dir()
    path = folder.resolve() / LOCK_FILE
    # A singleton per path, so that a thread can lock a folder twice. No soft lock as a fallback: it is only a file and
    # would remain after a crash.
    lock = FileLock(path, timeout=TIMEOUT_S, is_singleton=True, fallback_to_soft=False)
    if lock.is_locked:  # by this thread
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _acquire(lock, folder)
        try:
            yield
        finally:
            # Removed before the release: after it, another process may hold the lock, and its file would be removed.
            with suppress(OSError):  # Windows cannot remove an open file
                path.unlink()
            lock.release()
    finally:
        if is_new:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _acquire(lock: FileLock, folder: Path) -> None:
    # Errors of the folder (no permission, full disk) are raised here, so that an OSError below is an error of the lock.
    open(folder / LOCK_FILE, "ab").close()
    try:
        lock.acquire()
    except Timeout:
        raise OSError(f"another training is writing to {folder}: wait for its end, or choose another folder") from None
    except OSError as error:  # the file system has no locks
        _warn_once(folder, str(error))


@cache
def _warn_once(folder: Path, reason: str) -> None:
    logger.warning("%s cannot be locked (%s): make sure that no other training writes to it", folder, reason)
