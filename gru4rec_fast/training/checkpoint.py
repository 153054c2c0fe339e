"""Checkpoints: one safetensors file, its tensors beside a JSON configuration and JSON progress in its header.

A file is written under another name in the same folder, flushed to the disk and renamed over the old one, so that a
reader finds the old checkpoint or the new one and never half of either. Nothing is pickled: loading runs no code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class CheckpointError(ValueError):
    """A file that is not the checkpoint that was asked for; the message names the file and says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        format: what it is a checkpoint of and the version of its layout, e.g. "gru4rec_fast.GRU4Rec/1".
        config: what is needed to build the model (JSON values).
        progress: how far the training has come (JSON values); empty in a file that only holds a model.
        tensors: by name; on the CPU or any device.
        path: the file it was read from; None before it was written.
    """

    format: str
    config: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    path: Path | None = field(default=None, compare=False)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose name starts with `prefix`, without it."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(
    path: str | os.PathLike[str], checkpoint: Checkpoint, before_rename: Callable[[], None] | None = None
) -> Path:
    """Write a checkpoint; a file already at `path` is replaced as a whole, or left as it is where writing fails.

    `before_rename` is called once all is on the disk, under another name still: what must make room can do so there.

    Raises:
        OSError: the file cannot be written (full disk, no permission, a missing drive ...).
        TypeError: `config` or `progress` holds something that JSON cannot say, or a tensor is sparse.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    header = {
        "format": checkpoint.format,
        "config": json.dumps(checkpoint.config),
        "progress": json.dumps(checkpoint.progress),
    }
    sparse = [name for name, tensor in checkpoint.tensors.items() if tensor.layout != torch.strided]
    if sparse:
        raise TypeError(f"a checkpoint holds dense tensors only, not {', '.join(sparse)}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # what the umask gives; safetensors would make the file private
        save_file(tensors, temporary, metadata=header)
        temporary.chmod(mode)
        _sync(temporary)
        if before_rename is not None:
            before_rename()
        os.replace(temporary, path)
        if os.name == "posix":
            _sync(path.parent)  # the rename itself must reach the disk too
    except (OSError, SafetensorError) as error:
        kept = "the earlier checkpoint of that name is unchanged" if path.exists() else "nothing was left behind"
        raise OSError(f"could not write the checkpoint {path}: {error}; {kept}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def checkpoint_format(path: str | os.PathLike[str]) -> str:
    """The format that a checkpoint says it is of, e.g. "gru4rec_fast.NGCF/1"; "" where the file says nothing.

    Raises:
        FileNotFoundError: there is no such file. CheckpointError: it is truncated, or no safetensors file.
    """
    with _opened(Path(path), "cpu") as file:
        return str((file.metadata() or {}).get("format", ""))


def load_checkpoint(
    path: str | os.PathLike[str], expected_format: str, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Read a checkpoint, its tensors straight onto `device`.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is truncated or no checkpoint at all, or holds another model or layout version.
    """
    path = Path(path)
    with _opened(path, str(device)) as file:
        header = file.metadata() or {}
        _check_format(path, header.get("format", ""), expected_format)
        config, progress = json.loads(header["config"]), json.loads(header["progress"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file, not a dict)
    return Checkpoint(expected_format, config, progress, tensors, path)


@contextmanager
def _opened(path: Path, device: str) -> Iterator[Any]:
    """A safetensors file; what goes wrong while it is read is told of the file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}" + (" (that is a folder)" if path.is_dir() else ""))
    try:
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a checkpoint ({error}); save it again, or use an earlier one"
        ) from error


def _check_format(path: Path, found: str, expected: str) -> None:
    if found == expected:
        return
    model, _, version = expected.rpartition("/")
    found_model, _, found_version = found.rpartition("/")
    if found_model == model:
        raise CheckpointError(
            f"{path} is a {model} checkpoint of layout version {found_version}; this gru4rec_fast reads version "
            f"{version}: load it with the release that wrote it"
        )
    what = f"a checkpoint of {found_model}" if found_model else "a safetensors file, but no checkpoint of gru4rec_fast"
    raise CheckpointError(f"{path} is {what}, not of {model}; load it with the class that saved it")
