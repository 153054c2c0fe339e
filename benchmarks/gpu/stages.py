"""The stages of the two calls; a stage is a process with a time limit. Standard library only."""

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
OUT = "{out}"  # placeholder in a command: the path of the JSON file that the stage writes
PYTHON = (sys.executable, "-P", "-W", "ignore")
PYTEST = (*PYTHON, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--tb=short")
LIBRARY = "library"  # the first stage of each call
# These tests compare many sizes with the reference on the processor, which takes a minute and more.
LONG_TESTS = (
    "test_losses_are_as_close_as_the_reference",
    "test_losses_of_bfloat16_are_as_close_as_the_reference",
    "test_ngcf_layers_are_as_close_as_the_reference",
    "test_gru_is_as_close_as_the_reference",
)
OTHER_GPU_TESTS = ("tests/test_loader.py", "tests/test_memory_record.py")


@dataclass(frozen=True)
class Stage:
    """A process to run.

    limit: seconds until it is stopped. waits: after its imports, the process waits for a line on standard input before
    it uses the device (results.wait_for_device). fallback: a command to run if this one fails without any figures.
    must_print: the stage fails if the process does not print this text. interrupt: at its limit the process gets SIGINT
    and some seconds to write its figures, instead of SIGKILL. exclusive: it measures the processor, so no other process
    imports meanwhile.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    waits: bool = False
    fallback: tuple[str, ...] = ()
    must_print: str = ""
    interrupt: bool = False
    exclusive: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    def second_try(self) -> Stage:
        """Return the stage to run after a failure: the command `fallback`, without native kernels."""
        environment = self.environment | {"GRU4REC_FAST_BUILD": "none"}
        return Stage(f"{self.name}, again without ours", self.fallback, self.limit, environment=environment)


@dataclass(frozen=True)
class StageOptions:
    """Options of all stages.

    folder: written by prepare_folder.py. stand_in: rehearse on a processor instead of a GPU, in small sizes, with the
    implementation `impl` of the operators.
    """

    folder: Path
    stand_in: bool = False
    impl: str = "native"

    def seconds(self, limit: float) -> float:
        """Return the time limit of a stage; it is longer in a rehearsal, which may run on a busy machine."""
        return 5 * limit if self.stand_in else limit

    @property
    def path(self) -> str:
        """Return PATH; in a rehearsal, the programs that replace GPU tools come first."""
        path = os.environ.get("PATH", os.defpath)
        return f"{self.folder / 'bin'}{os.pathsep}{path}" if self.stand_in else path

    @property
    def arguments(self) -> tuple[str, ...]:
        """Return the command-line arguments that all measuring processes get."""
        paths = ("--out", OUT, "--folder", str(self.folder))
        return (*paths, "--device", "cpu", "--tiny", "--impl", self.impl) if self.stand_in else paths


@dataclass(frozen=True)
class Group:
    """Stages that run together.

    at_once: number of stages that run in parallel. needs_library: skip the group if the native library does not load.
    """

    stages: tuple[Stage, ...]
    at_once: int = 1
    needs_library: bool = False


def call_a(options: StageOptions) -> Iterator[Group]:
    """Yield the groups of call A: the library, tests, facts, and the rows in fp32, the most important first."""
    rows = [*row_names(("", FP32))]
    with_goals = [name for name in rows if WORKLOADS[name.workload].goals]
    yield Group((fact(options, LIBRARY, 150),))
    yield Group(tuple(tests(options, 40, everything=False)), at_once(options), needs_library=True)
    yield Group(
        (
            fact(options, "latencies", 20),
            fact(options, "rates", 20),
            fact(options, "timeline", 25, "--setting", "xe-100"),
            fact(options, "timeline", 25, "--setting", "xe-480"),
            fact(options, "ncu", 40),
            row(options, with_goals[0]),
            cpu_engine(options),
            *(row(options, name) for name in with_goals[1:]),
            *(row(options, name) for name in rows if name not in with_goals),
        )
    )


def call_b(options: StageOptions) -> Iterator[Group]:
    """Yield the groups of call B: the other precisions, all tests, the sanitizers, and a long training."""
    yield Group((fact(options, LIBRARY, 150), fact(options, "rates", 20)))
    yield Group(tuple(row(options, name) for name in row_names((TF32, BF16))))
    yield Group(tuple(tests(options, 100, everything=True)), at_once(options), needs_library=True)
    yield Group(tuple(sanitizers(options, 60)), at_once(options) // 2, needs_library=True)
    yield Group((long_run(options, "ngcf_gowalla_b8192", 120),))


CALLS = {"A": call_a, "B": call_b}


def at_once(options: StageOptions) -> int:
    """Return the number of tests that run in parallel; the GPU machine has 16 cores."""
    return 2 if options.stand_in else 12


def fact(options: StageOptions, name: str, limit: float, *arguments: str) -> Stage:
    """Return the stage of a fact of diagnostics.py; `arguments` are pairs of an option and its value."""
    stage_name = " ".join([name, *arguments[1::2]])
    command = (*PYTHON, "-m", "gpu.diagnostics", name, *arguments, *options.arguments)
    return Stage(stage_name, command, options.seconds(limit), waits=name != LIBRARY)


def cpu_engine(options: StageOptions) -> Stage:
    """Return the stage that measures the CPU step, with each thread bound to a core."""
    binding = {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}
    return replace(fact(options, "cpu-engine", 40), environment=binding, exclusive=True)


def row(options: StageOptions, name: RowName) -> Stage:
    """Return the stage of a row; its fallback measures the other sides without this package's native kernels."""
    command = (*PYTHON, "-m", "gpu.measure_row", str(name), *options.arguments)
    without_ours = ("--without", OURS, "--without", OURS_STEADY)
    limit = 75 if "loss" in name.workload else 45  # torch.compile
    return Stage(str(name), command, options.seconds(limit), waits=True, fallback=(*command, *without_ours))


def tests(options: StageOptions, limit: float, everything: bool) -> Iterator[Stage]:
    """Yield a stage per kernel family (a folder of csrc), and one per other function of tests/test_cuda.py.

    everything: include the long tests, which start first, and the GPU tests of other files. A rehearsal runs every
    twelfth stage; pytest skips those tests, since there is no GPU. (test_benchmarks_gpu.py runs the families' cases
    under emulation.)
    """
    file = "tests/test_cuda.py"
    functions = functions_without_families(ROOT / file)
    arguments = {name: (f"{file}::{name}",) for name in LONG_TESTS if everything}
    arguments |= {family: (file, "-m", "sanitizer", "-k", family) for family in families()}
    arguments |= {name: (f"{file}::{name}",) for name in functions if name not in LONG_TESTS}
    if everything:
        arguments |= {other: (other, "-k", "cuda or gpu") for other in OTHER_GPU_TESTS}
    for name, selection in [*arguments.items()][:: 12 if options.stand_in else 1]:
        yield Stage(
            f"tests {name}",
            (*PYTEST, *selection),
            options.seconds(limit),
            must_print=" skipped" if options.stand_in else " passed",
            environment={"OMP_NUM_THREADS": "2"},  # many tests run in parallel and compute references on the processor
        )


def families() -> list[str]:
    """Return the kernel families with CUDA kernels."""
    return sorted(path.parent.name for path in ROOT.glob("csrc/*/cuda.cu"))


def uses_shared_memory(family: str) -> bool:
    """Return whether a kernel of the family declares shared memory; racecheck checks nothing else."""
    sources = [path.read_text() for path in (ROOT / "csrc" / family).glob("*.cu*")]
    return any("GRF_SHARED" in text or "GRF_DYNAMIC_SHARED" in text for text in sources)


def functions_without_families(path: Path) -> list[str]:
    """Return the test functions of a file without the mark "sanitizer"; those with it run per kernel family."""
    return [
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and "sanitizer" not in [ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list]
    ]


def long_run(options: StageOptions, name: str, limit: float) -> Stage:
    """Return the stage of a whole training; at its limit it is interrupted and reports the epochs until then."""
    command = (*PYTHON, "-m", "gpu.training_runs", name, *options.arguments)
    return Stage(name, command, limit, interrupt=True)


def sanitizers(options: StageOptions, limit: float) -> Iterator[Stage]:
    """Yield a stage per kernel family and check of compute-sanitizer; none if that program is missing.

    Only this package's kernels (namespace grf) are checked. torch's caching allocator is off, so that every tensor is a
    separate allocation and an access beyond it is detected.
    """
    if shutil.which("compute-sanitizer", path=options.path) is None:
        return
    for check in ("memcheck", "racecheck"):
        for family in families():
            if check == "racecheck" and not uses_shared_memory(family):
                continue
            yield Stage(
                f"{check} {family}",
                (
                    "compute-sanitizer", "--tool", check, "--error-exitcode", "9", "--report-api-errors", "no",
                    "--kernel-regex", "kns=grf", *PYTEST, "tests/test_cuda.py", "-m", "sanitizer", "-k", family,
                ),
                limit,
                must_print=" skipped" if options.stand_in else " passed",
                environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )  # fmt: skip
