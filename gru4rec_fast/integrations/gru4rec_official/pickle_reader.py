"""Print the content of an official GRU4Rec model file in safetensors format, without running code from the file.

    python -I -S pickle_reader.py < model.pt | cat > model.safetensors

A .pt file is a zip archive with a pickle and the numbers of its tensors. A pickle names classes and functions, and
loading it calls them with the arguments in the pickle, so an ordinary unpickler runs whatever code the file asks for.
This one replaces every name with a class that only stores the arguments, and refuses names that official models do not
contain. The weights are then read from what was stored.

`official_checkpoint` runs this file as a program, whose memory is limited and which cannot write files. It imports the
standard library only, so that it starts fast and little code handles the untrusted file.
"""

from __future__ import annotations

import array
import json
import math
import pickle
import sys
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

_GIB = 1 << 30
_COPIED_BYTES = 1 << 20  # bytes of a tensor that are copied at a time

# Classes of the official code, which may be in any module: users copy and rename its files.
_OFFICIAL_CLASSES = {"GRU4Rec", "GRU4RecModel", "GRUEmbedding", "SessionDataIterator", "SampleCache"}
# Names in an official model by module, as written by pandas 1.5 to 3 and by torch from version 1.6 on.
_KNOWN_NAMES = {
    "_codecs": {"encode"},
    "builtins": {"bytearray", "getattr", "set", "slice"},
    "collections": {"OrderedDict"},
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "pandas": {"Index", "Series", "StringDtype"},
    "pandas._libs.arrays": {"__pyx_unpickle_NDArrayBacked"},
    "pandas.arrays": {"ArrowStringArray", "StringArray"},
    "pandas.core.indexes.base": {"Index", "_new_Index"},
    "pandas.core.indexes.numeric": {"Int64Index"},
    "pandas.core.internals.managers": {"SingleBlockManager"},
    "pandas.core.series": {"Series"},
    "pyarrow.lib": {"_restore_array", "py_buffer", "type_for_alias"},
    "torch": {"device", "DoubleStorage", "FloatStorage", "IntStorage", "LongStorage"},
    "torch._utils": {"_rebuild_parameter", "_rebuild_tensor_v2"},
    "torch.cuda": {"DoubleStorage", "FloatStorage", "IntStorage", "LongStorage"},
    "torch.nn.modules.container": {"ModuleList"},
    "torch.nn.modules.dropout": {"Dropout"},
    "torch.nn.modules.rnn": {"GRUCell"},
    "torch.nn.modules.sparse": {"Embedding"},
}
_WEIGHT_TYPES = {"FloatStorage": ("F32", 4), "DoubleStorage": ("F64", 8)}  # safetensors dtype and bytes per number
_INTEGER_TYPES = {"i4": ("I32", "i"), "i8": ("I64", "q")}  # safetensors dtype and typecode of array.array


class ModelFileError(Exception):
    """Error for a file that is no official model, or is damaged."""


class Recorded:
    """Stands for an object of the pickle that is not created: stores what its class or function would receive.

    Attributes:
        name: the class or function, such as "torch.device"; a class attribute.
        arguments: the arguments of the call. state: the argument of __setstate__, or None. entries: keys and values.
    """

    name = ""
    arguments: tuple[Any, ...]
    state: Any
    entries: dict[Any, Any]

    def __new__(cls, *arguments: Any) -> Recorded:
        self = super().__new__(cls)
        self.arguments, self.state, self.entries = arguments, None, {}
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value


class Storage(NamedTuple):
    """The numbers of one or more tensors: the class of the storage, and the file in the archive."""

    type: str
    key: str


class Tensor(NamedTuple):
    """A tensor to print: safetensors dtype, shape, and its bytes, which may be a part of a file of the archive."""

    dtype: str
    shape: tuple[int, ...]
    n_bytes: int
    content: bytes = b""
    file: str | None = None
    offset: int = 0


