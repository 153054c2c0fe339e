"""Run the CUDA kernels on CPU tensors, for tests: `register()`, then `impl="emulated"` on any operator.

The kernels of csrc/*/cuda.cu are compiled as C++17 with the machine in this folder, and their ATen side with them, into
one library whose operators are torch.ops.gru4rec_fast_emulated. docs/architecture.md ("The emulation") explains it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import torch

from gru4rec_fast import _backend, _build, _compile
from gru4rec_fast._compile import BuildError, Record
from gru4rec_fast.ops._registry import run_callbacks

HERE = Path(__file__).resolve().parent
LIBRARY = "_emulated.so"
NAMESPACE = "gru4rec_fast_emulated"

# The compiler reports each access of memory in a kernel: to access_hooks.cpp, which looks for races and takes the place of the
# sanitizer's own library; or to AddressSanitizer.
KERNEL_FLAGS = {
    "races": ["-fsanitize=thread"],
    "addresses": ["-fsanitize=address", "-fno-omit-frame-pointer", "-DGRF_EMULATED_ADDRESSES"],
}
CXX_FLAGS = ["-g", "-fPIC", "-fvisibility=hidden", "-DGRF_EMULATED"]

_lock = threading.Lock()
_module: ModuleType | None = None


def register() -> None:
    """Let `impl="emulated"` be asked for."""
    _backend.register_implementation("emulated", _prepare)


def families() -> list[str]:
    """Names of the kernel families that have CUDA kernels."""
    return sorted(path.parent.name for path in _build.source_folder().glob("*/cuda.cu"))


def why_not() -> str:
    """Return why nothing can be emulated here; "" where it can."""
    if _compile.build_mode() == "none":
        return f"{_compile.MODE_VARIABLE}=none in the environment"
    return _compile.missing_tool() or ""


def load() -> ModuleType:
    """Return the library's Python module, which has the emulation's settings; compile it first where need be.

    Raises RuntimeError with the reason where it cannot be had.
    """
    global _module
    with _lock:
        if _module is None:
            try:
                module = _backend.import_library(_library(), "gru4rec_fast._emulated")
            except BuildError as error:
                raise RuntimeError(f"impl='emulated': {error}") from error
            run_callbacks(NAMESPACE)
            _module = module
    return _module


def _prepare(op: str, device_type: str) -> None:
    if device_type != "cpu":
        raise RuntimeError(f"impl='emulated' runs the CUDA kernels on CPU tensors, not on {device_type}")
    load()
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op}", "CPU"):
        raise RuntimeError(f"impl='emulated': operator {op} has no CUDA kernel")


def _library() -> _build.Library:
    """The library for this torch, these sources and GRU4REC_FAST_SANITIZE, from the cache or compiled now."""
    if reason := why_not():
        raise BuildError(reason)
    csrc = _build.source_folder()
    checks = "addresses" if "address" in _compile.sanitizers() else "races"
    # An installed package has csrc/ elsewhere: one root for the names of both.
    files = [*csrc.rglob("*"), *HERE.glob("*")]
    root = Path(os.path.commonpath([csrc, HERE]))
    flags = (CXX_FLAGS, _compile.CXX_FLAGS, KERNEL_FLAGS[checks])
    wanted = _compile.identity_of(root, files, flags, str(torch.__version__), torch.version.cuda)

    def build(folder: Path) -> Record:
        return _compile_into(folder, csrc, checks, wanted)

    return _build.compile_once(wanted, f"emulated, {checks}", LIBRARY, build, "the CUDA kernels for their emulation")


def _compile_into(folder: Path, csrc: Path, checks: str, identity: dict[str, str]) -> Record:
    """Compile the library into a folder, its record and its log beside it. Raises BuildError."""
    from torch.utils import cpp_extension

    compiler = shlex.split(os.environ.get("CXX", "c++"))
    includes = [f"-I{csrc}", f"-I{HERE.parent}"]
    kernel = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Wno-unknown-pragmas", *KERNEL_FLAGS[checks], "-x", "c++"]
    system = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    host = [flag for flag in _compile.CXX_FLAGS if flag not in ("-O3", "-g0")] + ["-O1"]
    host += [f"-isystem{path}" for path in system] + [f"-DTORCH_EXTENSION_NAME={Path(LIBRARY).stem}"]
    host += [flag for flag in KERNEL_FLAGS[checks] if flag.startswith("-D")]
    sources = [(path, host) for path in (csrc / "schema.cpp", *sorted(HERE.glob("*.cpp")), *host_sources(csrc))]
    sources += [(path, kernel) for path in (*sorted(HERE.glob("*.cu")), *sorted(csrc.glob("*/cuda.cu")))]
    objects = [str(folder / f"{path.parent.name}_{path.name}.o") for path, _ in sources]
    commands = [
        [*compiler, *CXX_FLAGS, *includes, *flags, "-c", str(path), "-o", target]
        for (path, flags), target in zip(sources, objects, strict=True)
    ]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    libraries += ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python", "-ldl"]
    link = [*compiler, "-shared", *objects, *libraries, "-o", str(folder / LIBRARY)]

    environment = dict(os.environ)
    if _compile.sanitizers():  # whose runtime is preloaded into this process; the compiler runs without
        environment.pop("LD_PRELOAD", None)
    log = folder / _compile.LOG
    with log.open("w") as stream:

        def run(command: list[str]) -> int:
            return subprocess.run(command, env=environment, stdout=stream, stderr=stream, check=False).returncode

        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            failed = any(list(pool.map(run, commands))) or run(link) != 0
    if failed:
        reason = _compile.first_error(log.read_text(errors="replace"))
        raise BuildError(f"compiling failed: {reason}", lasting="error:" in reason)
    record: Record = {"identity": identity, "mode": "emulated"}
    _compile.write_record(folder, record)
    return record


def host_sources(csrc: Path) -> list[Path]:
    """The ATen side of the CUDA kernels: <k>/<k>.cpp and <k>/cuda.cpp."""
    return [path for path in sorted(csrc.glob("*/*.cpp")) if path.stem in ("cuda", path.parent.name)]
