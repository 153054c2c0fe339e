"""Damages (described by JSON values) to the files of a folder: changed bytes, .npy headers and values, meta.json."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from numpy.lib import format as npy_format

INTEGERS = st.one_of(
    st.integers(-4, 12), st.sampled_from([2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**62, 2**63 - 1, -(2**63)])
)
TEXTS = st.text(max_size=4) | st.sampled_from(["", "nan", "x" * 2000, "a\nb", "\x00", "../x"])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats() | TEXTS,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXTS, values, max_size=3),
    max_leaves=4,
)
_DTYPES = ["|O", "<i4", "<i8", ">i8", "<u8", "<f4", "<f8", "|b1", "|u1", "<U4", "|S8", "<M8[s]", "|V8", "<c16"]
_DESCRIPTIONS = st.one_of(
    st.sampled_from(_DTYPES), st.just([["a", "<i8"]]), st.just([["a", "|O"], ["b", "<i4"]]), TEXTS
)


def byte_damages(position: SearchStrategy[int], **keys: SearchStrategy[Any]) -> list[SearchStrategy[dict[str, Any]]]:
    """Return strategies of damages that cut a file short or replace bytes. The damages have `keys`, too."""
    return [
        st.fixed_dictionaries({**keys, "cut": position}),
        st.fixed_dictionaries({**keys, "at": position, "bytes": st.text("\x00\xff{}9\x80", min_size=1)}),
    ]


def with_damaged_bytes(content: bytes, damage: dict[str, Any]) -> bytes | None:
    """Return the content with a damage of `byte_damages`; None for a damage of another kind."""
    if "cut" in damage:
        return content[: damage["cut"]]
    if "bytes" in damage:
        new = damage["bytes"].encode("latin-1")
        return content[: damage["at"]] + new + content[damage["at"] + len(new) :]
    return None


def damages(files: Mapping[str, bytes]) -> SearchStrategy[list[dict[str, Any]]]:
    """Return a strategy of one to three damages to the given files."""
    arrays = [name for name in files if name.endswith(".npy")]
    position = st.integers(0, max(map(len, files.values())))
    choices = [
        *byte_damages(position, file=st.sampled_from([*files])),
        st.fixed_dictionaries({"file": st.sampled_from([*files]), "become": st.sampled_from(KINDS_OF_FILE)}),
        st.fixed_dictionaries({"file": st.sampled_from(arrays), "at": st.integers(0, 40), "value": INTEGERS}),
        st.fixed_dictionaries({"file": st.sampled_from(arrays), "shape": st.lists(INTEGERS, max_size=2)}),
        st.fixed_dictionaries({"file": st.sampled_from(arrays), "descr": _DESCRIPTIONS}),
    ]
    if "meta.json" in files:
        keys = sorted(json.loads(files["meta.json"]))
        choices.append(st.fixed_dictionaries({"key": st.sampled_from(keys) | TEXTS, "json": JSON_VALUES}))
        choices.append(st.fixed_dictionaries({"meta": JSON_VALUES}))
    return st.lists(st.one_of(choices), min_size=1, max_size=3)


KINDS_OF_FILE = ["missing", "empty", "folder", "pipe", "dangling link", "another array"]


def write_damaged(folder: Path, files: Mapping[str, bytes], damage_list: list[dict[str, Any]]) -> None:
    """Write the files to an existing folder, with the damages one after another.

    "become" damages are applied last, and a "key" damage starts from the intact meta.json.
    """
    contents = dict(files)
    for damage in damage_list:
        if "meta" in damage:
            contents["meta.json"] = json.dumps(damage["meta"]).encode()
        elif "key" in damage:
            meta = json.loads(files["meta.json"])
            contents["meta.json"] = json.dumps({**meta, damage["key"]: damage["json"]}).encode()
        elif "become" not in damage:
            contents[damage["file"]] = _damaged(contents[damage["file"]], damage)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for damage in damage_list:
        if "become" in damage:
            _replace(folder / damage["file"], damage["become"])


def _damaged(content: bytes, damage: dict[str, Any]) -> bytes:
    if (damaged := with_damaged_bytes(content, damage)) is not None:
        return damaged
    try:
        array = np.load(io.BytesIO(content))
    except Exception:  # an earlier damage; NumPy raises errors of many types
        return content
    if "value" in damage and array.size and array.dtype.kind != "V":
        array = array.reshape(-1)
        info = np.iinfo(array.dtype) if array.dtype.kind in "iu" else None
        value = damage["value"] if info is None else min(max(damage["value"], info.min), info.max)
        array[damage["at"] % array.size] = value
    header = {
        "descr": damage.get("descr", npy_format.dtype_to_descr(array.dtype)),
        "fortran_order": False,
        "shape": tuple(damage.get("shape", array.shape)),
    }
    if isinstance(header["descr"], list):
        header["descr"] = [tuple(pair) for pair in header["descr"]]
    file = io.BytesIO()
    try:
        npy_format.write_array_header_1_0(file, header)
    except UnicodeEncodeError:  # no file has such a header
        return content
    return file.getvalue() + array.tobytes()


def _replace(path: Path, kind: str) -> None:
    """Replace a file by another kind of file."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling link":
        path.symlink_to(path.with_name("nowhere"))
    elif kind == "another array":
        np.save(path, np.arange(5))
        os.replace(f"{path}.npy" if path.suffix != ".npy" else path, path)


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of the files in a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
