"""Files that are either whole or not there: .npy arrays written front to back, folders renamed into place."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import DTypeLike

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_npy(path: Path, blocks: Iterable[np.ndarray], dtype: DTypeLike, length: int) -> None:
    """Write a one-dimensional .npy file of `length` elements from consecutive blocks.

    Not through a memory map: a disk that fills up under a map kills the process with SIGBUS, a write raises OSError.
    """
    written = 0
    with open(path, "wb") as file:
        header = {"descr": npy_format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (length,)}
        npy_format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).view(np.uint8).data)
            written += block.size
    if written != length:
        raise RuntimeError(f"{path.name}: {written} elements were written where {length} were announced")


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a one-dimensional array as .npy."""
    write_npy(path, [array], array.dtype, len(array))


def open_array(path: Path, length: int | None = None, dtypes: Iterable[DTypeLike] | None = None) -> np.ndarray:
    """Open a one-dimensional .npy file memory-mapped, read-only.

    Raises ValueError where it is missing, damaged, not of `length` or of none of `dtypes`.
    """
    try:
        array = _map(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing, its folder is incomplete; prepare the store again") from None
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged or was cut short ({error}); prepare the store again") from error
    if length is not None and array.shape != (length,):
        raise ValueError(f"{path} has shape {array.shape} where ({length},) was expected; prepare the store again")
    wanted = [np.dtype(dtype) for dtype in dtypes or [array.dtype]]
    if array.dtype not in wanted:
        expected = " or ".join(map(str, wanted))
        raise ValueError(f"{path} holds {array.dtype} where {expected} was expected; prepare the store again")
    return array


def _map(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        npy_format.read_magic(file)
        shape, _, dtype = npy_format.read_array_header_1_0(file)
        start = file.tell()
    if shape == (0,):
        return np.empty(shape, dtype)  # a map cannot be empty
    return np.memmap(path, dtype, "r", start, shape)


@contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """Turn "no space left" inside the block into one OSError that names what was being written and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise OSError(
            error.errno,
            f"the disk is full (or a size limit is reached) while writing {path}: free some space or choose another "
            "place; nothing was saved, and what stood there before is unchanged",
        ) from error


@contextmanager
def replace_folder(folder: str | Path, formats: Iterable[str]) -> Iterator[Path]:
    """Yield an empty temporary sibling of `folder` to write into; on success rename it to `folder`, else remove it.

    A folder that is there already is replaced only if it is empty or its meta.json names one of `formats`. What a
    process that was killed left of its temporary folder is removed first.

    Raises:
        FileExistsError: something else stands at `folder`.
        OSError: the disk is full; the message names `folder`.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not _replaceable(folder, set(formats)):
        raise FileExistsError(f"{folder} exists and holds no data written by gru4rec_fast; choose another folder")
    prefix = f".{folder.name}.partial-"
    partial = folder.parent / f"{prefix}{secrets.token_hex(4)}"
    try:
        with disk_full_named(folder), _locked_folder(partial):
            for other in folder.parent.iterdir():
                if other.name.startswith(prefix) and other != partial:
                    _remove_if_left(other)
            yield partial
            for path in partial.rglob("*"):
                if path.is_file():
                    _sync(path)
            _swap(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked_folder(path: Path) -> Iterator[None]:
    """Make the folder `path` and keep it locked; the lock ends with the block or with the process, however that dies.

    It is locked before it has its name, so that a folder of that name which is not locked was left behind.
    """
    unnamed = path.with_name(f".{secrets.token_hex(8)}")
    unnamed.mkdir(parents=True)
    lock = _lock(unnamed)
    try:
        unnamed.rename(path)
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _remove_if_left(folder: Path) -> None:
    """Remove the temporary folder of a process that is gone."""
    try:
        lock = _lock(folder)
    except OSError:  # a living process holds it, or it is gone by now
        return
    if lock is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder, until it is closed; None where this system has no such locks.

    Raises BlockingIOError where another one holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None  # a network file system without locks on folders
    return descriptor


def _sync(path: Path) -> None:
    """Wait until a file is on the disk: a rename must not outlive the data it names."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _replaceable(folder: Path, formats: set[str]) -> bool:
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        return read_meta(folder)["format"] in formats
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _swap(partial: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(partial, folder)
        return
    old = folder.parent / f".{folder.name}.old-{secrets.token_hex(4)}"
    os.rename(folder, old)
    try:
        os.rename(partial, folder)
    except BaseException:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write meta.json."""
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def read_meta(folder: Path) -> dict[str, Any]:
    """Read meta.json."""
    return json.loads((folder / "meta.json").read_text(encoding="utf-8"))
