"""Compile the native library: sources, flags and tools.

`pip install` (setup.py) and the compilation at first use (_build.py) both call `build`, which runs this file as a
script in a new process, with the interpreter and the torch that will use the library. The new process also loads the
library once. So `build` fails if the library does not load, and the calling process does not load it.

This file imports only the standard library at module level, because setup.py loads it in environments that have neither
torch nor gru4rec_fast.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODE_VARIABLE = "GRU4REC_FAST_BUILD"
MODES = ("auto", "none", "cpu", "cuda")
LIBRARY = "_C.so"
RECORD = "_build_record.json"
LOG = "compile.log"

# -fno-math-errno and -fno-trapping-math do not change results; torch itself is compiled with them, and loops with
# comparisons vectorize only with them. There is no -march: common/simd.h chooses the instruction set at run time.
CXX_FLAGS = ["-O3", "-std=c++20", "-DNDEBUG", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
NVCC_FLAGS = ["-O3", "-std=c++17", "-lineinfo", "--expt-relaxed-constexpr"]
# at::parallel_for is defined in a header, and without OpenMP it runs serially without a warning.
OPENMP_FLAGS = ["-fopenmp"] if sys.platform.startswith("linux") else []

SANITIZE_VARIABLE = "GRU4REC_FAST_SANITIZE"
SANITIZERS = ("address", "undefined", "thread")
SANITIZE_FLAGS = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-D_GLIBCXX_ASSERTIONS"]
# ThreadSanitizer does not see the barriers of torch's OpenMP runtime, which is not instrumented, and would report every
# parallel loop. So this build uses threads of its own.
OWN_THREADS_FLAGS = ["-include", "common/parallel_on_threads.h", "-pthread"]

Record = dict[str, Any]


class BuildError(RuntimeError):
    """Raised if no native library can be compiled; the message is the reason, in one line.

    `lasting` is True if the same sources and tools are expected to fail again.
    """

    def __init__(self, reason: str, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


def build_mode(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the value of GRU4REC_FAST_BUILD, None if it is not set. Raises ValueError for an unknown value."""
    mode = environment.get(MODE_VARIABLE, "").strip()
    if mode and mode not in MODES:
        raise ValueError(f"{MODE_VARIABLE}={mode}: choose one of {', '.join(MODES)}")
    return mode or None


