"""What the two calls consist of: every stage is a process, with a time limit. Standard library only."""

from __future__ import annotations

import ast
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpu.targets import BF16, FP32, OURS, OURS_STEADY, TARGETS, TF32, RowName, row_names

ROOT = Path(__file__).resolve().parents[2]
OUT = "{out}"  # in a command: the JSON file that the stage writes
PYTHON = (sys.executable, "-P", "-W", "ignore")
PYTEST = (*PYTHON, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--tb=short")
LIBRARY = "library"  # the first stage of each call
# Tests of many sizes against the reference on the processor: they take a minute and more.
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

    limit: seconds it may take. waits: it imports, and then waits for a line on its standard input before it uses the
    device. otherwise: a command for the case that this one fails and leaves no figures. must_print: text without which
    an exit status of 0 is a failure. interrupt: past its limit it gets SIGINT and time to write what it has. alone: it
    needs the processor, so nothing imports meanwhile.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    waits: bool = False
    otherwise: tuple[str, ...] = ()
    must_print: str = ""
    interrupt: bool = False
    alone: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    def second_try(self) -> Stage:
        """Return the stage that follows a failure: `otherwise`, without native kernels."""
        environment = self.environment | {"GRU4REC_FAST_BUILD": "none"}
        return Stage(f"{self.name}, again without ours", self.otherwise, self.limit, environment=environment)


@dataclass(frozen=True)
class Setting:
    """Where the stages run. stand_in: on a processor, in small sizes, by the operators' implementation `impl`."""

    folder: Path
    stand_in: bool = False
    impl: str = "native"

    def seconds(self, limit: float) -> float:
        """Return the limit of a stage; the stand-in may be a busy machine with two cores."""
        return 5 * limit if self.stand_in else limit

    @property
    def path(self) -> str:
        """Return PATH; the stand-in's programs come first."""
        path = os.environ.get("PATH", os.defpath)
        return f"{self.folder / 'bin'}{os.pathsep}{path}" if self.stand_in else path

    @property
    def options(self) -> tuple[str, ...]:
        given = ("--out", OUT, "--folder", str(self.folder))
        return (*given, "--device", "cpu", "--tiny", "--impl", self.impl) if self.stand_in else given


@dataclass(frozen=True)
class Group:
    """Stages that run `at_once` at a time; `needs_library`: they are skipped where the native library does not load."""

    stages: tuple[Stage, ...]
    at_once: int = 1
    needs_library: bool = False


def call_a(where: Setting) -> Iterator[Group]:
    """Yield the first call: what there is, whether it is right, the facts, and the rows in fp32. Time may run out."""
    rows = [*row_names(("", FP32))]
    with_goals = [name for name in rows if TARGETS[name.target].goals]
    yield Group((fact(where, LIBRARY, 150),))
    yield Group(tuple(tests(where, 40, everything=False)), at_once(where), needs_library=True)
    yield Group(
        (
            fact(where, "latencies", 20),
            fact(where, "rates", 20),
            fact(where, "timeline", 25, "--setting", "xe-100"),
            fact(where, "timeline", 25, "--setting", "xe-480"),
            fact(where, "ncu", 40),
            row(where, with_goals[0]),
            cpu_engine(where),
            *(row(where, name) for name in with_goals[1:]),
            *(row(where, name) for name in rows if name not in with_goals),
        )
    )


def call_b(where: Setting) -> Iterator[Group]:
    """Yield the second call: the other precisions, all tests, the sanitizers, and a long run in what time is left."""
    yield Group((fact(where, LIBRARY, 150), fact(where, "rates", 20)))
    yield Group(tuple(row(where, name) for name in row_names((TF32, BF16))))
    yield Group(tuple(tests(where, 100, everything=True)), at_once(where), needs_library=True)
    yield Group(tuple(sanitizers(where, 60)), at_once(where) // 2, needs_library=True)
    yield Group((long_run(where, "ngcf_gowalla_b8192", 120),))


CALLS = {"A": call_a, "B": call_b}


def at_once(where: Setting) -> int:
    """Return how many stages of a group run together: the device machine has 16 cores."""
    return 2 if where.stand_in else 12


def fact(where: Setting, name: str, limit: float, *options: str) -> Stage:
    """Return the stage of a fact of facts.py."""
    shown = " ".join([name, *options[1::2]])
    command = (*PYTHON, "-m", "gpu.facts", name, *options, *where.options)
    return Stage(shown, command, where.seconds(limit), waits=name != LIBRARY)


def cpu_engine(where: Setting) -> Stage:
    """Return the stage that measures the CPU step, with each thread bound to a core."""
    bound = {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}
    return replace(fact(where, "cpu-engine", 40), environment=bound, alone=True)


def row(where: Setting, name: RowName) -> Stage:
    """Return the stage of a row; where it fails, the other sides are measured without native kernels of ours."""
    command = (*PYTHON, "-m", "gpu.measure_row", str(name), *where.options)
    without_ours = ("--without", OURS, "--without", OURS_STEADY)
    limit = 75 if "loss" in name.target else 45  # torch.compile
    return Stage(str(name), command, where.seconds(limit), waits=True, otherwise=(*command, *without_ours))


def tests(where: Setting, limit: float, everything: bool) -> Iterator[Stage]:
    """Yield a stage per family of kernels, and one per other function of tests/test_cuda.py.

    everything: the long ones, which start first, and the GPU tests of other files, too. The stand-in runs one of each
    kind, which pytest skips for want of a GPU; the families' cases run by the emulation in tests of their own.
    """
    file = "tests/test_cuda.py"
    functions = functions_without_families(ROOT / file)
    arguments = {name: (f"{file}::{name}",) for name in LONG_TESTS if everything}
    arguments |= {family: (file, "-m", "sanitizer", "-k", family) for family in families()}
    arguments |= {name: (f"{file}::{name}",) for name in functions if name not in LONG_TESTS}
    if everything:
        arguments |= {other: (other, "-k", "cuda or gpu") for other in OTHER_GPU_TESTS}
    for name, chosen in [*arguments.items()][:: 12 if where.stand_in else 1]:
        yield Stage(
            f"tests {name}",
            (*PYTEST, *chosen),
            where.seconds(limit),
            must_print=" skipped" if where.stand_in else " passed",
            environment={"OMP_NUM_THREADS": "2"},  # many run at once, with references on the processor
        )


def families() -> list[str]:
    """Return the families that have CUDA kernels."""
    return sorted(path.parent.name for path in ROOT.glob("csrc/*/cuda.cu"))


def uses_shared_memory(family: str) -> bool:
    """Return whether a kernel of the family declares shared memory, which is all that racecheck looks at."""
    sources = [path.read_text() for path in (ROOT / "csrc" / family).glob("*.cu*")]
    return any("GRF_SHARED" in text or "GRF_DYNAMIC_SHARED" in text for text in sources)


def functions_without_families(path: Path) -> list[str]:
    """Return the test functions of a file that are not marked "sanitizer", which are the families' own cases."""
    return [
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and "sanitizer" not in [ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list]
    ]


def long_run(where: Setting, name: str, limit: float) -> Stage:
    """Return the stage of a whole training, interrupted at its limit; the epochs so far are measured."""
    command = (*PYTHON, "-m", "gpu.training_runs", name, *where.options)
    return Stage(name, command, limit, interrupt=True)


def sanitizers(where: Setting, limit: float) -> Iterator[Stage]:
    """Yield a stage per family and tool; call.py says where the tool is missing.

    Only kernels of ours are watched (namespace grf), and every tensor is an allocation of its own, so that what lies
    beyond it belongs to nobody.
    """
    if shutil.which("compute-sanitizer", path=where.path) is None:
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
                must_print=" skipped" if where.stand_in else " passed",
                environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )  # fmt: skip
