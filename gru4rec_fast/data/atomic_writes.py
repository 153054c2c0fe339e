"""Write files and folders so that a killed process leaves the earlier version or the new one, always complete.

Data is written to a temporary folder `.NAME.partial-<random>` next to NAME, flushed to the disk and renamed. The
process keeps the temporary folder locked. The system releases the locks of a killed process, so an unlocked temporary
folder is an abandoned one; the next process that writes to NAME removes it.

A folder is replaced by two renames: the earlier version becomes `.NAME.old-<random>`, then the temporary folder becomes
NAME. If the process is killed between the two renames, `restore_folder` undoes the first rename. It is called before a
folder is opened or replaced.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def explain_disk_full(path: Path) -> Iterator[None]:
    """Context manager that replaces a "no space left" error by an error that names `path` and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise OSError(
            error.errno,
            f"the disk is full (or a size limit is reached) while writing {path}: free some space or choose another "
            "folder; nothing was saved, and an earlier version is unchanged",
        ) from error


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to write; at the end of the block, flush the file and rename it to `path`.

    If the block raises, the temporary file is removed and an earlier file at `path` is unchanged.
    """
    with _temporary_folder(path) as folder:
        temporary = folder / path.name
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_to_disk(path.parent)  # the rename


@contextmanager
def replace_folder(folder: str | Path, is_replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield an empty temporary folder to write into, and rename it to `folder` at the end of the block.

    If the block raises, the temporary folder is removed and an earlier folder is unchanged. An earlier folder with
    content is replaced only if `is_replaceable(folder)`.

    Raises:
        FileExistsError: `folder` exists and may not be replaced.
        OSError: the disk is full; the message names `folder`.
    """
    folder = Path(folder).resolve()
    restore_folder(folder)
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or is_replaceable(folder))):
        raise FileExistsError(f"{folder} exists and holds no data written by gru4rec_fast; choose another folder")
    with explain_disk_full(folder), _temporary_folder(folder) as temporary:
        _remove_abandoned(folder.parent, _old_prefix(folder))  # the new version was complete
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            flush_to_disk(path)
        _rename_over(temporary, folder)
        flush_to_disk(folder.parent)


def restore_folder(folder: str | Path) -> None:
    """Rename the earlier version of a missing folder back, if a process was killed while replacing this folder.

    Also restores the parent folder, because the parts of a prepared log are replaced together. Waits for a running
    process that is replacing the folder. Raises OSError if the folder cannot be renamed.
    """
    folder = Path(folder).resolve()
    for path in (folder.parent, folder):
        for old in [] if path.exists() else _siblings(path.parent, _old_prefix(path)):
            try:
                with _locked(old, wait=True):
                    if not path.exists():
                        os.rename(old, path)
            except FileNotFoundError:  # another process has finished or undone the replacement
                pass
            except OSError as error:
                raise OSError(f"a process was killed while replacing {path}: rename {old} to {path.name}") from error


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder, after `restore_folder`."""
    if not path.exists():
        restore_folder(path)
    return path.is_dir()


def remove_abandoned_files(folder: Path, *names: str) -> None:
    """Remove what killed processes left in `folder` while they wrote files with these names."""
    _remove_abandoned(folder, *(_partial_prefix(folder / name) for name in names))


def flush_to_disk(path: Path) -> None:
    """Flush a file or folder to the disk. Otherwise a crash after a rename could leave a name without its data."""
    if os.name != "posix" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial_prefix(path: Path) -> str:
    return f".{path.name}.partial-"


def _old_prefix(path: Path) -> str:
    return f".{path.name}.old-"


def _random_sibling(path: Path, prefix: str) -> Path:
    return path.with_name(prefix + secrets.token_hex(4))


def _siblings(folder: Path, *prefixes: str) -> list[Path]:
    """Return the paths that `_random_sibling` named in `folder`; [] if there is no such folder."""
    pattern = re.compile(f"({'|'.join(map(re.escape, prefixes))})[0-9a-f]{{8}}")
    try:
        return [folder / name for name in os.listdir(folder) if pattern.fullmatch(name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextmanager
def _temporary_folder(target: Path) -> Iterator[Path]:
    """Yield a new locked folder next to `target`, and remove it at the end. Remove abandoned ones at the start."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target.parent, _partial_prefix(target))
    while True:
        temporary = _random_sibling(target, _partial_prefix(target))
        temporary.mkdir()
        try:
            lock = _lock(temporary)
            break
        except (BlockingIOError, FileNotFoundError):  # another process has just removed the folder as an abandoned one
            pass
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _unlock(lock)


def _remove_abandoned(folder: Path, *prefixes: str) -> None:
    """Remove the folders with these prefixes that no running process has locked."""
    for path in _siblings(folder, *prefixes):
        try:
            lock = _lock(path)
        except OSError:  # locked, or removed in the meantime
            continue
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            _unlock(lock)


def _rename_over(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder` and remove the earlier folder. If the rename fails, the earlier folder stays."""
    while folder.exists():
        try:
            with _locked(folder, wait=True):
                old = _random_sibling(folder, _old_prefix(folder))
                os.rename(folder, old)
                try:
                    os.rename(temporary, folder)
                except BaseException:
                    os.rename(old, folder)
                    raise
                flush_to_disk(folder.parent)
                garbage = _random_sibling(folder, _partial_prefix(folder))
                os.rename(old, garbage)  # so that an incompletely removed folder is never restored
                shutil.rmtree(garbage, ignore_errors=True)
            return
        except FileNotFoundError:  # another process has replaced the folder in the meantime
            if not temporary.exists():
                raise
    os.rename(temporary, folder)


@contextmanager
def _locked(folder: Path, wait: bool) -> Iterator[None]:
    lock = _lock(folder, wait)
    try:
        yield
    finally:
        _unlock(lock)


def _lock(folder: Path, wait: bool = False) -> int | None:
    """Lock a folder and return the file descriptor that holds the lock; None where the system has no such locks.

    Raises:
        BlockingIOError: the folder is locked, unless `wait`. FileNotFoundError: it was removed or renamed.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.stat(folder)):
            raise FileNotFoundError(folder)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError) and not isinstance(error, BlockingIOError | FileNotFoundError):
            return None  # a network file system without locks on folders
        raise
    return descriptor


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
