"""Target: operators called directly, with valid arguments and with changes that make them hostile.

Any error of torch is expected. A crash is not, nor is a result where tensors are on two devices, or where written
memory overlaps other arguments or itself.
"""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from damage import INTEGERS
from harness import Target
from hypothesis import strategies as st
from torch import Tensor
from valid_calls import OPERATORS, build, valid_call

from gru4rec_fast import _backend

_backend.native_module()  # raises an error here if there are no native kernels
_NAMESPACE = torch.ops.gru4rec_fast
_DIFFERENT = {*OPERATORS} ^ {*_backend.kernels()}
assert not _DIFFERENT, f"add {_DIFFERENT} to _CALLS in valid_calls.py, or remove them there if they are no operators"
_DTYPES = ["float32", "float64", "bfloat16", "float16", "int32", "int64", "uint8", "bool", "complex64", "int8"]
_LAYOUTS = ["transposed", "expanded", "offset", "every second", "alias", "alias of a part", "meta", "sparse", "none"]


def _change_of(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({"argument": st.integers(0, 30), **values})


_CHANGES = st.lists(
    st.one_of(
        _change_of(layout=st.sampled_from(_LAYOUTS), other=st.integers(0, 30)),
        _change_of(dtype=st.sampled_from(_DTYPES)),
        # The size -1 removes the dimension.
        _change_of(dimension=st.integers(0, 3), size=st.integers(0, 5) | st.sampled_from([-1, 40, 1 << 16])),
        _change_of(at=st.integers(0, 40), value=INTEGERS | st.floats()),
        _change_of(scalar=INTEGERS | st.floats() | st.text(max_size=3)),
    ),
    max_size=3,
)


def _cases() -> st.SearchStrategy[Any]:
    def make(op: str, seed: int, changes: list[Any]) -> Any:
        return {"op": op, "seed": seed, "arguments": valid_call(op, random.Random(seed)), "changes": changes}

    return st.builds(make, st.sampled_from(OPERATORS), st.integers(0, 1 << 20), _CHANGES)


def to_value(description: Any, seed: int) -> Any:
    """Return the value of an argument."""
    if isinstance(description, list):
        return [to_value(entry, seed + i) for i, entry in enumerate(description)]
    if not isinstance(description, dict):
        return description
    if "scalar_type" in description:
        return getattr(torch, description["scalar_type"])
    return torch.device(description["device"]) if "device" in description else build(description, seed)


def run(case: Any, folder: Path) -> None:
    """Call the operator; errors of torch are expected."""
    op = getattr(_NAMESPACE, case["op"]).default
    arguments = {name: to_value(value, case["seed"] + i) for i, (name, value) in enumerate(case["arguments"].items())}
    for change in case["changes"]:
        _change(arguments, change)
    written = {a.name for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    problem = _why_it_must_fail(arguments, written)
    results = op(**arguments)
    assert not problem, f"{case['op']} accepts {problem}"
    for result in results if isinstance(results, (tuple, list)) else [results]:
        if isinstance(result, Tensor) and result.device.type == "cpu":
            result.sum()  # reads all of it


def _change(arguments: dict[str, Any], change: dict[str, Any]) -> None:
    is_scalar = "scalar" in change
    # An entry of a list of tensors is changed in a copy of the list.
    names = [name for name, value in arguments.items() if isinstance(value, Tensor | list) != is_scalar]
    if not names:
        return
    name = names[change["argument"] % len(names)]
    if is_scalar:
        value = arguments[name]
        if isinstance(value, bool):
            arguments[name] = bool(change["scalar"])
        elif isinstance(value, str | int | float) and isinstance(change["scalar"], str) == isinstance(value, str):
            arguments[name] = change["scalar"]
        return
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
    tensors += [entry for value in arguments.values() if isinstance(value, list) for entry in value]
    value = arguments[name]
    if isinstance(value, list):
        if value:
            i = change["argument"] % len(value)
            arguments[name] = [*value[:i], _changed(value[i], change, tensors), *value[i + 1 :]]
    else:
        arguments[name] = _changed(value, change, tensors)


def _changed(tensor: Any, change: dict[str, Any], tensors: list[Tensor]) -> Any:
    if not isinstance(tensor, Tensor):
        return tensor
    if "dtype" in change:
        return tensor.to(getattr(torch, change["dtype"]))
    if "size" in change:
        shape = [*tensor.shape]
        if not shape:
            return tensor.expand(change["size"]) if change["size"] >= 0 else tensor
        dimension = change["dimension"] % len(shape)
        shape[dimension : dimension + 1] = [change["size"]] if change["size"] >= 0 else []
        n = torch.Size(shape).numel()
        values = tensor.reshape(-1) if tensor.numel() else tensor.new_zeros(1)
        return values.repeat(n // values.numel() + 1)[:n].reshape(shape)
    if "value" in change:
        if tensor.numel() and tensor.device.type == "cpu" and tensor.is_contiguous():
            with suppress(RuntimeError, OverflowError, TypeError):  # the dtype cannot hold the value
                tensor.view(-1)[change["at"] % tensor.numel()] = change["value"]
        return tensor
    return _with_layout(tensor, change["layout"], tensors[change["other"] % len(tensors)])


def _with_layout(tensor: Tensor, layout: str, other: Tensor) -> Tensor | None:
    if layout == "none":
        return None
    if layout == "meta":
        return tensor.to("meta")
    if layout == "alias":
        return other
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        return tensor
    if layout == "sparse":
        return tensor.to_sparse() if tensor.dim() else tensor
    if layout == "alias of a part":
        fits = other.device.type == "cpu" and other.layout == torch.strided and other.is_contiguous()
        fits = fits and other.dtype == tensor.dtype and other.numel() >= tensor.numel()
        return other.view(-1)[other.numel() - tensor.numel() :].view(tensor.shape) if fits else tensor
    if layout == "transposed":
        return tensor.T.contiguous().T if tensor.dim() == 2 else tensor
    if layout == "offset":
        return torch.cat([tensor.new_zeros(1), tensor.reshape(-1)])[1:].view(tensor.shape)
    if layout == "every second":
        return tensor.repeat_interleave(2, -1)[..., ::2] if tensor.dim() else tensor
    return tensor[:1].expand(tensor.shape) if tensor.dim() and len(tensor) else tensor


def _why_it_must_fail(arguments: dict[str, Any], written: set[str]) -> str:
    """Return why a call must not succeed: tensors on two devices, or an overlap of written memory. "" if it may."""
    entries = [(name, value if isinstance(value, list) else [value]) for name, value in arguments.items()]
    tensors = [(name, entry) for name, values in entries for entry in values if isinstance(entry, Tensor)]
    if len({tensor.device.type for _, tensor in tensors}) > 1:
        return "tensors on two devices"
    tensors = [(name, t) for name, t in tensors if t.layout == torch.strided and t.device.type == "cpu" and t.numel()]
    for i, (name, tensor) in enumerate(tensors):
        if name not in written:
            continue
        if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            return "an expanded tensor to write to"
        if any(i != j and _overlap(tensor, other) for j, (_, other) in enumerate(tensors)):
            return "a written tensor that shares memory with another argument"
    return ""


def _overlap(first: Tensor, second: Tensor) -> bool:
    def interval(t: Tensor) -> tuple[int, int]:
        last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()

    (start, end), (other_start, other_end) = interval(first), interval(second)
    return start < other_end and other_start < end


TARGET = Target(
    cases=_cases(),
    run=run,
    subjects=lambda case, folder: [""],
    errors=(ValueError, TypeError, RuntimeError, IndexError, NotImplementedError, OverflowError, MemoryError),
    check_messages=False,
    label=lambda case: case["op"],
)
