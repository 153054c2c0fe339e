"""Compile csrc/ against the torch of the target environment; all other settings are in pyproject.toml.

Values of the environment variable GRU4REC_FAST_BUILD (see docs/building.md):
- auto, the default: compile kernels if torch and a compiler are there, else install pure Python and print the reason;
- none: compile nothing;
- cpu or cuda: compile these kernels, or fail with the reason.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

spec = importlib.util.spec_from_file_location("_compile", ROOT / "gru4rec_fast" / "_compile.py")
assert spec is not None and spec.loader is not None
compiling = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compiling)


def log(line: str) -> None:
    print(f"gru4rec_fast: {line}", file=sys.stderr, flush=True)


def environment_with_torch() -> dict[str, str] | None:
    """Return the environment variables with which this interpreter finds torch, or None if it does not find torch.

    In an isolated build, pip runs the interpreter of the target environment and hides the packages of that environment
    by PYTHONPATH. A process without PYTHONPATH finds them, so kernels are compiled against the torch that will be used.
    """
    current = dict(os.environ)
    outside_isolation = {name: value for name, value in current.items() if name != "PYTHONPATH"}
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    for environment in (current, outside_isolation):
        if subprocess.run([sys.executable, "-P", "-c", probe], env=environment, check=False).returncode == 0:
            return environment
    return None


class KernelDistribution(Distribution):
    """Decides whether kernels are compiled; a wheel without kernels is tagged as pure Python."""

    def __init__(self, *arguments: object, **keywords: object) -> None:
        super().__init__(*arguments, **keywords)
        mode = compiling.build_mode()
        self.mode = mode or "auto"
        self.environment = environment_with_torch() if self.mode != "none" else None
        self.why_not = None  # why no kernels are compiled; None if they are
        if self.mode == "none":
            self.why_not = f"{compiling.MODE_VARIABLE}=none"
        elif self.environment is None:
            self.why_not = f"torch is not installed for {sys.executable}"
        else:
            self.why_not = compiling.missing_tool()

    def has_ext_modules(self) -> bool:
        return self.why_not is None


class BuildPython(build_py):
    """Copies the Python files. If no kernels will be compiled, writes the reason to the build record."""

    def run(self) -> None:
        super().run()
        distribution = self.distribution
        target = ROOT / "gru4rec_fast" if self.editable_mode else Path(self.build_lib) / "gru4rec_fast"
        for path in [*target.glob("_C*.so"), target / compiling.RECORD]:  # files of an earlier build
            path.unlink(missing_ok=True)
        if distribution.why_not is None:
            return
        if distribution.mode in ("cpu", "cuda"):
            raise SystemExit(f"{compiling.MODE_VARIABLE}={distribution.mode}: {distribution.why_not}")
        note = "" if distribution.mode == "none" else "; they will be compiled at first use if that is possible"
        log(f"installing without native kernels: {distribution.why_not}{note}")
        target.mkdir(parents=True, exist_ok=True)
        compiling.write_record(target, {"mode": distribution.mode, "why_not": distribution.why_not})


class BuildKernels(build_ext):
    """Compiles the extension module by gru4rec_fast/_compile.py, and writes the build record to the same folder."""

    def run(self) -> None:
        in_place = self.inplace or self.editable_mode
        target = ROOT / "gru4rec_fast" if in_place else Path(self.build_lib) / "gru4rec_fast"
        # setuptools gives an editable install a temporary build_temp. In a folder that stays, ninja compiles only what
        # has changed since the last install.
        temporary = ROOT / "build" / "editable" if in_place else Path(self.build_temp)
        work = temporary.resolve() / "kernels"
        mode = self.distribution.mode
        try:
            record = compiling.build(CSRC, work, mode, environment=self.distribution.environment)
        except compiling.BuildError as error:
            print((work / compiling.LOG).read_text() if (work / compiling.LOG).exists() else "", file=sys.stderr)
            if mode != "auto":
                raise SystemExit(f"{compiling.MODE_VARIABLE}={mode}: {error}") from error
            log(f"installing without native kernels: {error}")
            compiling.write_record(target, {"mode": mode, "why_not": str(error)})
            return
        if reason := record.get("cuda_why_not"):
            log(f"no CUDA kernels: {reason}")
        shutil.copy2(work / compiling.LIBRARY, target / Path(self.get_ext_filename("_C")).name)
        compiling.write_record(target, record)

    def get_outputs(self) -> list[str]:
        return []  # nothing to add: the wheel contains the whole folder, and an editable install is built in place

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(
    distclass=KernelDistribution,
    packages=[*find_packages(include=["gru4rec_fast", "gru4rec_fast.*"]), "gru4rec_fast.csrc"],
    package_dir={"gru4rec_fast.csrc": "csrc"},
    package_data={"gru4rec_fast": ["py.typed"], "gru4rec_fast.csrc": ["*.cpp", "*.h", "*/*"]},
    include_package_data=False,
    ext_modules=[Extension("gru4rec_fast._C", [])],
    cmdclass={"build_py": BuildPython, "build_ext": BuildKernels},
)
