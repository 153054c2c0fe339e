"""Writes and reads checkpoints: safetensors files of tensors, with configuration and progress as JSON in the header.

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

from gru4rec_fast._atomic_writes import flush_to_disk, replace_file
from gru4rec_fast._untrusted import brief, parse_json
from gru4rec_fast.training.earlier_training import existing_files, recover_run_folder


class CheckpointError(ValueError):
    """Raised for a file that is damaged, not a checkpoint, or of another model or training than requested."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        format: the model's class and the version of the file's layout, e.g. "gru4rec_fast.GRU4Rec/2".
        config: values from which the model is built (JSON).
        progress: history and state of the training (JSON); just the history if the file only has a model.
        tensors: tensors by name, on any device.
        path: the file that was read; None for a checkpoint that was not read from a file.
    """

    format: str
    config: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    path: Path | None = field(default=None, compare=False)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose name starts with `prefix`, by their name without the prefix."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def save_checkpoint(
    path: str | os.PathLike[str], checkpoint: Checkpoint, before_rename: Callable[[], None] | None = None
) -> Path:
    """Write a checkpoint to `path`; if writing fails, an existing file at `path` is unchanged.

    Args:
        before_rename: called when the temporary file is complete and on the disk, before it is renamed to `path`.

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
    try:
        with replace_file(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode  # set by the umask; safetensors makes files readable by the owner only
            save_file(tensors, temporary, metadata=header)
            temporary.chmod(mode)
            if before_rename is not None:
                flush_to_disk(temporary)
                before_rename()
    except (OSError, SafetensorError) as error:
        result = "the earlier checkpoint of that name is unchanged" if path.exists() else "no file was left behind"
        raise OSError(f"could not write the checkpoint {path}: {error}; {result}") from error
    return path


def checkpoint_format(path: str | os.PathLike[str]) -> str:
    """Return the format of a checkpoint, e.g. "gru4rec_fast.NGCF/2"; "" for other safetensors files.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is truncated or not a safetensors file.
    """
    with _open_checkpoint(Path(path), "cpu") as file:
        return str((file.metadata() or {}).get("format", ""))


def load_checkpoint(
    path: str | os.PathLike[str],
    expected_format: str,
    device: torch.device | str = "cpu",
    *,
    convert: Mapping[str, Callable[[Checkpoint], Checkpoint]] | None = None,
) -> Checkpoint:
    """Read a checkpoint and load its tensors to `device`.

    Args:
        expected_format: the format that the file, or the result of `convert`, must have.
        convert: for each older format that is accepted, the function that converts a checkpoint of that format to the
            expected format. The function may call `convert_progress` for the state of the training.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is truncated, is not a checkpoint, or has another model or layout version.
    """
    path, convert = Path(path), convert or {}
    with _open_checkpoint(path, str(device)) as file:
        header = file.metadata() or {}
        file_format = header.get("format", "")
        if file_format not in convert:
            _check_format(path, file_format, expected_format)
        config, progress = parse_json(header["config"]), parse_json(header["progress"])
        if not isinstance(config, dict) or not isinstance(progress, dict):
            raise CheckpointError(f"{path} is damaged: its config or progress is no JSON object; use an earlier one")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file, not a dict)
    checkpoint = Checkpoint(file_format, config, progress, tensors, path)
    return replace(convert[file_format](checkpoint), format=expected_format) if file_format in convert else checkpoint


def convert_progress(progress: dict[str, Any]) -> dict[str, Any]:
    """Convert the `progress` of a checkpoint of version 0.1 to the current names."""
    if "place" not in progress:  # the checkpoint only has a model
        return progress
    position = {"loss_count" if name == "summed" else name: value for name, value in progress["place"].items()}
    optimizer = {"groups": progress["optimizer"]["groups"], "scalars": progress["optimizer"]["numbers"]}
    return progress | {"position": position, "optimizer": optimizer, "schedule": progress.get("schedule")}


@contextmanager
def _open_checkpoint(path: Path, device: str) -> Iterator[Any]:
    """Open a safetensors file. If reading it inside the context fails, raise a CheckpointError that names the file."""
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        recover_run_folder(path)
        files = [name for name in existing_files(path) if name.endswith(".safetensors")]
        found = f"give one of its files: {', '.join(files)}" if files else "it has no files of a training"
        raise FileNotFoundError(f"no checkpoint at {path}, which is a folder; {found}")
    if not path.is_file():
        recover_run_folder(path.parent)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except CheckpointError:
        raise
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a checkpoint ({brief(error)}); save it again, or use an earlier one"
        ) from error


def _check_format(path: Path, file_format: str, expected: str) -> None:
    """Raise CheckpointError unless the formats are equal."""
    if file_format == expected:
        return
    model, _, version = expected.rpartition("/")
    file_model, _, file_version = file_format.rpartition("/")
    if file_model == model:
        raise CheckpointError(
            f"{path} is a {model} checkpoint of layout version {file_version}; this gru4rec_fast reads version "
            f"{version}: load it with the release that wrote it"
        )
    if not file_model:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of gru4rec_fast")
    raise CheckpointError(
        f"{path} is a checkpoint of {file_model}, not of {model}; load it with the class that saved it"
    )
