"""What several test files share, and the rule that an installed package is tested as installed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from itertools import combinations
from pathlib import Path

import pytest
import torch

CHECKOUT = Path(__file__).resolve().parents[1]


def is_installed() -> bool:
    """Whether gru4rec_fast is installed in this environment as files of its own (an editable install is not).

    Not counted is the egg-info that `pip install .` leaves in a checkout, found where that is on sys.path.
    """
    for found in distributions(name="gru4rec_fast"):
        if Path(str(found.locate_file(""))).resolve() != CHECKOUT:
            return not json.loads(found.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable", False)
    return False


if is_installed():
    # `python -m pytest` and PYTHONPATH=. put the checkout first, whose source tree would hide the installed package.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != CHECKOUT]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option with which .ci/full runs the emulated cases that are otherwise left out."""
    parser.addoption("--all-emulated", action="store_true", help="run all emulated cases, not a pairwise choice of them")


def pytest_configure() -> None:
    """Register the emulated CUDA kernels as an implementation."""
    import cuda_emulator

    cuda_emulator.register()


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """A shell starts what runs in the background with Ctrl-C ignored; the tests that press it want it heard."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def native_library() -> None:
    """Skip where the native library is not to be had; its operators are registered afterwards.

    GRU4REC_FAST_REQUIRE_NATIVE=1 makes a failure of it, so that a broken build cannot hide behind what was skipped.
    """
    from gru4rec_fast import _backend

    if not _backend.load():
        stop = pytest.fail if os.environ.get("GRU4REC_FAST_REQUIRE_NATIVE") else pytest.skip
        stop(f"no native library: {_backend.build_info()['why_not']}")


@pytest.fixture
def impl(request: pytest.FixtureRequest) -> str:
    """Each test that takes it runs with the reference, the native kernels and the emulated CUDA kernels."""
    if request.param == "native":
        request.getfixturevalue("native_library")
    return request.param


@pytest.fixture(params=["reference", "native", "fused"])
def way(request: pytest.FixtureRequest) -> str:
    """How a `PackageRun` trains: through autograd with either implementation, or by the fused training step."""
    if request.param != "reference":
        request.getfixturevalue("native_library")
    return request.param


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The values of `impl`: "emulated" only in the tests of a family that has CUDA kernels."""
    own = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "impl" not in metafunc.fixturenames or any("impl" in names for names in own):
        return
    from native import CUDA_FAMILIES, why_not_emulated

    family = metafunc.module.__name__.rpartition(".")[2].removeprefix("test_")
    emulated = ["emulated"] if family in CUDA_FAMILIES and not why_not_emulated(family) else []
    metafunc.parametrize("impl", ["reference", "native", *emulated], indirect=True)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Forget what torch.compile learned in a test, so that its limit on recompilations counts within one test."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.hookimpl(trylast=True)  # after -k and -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test's emulated cases, which are slow, as many as have every two values of its parameters meet."""
    if config.getoption("all_emulated"):
        return
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("impl") == "emulated":
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out = {item for cases in tests.values() for item in cases} - {
        item for cases in tests.values() for item in pairwise(cases)
    }
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def pairwise(cases: list[pytest.Item]) -> list[pytest.Item]:
    """Cases in which all pairs of parameters' values are that are in any, each time the one with most new pairs.

    What one mark gives together, a size of several numbers, is one value: each of them stays.
    """

    def values(case: pytest.Item) -> list[tuple[str, tuple[int, ...]]]:  # anything, but each is one object
        params: dict[str, object] = case.callspec.params  # type: ignore[attr-defined]
        together = [mark.args[0] for mark in case.iter_markers("parametrize")]
        groups = [names.split(",") if isinstance(names, str) else names for names in together]
        groups = [[name.strip() for name in names] for names in groups]
        groups += [[name] for name in params if not any(name in names for names in groups)]
        return sorted((",".join(names), tuple(id(params[name]) for name in names)) for names in groups)

    pairs = [set(combinations(values(case), 2)) for case in cases]
    if not any(pairs):
        return cases
    chosen, missing = [], set().union(*pairs)
    while missing:
        best = max(range(len(cases)), key=lambda i: len(pairs[i] & missing))
        chosen.append(cases[best])
        missing -= pairs[best]
    return chosen