def sanitizers(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the list of sanitizers in GRU4REC_FAST_SANITIZE: "thread", or any of "address" and "undefined".

    Raises ValueError for other values. docs/building.md describes how to run a sanitized library.
    """
    names = [name.strip() for name in environment.get(SANITIZE_VARIABLE, "").split(",") if name.strip()]
    if unknown := [name for name in names if name not in SANITIZERS]:
        raise ValueError(f"{SANITIZE_VARIABLE}: {unknown[0]} is none of {', '.join(SANITIZERS)}")
    if "thread" in names and len(names) > 1:
        raise ValueError(f"{SANITIZE_VARIABLE}={','.join(names)}: thread cannot be combined with others")
    return [name for name in SANITIZERS if name in names]


def compile_flags(environment: Mapping[str, str] = os.environ) -> tuple[list[str], list[str]]:
    """Return the flags of the C++ compiler, and the flags of the linker."""
    names = sanitizers(environment)
    if not names:
        return CXX_FLAGS + OPENMP_FLAGS, OPENMP_FLAGS
    sanitize = [f"-fsanitize={','.join(names)}"]
    flags = [flag for flag in CXX_FLAGS if flag not in ("-O3", "-g0")]
    if names == ["thread"]:
        return flags + SANITIZE_FLAGS + sanitize + OWN_THREADS_FLAGS, sanitize
    return flags + SANITIZE_FLAGS + sanitize + OPENMP_FLAGS, sanitize + OPENMP_FLAGS


def is_for_cuda(path: Path) -> bool:
    """Return whether a file of csrc/ is compiled for CUDA only."""
    return path.stem == "cuda" or path.suffix in {".cu", ".cuh"}


def sources(csrc: Path, cuda: bool) -> list[Path]:
    """Return the files to compile, in a fixed order; those of `operator_sources` are not among them."""
    files = [path for pattern in ("*.cpp", "*/*.cpp", "*/*.cu") for path in sorted(csrc.glob(pattern))]
    joined = operator_sources(csrc)
    return [path for path in files if path not in joined and (cuda or not is_for_cuda(path))]


def operator_sources(csrc: Path) -> list[Path]:
    """Return the files with the checks and registrations of the operators: <family>/<family>.cpp, and the schemas."""
    families = [path for path in sorted(csrc.glob("*/*.cpp")) if path.stem == path.parent.name]
    return [csrc / "schema.cpp", csrc / "common" / "every_operator.cpp", *families]


def join_sources(files: list[Path], folder: Path, name: str, n: int = 2) -> list[Path]:
    """Write `n` files NAME_<i>.cpp that include `files`, and return them.

    One of `files` takes about 15 s to compile, most of it for the headers of torch. One of two joined files takes 20 s.
    """
    joined = []
    for i in range(n):
        path = folder / f"{name}_{i}.cpp"
        path.write_text("".join(f'#include "{file.resolve()}"\n' for file in files[i::n]))
        joined.append(path)
    return joined


def library_identity(csrc: Path, torch_version: str, torch_cuda: str | None) -> dict[str, str]:
    """Return the versions and the hash of the sources and flags that a library depends on.

    A library must not be loaded if the identity in its record differs from the returned one.
    """
    files = [path for path in csrc.rglob("*") if torch_cuda or not is_for_cuda(path)]
    return identity_of(csrc, files, (compile_flags(), NVCC_FLAGS), torch_version, torch_cuda)


def identity_of(
    root: Path, files: list[Path], flags: object, torch_version: str, torch_cuda: str | None
) -> dict[str, str]:
    """Return the identity of a library that is compiled with `flags` from the C++ and CUDA files among `files`."""
    digest = hashlib.sha256(repr(flags).encode())
    for path in sorted(path for path in files if path.suffix in {".cpp", ".cu", ".cuh", ".h", ".inc"}):
        digest.update(f"\0{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return {
        "torch": torch_version,
        "torch_cuda": torch_cuda or "",
        "python": str(sysconfig.get_config_var("SOABI")),
        "platform": sysconfig.get_platform(),
        "sources": digest.hexdigest()[:16],
    }


def with_scripts(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return a copy of `environment` with the scripts of this interpreter at the end of PATH.

    The scripts include tools that pip installed, such as ninja. If the virtual environment is not activated, they are
    not on PATH.
    """
    path = [entry for entry in (environment.get("PATH"), sysconfig.get_path("scripts")) if entry]
    return {**environment, "PATH": os.pathsep.join(path)}


def missing_tool(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return why nothing can be compiled in this environment; None if there are a C++ compiler and ninja."""
    if not sys.platform.startswith(("linux", "darwin")):
        return f"kernels are compiled on Linux and macOS only, not on {sys.platform}"
    compiler = shlex.split(environment.get("CXX", "c++"))[0]
    path = with_scripts(environment)["PATH"]
    if shutil.which(compiler, path=path) is None:
        return f"there is no C++ compiler ({compiler} is not on PATH; install g++ or set CXX)"
    if shutil.which("ninja", path=path) is None:
        return "ninja is not on PATH (python -m pip install ninja)"
    return None


def cuda_home() -> Path | None:
    """Return the root of the CUDA toolkit: CUDA_HOME, or what nvcc (which may be a wrapper script) reports."""
    if folder := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return Path(folder) if (Path(folder) / "bin" / "nvcc").exists() else None
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return None
    output = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-E", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", output, re.MULTILINE)
    return Path(top[1]).resolve() if top else Path(nvcc).resolve().parents[1]


def cuda_obstacle(csrc: Path, torch_version: str, torch_cuda: str | None) -> str | None:
    """Return why CUDA kernels cannot be compiled, or None. Checks torch and nvcc; a GPU is not needed."""
    if torch_cuda is None:
        return f"torch {torch_version} is a build without CUDA"
    if not any(csrc.glob("*/cuda.cu")):
        return "this version has no CUDA kernels"
    home = cuda_home()
    if home is None:
        return f"there is no nvcc (torch was built with CUDA {torch_cuda}; install that toolkit or set CUDA_HOME)"
    version = subprocess.run([str(home / "bin" / "nvcc"), "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", version)
    if release is None or release[1] != torch_cuda.split(".")[0]:
        name = f"{release[1]}.{release[2]}" if release else "of an unknown version"
        return f"nvcc is {name} and torch was built with CUDA {torch_cuda}; their major versions must agree"
    return None


def build(csrc: Path, output: Path, mode: str, *, environment: Mapping[str, str] | None = None) -> Record:
    """Compile the library into the folder `output`, write its record and the log there, and return the record.

    `mode` is auto, cpu or cuda. If CUDA kernels cannot be compiled, auto compiles only CPU kernels. `environment`
    replaces os.environ for the compiling process. Raises BuildError.

    Keys of the record:
        identity: see `library_identity`.
        mode: the argument `mode`.
        cuda: whether CUDA kernels were compiled; after a failure, whether they should have been.
        cuda_why_not: the reason if there are no CUDA kernels.
        why_not, lasting: after a failure, the reason and `BuildError.lasting`.
    """
    output.mkdir(parents=True, exist_ok=True)
    environment = os.environ if environment is None else environment
    if reason := missing_tool(environment):
        raise BuildError(reason)
    command = [sys.executable, "-P", __file__, "--mode", mode, "--csrc", str(csrc.resolve()), "--output", str(output)]
    log = output / LOG
    with log.open("w") as stream:
        completed = subprocess.run(
            command,
            env=with_scripts(environment),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if completed.returncode == 0:
        return read_record(output)
    record = read_record(output) or {
        "why_not": f"the compiling process ended with code {completed.returncode}",
        "lasting": False,
    }
    if mode == "auto" and record.get("cuda"):
        cpu_record = build(csrc, output, "cpu", environment=environment)
        cpu_record |= {"mode": mode, "cuda_why_not": record["why_not"]}
        write_record(output, cpu_record)
        return cpu_record
    raise BuildError(record["why_not"], record["lasting"])


def read_record(folder: Path) -> Record:
    """Return the record of the library in a folder, or {} if there is none or it cannot be read."""
    try:
        return dict(json.loads((folder / RECORD).read_text()))
    except (OSError, ValueError):
        return {}


def write_record(folder: Path, record: Record) -> None:
    """Write the record of the library in a folder."""
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _compile(csrc: Path, output: Path, cuda: bool) -> None:
    """Compile and load the library with torch.utils.cpp_extension in this process."""
    from torch.utils import cpp_extension

    (output / "lock").unlink(missing_ok=True)  # the lock of cpp_extension: after a killed build it would block forever
    staged = [str(path) for path in join_sources(operator_sources(csrc), output, "operators")]
    for path in sources(csrc, cuda):
        # cpp_extension names object files by the name of the source without its folder, and many are called cpu.cpp.
        link = output / path.relative_to(csrc).as_posix().replace("/", "_")
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        staged.append(str(link))
    flags, link_flags = compile_flags()
    cpp_extension.load(
        name=LIBRARY.removesuffix(".so"),
        sources=staged,
        extra_cflags=flags + (["-DGRF_WITH_CUDA"] if cuda else []),
        extra_cuda_cflags=NVCC_FLAGS,
        extra_ldflags=link_flags,
        extra_include_paths=[str(csrc)],
        build_directory=str(output),
        with_cuda=cuda,
        verbose=True,
    )


def first_error(text: str) -> str:
    """Return the line of the output of a failed build that gives the reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line or "undefined " in line]
    return (errors or lines[-1:] or ["no output"])[0]


def main() -> int:
    """Compile the library in this process, write its record, and return the exit code. `build` starts this."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--csrc", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    csrc, output, mode = arguments.csrc, arguments.output, arguments.mode

    # LD_PRELOAD holds a sanitizer's runtime. This process needs the runtime to load the library; the compiler must not
    # be started with it.
    if sanitizers():
        os.environ.pop("LD_PRELOAD", None)
    import torch

    version, torch_cuda = str(torch.__version__), torch.version.cuda
    obstacle = "left out on request" if mode == "cpu" else cuda_obstacle(csrc, version, torch_cuda)
    record: Record = {"identity": library_identity(csrc, version, torch_cuda), "mode": mode, "cuda": obstacle is None}
    if mode == "cuda" and obstacle:
        write_record(output, record | {"why_not": f"CUDA kernels were requested, but {obstacle}", "lasting": False})
        return 1
    if obstacle is None:
        os.environ["CUDA_HOME"] = str(cuda_home())
        # By default cpp_extension compiles for the GPUs of this host; compile for those that torch was built for.
        architectures = re.findall(r"sm_(\d+)(\d)\b", torch._C._cuda_getArchFlags() or "")
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(f"{a}.{b}" for a, b in architectures) + "+PTX")
    else:
        record["cuda_why_not"] = obstacle
    try:
        _compile(csrc, output, cuda=obstacle is None)
    except ImportError as error:
        reason = f"the compiled library or torch's build tools do not load: {error}"
        write_record(output, record | {"why_not": reason, "lasting": False})
        raise
    except Exception:
        # An error in the sources is lasting; a full disk or a compiler killed for lack of memory is not. Only the text
        # tells them apart: the exit codes of compiler and ninja, and the exception of cpp_extension, are the same.
        reason = first_error((output / LOG).read_text(errors="replace"))
        lasting = "error:" in reason and not re.search("No space left|Killed|memory", reason)
        write_record(output, record | {"why_not": f"compiling failed: {reason}", "lasting": lasting})
        raise
    write_record(output, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
