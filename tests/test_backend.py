"""Choice of an implementation (reference, native, emulated), warnings about fallbacks, and build_info."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gru4rec_fast
from gru4rec_fast import _backend, _build, _compile


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> str:
    """Simulate a process without a native library; return the reason that `build_info` will name."""
    reason = "there is no C++ compiler"
    monkeypatch.delenv(_compile.MODE_VARIABLE, raising=False)
    for name, value in {
        "_native": None,
        "_library": None,
        "_why_not": reason,
        "_resolved": {},
        "_announced": set(),
    }.items():
        monkeypatch.setattr(_backend, name, value)
    return reason


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter with the same sys.path and additional environment variables."""
    code = f"import sys; sys.path[:] = {sys.path!r}\n" + code
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_unknown_impl_is_an_error() -> None:
    with pytest.raises(ValueError, match="impl='fast': choose one of 'auto', 'native', 'reference'"):
        _backend.resolve("fast", "target_rank", "cpu")


def test_registered_implementation_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(op: str, device_type: str) -> None:
        if device_type != "cpu":
            raise RuntimeError(f"{op} does not run on {device_type}")

    monkeypatch.setattr(_backend, "_registered", {})
    monkeypatch.setattr(_backend, "_resolved", {})
    with pytest.raises(ValueError, match=r"choose one of 'auto', 'native', 'reference'$"):
        _backend.resolve("emulated", "gru", "cpu")
    _backend.register_implementation("emulated", prepare)
    assert _backend.resolve("emulated", "gru", "cpu") == "emulated"
    with pytest.raises(RuntimeError, match="gru does not run on cuda"):
        _backend.resolve("emulated", "gru", "cuda")


def test_reference_does_not_load_the_library(no_library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "load", lambda: pytest.fail("the native library was loaded"))
    assert _backend.resolve("reference", "target_rank", "cpu") == "reference"


def test_native_without_library_is_an_error_with_the_reason(no_library: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"impl='native': {no_library}")):
        _backend.resolve("native", "target_rank", "cpu")


def test_fallback_is_logged_once_with_the_reason(no_library: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="gru4rec_fast"):
        assert _backend.resolve("auto", "target_rank", "cpu") == "reference"
        assert _backend.resolve("auto", "top_k", "cpu") == "reference"
    (message,) = [record.getMessage() for record in caplog.records]
    assert no_library in message and "\n" not in message


