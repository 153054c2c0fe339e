"""Target: checkpoints and model files with a damaged header, configuration, progress or tensors."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from damage import INTEGERS, JSON_VALUES, byte_damages, with_damaged_bytes
from harness import Target
from hypothesis import strategies as st

from gru4rec_fast import NGCF, GRU4Rec, InteractionGraph, LightGCN, SessionStore
from gru4rec_fast.training import TrainingDiverged

_SMALL_GRAPH_MODEL = {"embedding_dim": 4, "n_epochs": 2, "batch_size": 4}
MAKE = {
    "GRU4Rec": lambda: GRU4Rec(layers=[4], n_sample=4, batch_size=2, n_epochs=2, momentum=0.1, lr_scheduler="step"),
    "LightGCN": lambda: LightGCN(n_layers=1, **_SMALL_GRAPH_MODEL),
    "NGCF": lambda: NGCF(layer_sizes=[4], **_SMALL_GRAPH_MODEL),
}
STORE = SessionStore.from_arrays([0, 1, 2, 3, 4, 5, 0, 1, 1, 2], [0, 3, 5, 8, 10], session_ids=["a", "b", "c", "d"])
GRAPH = InteractionGraph.from_arrays([0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 2, 0, 2, 3])


def _data(name: str) -> Any:
    return STORE if name == "GRU4Rec" else GRAPH


def _unpack(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the data of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _pack(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _paths(value: Any) -> list[list[Any]]:
    """Return the paths to all values inside a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [[]] + [[key, *path] for key, entry in entries for path in _paths(entry)]


def _replaced(value: Any, path: list[Any], new: Any) -> Any:
    """Return a JSON value with the value at a path replaced."""
    if not path:
        return new
    if isinstance(value, dict):
        return value | {path[0]: _replaced(value.get(path[0]), path[1:], new)}
    if isinstance(value, list) and path[0] < len(value):
        return [_replaced(entry, path[1:], new) if i == path[0] else entry for i, entry in enumerate(value)]
    return value


# By model: last.safetensors after the first of two epochs, and the file that `save` writes.
FILES: dict[str, dict[str, bytes]] = {}
for name, make in MAKE.items():
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make().set_params(n_epochs=1).fit(_data(name), out=folder, progress=False)
        paths = {"last": Path(folder) / "last.safetensors", "model": model.save(Path(folder) / "model")}
        FILES[name] = {key: path.read_bytes() for key, path in paths.items()}


def _damages(content: bytes) -> Any:
    header, _ = _unpack(content)
    metadata = header["__metadata__"]
    documents = {key: json.loads(metadata[key]) for key in ("config", "progress")}
    in_documents = [{"document": key, "path": path} for key in documents for path in _paths(documents[key])]
    tensors = [key for key in header if key != "__metadata__"]
    dtypes = ["F32", "F64", "I32", "I64", "BF16", "U8", "BOOL", "F16", "X"]
    values = {"at": st.integers(0, 50), "value": INTEGERS | st.floats()}
    choices = [
        *byte_damages(st.integers(0, len(content))),
        st.tuples(st.sampled_from(in_documents), JSON_VALUES | INTEGERS).map(lambda pair: {**pair[0], "json": pair[1]}),
        st.fixed_dictionaries({"path": st.sampled_from(_paths(header)), "json": JSON_VALUES}),
        st.fixed_dictionaries({"remove": st.sampled_from(tensors)}),
        st.fixed_dictionaries({"tensor": st.sampled_from(tensors), "dtype": st.sampled_from(dtypes)}),
        st.fixed_dictionaries({"tensor": st.sampled_from(tensors), "shape": st.lists(INTEGERS, max_size=3)}),
        st.fixed_dictionaries({"tensor": st.sampled_from(tensors), **values}),
    ]
    return st.lists(st.one_of(choices), min_size=1, max_size=2)


def _damaged(content: bytes, damage: dict[str, Any]) -> bytes:
    if (damaged := with_damaged_bytes(content, damage)) is not None:
        return damaged
    try:
        header, data = _unpack(content)
        metadata = header["__metadata__"]
        if "document" in damage:
            document = _replaced(json.loads(metadata[damage["document"]]), damage["path"], damage["json"])
            metadata[damage["document"]] = json.dumps(document)
        elif "path" in damage:
            header = _replaced(header, damage["path"], damage["json"])
        elif "remove" in damage:
            entry = header.pop(damage["remove"])
            header["unused"] = entry  # safetensors refuses a file with a hole
        else:
            entry = header[damage["tensor"]]
            if "value" in damage:
                dtype = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "<u1"}[entry["dtype"]]
                array = np.frombuffer(data, np.uint8).copy()
                values = array[slice(*entry["data_offsets"])].view(dtype)
                with np.errstate(all="ignore"):
                    values[damage["at"] % len(values)] = np.array(damage["value"]).astype(dtype)
                data = array.tobytes()
            else:
                header[damage["tensor"]] = entry | {key: damage[key] for key in ("dtype", "shape") if key in damage}
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, ZeroDivisionError, OverflowError):
        return content  # an earlier damage removed what this one would change
    return _pack(header, data)


def run(case: Any, folder: Path) -> None:
    """Load a damaged file and use the model, or resume from it."""
    warnings.simplefilter("ignore")
    name, path = case["model"], folder / "last.safetensors"
    content = FILES[name][case["file"]]
    for damage in case["damages"]:
        content = _damaged(content, damage)
    path.write_bytes(content)
    if case["use"] == "resume":
        try:
            MAKE[name]().fit(_data(name), out=folder, resume=True, progress=False, checkpoint_every=1)
        except TrainingDiverged:
            return
    else:
        model = type(MAKE[name]()).load(path)
        model.recommend([[0], [1, 2]] if name == "GRU4Rec" else [0, 1], k=2)
        model.evaluate(_data(name))
        model.report()
        repr(model)
        model.save(folder / "again")


TARGET = Target(
    cases=st.tuples(st.sampled_from([*MAKE]), st.sampled_from(["last", "model"])).flatmap(
        lambda pair: st.fixed_dictionaries(
            {
                "model": st.just(pair[0]),
                "file": st.just(pair[1]),
                "use": st.sampled_from(["resume", "load"]),
                "damages": _damages(FILES[pair[0]][pair[1]]),
            }
        )
    ),
    run=run,
    # An error message must contain one of these words. The last four: damaged ids or weights can be loaded, and fail
    # only when used.
    subjects=lambda case, folder: [str(folder), "checkpoint", "vocabulary", "training", "NaN score", "k=2"],
)
