"""Define the stages of call A and call B, the two benchmark sessions on a GPU machine; call.py runs the stages.

A stage is a process with a time limit: it measures one row, runs one diagnostic (diagnostics.py) or runs some tests. A
row of the results table compares this package with other implementations at one workload. This module needs the
standard library only.
"""

from __future__ import annotations

import ast
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpu.workloads import BF16, FP32, OURS, OURS_STEADY, TF32, WORKLOADS, RowName, row_names

ROOT = Path(__file__).resolve().parents[2]
RESULT_FILE = "{result_file}"  # placeholder in a command: the path of the JSON file that the stage writes
PYTHON = (sys.executable, "-P", "-W", "ignore")  # -P keeps the checkout off sys.path, -W hides warnings
PYTEST = (*PYTHON, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--tb=short")
LIBRARY = "library"  # name of the first stage of each call; it loads the native library
# Tests that take a minute or more: they compare many sizes with the reference implementation on the CPU.
LONG_TESTS = (
    "test_losses_are_as_close_as_the_reference",
    "test_losses_of_bfloat16_are_as_close_as_the_reference",
    "test_ngcf_layers_are_as_close_as_the_reference",
    "test_gru_is_as_close_as_the_reference",
)
OTHER_GPU_TESTS = ("tests/test_loader.py", "tests/test_memory_profiler.py")


@dataclass(frozen=True)
class Stage:
    """A process to run.

    limit: seconds after which the process is stopped. waits_for_start: after its imports, the process waits for a line
    on standard input before it uses the device (results.wait_for_device). fallback: a command to run if `command` fails
    without any results. must_print: the stage fails if the process does not print this text. interrupt: at the limit,
    the process gets SIGINT and some seconds to write results; without it, SIGKILL. exclusive: the stage measures the
    CPU, so no other process imports modules meanwhile.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    waits_for_start: bool = False
    fallback: tuple[str, ...] = ()
    must_print: str = ""
    interrupt: bool = False
    exclusive: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    def fallback_stage(self) -> Stage:
        """Return the stage that runs the command `fallback`, without this package's native kernels."""
        environment = self.environment | {"GRU4REC_FAST_BUILD": "none"}
        return Stage(f"{self.name}, again without ours", self.fallback, self.limit, environment=environment)


@dataclass(frozen=True)
class StageOptions:
    """Options of all stages.

    folder: written by prepare_folder.py. rehearsal: run on a CPU instead of a GPU, with small sizes. impl: in a
    rehearsal, the implementation of this package's operators.
    """

    folder: Path
    rehearsal: bool = False
    impl: str = "native"

    def seconds(self, limit: float) -> float:
        """Return the time limit of a stage; it is longer in a rehearsal, which may run on a busy machine."""
        return 5 * limit if self.rehearsal else limit

    @property
    def path(self) -> str:
        """Return PATH. In a rehearsal it starts with the scripts that replace ncu and compute-sanitizer."""
        path = os.environ.get("PATH", os.defpath)
        return f"{self.folder / 'bin'}{os.pathsep}{path}" if self.rehearsal else path

    @property
    def arguments(self) -> tuple[str, ...]:
        """Return the command-line arguments that all measuring processes get."""
        paths = ("--out", RESULT_FILE, "--folder", str(self.folder))
        return (*paths, "--device", "cpu", "--tiny", "--impl", self.impl) if self.rehearsal else paths


@dataclass(frozen=True)
class Group:
    """Stages that run with the same settings.

    n_parallel: number of stages that run in parallel. needs_library: the group is skipped if the native library does
    not load.
    """

    stages: tuple[Stage, ...]
    n_parallel: int = 1
    needs_library: bool = False


def call_a(options: StageOptions) -> Iterator[Group]:
    """Yield the groups of call A: library, tests, diagnostics, and rows in fp32, first the rows with a goal."""
    rows = [*row_names(("", FP32))]
    with_goals = [name for name in rows if WORKLOADS[name.workload].goals]
    yield Group((diagnostic_stage(options, LIBRARY, 150),))
    yield Group(tuple(gpu_test_stages(options, 40, everything=False)), n_parallel_tests(options), needs_library=True)
    yield Group(
        (
            diagnostic_stage(options, "latencies", 20),
            diagnostic_stage(options, "rates", 20),
            diagnostic_stage(options, "timeline", 25, "--setting", "xe-100"),
            diagnostic_stage(options, "timeline", 25, "--setting", "xe-480"),
            diagnostic_stage(options, "ncu", 40),
            row_stage(options, with_goals[0]),
            fused_step_stage(options),
            *(row_stage(options, name) for name in with_goals[1:]),
            *(row_stage(options, name) for name in rows if name not in with_goals),
        )
    )


def call_b(options: StageOptions) -> Iterator[Group]:
    """Yield the groups of call B: library, rows in TF32 and bf16, all tests, sanitizers, and a long training."""
    yield Group((diagnostic_stage(options, LIBRARY, 150), diagnostic_stage(options, "rates", 20)))
    yield Group(tuple(row_stage(options, name) for name in row_names((TF32, BF16))))
    yield Group(tuple(gpu_test_stages(options, 100, everything=True)), n_parallel_tests(options), needs_library=True)
    yield Group(tuple(sanitizer_stages(options, 60)), n_parallel_tests(options) // 2, needs_library=True)
    yield Group((training_stage(options, "ngcf_gowalla_b8192", 120),))


CALLS = {"A": call_a, "B": call_b}


def n_parallel_tests(options: StageOptions) -> int:
    """Return the number of tests that run in parallel; the GPU machine has 16 cores."""
    return 2 if options.rehearsal else 12


def diagnostic_stage(options: StageOptions, name: str, limit: float, *arguments: str) -> Stage:
    """Return the stage of a diagnostic. `arguments` are command-line options, each followed by its value."""
    stage_name = " ".join([name, *arguments[1::2]])
    command = (*PYTHON, "-m", "gpu.diagnostics", name, *arguments, *options.arguments)
    return Stage(stage_name, command, options.seconds(limit), waits_for_start=name != LIBRARY)


def fused_step_stage(options: StageOptions) -> Stage:
    """Return the stage that measures the fused training step on the CPU, with each thread bound to a core."""
    binding = {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}
    return replace(diagnostic_stage(options, "fused-step", 40), environment=binding, exclusive=True)


def row_stage(options: StageOptions, name: RowName) -> Stage:
    """Return the stage of a row. Its fallback measures the other implementations only."""
    command = (*PYTHON, "-m", "gpu.measure_row", str(name), *options.arguments)
    without_ours = ("--without", OURS, "--without", OURS_STEADY)
    limit = 75 if "loss" in name.workload else 45  # torch.compile, the baseline of the loss, takes half a minute
    return Stage(str(name), command, options.seconds(limit), waits_for_start=True, fallback=(*command, *without_ours))


def gpu_test_stages(options: StageOptions, limit: float, everything: bool) -> Iterator[Stage]:
    """Yield a stage for each kernel family (a folder of csrc), and one for each other function of tests/test_cuda.py.

    The tests of a family have the mark "sanitizer". everything: include LONG_TESTS, which start first, and the GPU
    tests of other files. In a rehearsal only every twelfth stage runs, and pytest skips all tests, since there is no
    GPU.
    """
    file = "tests/test_cuda.py"
    functions = functions_without_sanitizer_mark(ROOT / file)
    selections = {name: (f"{file}::{name}",) for name in LONG_TESTS if everything}  # pytest arguments by stage name
    selections |= {family: (file, "-m", "sanitizer", "-k", family) for family in kernel_families()}
    selections |= {name: (f"{file}::{name}",) for name in functions if name not in LONG_TESTS}
    if everything:
        selections |= {other: (other, "-k", "cuda or gpu") for other in OTHER_GPU_TESTS}
    for name, selection in [*selections.items()][:: 12 if options.rehearsal else 1]:
        yield Stage(
            f"tests {name}",
            (*PYTEST, *selection),
            options.seconds(limit),
            must_print=" skipped" if options.rehearsal else " passed",
            environment={"OMP_NUM_THREADS": "2"},  # many tests run in parallel and compute reference results on the CPU
        )


def kernel_families() -> list[str]:
    """Return the kernel families (folders of csrc) that have CUDA kernels."""
    return sorted(path.parent.name for path in ROOT.glob("csrc/*/cuda.cu"))


def uses_shared_memory(family: str) -> bool:
    """Return whether a kernel of the family declares shared memory, the only memory that racecheck checks."""
    texts = [path.read_text() for path in (ROOT / "csrc" / family).glob("*.cu*")]
    return any("GRF_SHARED" in text or "GRF_DYNAMIC_SHARED" in text for text in texts)


def functions_without_sanitizer_mark(path: Path) -> list[str]:
    """Return the names of the test functions of a file that lack the mark "sanitizer"."""
    return [
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and "sanitizer" not in [ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list]
    ]


def training_stage(options: StageOptions, name: str, limit: float) -> Stage:
    """Return the stage of a whole training. At its time limit it is interrupted and reports the finished epochs."""
    command = (*PYTHON, "-m", "gpu.training_runs", name, *options.arguments)
    return Stage(name, command, limit, interrupt=True)


def sanitizer_stages(options: StageOptions, limit: float) -> Iterator[Stage]:
    """Yield a stage for each kernel family and tool of compute-sanitizer, or none if compute-sanitizer is missing.

    Only this package's kernels (C++ namespace grf) are checked. torch's caching allocator is off, so that
    every tensor is a separate allocation and an access beyond its end is detected.
    """
    if shutil.which("compute-sanitizer", path=options.path) is None:
        return
    for tool in ("memcheck", "racecheck"):
        for family in kernel_families():
            if tool == "racecheck" and not uses_shared_memory(family):
                continue
            yield Stage(
                f"{tool} {family}",
                (
                    "compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no",
                    "--kernel-regex", "kns=grf", *PYTEST, "tests/test_cuda.py", "-m", "sanitizer", "-k", family,
                ),
                limit,
                must_print=" skipped" if options.rehearsal else " passed",
                environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )  # fmt: skip
