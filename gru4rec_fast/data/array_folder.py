"""Folders of memory-mapped .npy arrays with a meta.json: checked when opened, replaced as a whole when written."""

from __future__ import annotations

import json
import math
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy_format
from numpy.typing import DTypeLike
from torch import Tensor

from gru4rec_fast._atomic_writes import replace_folder, restore_folder
from gru4rec_fast._untrusted import brief, parse_json
from gru4rec_fast.data.vocabulary import Vocabulary, decode_ids, encode_ids

_CHUNK_BYTES = 1 << 20
_MAX_COUNT = 1 << 48  # larger sizes are damage; products of sizes stay below 2^63


def write_npy(path: Path, blocks: Iterable[np.ndarray], dtype: DTypeLike, length: int) -> None:
    """Write a one-dimensional .npy file of `length` elements from consecutive blocks.

    Uses ordinary writes, which raise OSError when the disk is full; a memory map would kill the process with SIGBUS.
    """
    written = 0
    with open(path, "wb") as file:
        header = {"descr": npy_format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (length,)}
        npy_format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).view(np.uint8).data)
            written += block.size
    if written != length:
        raise RuntimeError(f"{path.name}: length={length}, but the blocks hold {written} elements")


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a one-dimensional array as .npy."""
    write_npy(path, [array], array.dtype, len(array))


def open_npy(path: Path, length: int, dtypes: Iterable[DTypeLike], advice: str) -> np.ndarray:
    """Open a one-dimensional .npy file as a read-only memory map. Only the header is read.

    Raises ValueError if the file is missing, not a regular file, damaged, or has another length or a dtype that is not
    in `dtypes`. The message ends with `advice`.
    """
    allowed = [np.dtype(dtype) for dtype in dtypes]
    try:
        if path.exists() and not path.is_file():  # opening a named pipe would block
            raise ValueError("it is not a regular file")
        with open(path, "rb") as file:
            shape, dtype = _read_npy_header(file)
            start = file.tell()
        if shape != (length,):
            problem = f"has shape {brief(shape)} where ({length},) was expected"
        elif dtype not in allowed:  # with dtype object, NumPy would use the file's bytes as pointers
            problem = f"holds {str(dtype)[:100]} where {' or '.join(map(str, allowed))} was expected"
        elif path.stat().st_size < start + length * dtype.itemsize:
            problem = f"is damaged or was cut short (it has {path.stat().st_size} bytes)"
        else:  # np.memmap raises an error for an empty array
            return np.memmap(path, dtype, "r", start, shape) if length else np.empty(0, dtype)
    except FileNotFoundError:
        problem = "is missing"
    except ValueError as error:
        problem = f"is damaged ({brief(error)})"
    raise ValueError(f"{path} {problem}; {advice}")


def _read_npy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape and dtype of an open .npy file. Raises ValueError for any fault in the header."""
    try:
        npy_format.read_magic(file)
        shape, _, dtype = npy_format.read_array_header_1_0(file)
    except OSError:
        raise
    except Exception as error:  # NumPy parses the header as Python code, which raises errors of many types
        raise ValueError(f"its header cannot be read: {brief(error)}") from error
    return shape, dtype