class RecordingUnpickler(pickle.Unpickler):
    """Unpickler that calls no function of the pickle, see `Recorded`."""

    def find_class(self, module: str, name: str) -> type[Recorded]:
        module = {"__builtin__": "builtins"}.get(module, module).replace("numpy._core", "numpy.core")
        if name in _OFFICIAL_CLASSES:
            module = "official"
        elif name not in _KNOWN_NAMES.get(module, ()):
            raise ModelFileError(
                f"the pickle refers to {module}.{name}, which no official model does; it is not loaded"
            )
        return type("Recorded", (Recorded,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage, key, _location, _size = pid
        if kind != "storage" or not isinstance(key, str):
            raise ModelFileError("the pickle refers to something other than the numbers of a tensor")
        return Storage(storage.name.rpartition(".")[2], key)


def main() -> None:
    """Print the tensors of the model on stdin. Exit with a message on stderr if it is no official model."""
    try:
        _print_model(sys.stdin.buffer, sys.stdout.buffer)
    except ModelFileError as error:
        sys.exit(str(error))
    except Exception as error:  # a damaged file may cause any error
        sys.exit(f"it is damaged, or no model of the official code: {type(error).__name__}: {error}"[:300])


def _print_model(file: BinaryIO, out: BinaryIO) -> None:
    with zipfile.ZipFile(file) as archive:
        pickles = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ModelFileError("it is not a file of torch.save")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ModelFileError("its content is compressed; torch.save never compresses")  # a few bytes can be many
        folder = pickles[0].filename.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ModelFileError("it was written on a big-endian machine")
        _limit_resources(pickles[0].file_size)
        with archive.open(pickles[0]) as stream:
            model = RecordingUnpickler(stream).load()
        _print_safetensors(archive, _tensors(model, folder), out)


def _limit_resources(pickle_bytes: int) -> None:
    """Limit the memory and the CPU time of this process, and forbid it to write files."""
    import resource

    limits = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: 600}
    if sys.platform == "linux":  # elsewhere the address space cannot be limited
        limits[resource.RLIMIT_AS] = _GIB + 16 * pickle_bytes
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _print_safetensors(archive: zipfile.ZipFile, tensors: dict[str, Tensor], out: BinaryIO) -> None:
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.n_bytes
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    out.write(len(encoded).to_bytes(8, "little") + encoded)
    for tensor in tensors.values():
        if tensor.file is None:
            out.write(tensor.content)
            continue
        with archive.open(tensor.file) as stream:
            stream.seek(tensor.offset)
            missing = tensor.n_bytes
            while missing:
                block = stream.read(min(missing, _COPIED_BYTES))
                if not block:
                    raise ModelFileError(f"{tensor.file} is truncated")
                out.write(block)
                missing -= len(block)
    out.flush()


def _tensors(model: Any, folder: str) -> dict[str, Tensor]:
    """Return the tensors that are read of a model.

    "attributes": a JSON object (UTF-8) with the attributes of the model that are numbers, texts or lists of integers.
    "weights.<name>": the parameters of the network. "ids", or "utf8" and "offsets": the item ids in the order of their
    indices, see `Vocabulary.to_arrays`. "events": the item index of each training event.
    """
    attributes = _state(model, "GRU4Rec")
    iterator = _state(attributes.get("data_iterator"), "SessionDataIterator")
    plain = {name: value for name, value in attributes.items() if _is_plain(value)}
    text = json.dumps(plain).encode()
    tensors = {"attributes": Tensor("U8", (len(text),), len(text), text)}
    for name, parameter in _parameters(_state(attributes.get("model"), "GRU4RecModel"), "weights."):
        tensors[name] = _weight(parameter, name, folder)
    tensors |= _item_ids(iterator.get("itemidmap"))
    tensors["events"] = _integers(iterator.get("data_items"), "data_items")[0]
    return tensors


def _is_plain(value: Any) -> bool:
    return type(value) in (bool, int, float, str) or (type(value) is list and all(type(size) is int for size in value))


def _state(value: Any, official_class: str) -> dict[str, Any]:
    """Return the attributes of an object of the official code."""
    if not isinstance(value, Recorded) or value.name != f"official.{official_class}" or type(value.state) is not dict:
        raise ModelFileError(f"it has no {official_class} of the official code")
    return value.state


def _parameters(module: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the names and parameters of a torch module, which is given by its attributes."""
    for name, parameter in _entries(module["_parameters"]):
        if parameter is not None:
            yield f"{prefix}{name}", parameter
    for name, child in _entries(module["_modules"]):
        yield from _parameters(child.state, f"{prefix}{name}.")


def _entries(mapping: Any) -> Iterator[tuple[str, Any]]:
    return iter((mapping.entries if isinstance(mapping, Recorded) else mapping).items())


def _weight(parameter: Any, name: str, folder: str) -> Tensor:
    tensor = _arguments(parameter, "torch._utils._rebuild_parameter", name)[0]
    storage, offset, shape, strides = _arguments(tensor, "torch._utils._rebuild_tensor_v2", name)[:4]
    if not isinstance(storage, Storage) or storage.type not in _WEIGHT_TYPES:
        raise ModelFileError(f"{name} is neither float32 nor float64")
    if not all(type(size) is int and size >= 0 for size in (offset, *shape)):
        raise ModelFileError(f"{name} has no valid shape")
    if strides != tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape))):
        raise ModelFileError(f"{name} is not contiguous")
    dtype, itemsize = _WEIGHT_TYPES[storage.type]
    return Tensor(
        dtype, shape, math.prod(shape) * itemsize, file=f"{folder}data/{storage.key}", offset=offset * itemsize
    )


def _item_ids(series: Any) -> dict[str, Tensor]:
    """Return the ids in a pandas Series whose index is the ids, and whose values are the indices 0, 1, 2 ..."""
    axes, values = series.state["_mgr"].state[:2]
    indices, numbers = _integers(values[0], "the values of itemidmap")
    if list(numbers) != list(range(len(numbers))):
        raise ModelFileError("itemidmap does not number the items 0, 1, 2 ...")
    ids = _arguments(axes[0], "pandas.core.indexes.base._new_Index", "the index of itemidmap")[1]["data"]
    if ids.name == "pandas.arrays.ArrowStringArray":
        tensors = _arrow_strings(ids)
    else:
        if ids.name == "pandas._libs.arrays.__pyx_unpickle_NDArrayBacked":  # strings of pandas 3 without pyarrow
            _, ids = ids.state
        _, _, dtype, _, content = ids.state
        tensors = _strings(content) if dtype.arguments[0] == "O8" else {"ids": _integers(ids, "the item ids")[0]}
    n_ids = next(reversed(tensors.values())).shape[0] - ("offsets" in tensors)
    if n_ids != indices.shape[0]:
        raise ModelFileError(f"itemidmap has {n_ids} ids for {indices.shape[0]} items")
    return tensors


def _strings(ids: list[str]) -> dict[str, Tensor]:
    encoded = [text.encode() for text in ids]
    offsets = array.array("q", [0])
    for text in encoded:
        offsets.append(offsets[-1] + len(text))
    return _string_tensors(b"".join(encoded), offsets.tobytes())


def _string_tensors(utf8: bytes, offsets: bytes) -> dict[str, Tensor]:
    return {
        "utf8": Tensor("U8", (len(utf8),), len(utf8), utf8),
        "offsets": Tensor("I64", (len(offsets) // 8,), len(offsets), offsets),
    }


def _arrow_strings(ids: Recorded) -> dict[str, Tensor]:
    """Return the strings of a pandas array that is stored by pyarrow, as pandas 3 does."""
    (stored,) = _arguments(ids.state["_pa_array"], "pyarrow.lib._restore_array", "the index of itemidmap")
    kind, n, n_missing, start, buffers = stored[:5]
    if kind.arguments != ("large_string",) or n_missing or start:
        raise ModelFileError("the item ids are not a pyarrow array of large_string without missing values")
    offsets, utf8 = (_bytes(buffer.arguments[0].arguments[0]) for buffer in buffers[1:])
    offsets = offsets[: 8 * (n + 1)]  # buffers may be longer than their content
    return _string_tensors(utf8[: int.from_bytes(offsets[-8:], "little")], offsets)


def _integers(value: Any, name: str) -> tuple[Tensor, array.array[int]]:
    """Return a NumPy array of 32 or 64 bit integers."""
    _arguments(value, "numpy.core.multiarray._reconstruct", name)
    _, shape, dtype, _, content = value.state
    if dtype.arguments[0] not in _INTEGER_TYPES or dtype.state[1] != "<" or len(shape) != 1:
        raise ModelFileError(f"{name} must be a one-dimensional array of int32 or int64")
    safetensors_type, typecode = _INTEGER_TYPES[dtype.arguments[0]]
    numbers = array.array(typecode, _bytes(content))
    if len(numbers) != shape[0]:
        raise ModelFileError(f"{name} is truncated")
    content = numbers.tobytes()
    return Tensor(safetensors_type, shape, len(content), content), numbers


def _bytes(value: Any) -> bytes:
    """Return bytes, which a pickle of protocol 2 stores as text to encode."""
    text, encoding = _arguments(value, "_codecs.encode", "an array")
    if encoding != "latin1":
        raise ModelFileError("an array is not encoded as latin1")
    return text.encode("latin1")


def _arguments(value: Any, name: str, what: str) -> tuple[Any, ...]:
    """Return the arguments of a call that the pickle makes, if it is a call of the function `name`."""
    if not isinstance(value, Recorded) or value.name != name:
        raise ModelFileError(f"{what} is not the result of {name}")
    return value.arguments


if __name__ == "__main__":
    main()
