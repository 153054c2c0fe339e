"""Choose the implementation of each operator: the native library or the pure-PyTorch reference.

The native library is loaded at the first call that can use it, not at import. If there is no library, or if it has no
kernels for a type of device, operators fall back to the reference. The first fallback logs a warning with the reason,
which `build_info()` also returns. If only some operators lack a kernel, they fall back without a warning.
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
_why_not: str | None = None  # the reason why there is no native library
_resolved: dict[tuple[str, str, str], str] = {}  # (impl, operator, device type): result of `resolve`
_registered: dict[str, Callable[[str, str], None]] = {}  # arguments of `register_implementation`


def load() -> bool:
    """Load the native library, compiling it if necessary; return whether it is loaded.

    Only the first call loads the library; later calls return the same result. Raises RuntimeError if
    GRU4REC_FAST_BUILD is cpu or cuda and there is no such library, and ValueError if it has an unknown value.
    """
    if _native is None and _why_not is None:
        with _lock:
            _load_library()
    return _native is not None


def _load_library() -> None:
    """Set `_native` and `_library`, or `_why_not` if there is no library; do nothing if another thread has done it."""
    global _native, _library, _why_not
    if _native is not None or _why_not is not None:
        return
    from gru4rec_fast.ops._registry import NATIVE, run_callbacks

    try:
        library = _build.find_or_compile()
        module = import_library(library, "gru4rec_fast._C")
    except _compile.BuildError as error:
        mode = _compile.build_mode()
        if mode in ("cpu", "cuda"):
            raise RuntimeError(f"{_compile.MODE_VARIABLE}={mode}: {error}") from error
        _why_not = str(error)
        return
    module.simd_level()  # raises an error here, and not later, if GRU4REC_FAST_SIMD is invalid
    run_callbacks(NATIVE)
    _native, _library = module, library  # last: other threads use the library as soon as `_native` is set


def import_library(library: _build.Library, name: str) -> ModuleType:
    """Load a library, which registers the schemas and kernels of its operators, and return its Python module.

    The library must have been compiled for the running torch: loading another one may crash the process.
    """
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
    """Return the Python module of the native library; raise RuntimeError with the reason if there is none."""
    if not load():
        raise RuntimeError(f"no native kernels: {_why_not}")
    assert _native is not None
    return _native


def register_implementation(name: str, prepare: Callable[[str, str], None]) -> None:
    """Register an additional implementation for tests, which `impl=name` selects; "auto" never selects it.

    Its operators are in torch.ops.gru4rec_fast_<name>. `prepare(op, device_type)` is called before the first call of an
    operator on a device type. It loads the library, and raises RuntimeError with the reason if the operator cannot run.
    """
    _registered[name] = prepare


def resolve(impl: str, op: str, device_type: str) -> str:
    """Return the implementation that runs operator `op` (its name in csrc/schema.cpp) on a device type.

    The result is "native", "reference", or `impl` if that is a registered implementation. Raises ValueError for an
    unknown `impl`, KeyError for an operator that is not in csrc/schema.cpp, and RuntimeError with the reason if the
    requested implementation is missing.
    """
    key = (impl, op, device_type)
    chosen = _resolved.get(key)
    if chosen is None:
        chosen = _resolved[key] = _choose(impl, op, device_type)
    return chosen


# Makes torch.compile call `resolve` while tracing and use the result as a constant. This is what the decorator
# torch.compiler.assume_constant_result does, but using that decorator would import the whole compiler.
resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _choose(impl: str, op: str, device_type: str) -> str:
    """Return the result of `resolve`; log a warning for the first fallback to the reference."""
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


def _announce(reason: str) -> None:
    """Log once that the reference runs, and why; log nothing if GRU4REC_FAST_BUILD=none requested the reference."""
    if reason not in _announced and _compile.build_mode() != "none":
        logger.warning("gru4rec_fast: running the pure-PyTorch reference %s", reason)
    _announced.add(reason)


def _why_not_on(device_type: str) -> str:
    """Return why the loaded library has no kernels for a device type."""
    why_not_cuda = _library.record.get("cuda_why_not") if _library is not None else None
    if device_type == "cuda" and why_not_cuda:
        return str(why_not_cuda)
    return f"there are none for {device_type}"


def kernels() -> dict[str, list[str]]:
    """Return {operator: device types on which it has a native kernel}; {} if the native library is not loaded."""
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
    """Return a description of the native library, as a dict of JSON values. Loads the library, as `load` does.

    Keys:
        version: version of this package.
        native_cpu, native_cuda: whether there are native CPU and CUDA kernels.
        how: when the library was compiled: "ahead of time" or "at first use"; "none" without a library.
        why_not, why_not_cuda: the reason why there are no native kernels or no CUDA kernels, or None.
        library: path of the library.
        torch, built_for_torch: version of the running torch, and of the torch for which the library was compiled.
        cuda: CUDA version of torch, or None.
        simd, simd_detected: instruction set in use, and the widest one that the processor has.
        compiler: compiler of the library.
        parallel: "openmp" or "serial".
        threads: number of threads that a parallel kernel uses; without a library, the number of torch's threads.
        kernels: {operator: device types on which it has a native kernel}.
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
            "how": _library.built,
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
