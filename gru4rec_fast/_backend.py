"""Which implementation of an operator runs, and why: the only place that decides.

The native library is looked for at the first call that could use it, never at import. Where it cannot be had, the
reason is kept, shown by `build_info()`, and said once, in one line, when an operator first falls back; likewise where
the library has no kernels for a kind of device. An operator that has no kernel yet beside others that do is not told.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

import torch

from gru4rec_fast import _build, _compile
from gru4rec_fast._version import __version__

Implementation = Literal["auto", "native", "reference"]

logger = logging.getLogger("gru4rec_fast")

_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_lock = threading.Lock()
_native: ModuleType | None = None
_library: _build.Library | None = None
_why_not: str | None = None
_resolved: dict[tuple[str, str, str], str] = {}
_registered: dict[str, Callable[[str, str], None]] = {}


def load() -> bool:
    """Load the native library if there is one that fits this torch, compiling it where need be; True where it is in.

    Looked for once per process. Raises RuntimeError where GRU4REC_FAST_BUILD is cpu or cuda and that cannot be had, and
    ValueError where it has an unknown value.
    """
    if _native is None and _why_not is None:
        with _lock:
            _look_for_library()
    return _native is not None


def _look_for_library() -> None:
    """Set `_native` and `_library`, or `_why_not`; does nothing where another thread was first."""
    global _native, _library, _why_not
    if _native is not None or _why_not is not None:
        return
    from gru4rec_fast.ops._registry import NATIVE, run_callbacks

    try:
        library = _build.find_or_compile()
        module = import_library(library, "gru4rec_fast._C")
    except _compile.BuildError as error:
        asked = _compile.build_mode()
        if asked in ("cpu", "cuda"):
            raise RuntimeError(f"{_compile.MODE_VARIABLE}={asked}: {error}") from error
        _why_not = str(error)
        return
    module.simd_level()  # a bad GRU4REC_FAST_SIMD is told here, not in the middle of a kernel
    run_callbacks(NATIVE)
    _native, _library = module, library  # last: other threads go ahead as soon as they see it


def import_library(library: _build.Library, name: str) -> ModuleType:
    """Load a library that was found to fit, and with it the operators' schemas and kernels."""
    spec = importlib.util.spec_from_file_location(name, library.path)
    if spec is None or spec.loader is None:
        raise _compile.BuildError(f"{library.path} is not a Python extension module")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise _compile.BuildError(f"{library.path} does not load: {error}") from error
    sys.modules[name] = module
    return module


def native_module() -> ModuleType:
    """The library's Python module, with the C++ classes; RuntimeError with the reason where there is none."""
    if not load():
        raise RuntimeError(f"no native kernels: {_why_not}")
    assert _native is not None
    return _native


def register_implementation(name: str, prepare: Callable[[str, str], None]) -> None:
    """Let tests ask for a further implementation by `impl=name`; its operators are torch.ops.gru4rec_fast_<name>.

    `prepare(op, device_type)` loads what the implementation needs, at the first call of an operator on a device type.
    It raises RuntimeError with the reason where the operator cannot run there. "auto" never chooses `name`.
    """
    _registered[name] = prepare


def resolve(impl: str, op: str, device_type: str) -> str:
    """Return the implementation that runs operator `op` (its name in csrc/schema.cpp) on a device type.

    The result is "native", "reference", or the name of a registered implementation that was asked for. Raises
    ValueError for an unknown `impl`, KeyError for an operator that csrc/schema.cpp does not have, and RuntimeError with
    the reason where the implementation asked for is missing.
    """
    key = (impl, op, device_type)
    answer = _resolved.get(key)
    if answer is None:
        answer = _resolved[key] = _decide(impl, op, device_type)
    return answer


# torch.compile calls `resolve` as it stands and keeps the answer. What torch.compiler.assume_constant_result sets, set
# by hand: that decorator imports the whole compiler at once.
resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _decide(impl: str, op: str, device_type: str) -> str:
    if impl in _registered:
        _registered[impl](op, device_type)
        return impl
    if impl not in ("auto", "native", "reference"):
        raise ValueError(f"impl={impl!r}: choose one of 'auto', 'native', 'reference'")
    if impl == "reference":
        return "reference"
    loaded = load()
    if loaded and device_type in kernels()[op]:
        return "native"
    if impl == "native":
        missing = f"operator {op} has no native kernel on {device_type}" if loaded else _why_not
        raise RuntimeError(f"impl='native': {missing}")
    if not loaded:
        _announce(f"without native kernels: {_why_not}")
    elif not any(device_type in devices for devices in kernels().values()):
        _announce(f"on {device_type}, without native kernels: {_why_not_on(device_type)}")
    return "reference"


_announced: set[str] = set()


def _announce(what: str) -> None:
    """Say once what runs on the reference, and why; not to someone who just asked for that."""
    if what not in _announced and _compile.build_mode() != "none":
        logger.warning("gru4rec_fast: running the pure-PyTorch reference %s", what)
    _announced.add(what)


def _why_not_on(device_type: str) -> str:
    """Why the library that is loaded has no kernels at all for a device type."""
    why_not_cuda = _library.record.get("cuda_why_not") if _library is not None else None
    if device_type == "cuda" and why_not_cuda:
        return str(why_not_cuda)
    return f"there are none for {device_type}"


def kernels() -> dict[str, list[str]]:
    """The device types on which each operator has a native kernel; {} where the native library is not loaded."""
    if _native is None:
        return {}
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("gru4rec_fast::")]
    return {
        name.removeprefix("gru4rec_fast::"): [
            device
            for device, key in _DISPATCH_KEYS.items()
            if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
        ]
        for name in sorted(names)
    }


def build_info() -> dict[str, Any]:
    """How this installation runs, as plain values that JSON can hold; looks for the native library as `load` does.

    Keys: version; native_cpu, native_cuda (bool); how ("ahead of time", "at first use", "none"); why_not (None, or why
    there are no native kernels); why_not_cuda (the same for CUDA kernels); library (path); torch, built_for_torch; cuda
    (torch's CUDA version or None); simd (instruction set in use); simd_detected; compiler; parallel ("openmp" or
    "serial"); threads (that a parallel kernel really runs on); kernels ({operator: [device types]}).
    """
    load()
    info: dict[str, Any] = {
        "version": __version__,
        "native_cpu": False,
        "native_cuda": False,
        "how": "none",
        "why_not": _why_not,
        "why_not_cuda": _why_not,
        "library": None,
        "torch": str(torch.__version__),
        "built_for_torch": None,
        "cuda": torch.version.cuda,
        "simd": None,
        "simd_detected": None,
        "compiler": None,
        "parallel": None,
        "threads": torch.get_num_threads(),
        "kernels": kernels(),
    }
    if _native is not None and _library is not None:
        info |= {
            "native_cpu": True,
            "native_cuda": bool(_native.cuda),
            "how": _library.how,
            "why_not_cuda": _library.record.get("cuda_why_not"),
            "library": str(_library.path),
            "built_for_torch": _library.record["identity"]["torch"],
            "simd": _native.simd_level(),
            "simd_detected": _native.simd_level_detected(),
            "compiler": _native.compiler,
            "parallel": _native.parallel,
            "threads": _native.parallel_width(),
        }
    return info
