"""Convert a model file of the official code to a checkpoint of this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gru4rec_fast._untrusted import brief
from gru4rec_fast.integrations.gru4rec_official import pickle_reader
from gru4rec_fast.models.gru4rec import VOCABULARY_PREFIX, GRU4Rec
from gru4rec_fast.training import Checkpoint, CheckpointError
from gru4rec_fast.training.checkpoint_tensors import MODEL

_ZIP_SIGNATURE = b"PK\x03\x04"  # the first bytes of a file of torch.save
_WEIGHTS = "weights."  # prefix of the names of the network's parameters in the output of pickle_reader
# Hyper-parameters of the official code, which are the first ones of this package (down to logq), with the same names.
PARAMETERS = GRU4Rec.names()[: GRU4Rec.names().index("logq") + 1]


def is_zip(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a zip archive, as torch.save writes. Raises FileNotFoundError if there is no file."""
    with open(path, "rb") as file:
        return file.read(len(_ZIP_SIGNATURE)) == _ZIP_SIGNATURE


def read_official_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Return an official model as a checkpoint of `gru4rec_fast.GRU4Rec`. No code in the file is run.

    Raises CheckpointError: the file is no official model, is damaged, or the training of the model has diverged.
    """
    tensors = _read_tensors(Path(path))
    attributes = json.loads(tensors.pop("attributes").numpy().tobytes())
    if attributes.get("error_during_train"):
        raise CheckpointError(f"{path}: the training of this model has failed (error_during_train is True)")
    if missing := [name for name in PARAMETERS if name not in attributes]:
        raise CheckpointError(f"{path} is no model of the official code: it has no parameter {', '.join(missing)}")
    parameters = {name: attributes[name] for name in PARAMETERS}
    weights = {name.removeprefix(_WEIGHTS): t for name, t in tensors.items() if name.startswith(_WEIGHTS)}
    try:
        parameters["dtype"] = str(weights["Wy.weight"].dtype).removeprefix("torch.")
        converted = {f"{MODEL}{name}": tensor for name, tensor in _convert_weights(weights).items()}
        converted["support"] = torch.from_numpy(_support(tensors["events"].numpy(), len(weights["Wy.weight"])))
    except (LookupError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged, or no model of the official code: {brief(error, 200)}") from error
    converted |= {f"{VOCABULARY_PREFIX}{name}": tensors[name] for name in ("ids", "utf8", "offsets") if name in tensors}
    return Checkpoint(GRU4Rec.file_format, {"parameters": parameters}, {"history": []}, converted, Path(path))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a model file. A separate process reads it; see `pickle_reader`."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    # -I and -S: no module of the user is imported. The file is open already, so the process needs no access to files.
    command = [sys.executable, "-I", "-S", str(Path(pickle_reader.__file__))]
    with open(path, "rb") as file:
        process = subprocess.run(command, stdin=file, capture_output=True, check=False)
    if process.returncode:
        problem = process.stderr.decode(errors="replace").strip() or f"its reader ended with {process.returncode}"
        raise CheckpointError(f"{path} cannot be read: {brief(ValueError(problem), 300)}")
    try:
        return load(process.stdout)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {brief(error, 200)}") from error


def _support(events: np.ndarray, n_items: int) -> np.ndarray:
    """Return the number of occurrences of each item among the training events, int64 [n_items]."""
    if len(events) and not 0 <= events.min() <= events.max() < n_items:
        raise ValueError(f"training events have items {events.min()} to {events.max()}, of {n_items} items")
    return np.bincount(events, minlength=n_items).astype(np.int64)


def _convert_weights(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an official network with the names, shapes and gate order of `SessionNetwork`."""
    weights = {"output.weight": official["Wy.weight"], "output.bias": official["By.weight"].reshape(-1)}
    if "E.weight" in official:
        weights["embedding.weight"] = official["E.weight"]
    if "GE.Wx0.weight" in official:
        weights |= _convert_one_hot_layer(official)
    first_layer = 1 if "GE.Wx0.weight" in official else 0  # with one-hot inputs, G.0 is the second layer
    for name, weight in official.items():
        if name.startswith("G."):
            _, layer, parameter = name.split(".")
            weights[f"gru.layers.{int(layer) + first_layer}.{parameter}"] = weight
    return weights


def _convert_one_hot_layer(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the first GRU layer for one-hot inputs.

    The official gate order is n, r, z for inputs and r, z for the hidden state, and its new state is
    (1 - z) * h + z * n. Here it is z * h + (1 - z) * n, and 1 - sigmoid(a) = sigmoid(-a).
    """

    def convert_gates(gates: tuple[Tensor, ...], dim: int) -> Tensor:
        n, r, z = gates
        return torch.cat([r, -z, n], dim)

    hidden_gates = (official["GE.Wh0"], *official["GE.Wrz0"].chunk(2, 1))
    return {
        "embedding.weight": convert_gates(official["GE.Wx0.weight"].chunk(3, 1), 1),
        "gru.layers.0.weight_hh": convert_gates(hidden_gates, 1).T.contiguous(),
        "gru.layers.0.bias_ih": convert_gates(official["GE.Bh0"].chunk(3), 0),
    }
