"""Checkpoints: one safetensors file with tensors, and with JSON configuration and JSON progress in its header.

A checkpoint is written to a temporary file in the same folder, flushed to the disk and renamed, so that a reader always
finds a complete file: the old checkpoint or the new one. Nothing is pickled: loading runs no code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class CheckpointError(ValueError):
    """Raised for a file that is not the requested checkpoint; the message names the file and says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        format: the model's class and the version of the file's layout, e.g. "gru4rec_fast.GRU4Rec/2".
        config: what is needed to build the model (JSON values).
        progress: history and state of the training (JSON values); a file with a model alone has the history alone.
        tensors: by name, on any device.
        path: the file that was read; None for a checkpoint that was not read from a file.
    """

    format: str
    config: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    path: Path | None = field(default=None, compare=False)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose name starts with `prefix`, by the rest of the name."""
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
    """Write a checkpoint; a file at `path` is replaced, or unchanged if writing fails.

    Args:
        before_rename: called when the temporary file is complete, before it is renamed to `path`.

    Raises:
        OSError: the file cannot be written (full disk, no permission, a missing drive ...).
        TypeError: `config` or `progress` has a value that JSON cannot represent, or a tensor is sparse.
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
        mode = temporary.stat().st_mode  # follows the umask; safetensors would make the file private
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
    """Return the format of a checkpoint, e.g. "gru4rec_fast.NGCF/2"; "" for other safetensors files.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is truncated or not a safetensors file.
    """
    with _opened(Path(path), "cpu") as file:
        return str((file.metadata() or {}).get("format", ""))


def load_checkpoint(
    path: str | os.PathLike[str],
    expected_format: str,
    device: torch.device | str = "cpu",
    *,
    convert: Mapping[str, Callable[[Checkpoint], Checkpoint]] | None = None,
) -> Checkpoint:
    """Read a checkpoint; its tensors are loaded to `device`.

    Args:
        convert: for each older format that is accepted, a function that converts a checkpoint of this format to one of
            the expected format. See `convert_progress` for the training's part.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is truncated, is not a checkpoint, or has another model or layout version.
    """
    path, convert = Path(path), convert or {}
    with _opened(path, str(device)) as file:
        header = file.metadata() or {}
        found = header.get("format", "")
        if found not in convert:
            _check_format(path, found, expected_format)
        config, progress = json.loads(header["config"]), json.loads(header["progress"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file, not a dict)
    checkpoint = Checkpoint(found, config, progress, tensors, path)
    return replace(convert[found](checkpoint), format=expected_format) if found in convert else checkpoint


def convert_progress(progress: dict[str, Any]) -> dict[str, Any]:
    """Return the `progress` of a checkpoint of version 0.1 as `Trainer` reads it."""
    if "place" not in progress:  # a model without the state of its training
        return progress
    position = {"loss_count" if name == "summed" else name: value for name, value in progress["place"].items()}
    optimizer = {"groups": progress["optimizer"]["groups"], "scalars": progress["optimizer"]["numbers"]}
    return progress | {"position": position, "optimizer": optimizer, "schedule": progress.get("schedule")}


@contextmanager
def _opened(path: Path, device: str) -> Iterator[Any]:
    """Open a safetensors file; errors while it is read become a CheckpointError that names the file."""
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