def read_chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield an array in consecutive chunks of at most 1 MiB.

    A memory-mapped array is read from the file and not through the map, since pages that are read through the map count
    as resident memory of this process.
    """
    length = _CHUNK_BYTES // array.itemsize
    base: object = array.base
    map_ = array if isinstance(array, np.memmap) and isinstance(base, mmap) else None  # None for a slice of a map
    for start in range(0, len(array), length):
        count = min(length, len(array) - start)
        if map_ is not None:
            assert map_.filename is not None
            yield np.fromfile(map_.filename, map_.dtype, count, offset=map_.offset + start * map_.itemsize)
        else:
            yield array[start : start + count]


@dataclass(frozen=True)
class FolderFormat:
    """Describes one kind of `ArrayFolder`, such as session stores.

    Attributes:
        name: value of "format" in meta.json.
        title: name of the kind in error messages, such as "session store".
        writing_verb: what a user does to write such a folder, for error messages: "prepare" or "save".
        counts: keys of meta.json that hold sizes.
        arrays: names of the arrays that `write_array_folder` writes.
        parent_format: "format" of folders that contain folders of this kind, and list their names under "parts" in
            meta.json; "" if there is none. The error for opening such a parent folder lists the folders in it.
        version: format version that this code reads and writes.
    """

    name: str
    title: str
    writing_verb: str
    counts: tuple[str, ...]
    arrays: tuple[str, ...]
    parent_format: str = ""
    version: int = 1


class ArrayFolder:
    """A folder of one-dimensional, memory-mapped .npy arrays with a meta.json.

    Args:
        path: the folder.
        folder_format: the kind of folder that is expected.

    Attributes:
        meta: contents of meta.json.
        counts: the sizes in meta.json, in the order of `FolderFormat.counts`.

    Raises:
        FileNotFoundError: the folder does not exist, or has no meta.json.
        ValueError: meta.json is damaged, or states another format or version.
    """

    def __init__(self, path: str | Path, folder_format: FolderFormat) -> None:
        title, verb = folder_format.title, folder_format.writing_verb
        self.path, self._advice = Path(path), f"{verb} the {title} again"
        try:
            meta = read_meta(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{path} is no {title} (it has no meta.json); {verb} one first") from None
        except ValueError as error:  # not UTF-8, or not JSON
            raise self.damage_error("meta.json", f"is no JSON text ({brief(error)})") from error
        stated = meta.get("format") if isinstance(meta, dict) else None
        if stated != folder_format.name:
            parts = meta.get("parts") if stated and stated == folder_format.parent_format else None
            names = [brief(str(self.path / part)) for part in parts] if isinstance(parts, dict) else []
            hint = f"; open {' or '.join(names)}" if names else ""
            raise ValueError(f"{path} is no {title}: its meta.json states the format {brief(stated)}{hint}")
        if meta.get("version") != folder_format.version:
            raise ValueError(
                f"{path} has format version {brief(meta.get('version'))}, this release of gru4rec_fast reads version "
                f"{folder_format.version}; {self._advice}"
            )
        for name in folder_format.counts:
            if type(meta.get(name)) is not int or not 0 <= meta[name] < _MAX_COUNT:
                raise self.damage_error("meta.json", f"lacks {name}, a count")
        if problem := _notes_problem(meta):
            raise self.damage_error("meta.json", problem)
        self.meta: dict[str, Any] = meta
        self.counts: list[int] = [meta[name] for name in folder_format.counts]

    def damage_error(self, file: str, problem: str) -> ValueError:
        """Return the error for a damaged file. `problem` follows "it", such as "holds decreasing offsets"."""
        return ValueError(f"{self.path / file} is damaged: it {problem}; {self._advice}")

    def open_array(self, name: str, length: int, *dtypes: DTypeLike) -> np.ndarray:
        """Open NAME.npy, which must have this length and one of these dtypes. See `open_npy`."""
        return open_npy(self.path / f"{name}.npy", length, dtypes, self._advice)

    def check_range(self, name: str, array: np.ndarray, low: float, high: float) -> np.ndarray:
        """Return `array`, the values of NAME.npy. Raises ValueError unless all are in [low, high). Reads all values."""
        for chunk in read_chunks(array):
            if not (chunk.min() >= low and chunk.max() < high):  # False for NaN
                allowed = f"{low} to {high - 1}" if high < math.inf else "finite numbers"
                raise self.damage_error(f"{name}.npy", f"holds {chunk.min()} to {chunk.max()}, not {allowed}")
        return array

    def open_offsets(self, name: str, count: int, end: int | None = None) -> np.ndarray:
        """Open NAME.npy, int64 [count + 1], non-decreasing from 0 to `end` (None: any end). Checks all values."""
        offsets = self.open_array(name, count + 1, np.int64)
        end = int(offsets[-1]) if end is None else end
        if offsets[0] != 0 or offsets[-1] != end:
            raise self.damage_error(f"{name}.npy", f"ranges from {offsets[0]} to {offsets[-1]}, not from 0 to {end}")
        if (offsets[1:] < offsets[:-1]).any():
            raise self.damage_error(f"{name}.npy", "holds decreasing offsets")
        return offsets

    def read_ids(self, name: str, count: int) -> np.ndarray:
        """Return the ids that `write_ids` wrote: memory-mapped int64, or str (`vocabulary.STRING`) in memory."""
        if not (self.path / f"{name}.utf8.npy").exists():
            return decode_ids({"ids": self.open_array(f"{name}.ids", count, np.int64)})
        offsets = self.open_offsets(f"{name}.offsets", count)
        try:
            return decode_ids({"utf8": self.open_array(f"{name}.utf8", int(offsets[-1]), np.uint8), "offsets": offsets})
        except UnicodeDecodeError as error:
            raise self.damage_error(f"{name}.utf8.npy", f"is not UTF-8 text ({error})") from error

    def read_vocabulary(self, name: str, count: int) -> Vocabulary:
        """Return the ids that `write_ids` wrote as a `Vocabulary`."""
        ids = self.read_ids(name, count)
        try:
            return Vocabulary(ids)
        except ValueError as error:
            raise self.damage_error(f"{name}.*.npy", f"is not a valid vocabulary ({error})") from error


def _notes_problem(meta: Mapping[str, Any]) -> str:
    """Return what is wrong with the notes in meta.json that `summary_lines` and `reading_notes` show, or ""."""
    dropped, parsings = meta.get("dropped", {}), meta.get("ids", {})
    if not isinstance(dropped, dict) or not all(type(n) is int and len(reason) < 100 for reason, n in dropped.items()):
        return 'has "dropped" that are not counts by reason'
    for parsing in parsings.values() if isinstance(parsings, dict) else [None]:
        notes = parsing if isinstance(parsing, dict) else {}
        if not isinstance(notes.get("kind"), str) or type(notes.get("stripped")) is not int:
            return 'has "ids" that do not state kind and stripped for each kind of id'
    return ""


def write_array_folder(folder: Path, folder_format: FolderFormat, source: Any, ids: Mapping[str, np.ndarray]) -> None:
    """Write a folder that `ArrayFolder` opens.

    `source`, a store or graph, has the arrays and counts of `folder_format` and a dict `meta` as attributes. `ids`
    holds ids by file name.
    """
    for name in folder_format.arrays:
        save_array(folder / f"{name}.npy", getattr(source, name))
    for name, values in ids.items():
        write_ids(folder, name, values)
    counts = {name: getattr(source, name) for name in folder_format.counts}
    write_meta(folder, {**source.meta, "format": folder_format.name, "version": folder_format.version, **counts})


def write_ids(folder: Path, name: str, ids: np.ndarray) -> None:
    """Write integer ids as NAME.ids.npy, string ids as NAME.utf8.npy and NAME.offsets.npy."""
    for suffix, array in encode_ids(ids).items():
        save_array(folder / f"{name}.{suffix}.npy", array)


@torch.inference_mode(False)  # a tensor made in inference mode could not be used outside of it
def as_tensor(array: np.ndarray) -> Tensor:
    """Return a tensor that shares the array's memory. Do not write to it: the array may be a read-only memory map."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
        return torch.from_numpy(np.asarray(array))


