"""Folders of memory-mapped .npy arrays with a meta.json: checked when opened, written aside and renamed into place."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy_format
from numpy.typing import DTypeLike
from torch import Tensor

from gru4rec_fast.data.vocabulary import Vocabulary, decode_ids, encode_ids

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


def open_array(path: Path, length: int, dtypes: Iterable[DTypeLike], advice: str) -> np.ndarray:
    """Open a one-dimensional .npy file memory-mapped, read-only. Reads its header and nothing else.

    Raises ValueError where it is missing, no regular file, damaged, not of `length` or of none of `dtypes`; the message
    ends with `advice`.
    """
    wanted = [np.dtype(dtype) for dtype in dtypes]
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for somebody to write into it
            raise ValueError("it is no regular file")
        with open(path, "rb") as file:
            npy_format.read_magic(file)
            shape, _, dtype = npy_format.read_array_header_1_0(file)
            start = file.tell()
        if shape != (length,):
            wrong = f"has shape {shape} where ({length},) was expected"
        elif dtype not in wanted:  # a file of Python objects would turn its bytes into addresses
            wrong = f"holds {dtype} where {' or '.join(map(str, wanted))} was expected"
        else:  # a map cannot be empty
            return np.memmap(path, dtype, "r", start, shape) if length else np.empty(0, dtype)
    except FileNotFoundError:
        wrong = "is missing, its folder is incomplete"
    except (ValueError, EOFError) as error:
        wrong = f"is damaged or was cut short ({error})"
    raise ValueError(f"{path} {wrong}; {advice}")


@dataclass(frozen=True)
class FolderFormat:
    """A kind of `ArrayFolder`.

    Attributes:
        name: "format" in its meta.json.
        kind, noun, verb: what error messages call such a folder, and how to make one.
        counts: sizes that its meta.json holds.
        arrays: names of those that `write_array_folder` writes.
        container: "format" of a folder of such folders, whose meta.json names them as "parts".
        version: of the format, as this code reads and writes it.
    """

    name: str
    kind: str
    noun: str
    verb: str
    counts: tuple[str, ...]
    arrays: tuple[str, ...]
    container: str = ""
    version: int = 1


class ArrayFolder:
    """A folder of one-dimensional .npy arrays, memory-mapped, and facts about them in meta.json.

    Args:
        path: the folder. form: its kind.

    Attributes:
        meta: what meta.json holds.
        counts: the sizes that it states, in the order of `FolderFormat.counts`.

    Raises:
        FileNotFoundError: there is no such folder, or no meta.json in it.
        ValueError: meta.json is damaged, or of another format or version.
    """

    def __init__(self, path: str | Path, form: FolderFormat) -> None:
        self.path, self._advice = Path(path), f"{form.verb} the {form.noun} again"
        try:
            meta = read_meta(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{path} is no {form.kind} (it has no meta.json); {form.verb} one first") from None
        except ValueError as error:  # not UTF-8, or not JSON
            raise ValueError(f"{self.path / 'meta.json'} is damaged ({error}); {self._advice}") from error
        found = meta.get("format") if isinstance(meta, dict) else None
        if found != form.name:
            parts = meta.get("parts", {}) if found and found == form.container else {}
            hint = f"; open {' or '.join(str(self.path / part) for part in parts)}" if parts else ""
            raise ValueError(f"{path} is no {form.kind}, by its meta.json{hint}")
        if meta.get("version") != form.version:
            raise ValueError(
                f"{path} is of format {meta.get('version')}, this version reads {form.version}; {form.verb} it again"
            )
        for name in form.counts:
            if not isinstance(meta.get(name), int) or meta[name] < 0:
                raise self.damage("meta.json", f"lacks {name}")
        self.meta: dict[str, Any] = meta
        self.counts: list[int] = [meta[name] for name in form.counts]

    def damage(self, file: str, what: str) -> ValueError:
        """The error that says what is wrong with a file."""
        return ValueError(f"{self.path / file} is damaged: it {what}; {self._advice}")

    def array(self, name: str, length: int, *dtypes: DTypeLike) -> np.ndarray:
        """Open NAME.npy, which must have this length and one of these dtypes. See `open_array`."""
        return open_array(self.path / f"{name}.npy", length, dtypes, self._advice)

    def in_range(self, name: str, array: np.ndarray, low: int, high: int) -> np.ndarray:
        """Return `array`, values of NAME.npy; ValueError unless all lie in low .. high - 1. Reads all of them."""
        if len(array) and (array.min() < low or array.max() >= high):
            raise self.damage(f"{name}.npy", f"holds {array.min()} to {array.max()}, not {low} to {high - 1}")
        return array

    def offsets(self, name: str, count: int, end: int | None = None) -> np.ndarray:
        """Open NAME.npy, int64 [count + 1], from 0 to `end` (None: to anything) and never falling. Reads all of it."""
        offsets = self.array(name, count + 1, np.int64)
        end = int(offsets[-1]) if end is None else end
        if offsets[0] != 0 or offsets[-1] != end:
            raise self.damage(f"{name}.npy", f"goes from {offsets[0]} to {offsets[-1]} where 0 to {end} was expected")
        if (offsets[1:] < offsets[:-1]).any():
            raise self.damage(f"{name}.npy", "falls where offsets must rise")
        return offsets

    def ids(self, name: str, count: int) -> np.ndarray:
        """Ids that `write_ids` wrote: int64, memory-mapped, or read as str (NumPy StringDType)."""
        if not (self.path / f"{name}.utf8.npy").exists():
            return decode_ids({"ids": self.array(f"{name}.ids", count, np.int64)})
        offsets = self.offsets(f"{name}.offsets", count)
        try:
            return decode_ids({"utf8": self.array(f"{name}.utf8", int(offsets[-1]), np.uint8), "offsets": offsets})
        except UnicodeDecodeError as error:
            raise self.damage(f"{name}.utf8.npy", f"is no text ({error})") from error

    def vocabulary(self, name: str, count: int) -> Vocabulary:
        """Ids that `write_ids` wrote, as a vocabulary."""
        ids = self.ids(name, count)
        try:
            return Vocabulary(ids)
        except ValueError as error:
            raise self.damage(f"{name}.*.npy", f"is no catalogue ({error})") from error


def write_array_folder(folder: Path, form: FolderFormat, data: Any, ids: Mapping[str, np.ndarray]) -> None:
    """Write ids, and the arrays, counts and `meta` that `data` has as attributes, for `ArrayFolder` to open."""
    for name in form.arrays:
        save_array(folder / f"{name}.npy", getattr(data, name))
    for name, values in ids.items():
        write_ids(folder, name, values)
    counts = {name: getattr(data, name) for name in form.counts}
    write_meta(folder, {**data.meta, "format": form.name, "version": form.version, **counts})


def write_ids(folder: Path, name: str, ids: np.ndarray) -> None:
    """Write ids as NAME.ids.npy, or as NAME.utf8.npy and NAME.offsets.npy where they are strings."""
    for part, array in encode_ids(ids).items():
        save_array(folder / f"{name}.{part}.npy", array)


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor over the same memory, memory-mapped read-only arrays included: nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
        return torch.from_numpy(np.asarray(array))


def summary_lines(meta: Mapping[str, Any]) -> list[str]:
    """Lines of a summary: how ids were read, by `meta["ids"]`, and what was removed, by `meta["dropped"]`."""
    lines = []
    for role, facts in meta.get("ids", {}).items():
        if facts["kind"] == "str":
            because = f" ({facts['because']} is no plain integer)" if facts["because"] else ""
            lines.append(f"  {role} ids are strings{because}")
        if facts["stripped"]:
            lines.append(f"  {facts['stripped']:,} {role} ids had blanks around them, which were removed")
    dropped = meta.get("dropped", {})
    return lines + [f"  dropped: {count:,} {reason.replace('_', ' ')}" for reason, count in dropped.items() if count]


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
    """Read meta.json. Raises FileNotFoundError where there is no regular file of that name."""
    if not (folder / "meta.json").is_file():
        raise FileNotFoundError(folder / "meta.json")
    return json.loads((folder / "meta.json").read_text(encoding="utf-8"))
