"""Run the CUDA kernels on CPU tensors, for tests: call `register()`, then pass `impl="emulated"` to any operator.

The kernels of csrc/*/cuda.cu are compiled as C++17. They are linked with the emulator in this folder and with the C++
code that checks the operators' arguments and launches the kernels. The resulting library registers its operators as
torch.ops.gru4rec_fast_emulated. docs/architecture.md ("The emulation") explains how it works.
"""

from __future__ import annotations

import os
import platform
import re
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

# The compiler inserts a call before each memory access of a kernel. With "races", access_hooks.cpp defines the called
# functions, and ThreadSanitizer's library is not linked. With "addresses", AddressSanitizer's library defines them, to
# detect accesses out of bounds.
KERNEL_FLAGS = {
    "races": ["-fsanitize=thread,alignment"],
    "addresses": ["-fsanitize=address,alignment", "-fno-omit-frame-pointer", "-DGRF_EMULATED_ADDRESSES"],
}
# Without -fno-tree-sra, the compiler splits a load of 16 bytes into four, and access_counter.h counts four requests.
KERNEL_CXX_FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-fno-tree-sra"]
# With GRU4REC_FAST_EMULATED_FMA=1, the compiler fuses multiplications and additions where it can, as nvcc does.
FMA_VARIABLE = "GRU4REC_FAST_EMULATED_FMA"
FMA_FLAGS = ["-ffp-contract=fast", *(["-mfma"] if platform.machine() == "x86_64" else [])]
CXX_FLAGS = ["-g", "-fPIC", "-fvisibility=hidden", "-DGRF_EMULATED"]

_lock = threading.Lock()
_module: ModuleType | None = None


def register() -> None:
    """Make `impl="emulated"` available to the operators."""
    _backend.register_implementation("emulated", _prepare)


def families() -> list[str]:
    """Return the names of the families (folders of csrc) that have CUDA kernels."""
    return sorted(path.parent.name for path in _build.source_folder().glob("*/cuda.cu"))


def why_not() -> str:
    """Return the reason why CUDA kernels cannot be emulated here, or "" if they can."""
    if _compile.build_mode() == "none":
        return f"{_compile.MODE_VARIABLE}=none in the environment"
    return _compile.missing_tool() or ""


def fuses_multiply_add() -> bool:
    """Return whether the kernels are compiled with fused multiply-adds: GRU4REC_FAST_EMULATED_FMA is 1.

    Raises BuildError for values other than 1, 0 and "".
    """
    value = os.environ.get(FMA_VARIABLE, "")
    if value not in ("", "0", "1"):
        raise BuildError(f"{FMA_VARIABLE}={value}: must be 1 or 0")
    return value == "1"


def load() -> ModuleType:
    """Return the Python module of the library, which has the settings of the emulation. Compile it first if needed.

    Raises RuntimeError with the reason if it cannot be compiled or loaded.
    """
    global _module
    with _lock:
        if _module is None:
            try:
                module = _backend.import_library(_library(), "gru4rec_fast._emulated")
                module.set_launch_bounds(launch_bounds(_build.source_folder()))
            except BuildError as error:
                raise RuntimeError(f"impl='emulated': {error}") from error
            run_callbacks(NAMESPACE)  # registers the fake kernels and autograd formulas of the operators
            _module = module
    return _module


def launch_bounds(csrc: Path) -> dict[str, int]:
    """Return the number of threads in the __launch_bounds__ of each kernel, which a C++ compiler ignores."""
    sources = "".join(path.read_text() for path in (*csrc.rglob("*.cu*"), *csrc.rglob("*.h"), *HERE.glob("*.cu")))
    constants = dict(re.findall(r"constexpr int (k\w+) = (\d+);", sources))
    bounds = re.findall(r"__launch_bounds__\((\w+)[^()]*\)(?:\s*//[^\n]*)?\s+(\w+)\(", sources)
    return {kernel: int(constants.get(threads, threads)) for threads, kernel in bounds}