def reading_notes(meta: Mapping[str, Any]) -> list[str]:
    """Return what is worth knowing about how the ids of a log were read (`meta["ids"]`), as indented lines."""
    lines = []
    for role, parsing in meta.get("ids", {}).items():  # role: such as "item"; see `TableReader.id_parsing`
        if parsing["kind"] == "str" and parsing.get("because"):
            lines.append(f"  {role} ids are strings ({str(parsing['because'])[:200]} is no plain integer)")
        if parsing["stripped"]:
            ids = counted(parsing["stripped"], f"{role} ids")
            lines.append(f"  {ids} had blanks around them, which were removed")
    return lines


def summary_lines(meta: Mapping[str, Any], notes: bool) -> list[str]:
    """Return indented lines: with `notes`, those of `reading_notes`; then what was removed (`meta["dropped"]`)."""
    lines = reading_notes(meta) if notes else []
    return lines + [f"  dropped: {count}" for count in dropped_counts(meta.get("dropped", {}))]


def dropped_counts(dropped: Mapping[str, int]) -> list[str]:
    """Return the counts other than 0 as texts.

    The events of removed items or sessions are counted together with them: {"rare_items": 1, "rare_item_events": 3}
    becomes ["3 events of 1 rare item"].
    """
    texts = []
    for reason, count in dropped.items():
        if not count or (reason.endswith("_events") and dropped.get(reason.removesuffix("_events") + "s")):
            continue
        text = counted(count, reason.replace("_", " "))
        if reason == "unseen_items":
            text = f"{counted(count, 'items')} that {'is' if count == 1 else 'are'} not in the training data"
        n_events = dropped.get(reason.removesuffix("s") + "_events", 0)
        texts.append(f"{counted(n_events, 'events')} of {text}" if n_events else text)
    return texts


def counted(count: int, words: str) -> str:
    """Return a count with its plural noun, which loses its "s" after 1: "2 rare items", "1 user without edges"."""
    if count == 1:
        words = re.sub(r"s\b", "", words, count=1)
    return f"{count:,} {words}"


def replace_data_folder(folder: str | Path, *formats: str) -> AbstractContextManager[Path]:
    """Return `replace_folder(folder)`, which replaces a folder whose meta.json states one of `formats`."""
    return replace_folder(folder, lambda earlier: stated_format(earlier) in formats)


@contextmanager
def scratch_in_replacement(folder: str | Path, *formats: str) -> Iterator[str]:
    """Yield a scratch folder in the folder of `replace_data_folder`; it is removed before the replacement."""
    with replace_data_folder(folder, *formats) as replacement, tempfile.TemporaryDirectory(dir=replacement) as scratch:
        yield scratch


def stated_format(folder: Path) -> str | None:
    """Return "format" of the folder's meta.json; None if there is none."""
    try:
        return str(read_meta(folder)["format"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write meta.json."""
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def read_meta(folder: Path) -> dict[str, Any]:
    """Read meta.json, after `restore_folder`. Raises FileNotFoundError if it is missing or not a regular file."""
    if not folder.exists():
        restore_folder(folder)
    if not (folder / "meta.json").is_file():
        raise FileNotFoundError(folder / "meta.json")
    meta: dict[str, Any] = parse_json((folder / "meta.json").read_text(encoding="utf-8"))
    return meta