def test_fallback_is_not_logged_if_build_mode_is_none(
    no_library: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(_compile.MODE_VARIABLE, "none")
    with caplog.at_level(logging.WARNING, logger="gru4rec_fast"):
        assert _backend.resolve("auto", "target_rank", "cpu") == "reference"
    assert not caplog.records


def test_build_info_without_the_library(no_library: str) -> None:
    info = gru4rec_fast.build_info()
    assert info["how"] == "none" and info["why_not"] == no_library == info["why_not_cuda"]
    assert not info["native_cpu"] and not info["native_cuda"] and info["kernels"] == {}


def test_user_without_a_home_folder_runs_the_reference(
    no_library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container, the user id may have no home folder."""

    def getpwuid(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME", _build.CACHE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", getpwuid)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "schema.cpp").touch()
    monkeypatch.setattr(_build, "PACKAGE", tmp_path)
    monkeypatch.setattr(_backend, "_why_not", None)
    why_not = gru4rec_fast.build_info()["why_not"]
    assert why_not == "this user has no home folder to compile kernels into; set GRU4REC_FAST_CACHE"
    monkeypatch.setenv(_build.CACHE_VARIABLE, str(tmp_path / "cache"))
    assert _build.cache_folder() == tmp_path / "cache"


def test_tools_next_to_the_interpreter_are_found_without_activating_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, tool in (("bin", "c++"), ("scripts", "ninja")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / tool).touch(0o755)
    monkeypatch.setattr(_compile.sysconfig, "get_path", lambda _: str(tmp_path / "scripts"))
    assert _compile.missing_tool({"PATH": str(tmp_path / "bin")}) is None
    assert "there is no C++ compiler" in str(_compile.missing_tool({"PATH": ""}))
    (tmp_path / "scripts" / "ninja").unlink()
    assert "ninja is not on PATH" in str(_compile.missing_tool({"PATH": str(tmp_path / "bin")}))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", []), ("thread", ["thread"]), ("undefined, address", ["address", "undefined"]), ("undefined", ["undefined"])],
)
def test_sanitizers_are_parsed_and_sorted(value: str, expected: list[str]) -> None:
    assert _compile.sanitizers({_compile.SANITIZE_VARIABLE: value}) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [("memory", "memory is none of address"), ("address,thread", "thread cannot be combined with others")],
)
def test_unknown_sanitizers_are_an_error(value: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"{_compile.SANITIZE_VARIABLE}.*{message}"):
        _compile.sanitizers({_compile.SANITIZE_VARIABLE: value})


def test_sanitizers_change_the_identity_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = []
    for value in ("", "undefined", "address,undefined", "thread"):
        monkeypatch.setenv(_compile.SANITIZE_VARIABLE, value)
        hashes.append(_compile.library_identity(_build.source_folder(), "2.13.0", None)["sources"])
    assert len({*hashes}) == len(hashes)


def test_build_info_keys_do_not_depend_on_the_build(no_library: str, request: pytest.FixtureRequest) -> None:
    keys_without_library = set(gru4rec_fast.build_info())
    documented = (gru4rec_fast._backend.build_info.__doc__ or "").split("Keys:")[1]
    assert all(key in documented for key in keys_without_library)
    request.getfixturevalue("monkeypatch").undo()  # ends the simulation of the fixture no_library
    info = gru4rec_fast.build_info()
    assert set(info) == keys_without_library
    assert json.loads(json.dumps(info)) == info


@pytest.mark.parametrize(("required", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_native_library_fixture_skips_or_fails_if_required(
    no_library: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, required: str, outcome: type
) -> None:
    monkeypatch.setenv("GRU4REC_FAST_REQUIRE_NATIVE", required)
    with pytest.raises(outcome, match=re.escape(no_library)):
        request.getfixturevalue("native_library")


def test_library_was_built_for_this_torch(native_library: None) -> None:
    info = gru4rec_fast.build_info()
    assert info["native_cpu"] and info["why_not"] is None
    assert info["built_for_torch"] == info["torch"] == torch.__version__
    assert info["how"] in ("ahead of time", "at first use") and Path(info["library"]).exists()
    assert info["kernels"]["target_rank"][0] == "cpu" and info["kernels"]["session_batch"][0] == "cpu"


@pytest.fixture
def library_with_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a process whose library has two operators, one of which has a CPU kernel."""
    record = {"cuda_why_not": "this version has no CUDA kernels"}
    for name, value in {
        "_library": _build.Library(Path("_C.so"), "ahead of time", record),
        "_resolved": {},
        "_announced": set(),
        "load": lambda: True,
        "kernels": lambda: {"target_rank": ["cpu"], "gru": []},
    }.items():
        monkeypatch.setattr(_backend, name, value)
    monkeypatch.delenv("GRU4REC_FAST_BUILD", raising=False)  # with "none", fallbacks are not logged


def test_fallback_of_a_single_operator_is_not_logged(
    library_with_one_kernel: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert _backend.resolve("auto", "target_rank", "cpu") == "native"
    assert _backend.resolve("auto", "gru", "cpu") == "reference"
    with pytest.raises(RuntimeError, match="operator gru has no native kernel on cpu"):
        _backend.resolve("native", "gru", "cpu")
    with pytest.raises(KeyError):
        _backend.resolve("auto", "no_such_operator", "cpu")
    assert not caplog.records


def test_device_without_kernels_is_logged_once_with_the_reason(
    library_with_one_kernel: None, caplog: pytest.LogCaptureFixture
) -> None:
    for device_type in ("cuda", "mps"):
        for op in ("target_rank", "gru"):
            assert _backend.resolve("auto", op, device_type) == "reference"
            assert _backend.resolve("reference", op, device_type) == "reference"
    assert [record.getMessage() for record in caplog.records] == [
        "gru4rec_fast: running the pure-PyTorch reference on cuda, without native kernels: "
        "this version has no CUDA kernels",
        "gru4rec_fast: running the pure-PyTorch reference on mps, without native kernels: there are none for mps",
    ]


@pytest.mark.parametrize("threads", [1, 2])
def test_kernels_run_on_as_many_threads_as_torch(native_library: None, threads: int) -> None:
    """A library compiled without OpenMP would return 1 for any number of threads of torch."""
    previous = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert gru4rec_fast.build_info()["threads"] == threads
    finally:
        torch.set_num_threads(previous)


LEVELS = ("baseline", "avx2", "avx512")  # instruction sets, from the smallest to the largest
PRINT_RANKS = """
import json, torch, gru4rec_fast
from gru4rec_fast import ops
integers = lambda *shape: torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(len(shape))).float()
greater, equal = ops.target_rank(integers(7, 33), integers(1001, 33), None, torch.arange(7), impl="native")
print(json.dumps([gru4rec_fast.build_info()["simd"], greater.tolist(), equal.tolist()]))
"""


def test_every_instruction_set_gives_the_same_ranks(native_library: None) -> None:
    """The scores are sums of integers, which are exact in any order, so the counts must be equal."""
    widest = gru4rec_fast.build_info()["simd_detected"]
    ranks = {}
    for level in LEVELS[: LEVELS.index(widest) + 1]:
        result = run_python(PRINT_RANKS, GRU4REC_FAST_SIMD=level)
        assert result.returncode == 0, result.stderr
        used_level, *ranks[level] = json.loads(result.stdout)
        assert used_level == level
    assert all(ranks_of_level == ranks["baseline"] for ranks_of_level in ranks.values())


def test_unknown_instruction_set_is_an_error(native_library: None) -> None:
    result = run_python(PRINT_RANKS, GRU4REC_FAST_SIMD="sse9")
    assert result.returncode != 0
    assert "GRU4REC_FAST_SIMD=sse9: choose one of baseline, avx2, avx512" in result.stderr


def test_torch_compile_may_load_the_library_while_tracing(native_library: None) -> None:
    """The first call of `resolve` loads the library; it does not break the graph."""
    code = """
import torch
from gru4rec_fast import _backend
double = lambda x: x * 2 if _backend.resolve("auto", "top_k", "cpu") == "native" else x
step = torch.compile(double, fullgraph=True, backend="eager")
assert step(torch.ones(2)).tolist() == [2.0, 2.0]
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_unknown_build_mode_is_an_error() -> None:
    result = run_python("import gru4rec_fast; gru4rec_fast.build_info()", GRU4REC_FAST_BUILD="fast")
    assert result.returncode != 0
    assert "GRU4REC_FAST_BUILD=fast: choose one of auto, none, cpu, cuda" in result.stderr


def test_build_mode_cuda_with_torch_for_the_cpu_is_an_error() -> None:
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA")
    result = run_python("import gru4rec_fast; gru4rec_fast.build_info()", GRU4REC_FAST_BUILD="cuda")
    assert result.returncode != 0
    error = result.stderr.splitlines()[-1]  # may begin with: the installed library does not fit
    assert "GRU4REC_FAST_BUILD=cuda: " in error
    assert f"CUDA kernels were requested, but torch {torch.__version__} is a build without CUDA" in error


def test_error_of_an_operator_has_the_reason_why_native_is_missing() -> None:
    code = """
import torch
from gru4rec_fast import ops
ops.target_rank(torch.ones(1, 2), torch.ones(3, 2), None, torch.zeros(1, dtype=torch.int64), impl="native")
"""
    result = run_python(code, GRU4REC_FAST_BUILD="none")
    assert result.returncode != 0
    assert "impl='native': GRU4REC_FAST_BUILD=none in the environment" in result.stderr


@pytest.mark.parametrize(("torch_cuda", "n_lines"), [("13.0", 2), (None, 1)])
def test_compilation_at_first_use_prints_why_there_are_no_cuda_kernels(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    torch_cuda: str | None,
    n_lines: int,
) -> None:
    """The second line has the reason. There is no second line if torch is built without CUDA."""
    record = {"mode": "auto", "cuda": False, "cuda_why_not": "nvcc is not there"}

    def build(folder: Path) -> _compile.Record:
        (folder / "lib.so").touch()
        (folder / _compile.LOG).touch()
        _compile.write_record(folder, record)
        return record

    monkeypatch.setenv(_build.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(_compile, "missing_tool", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    assert _build.compile_once({}, "auto", "lib.so", build, "kernels").path.exists()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == n_lines
    assert torch_cuda is None or lines[1] == "gru4rec_fast: no CUDA kernels: nvcc is not there"


def test_a_damaged_library_in_the_cache_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    builds: list[Path] = []

    def build(folder: Path) -> _compile.Record:
        builds.append(folder)
        (folder / "lib.so").write_bytes(b"library" * 10_000)
        (folder / _compile.LOG).touch()
        _compile.write_record(folder, {"mode": "cpu"})
        return {"mode": "cpu"}

    def find() -> Path:
        return _build.compile_once({}, "cpu", "lib.so", build, "kernels").path

    monkeypatch.setenv(_build.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(_compile, "missing_tool", lambda: None)
    content = find().read_bytes()
    assert find().read_bytes() == content and len(builds) == 1
    for damaged in (content[:-1], b"", b"\0" * len(content), content[:30_000] + b"\0" + content[30_001:]):
        find().write_bytes(damaged)
        assert find().read_bytes() == content, "a damaged library would be loaded"
        assert "is damaged" in capsys.readouterr().err
    assert len(builds) == 5
    (find().parent / _compile.RECORD).write_text("{")  # then the library cannot be checked
    find()
    assert len(builds) == 6 and not list(tmp_path.glob("*.partial-*"))


def test_cpu_kernels_are_compiled_if_cuda_kernels_do_not_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds for build mode "auto" only. `run_compilation` replaces the process that compiles."""

    def run_compilation(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        mode = command[command.index("--mode") + 1]
        failure = {"mode": mode, "cuda": True, "why_not": "compiling failed: error: in a kernel", "lasting": True}
        success = {"mode": mode, "cuda": False, "cuda_why_not": "left out on request"}
        _compile.write_record(tmp_path, success if mode == "cpu" else failure)
        return subprocess.CompletedProcess(command, 0 if mode == "cpu" else 1)

    monkeypatch.setattr(_compile, "missing_tool", lambda _: None)
    monkeypatch.setattr(_compile.subprocess, "run", run_compilation)
    record = _compile.build(tmp_path, tmp_path, "auto")
    assert record == {"mode": "auto", "cuda": False, "cuda_why_not": "compiling failed: error: in a kernel"}
    assert _compile.read_record(tmp_path) == record
    with pytest.raises(_compile.BuildError, match="in a kernel"):
        _compile.build(tmp_path, tmp_path, "cuda")
