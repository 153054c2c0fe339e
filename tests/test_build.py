"""Installation and compilation of the package in temporary virtual environments, and use without a native library.

A .pth file makes packages of the current environment importable in the temporary one: all of them, with torch, or only
the build tools. All tests are offline except the test of pip's isolated build. They compile a copy of the checkout from
which the kernels are removed, which takes seconds (a minute with the operator that CONTRIBUTING.md shows). .ci/run
builds the whole package, with the commands of README.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import tarfile
import time
import venv
import zipfile
from pathlib import Path

import pytest
import torch

CHECKOUT = Path(__file__).resolve().parents[1]
PURELIB = Path(sysconfig.get_path("purelib"))
BUILD_TOOLS = ("setuptools", "setuptools-*.dist-info", "_distutils_hack", "pip")
INFO = "import json, gru4rec_fast; print(json.dumps(gru4rec_fast.build_info()))"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHECKOUT / "setup.py").exists(), reason="the tests are not in a checkout"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler here"),
]

Environment = dict[str, str]


class Installation:
    """A copy of the checkout without kernels, a virtual environment and a cache of compiled libraries, for one test."""

    def __init__(self, root: Path, *, with_torch: bool) -> None:
        self.checkout = root / "checkout"
        self.cache = root / "cache"
        self.home = root / "venv"
        ignored = ["__pycache__", "_C*.so", "_build_record.json", "build", "*.egg-info"]
        for name in ("csrc", "gru4rec_fast", "tools"):
            shutil.copytree(CHECKOUT / name, self.checkout / name, ignore=shutil.ignore_patterns(*ignored))
        for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
            shutil.copy2(CHECKOUT / name, self.checkout / name)
        self._remove_kernels(self.checkout / "csrc")
        venv.create(self.home, with_pip=False, symlinks=True)
        self.python = self.home / "bin" / "python"
        (site_packages,) = self.home.glob("lib/python*/site-packages")
        self.package = site_packages / "gru4rec_fast"
        visible = root / "visible"
        visible.mkdir()
        for pattern in ["*"] if with_torch else BUILD_TOOLS:
            for path in PURELIB.glob(pattern):
                if not path.name.startswith(("gru4rec_fast", "__editable__")):  # an installed gru4rec_fast stays hidden
                    (visible / path.name).symlink_to(path)
        (site_packages / "outer.pth").write_text(f"{visible}\n")

    @staticmethod
    def _remove_kernels(csrc: Path) -> None:
        """Remove the kernels from a checkout, and the bindings of classes that use them."""
        for path in csrc.glob("*/*.cpp"):
            if path.parent.name != "common":  # schema.cpp calls every_operator.cpp
                path.unlink()
        lines = (csrc / "bindings.cpp").read_text().splitlines(keepends=True)
        kept = [line for line in lines if "grf::bind_" not in line and "/bindings.h" not in line]
        (csrc / "bindings.cpp").write_text("".join(kept))

    def environment(self, **changes: str | None) -> Environment:
        """Return os.environ without variables that affect builds, updated by `changes` (None removes a variable)."""
        settings = {"PYTHONPATH": None, "GRU4REC_FAST_BUILD": None, "GRU4REC_FAST_CACHE": str(self.cache), "CXX": None}
        merged = os.environ | settings | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"} | changes
        return {name: value for name, value in merged.items() if value is not None}

    def run(self, *command: str | Path, **changes: str | None) -> subprocess.CompletedProcess[str]:
        """Run a command in this environment, with changed environment variables."""
        return subprocess.run(
            [str(part) for part in command],
            cwd=self.home,  # not the checkout, whose source tree would be importable
            env=self.environment(**changes),
            capture_output=True,
            text=True,
            check=False,
        )

    def install(self, *options: str, isolated: bool = False, **changes: str | None) -> subprocess.CompletedProcess[str]:
        """Run `pip install .` without dependencies."""
        if not isolated:
            options = ("--no-build-isolation", "--no-index", *options)
        return self.run(
            *(self.python, "-m", "pip", "install", "-v", "--no-deps", "--ignore-installed", *options, self.checkout),
            **changes,
        )

    def info(self, **changes: str | None) -> dict[str, object]:
        """Return `build_info()` of the installed package, from a new process."""
        result = self.run(self.python, "-c", INFO, **changes)
        assert result.returncode == 0, result.stderr
        return {**json.loads(result.stdout), "stderr": result.stderr}

    def from_checkout(self) -> dict[str, str]:
        """Return environment variables with which Python imports the package from the checkout, not installed."""
        return {"PYTHONPATH": str(self.checkout)}


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path, with_torch=True)


@pytest.fixture
def installation_without_torch(tmp_path: Path) -> Installation:
    return Installation(tmp_path, with_torch=False)


def path_without_compiler(folder: Path) -> str:
    """Create a folder with a shell and ninja but no compiler, and return it as a value of PATH."""
    folder.mkdir()
    for tool in ("sh", "env", "ninja"):
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    return str(folder)


def test_pip_install_compiles_against_the_installed_torch(installation: Installation) -> None:
    """pip builds in isolation: it downloads setuptools and ninja from the package index."""
    result = installation.install(isolated=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Collecting torch" not in result.stdout
    info = installation.info()
    assert info["how"] == "ahead of time" and info["native_cpu"] is True
    assert info["built_for_torch"] == torch.__version__
    assert str(info["library"]).startswith(str(installation.package))
    assert not installation.cache.exists() and "compiling" not in str(info["stderr"])


def test_kernels_are_compiled_again_after_an_upgrade_of_torch(installation: Installation) -> None:
    result = installation.install()
    assert result.returncode == 0, result.stdout + result.stderr
    # From setup.py: torch is a build without CUDA, or there is no matching nvcc.
    assert "gru4rec_fast: no CUDA kernels: " in result.stdout + result.stderr
    assert installation.info()["how"] == "ahead of time"

    record_file = installation.package / "_build_record.json"
    record = json.loads(record_file.read_text())
    record["identity"]["torch"] = "2.10.0"  # as if torch had been upgraded after the build
    record_file.write_text(json.dumps(record))
    (library,) = installation.package.glob("_C*.so")
    library.write_bytes(b"loading this would fail: not a library")
    no_compiler = installation.info(PATH=path_without_compiler(installation.home / "tools"))
    assert no_compiler["how"] == "none"
    assert (
        f"built for torch 2.10.0 and this is torch {torch.__version__}, and there is no C++" in no_compiler["why_not"]
    )  # type: ignore[operator]

    rebuilt = installation.info()
    assert rebuilt["how"] == "at first use" and rebuilt["built_for_torch"] == torch.__version__
    (line,) = [line for line in str(rebuilt["stderr"]).splitlines() if "gru4rec_fast:" in line]
    assert "built for torch 2.10.0" in line and "compiling the native kernels once" in line


def test_library_without_a_record_is_not_loaded(installation: Installation) -> None:
    (installation.checkout / "gru4rec_fast" / "_C.so").write_bytes(b"not a library")
    info = installation.info(**installation.from_checkout(), PATH=path_without_compiler(installation.home / "tools"))
    assert "no record of the torch they were built for" in info["why_not"]  # type: ignore[operator]


def test_mode_none_installs_pure_python_and_never_compiles(installation: Installation) -> None:
    result = installation.install(GRU4REC_FAST_BUILD="none")
    assert result.returncode == 0, result.stdout + result.stderr
    assert not list(installation.package.glob("_C*"))
    info = installation.info()
    assert info["how"] == "none" and "GRU4REC_FAST_BUILD=none when this package was installed" in info["why_not"]  # type: ignore[operator]
    assert not installation.cache.exists()
    pip_wheel = (installation.python, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    wheel = installation.run(*pip_wheel, "-w", installation.home, installation.checkout, GRU4REC_FAST_BUILD="none")
    assert wheel.returncode == 0, wheel.stderr
    (file,) = installation.home.glob("*.whl")
    assert file.name.endswith("-py3-none-any.whl")


@pytest.mark.parametrize(
    ("mode", "has_compiler", "reason"),
    [
        ("cpu", False, "GRU4REC_FAST_BUILD=cpu: there is no C++ compiler"),
        ("cuda", True, "GRU4REC_FAST_BUILD=cuda: CUDA kernels were requested, but torch"),
        ("fast", True, "GRU4REC_FAST_BUILD=fast: choose one of auto, none, cpu, cuda"),
    ],
)
def test_installation_fails_if_the_mode_is_not_possible(
    installation: Installation, mode: str, has_compiler: bool, reason: str
) -> None:
    if mode == "cuda" and torch.version.cuda is not None:
        pytest.skip("this torch has CUDA")
    path = os.environ["PATH"] if has_compiler else path_without_compiler(installation.home / "tools")
    result = installation.install(GRU4REC_FAST_BUILD=mode, PATH=path)
    assert result.returncode != 0
    assert reason in result.stdout + result.stderr
    assert not installation.package.exists()


def test_without_a_compiler_auto_installs_pure_python_with_a_message(installation: Installation) -> None:
    path = path_without_compiler(installation.home / "tools")
    result = installation.install(PATH=path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "gru4rec_fast: installing without native kernels: there is no C++ compiler" in result.stdout + result.stderr
    code = "from gru4rec_fast._backend import resolve; print(resolve('auto', 'top_k', 'cpu'))"
    used = installation.run(installation.python, "-c", code, PATH=path)
    assert used.stdout.strip() == "reference"
    (line,) = used.stderr.splitlines()
    assert "running the pure-PyTorch reference" in line and "no C++ compiler" in line
    failed = installation.run(installation.python, "-c", INFO, PATH=path, GRU4REC_FAST_BUILD="cpu")
    assert failed.returncode != 0 and "GRU4REC_FAST_BUILD=cpu: there is no C++ compiler" in failed.stderr


def test_package_installed_before_torch_compiles_at_first_use(installation_without_torch: Installation) -> None:
    installation = installation_without_torch
    result = installation.install()
    assert result.returncode == 0, result.stdout + result.stderr
    assert "installing without native kernels: torch is not installed" in result.stdout + result.stderr
    failed = installation.install(GRU4REC_FAST_BUILD="cpu")
    assert failed.returncode != 0
    assert "GRU4REC_FAST_BUILD=cpu: torch is not installed" in failed.stdout + failed.stderr

    # As if torch were installed now.
    (installation.package.parent / "torch_installed_later.pth").write_text(f"{PURELIB}\n")
    first = installation.info()
    assert first["how"] == "at first use" and str(first["library"]).startswith(str(installation.cache))
    assert str(first["stderr"]).count("compiling the native kernels once") == 1
    second = installation.info()
    assert second["library"] == first["library"] and second["stderr"] == ""


def test_ninja_next_to_the_interpreter_is_found(installation: Installation) -> None:
    """pip installs ninja into the folder of the interpreter, which need not be on PATH."""
    tools = installation.home / "tools"
    tools.mkdir()
    for folder in map(Path, os.environ["PATH"].split(os.pathsep)):
        for tool in folder.iterdir() if folder.is_dir() else ():
            if tool.name != "ninja" and not os.path.lexists(tools / tool.name):
                (tools / tool.name).symlink_to(tool)
    variables = {"PATH": str(tools), **installation.from_checkout()}
    assert "ninja is not on PATH" in str(installation.info(**variables)["why_not"])
    (installation.home / "bin" / "ninja").symlink_to(str(shutil.which("ninja")))
    assert installation.info(**variables)["how"] == "at first use"


def test_processes_that_start_together_compile_once(installation: Installation) -> None:
    processes = [
        subprocess.Popen(
            [installation.python, "-c", INFO],
            cwd=installation.home,
            env=installation.environment(**installation.from_checkout()),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    outputs = [process.communicate() for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    assert {json.loads(out)["library"] for out, _ in outputs} == {str(next(installation.cache.glob("*/_C.so")))}
    assert sum("compiling the native kernels once" in err for _, err in outputs) == 1
    assert not list(installation.cache.glob("*.partial-*"))


def test_killed_compilation_does_not_block_the_next_one(installation: Installation) -> None:
    killed = subprocess.Popen(
        [installation.python, "-c", INFO],
        cwd=installation.home,
        env=installation.environment(**installation.from_checkout()),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(installation.cache.glob("*.partial-*/*.d")):  # the compiler writes this file when it starts
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert list(installation.cache.glob("*.partial-*")) and not list(installation.cache.glob("*/_C.so"))
    info = installation.info(**installation.from_checkout())
    assert info["how"] == "at first use" and "waiting" not in str(info["stderr"])


def test_compile_error_is_stored_and_not_retried(installation: Installation) -> None:
    with (installation.checkout / "csrc" / "schema.cpp").open("a") as stream:
        stream.write("\nint broken = no_such_name;\n")
    first = installation.info(**installation.from_checkout())
    assert first["how"] == "none" and "compiling failed" in first["why_not"]  # type: ignore[operator]
    assert "no_such_name" in first["why_not"]  # type: ignore[operator]
    (log,) = installation.cache.glob("*.log")
    assert str(log) in first["why_not"] and "no_such_name" in log.read_text()  # type: ignore[operator]
    second = installation.info(**installation.from_checkout())
    assert second["how"] == "none" and "delete it to try again" in second["why_not"]  # type: ignore[operator]
    assert "compiling" not in str(second["stderr"])


def test_error_names_a_cache_that_cannot_be_written(installation: Installation) -> None:
    installation.cache.write_text("a file where the folder should be")
    info = installation.info(**installation.from_checkout())
    assert info["how"] == "none"
    assert str(installation.cache) in info["why_not"] and "GRU4REC_FAST_CACHE" in info["why_not"]  # type: ignore[operator]


def test_sdist_and_wheel_contain_the_sources(installation: Installation) -> None:
    """They contain all sources, so that kernels can be compiled at first use, and no compiled file."""
    code = "from setuptools import build_meta; build_meta.build_sdist('dist'); build_meta.build_wheel('dist')"
    environment = installation.environment(GRU4REC_FAST_BUILD="none")
    result = subprocess.run(
        [installation.python, "-c", code], cwd=installation.checkout, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    (sdist,) = (installation.checkout / "dist").glob("*.tar.gz")
    (wheel,) = (installation.checkout / "dist").glob("*.whl")
    csrc = installation.checkout / "csrc"
    names = {path.relative_to(csrc).as_posix() for path in csrc.rglob("*") if path.suffix in {".cpp", ".h", ".inc"}}
    assert names
    with tarfile.open(sdist) as archive:
        in_sdist = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    assert {f"csrc/{name}" for name in names} | {"LICENSE", "setup.py", "gru4rec_fast/_compile.py"} <= in_sdist
    assert {f"gru4rec_fast/csrc/{name}" for name in names} | {"gru4rec_fast/_compile.py"} <= in_wheel
    assert not [name for name in in_sdist | in_wheel if name.endswith(".so")]
    assert "tools/cuda_emulator/__init__.py" in in_sdist
    assert not [name for name in in_wheel if "emulat" in name]


def test_editable_installation_compiles_in_place(installation: Installation) -> None:
    result = installation.install("--editable")
    assert result.returncode == 0, result.stdout + result.stderr
    info = installation.info()
    assert info["how"] == "ahead of time"
    assert str(info["library"]).startswith(str(installation.checkout / "gru4rec_fast"))


def test_the_operator_in_contributing_runs(installation: Installation) -> None:
    """Add the operator's files and registrations to the copy of the checkout, and run its test."""
    page = (CHECKOUT / "CONTRIBUTING.md").read_text()
    files = re.findall(r"^```\w+\n(?://|#) (\S+\.(?:cpp|py))[^\n]*\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert [name for name, _ in files] == ["csrc/scale/scale.cpp", "gru4rec_fast/ops/scale.py", "tests/test_scale.py"]
    shutil.copytree(
        CHECKOUT / "tests", installation.checkout / "tests", ignore=shutil.ignore_patterns("test_*", "fuzz")
    )
    for name, content in files:
        path = installation.checkout / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    (definition,) = re.findall(r"`(m\.def\(\"scale.*?\);)`", page)
    schema = installation.checkout / "csrc" / "schema.cpp"
    head = "GRF_TORCH_LIBRARY(GRF_LIBRARY, m) {\n"
    schema.write_text(schema.read_text().replace(head, head + definition))
    with (installation.checkout / "gru4rec_fast" / "ops" / "__init__.py").open("a") as exports:
        exports.write("from gru4rec_fast.ops.scale import scale\n")
    result = installation.run(
        *(installation.python, "-m", "pytest", "-p", "no:cacheprovider", installation.checkout / "tests/test_scale.py"),
        **installation.from_checkout(),
        GRU4REC_FAST_REQUIRE_NATIVE="1",
    )
    assert "2 passed" in result.stdout, result.stdout + result.stderr