def _prepare(op: str, device_type: str) -> None:
    """Load the library. Raise RuntimeError if it cannot run this operator on this type of device."""
    if device_type != "cpu":
        raise RuntimeError(f"impl='emulated' runs the CUDA kernels on CPU tensors, not on {device_type}")
    load()
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op}", "CPU"):
        raise RuntimeError(f"impl='emulated': operator {op} has no CUDA kernel")


def _library() -> _build.Library:
    """Return the library for this torch, these sources and GRU4REC_FAST_SANITIZE. Compile it if it is not cached."""
    if reason := why_not():
        raise BuildError(reason)
    csrc = _build.source_folder()
    checks = "addresses" if "address" in _compile.sanitizers() else "races"
    # The identity of the library is the key of the cache: versions, hashes, and file names relative to one root folder.
    # The root is the common parent folder, because csrc/ is elsewhere if the package is installed.
    files = [*csrc.rglob("*"), *HERE.glob("*")]
    root = Path(os.path.commonpath([csrc, HERE]))
    kernel_flags = [*KERNEL_CXX_FLAGS, *KERNEL_FLAGS[checks], *(FMA_FLAGS if fuses_multiply_add() else [])]
    flags = (CXX_FLAGS, _compile.CXX_FLAGS, kernel_flags)
    identity = _compile.identity_of(root, files, flags, str(torch.__version__), torch.version.cuda)

    def build(folder: Path) -> Record:
        return _compile_into(folder, csrc, checks, kernel_flags, identity)

    return _build.compile_once(identity, f"emulated, {checks}", LIBRARY, build, "the CUDA kernels for their emulation")


def _compile_into(folder: Path, csrc: Path, checks: str, kernel_flags: list[str], identity: dict[str, str]) -> Record:
    """Compile the library. Write it to a folder, with the record of the build and the compiler's log.

    checks: a key of KERNEL_FLAGS. kernel_flags: for the kernels' sources. Raises BuildError.
    """
    from torch.utils import cpp_extension

    compiler = shlex.split(os.environ.get("CXX", "c++"))
    includes = [f"-I{csrc}", f"-I{HERE.parent}"]
    system_includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    host_flags = [flag for flag in _compile.CXX_FLAGS if flag not in ("-O3", "-g0")] + ["-O1"]
    host_flags += [f"-isystem{path}" for path in system_includes] + [f"-DTORCH_EXTENSION_NAME={Path(LIBRARY).stem}"]
    host_flags += [flag for flag in KERNEL_FLAGS[checks] if flag.startswith("-D")]
    operators = _compile.join_sources(_compile.operator_sources(csrc), folder, "operators")
    launchers = _compile.join_sources(sorted(csrc.glob("*/cuda.cpp")), folder, "launchers", n=1)
    sources = [(path, host_flags) for path in (*operators, *launchers, *sorted(HERE.glob("*.cpp")))]
    kernels = (*sorted(HERE.glob("*.cu")), *sorted(csrc.glob("*/cuda.cu")))
    sources += [(path, [*kernel_flags, "-x", "c++"]) for path in kernels]
    objects = [str(folder / f"{path.parent.name}_{path.name}.o") for path, _ in sources]
    commands = [
        [*compiler, *CXX_FLAGS, *includes, *flags, "-c", str(path), "-o", object_file]
        for (path, flags), object_file in zip(sources, objects, strict=True)
    ]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    libraries += ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python", "-ldl"]
    link_command = [*compiler, "-shared", *objects, *libraries, "-o", str(folder / LIBRARY)]

    environment = dict(os.environ)
    if _compile.sanitizers():  # LD_PRELOAD names the sanitizers' runtime, for this process and not for the compiler
        environment.pop("LD_PRELOAD", None)
    log = folder / _compile.LOG
    with log.open("w") as stream:

        def run(command: list[str]) -> int:
            return subprocess.run(command, env=environment, stdout=stream, stderr=stream, check=False).returncode

        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            failed = any(list(pool.map(run, commands))) or run(link_command) != 0
    if failed:
        reason = _compile.first_error(log.read_text(errors="replace"))
        # `lasting` is for errors in the sources: the next process does not compile them again.
        raise BuildError(f"compiling failed: {reason}", lasting="error:" in reason)
    record: Record = {"identity": identity, "mode": "emulated"}
    _compile.write_record(folder, record)
    return record
