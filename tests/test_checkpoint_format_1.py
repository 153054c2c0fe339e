"""Loading and resuming checkpoints of version 0.1 (format 1).

The tests save a checkpoint in the current format 2 and convert it to format 1.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markov import markov_store

from gru4rec_fast import NGCF, GRU4Rec, LightGCN, SessionStore
from gru4rec_fast.training import CheckpointError, load_checkpoint, save_checkpoint

STORE = markov_store(n_sessions=40)
SCHEDULE = {"lr_scheduler": "step", "lr_scheduler_options": {"step_size": 1, "gamma": 0.5}}
GRAPH = {"embedding_dim": 6, "batch_size": 64, "reg_weight": 0.01}
# Name of a model -> estimator class, its parameters, and the names of parameters that version 0.1 did not have.
MODELS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "gru4rec": (
        GRU4Rec,
        {"layers": [8], "batch_size": 8, "n_sample": 16, "momentum": 0.1, **SCHEDULE},
        ["evaluate_every"],
    ),
    "ngcf": (
        NGCF,
        {"layer_sizes": [6], "message_dropout": 0.2, "normalize_messages": True, "sample_by": "interactions", **GRAPH},
        ["lr_scheduler", "lr_scheduler_options"],
    ),
    "lightgcn": (LightGCN, GRAPH, ["lr_scheduler", "lr_scheduler_options"]),
}
# Name of a parameter now -> its name in format 1.
NAMES_IN_FORMAT_1 = {
    "sample_by": "draw",
    "message_dropout": "mess_dropout",
    "normalize_messages": "normalise_messages",
    "reg_weight": "reg",
}


def convert_to_format_1(path: Path, file_format: str, new_parameters: list[str]) -> None:
    """Replace a checkpoint file by the file that version 0.1 would have written."""
    checkpoint = load_checkpoint(path, file_format)
    saved = checkpoint.config["parameters"]
    parameters = {
        NAMES_IN_FORMAT_1.get(name, name): value for name, value in saved.items() if name not in new_parameters
    }
    progress = dict(checkpoint.progress)
    if "position" in progress:
        position, optimizer = progress.pop("position"), progress["optimizer"]
        progress["place"] = {"summed" if name == "loss_count" else name: value for name, value in position.items()}
        progress["optimizer"] = {"groups": optimizer["groups"], "numbers": optimizer["scalars"]}
        if "lr_scheduler" in new_parameters:
            assert progress.pop("schedule") is None
    tensors = {
        name.replace("graph.neighbors", "graph.neighbours"): tensor for name, tensor in checkpoint.tensors.items()
    }
    header = {"format": file_format.replace("/2", "/1"), "config": checkpoint.config | {"parameters": parameters}}
    save_checkpoint(path, replace(checkpoint, **header, progress=progress, tensors=tensors))


@pytest.mark.parametrize("model_name", MODELS)
def test_a_checkpoint_of_format_1_is_loaded_and_resumed(tmp_path: Path, model_name: str) -> None:
    estimator, parameters, new_parameters = MODELS[model_name]
    parameters = {**parameters, "seed": 0}
    model = estimator(**parameters, n_epochs=1).fit(STORE, out=tmp_path, progress=False)
    path = model.save(tmp_path / "model.safetensors")
    for file in (path, tmp_path / "last.safetensors"):
        convert_to_format_1(file, estimator.file_format, new_parameters)
        loaded = estimator.load(file)
        assert loaded.get_params() == model.get_params()
        queries = [[5], [15]] if model_name == "gru4rec" else STORE.session_ids[:2]  # sessions or users
        for array, expected in zip(loaded.recommend(queries, 3), model.recommend(queries, 3), strict=True):
            np.testing.assert_array_equal(array, expected)
    uninterrupted = estimator(**parameters, n_epochs=3).fit(STORE, progress=False)
    resumed = estimator(**parameters, n_epochs=3).fit(STORE, out=tmp_path, resume=True, progress=False)
    assert len(resumed.history) == 3
    for array, expected in zip(resumed.recommend(queries, 3), uninterrupted.recommend(queries, 3), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_resuming_format_1_with_other_parameters_or_data_is_an_error(tmp_path: Path) -> None:
    estimator, parameters, new_parameters = MODELS["gru4rec"]
    estimator(**parameters).fit(STORE, out=tmp_path, progress=False)
    convert_to_format_1(tmp_path / "last.safetensors", estimator.file_format, new_parameters)
    with pytest.raises(CheckpointError, match=r"momentum=0\.1 in the checkpoint, 0\.0 now"):
        estimator(**{**parameters, "momentum": 0}).fit(STORE, out=tmp_path, resume=True)
    # The same sessions, but the item ids are 0, 1, 2, ... instead of 5, 15, 25, ...
    other = SessionStore.from_arrays(STORE.items, STORE.offsets, n_items=STORE.n_items)
    with pytest.raises(CheckpointError, match="another catalogue of items"):
        estimator(**parameters).fit(other, out=tmp_path, resume=True)
