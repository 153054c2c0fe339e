"""One training at a time in a folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
# Long enough for a second attempt, where the holder before removed the file between our opening and our locking it.
SECONDS_TO_WAIT = 0.1

logger = logging.getLogger("gru4rec_fast")


@contextmanager
def exclusive(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Have `folder` for this thread alone, against other threads and processes; None: do nothing.

    The folder is made where it is missing, and removed again if nothing was written to it. Within one thread such
    contexts nest. The lock is the kernel's (on a file in the folder) and dies with the process.

    Raises:
        OSError: another training has the folder, or it cannot be made or written to.
    """
    if folder is None:
        yield
        return
    folder = Path(folder)
    is_new = not folder.is_dir()
    path = folder.resolve() / LOCK
    # One object per path, so that contexts nest. No soft lock where the file system has none: it outlives its process.
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
            with suppress(OSError):  # Windows, which removes no open file
                path.unlink()  # while it is locked: whoever waits for it then takes a new one
            lock.release()
    finally:
        if is_new:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _acquire(lock: FileLock, folder: Path) -> None:
    open(folder / LOCK, "ab").close()  # an error here is one of the folder, not of the lock
    try:
        lock.acquire()
    except Timeout:
        raise OSError(f"another training is writing to {folder}: wait for its end, or choose another folder") from None
    except OSError as error:  # a file system that knows no locks
        _warn(folder, str(error))


@cache  # and not again for each context that nests
def _warn(folder: Path, reason: str) -> None:
    logger.warning("%s cannot be locked (%s): let no other training write there", folder, reason)
