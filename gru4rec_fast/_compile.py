"""What is compiled, with which flags and which tools. Run as a script, it compiles.

Both ways to a native library, `pip install` (setup.py) and the compile at first use (_build.py), go through `build`,
which runs this file in a process of its own, under the interpreter and the torch that the library is for. That process
also loads the new library once, so that one which does not load is never handed on, and the caller's registry of
operators stays clean.

Standard library only at module level: setup.py loads this file where neither torch nor gru4rec_fast can be imported.
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

# Value-preserving all of them: what torch itself is compiled with, and needed for comparisons to vectorize. No -march:
# common/simd.h picks the instruction set at run time.
CXX_FLAGS = ["-O3", "-std=c++20", "-DNDEBUG", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
NVCC_FLAGS = ["-O3", "-std=c++17", "-lineinfo", "--expt-relaxed-constexpr"]
# at::parallel_for is a header: compiled without OpenMP it runs serially and says nothing.
OPENMP_FLAGS = ["-fopenmp"] if sys.platform.startswith("linux") else []

SANITIZE_VARIABLE = "GRU4REC_FAST_SANITIZE"
SANITIZERS = ("address", "undefined", "thread")
SANITIZE_FLAGS = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-D_GLIBCXX_ASSERTIONS"]
# ThreadSanitizer does not see the barriers of an OpenMP runtime that is not instrumented, as torch's is not, and would
# report every loop: that build makes threads of its own.
THREADS_OF_ITS_OWN = ["-include", "common/parallel_on_threads.h", "-pthread"]

Record = dict[str, Any]


class BuildError(RuntimeError):
    """No native library could be made; the message is the reason, in one line.

    `lasting` is True where trying again with the same sources and tools gives the same result.
    """

    def __init__(self, reason: str, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


def build_mode(environment: Mapping[str, str] = os.environ) -> str | None:
    """What GRU4REC_FAST_BUILD asks for; None where it is not set. ValueError for an unknown value."""
    mode = environment.get(MODE_VARIABLE, "").strip()
    if mode and mode not in MODES:
        raise ValueError(f"{MODE_VARIABLE}={mode}: choose one of {', '.join(MODES)}")
    return mode or None


def sanitizers(environment: Mapping[str, str] = os.environ) -> list[str]:
    """What GRU4REC_FAST_SANITIZE asks for, in a fixed order: none, "thread", or "address", "undefined" or both.

    ValueError for anything else. docs/building.md says how a sanitized library is run.
    """
    asked = [name.strip() for name in environment.get(SANITIZE_VARIABLE, "").split(",") if name.strip()]
    if unknown := [name for name in asked if name not in SANITIZERS]:
        raise ValueError(f"{SANITIZE_VARIABLE}: {unknown[0]} is none of {', '.join(SANITIZERS)}")
    if "thread" in asked and len(asked) > 1:
        raise ValueError(f"{SANITIZE_VARIABLE}={','.join(asked)}: thread goes with no other")
    return [name for name in SANITIZERS if name in asked]


def compile_flags(environment: Mapping[str, str] = os.environ) -> tuple[list[str], list[str]]:
    """Flags for the C++ compiler, and those of them that the linker needs too."""
    asked = sanitizers(environment)
    if not asked:
        return CXX_FLAGS + OPENMP_FLAGS, OPENMP_FLAGS
    sanitize = [f"-fsanitize={','.join(asked)}"]
    kept = [flag for flag in CXX_FLAGS if flag not in ("-O3", "-g0")]
    if asked == ["thread"]:
        return kept + SANITIZE_FLAGS + sanitize + THREADS_OF_ITS_OWN, sanitize
    return kept + SANITIZE_FLAGS + sanitize + OPENMP_FLAGS, sanitize + OPENMP_FLAGS


def is_for_cuda(path: Path) -> bool:
    """Return whether a file of csrc/ is compiled for CUDA only."""
    return path.stem == "cuda" or path.suffix in {".cu", ".cuh"}


def sources(csrc: Path, cuda: bool) -> list[Path]:
    """The files to compile, in a fixed order."""
    found = [path for pattern in ("*.cpp", "*/*.cpp", "*/*.cu") for path in sorted(csrc.glob(pattern))]
    return [path for path in found if cuda or not is_for_cuda(path)]


def identity(csrc: Path, torch_version: str, torch_cuda: str | None) -> dict[str, str]:
    """What a library depends on: one whose recorded identity differs in any entry must not be loaded."""
    files = [path for path in csrc.rglob("*") if torch_cuda or not is_for_cuda(path)]
    return identity_of(csrc, files, (compile_flags(), NVCC_FLAGS, None), torch_version, torch_cuda)


def identity_of(
    root: Path, files: list[Path], flags: object, torch_version: str, torch_cuda: str | None
) -> dict[str, str]:
    """The identity of a library compiled with `flags` from those of `files` that are C++ or CUDA, below `root`."""
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
    """A copy of `environment` whose PATH ends with this interpreter's scripts: an environment that is not activated
    has the tools that pip installed there and nowhere else."""
    path = [entry for entry in (environment.get("PATH"), sysconfig.get_path("scripts")) if entry]
    return {**environment, "PATH": os.pathsep.join(path)}


def missing_tool(environment: Mapping[str, str] = os.environ) -> str | None:
    """Why nothing can be compiled in this environment; None where a C++ compiler and ninja are there."""
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
    """Root of the CUDA toolkit whose nvcc would run: by CUDA_HOME, or by asking nvcc, which may be a wrapper script."""
    if named := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return Path(named) if (Path(named) / "bin" / "nvcc").exists() else None
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return None
    plan = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-E", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    return Path(top[1]).resolve() if top else Path(nvcc).resolve().parents[1]


def cuda_obstacle(csrc: Path, torch_version: str, torch_cuda: str | None) -> str | None:
    """Why CUDA kernels cannot be compiled: decided by torch's build and nvcc, never by a GPU being visible here."""
    if torch_cuda is None:
        return f"torch {torch_version} is a build without CUDA"
    if not any(csrc.glob("*/cuda.cu")):
        return "this version has no CUDA kernels"
    home = cuda_home()
    if home is None:
        return f"nvcc is not there (torch was built with CUDA {torch_cuda}; install that toolkit or set CUDA_HOME)"
    answer = subprocess.run([str(home / "bin" / "nvcc"), "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", answer)
    if release is None or release[1] != torch_cuda.split(".")[0]:
        found = f"{release[1]}.{release[2]}" if release else "of an unknown version"
        return f"nvcc is {found} and torch was built with CUDA {torch_cuda}; their major versions must agree"
    return None


def build(csrc: Path, output: Path, mode: str, *, environment: Mapping[str, str] | None = None) -> Record:
    """Compile into the folder `output` (`LIBRARY`, `RECORD` and `LOG`) and return the record.

    `mode` is auto, cpu or cuda; auto leaves CUDA out, with the reason in the record, where it cannot be had.
    `environment` replaces os.environ for the compiling process. Raises BuildError.
    """
    output.mkdir(parents=True, exist_ok=True)
    environment = os.environ if environment is None else environment
    if reason := missing_tool(environment):
        raise BuildError(reason)
    command = [sys.executable, "-P", __file__, "--mode", mode, "--csrc", str(csrc.resolve()), "--output", str(output)]
    log = output / LOG
    with log.open("w") as stream:
        done = subprocess.run(
            command,
            env=with_scripts(environment),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode == 0:
        return read_record(output)
    answer = read_record(output) or {
        "why_not": f"the compiling process ended with code {done.returncode}",
        "lasting": False,
    }
    if mode == "auto" and answer.get("cuda"):
        record = build(csrc, output, "cpu", environment=environment) | {"mode": mode, "cuda_why_not": answer["why_not"]}
        write_record(output, record)
        return record
    raise BuildError(answer["why_not"], answer["lasting"])


def read_record(folder: Path) -> Record:
    """The record beside a library, {} where there is none or it cannot be read."""
    try:
        return dict(json.loads((folder / RECORD).read_text()))
    except (OSError, ValueError):
        return {}


def write_record(folder: Path, record: Record) -> None:
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _compile(csrc: Path, output: Path, cuda: bool) -> None:
    """Compile and load the library with torch.utils.cpp_extension, in this process."""
    from torch.utils import cpp_extension

    (output / "lock").unlink(missing_ok=True)  # cpp_extension's own: left by a killed build, it would block for ever
    staged = []
    for path in sources(csrc, cuda):
        # cpp_extension names objects by the file's last name alone, and every <k>/ has a cpu.cpp.
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
    """The line of a failed build's output that says why."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "error:" in line or "undefined " in line]
    return (telling or lines[-1:] or ["no output"])[0]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--csrc", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    csrc, output, mode = arguments.csrc, arguments.output, arguments.mode

    if sanitizers():  # whose runtime is preloaded, to load the library with; the compiler runs without
        os.environ.pop("LD_PRELOAD", None)
    import torch

    version, torch_cuda = str(torch.__version__), torch.version.cuda
    obstacle = "left out on request" if mode == "cpu" else cuda_obstacle(csrc, version, torch_cuda)
    record: Record = {"identity": identity(csrc, version, torch_cuda), "mode": mode, "cuda": obstacle is None}
    if mode == "cuda" and obstacle:
        write_record(output, record | {"why_not": f"CUDA kernels were asked for, but {obstacle}", "lasting": False})
        return 1
    if obstacle is None:
        os.environ["CUDA_HOME"] = str(cuda_home())
        # Unset, cpp_extension would compile for the GPUs it sees on this host; take those that torch was built for.
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
        # A compiler's error comes again with the same sources; a full disk or a killed compiler need not.
        reason = first_error((output / LOG).read_text(errors="replace"))
        lasting = "error:" in reason and not re.search("No space left|Killed|memory", reason)
        write_record(output, record | {"why_not": f"compiling failed: {reason}", "lasting": lasting})
        raise
    write_record(output, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
