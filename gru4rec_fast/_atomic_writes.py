"""Write files and folders so that a killed process leaves the earlier version or the new one, always complete.

Data is written to a temporary folder `.NAME.partial-<random>` next to NAME, flushed to the disk and renamed. The
process keeps the temporary folder locked. The system releases the locks of a killed process, so an unlocked temporary
folder is an abandoned one; the next process that writes to NAME removes it.

A folder is replaced by two renames: the earlier version becomes `.NAME.old-<random>`, with the random digits of the
temporary folder (its twin), then the temporary folder becomes NAME. A kill leaves one of these states:

- Before the first rename: NAME is the earlier version, and there is an abandoned temporary folder.
- Between the renames: NAME is missing. `restore_folder` undoes the first rename. It is called before a folder is opened
  or replaced.
- After the second rename: NAME is the new version. The earlier version has no twin any more, so it is superseded: it is
  never restored, even if the user deletes NAME. The next process that writes to NAME removes it once NAME exists; until
  then it may be the only copy, because version 0.1 made no twins.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
        OSError: `folder` cannot be renamed, such as a mount point or the current folder; raised before the block runs.
            Or the disk is full; the message names `folder`.
    """
    folder = Path(folder).resolve()
    restore_folder(folder)
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or is_replaceable(folder))):
        raise FileExistsError(f"{folder} exists and holds no data written by gru4rec_fast; choose another folder")
    with explain_disk_full(folder), _temporary_folder(folder) as temporary:
        _require_renamable(folder, temporary)
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            flush_to_disk(path)
        _rename_over(temporary, folder)
        flush_to_disk(folder.parent)
    _remove_abandoned(folder)


def restore_folder(folder: str | Path) -> None:
    """Rename the earlier version of a missing folder back, if a process was killed while replacing this folder.

    Also restores the parent folder, because the parts of a prepared log are replaced together. Waits for a running
    process that is replacing the folder. Raises OSError if the folder cannot be renamed.
    """
    folder = Path(folder).resolve()
    for path in (folder.parent, folder):
        for old in [] if path.exists() else _siblings(path, "old"):
            try:
                with _locked(old):
                    if not path.exists() and _twin(old).exists():
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
    """Remove what killed processes left in `folder` while they wrote files with these names.

    The caller must hold the lock of the folder, because the temporary files of version 0.1, `.NAME.<process id>.tmp`,
    are not locked.
    """
    for name in names:
        _remove_abandoned(folder / name)
    pattern = re.compile(rf"\.({'|'.join(map(re.escape, names))})\.\d+\.tmp")
    for path in folder.iterdir():
        if pattern.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Flush a file or folder to the disk. Otherwise a crash after a rename could leave a name without its data."""
    if os.name != "posix" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _siblings(target: Path, kind: str) -> list[Path]:
    """Return the temporary folders (kind "partial") or the earlier versions ("old") of `target`."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.{kind}-[0-9a-f]{{8}}")
    try:
        return [target.with_name(name) for name in os.listdir(target.parent) if pattern.fullmatch(name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _twin(path: Path) -> Path:
    """Return the path of the earlier version with the digits of a temporary folder, or the other way round."""
    name, _, digits = path.name.rpartition("-")
    stem, _, kind = name.rpartition(".")
    return path.with_name(f"{stem}.{'old' if kind == 'partial' else 'partial'}-{digits}")


@contextmanager
def _temporary_folder(target: Path) -> Iterator[Path]:
    """Yield a new locked folder next to `target`, and remove it at the end. Remove abandoned ones at the start."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    while True:
        temporary = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
        try:
            temporary.mkdir()
        except PermissionError as error:
            raise PermissionError(
                error.errno,
                f"{target.parent} is not writable, and {target.name} is first written to a temporary folder in it; "
                "choose another folder",
            ) from error
        try:
            lock = _lock(temporary)
            break
        except (BlockingIOError, FileNotFoundError):  # another process has just removed the folder as an abandoned one
            pass
    try:
        yield temporary
    finally:
        _remove(temporary, target)
        _unlock(lock)


def _remove_abandoned(target: Path) -> None:
    """Remove the temporary folders and earlier versions of `target` that no running process has locked."""
    for path in [*_siblings(target, "partial"), *_siblings(target, "old")]:
        try:
            lock = _lock(path)
        except OSError:  # locked, or removed in the meantime
            continue
        if lock is not None:
            _remove(path, target)
            _unlock(lock)


def _remove(path: Path, target: Path) -> None:
    """Remove a temporary folder or an earlier version of `target`, unless it may be all that is left of `target`."""
    # A temporary folder whose twin exists is kept, too: without it, `restore_folder` restores no earlier version.
    is_needed = path.name.startswith(f".{target.name}.old-") or _twin(path).exists()
    if target.exists() or not is_needed:
        shutil.rmtree(path, ignore_errors=True)


def _require_renamable(folder: Path, temporary: Path) -> None:
    """Raise OSError if `folder` exists and cannot be renamed, or if it is the current folder or contains it."""
    reason = None
    with suppress(FileNotFoundError):  # the current folder was removed
        if Path.cwd().is_relative_to(folder):
            reason = "it is the current folder, or contains it"
    obstacle = temporary / "obstacle"
    obstacle.mkdir()
    try:
        os.rename(folder, temporary)  # always fails: if for no other reason, because `temporary` is not empty
    except FileNotFoundError:  # there is no earlier folder
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            reason = reason or f"it cannot be renamed ({error.strerror})"
    obstacle.rmdir()
    if reason:
        raise OSError(f"{folder} cannot be replaced: {reason}; choose another folder, such as {folder / 'data'}")


def _rename_over(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder` and remove the earlier folder. If the rename fails, the earlier folder stays."""
    old = _twin(temporary)
    while folder.exists():
        try:
            with _locked(folder):
                try:
                    os.rename(folder, old)
                    os.rename(temporary, folder)
                except BaseException:
                    if old.exists() and not folder.exists():
                        os.rename(old, folder)
                    raise
                flush_to_disk(folder.parent)
                shutil.rmtree(old, ignore_errors=True)
            return
        except FileNotFoundError:  # another process has replaced the folder in the meantime
            if not temporary.exists():
                raise
    os.rename(temporary, folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder until the end of the block; wait for it. Raises FileNotFoundError as `_lock` does."""
    lock = _lock(folder, wait=True)
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
    """Release a lock that `_lock` returned."""
    if lock is not None:
        os.close(lock)
