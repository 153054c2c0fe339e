"""One training at a time in a folder."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

LOCK = ".lock"

logger = logging.getLogger("gru4rec_fast")
_held = threading.local()  # .folders: those that this thread has to itself


@contextmanager
def exclusive(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Have `folder` for this thread alone, against other threads and processes; None: do nothing.

    The folder is made where it is missing, and removed again if nothing was written to it. Within one thread such
    contexts nest. The lock is the kernel's (flock on a file in the folder) and dies with the process.

    Raises:
        OSError: another training has the folder, or it cannot be made or written to.
    """
    held: set[Path] = _held.__dict__.setdefault("folders", set())
    if folder is None or Path(folder).resolve() in held:
        yield
        return
    folder = Path(folder)
    key, is_new = folder.resolve(), not folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder / LOCK):  # closing the file gives the lock up
            held.add(key)
            try:
                yield
            finally:
                held.remove(key)
                (folder / LOCK).unlink(missing_ok=True)  # while it is locked; see _is_at
    finally:
        if is_new:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _locked(path: Path) -> IO[bytes]:
    """The file, open and locked."""
    try:
        import fcntl
    except ImportError:  # Windows
        return open(path, "ab")
    while True:
        stream = open(path, "ab")  # noqa: SIM115 (handed on)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise OSError(
                f"another training is writing to {path.parent}: wait for its end, or choose another folder"
            ) from None
        except OSError as error:  # a file system that knows no locks
            logger.warning("%s cannot be locked (%s): let no other training write there", path.parent, error)
            return stream
        if _is_at(stream, path):
            return stream
        stream.close()


def _is_at(stream: IO[bytes], path: Path) -> bool:
    """False where the holder before removed the file between our opening and our locking it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    return False
