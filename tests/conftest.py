"""Shared fixtures and hooks. If the package is installed, the tests import the installed files, not the checkout."""

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
    """Return True if gru4rec_fast is installed in this environment, and not as an editable install.

    The egg-info that `pip install .` leaves in the checkout does not count.
    """
    for distribution in distributions(name="gru4rec_fast"):
        if Path(str(distribution.locate_file(""))).resolve() != CHECKOUT:
            origin = json.loads(distribution.read_text("direct_url.json") or "{}")
            return not origin.get("dir_info", {}).get("editable", False)
    return False


if is_installed():
    # `python -m pytest` and PYTHONPATH=. add the checkout to sys.path, which would hide the installed package.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != CHECKOUT]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option --all-emulated, which .ci/full uses. See `pytest_collection_modifyitems`."""
    parser.addoption("--all-emulated", action="store_true", help="run all test cases with emulated CUDA kernels")


def pytest_configure() -> None:
    """Register the emulated CUDA kernels as the implementation "emulated"."""
    import cuda_emulator

    cuda_emulator.register()
    from gru4rec_fast import _compile

    if _compile.sanitizers() == ["thread"]:
        sys.meta_path.insert(0, SkipPolars())


class SkipPolars:
    """Importer that skips a test which imports polars: under ThreadSanitizer, that import ends the process."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "polars":
            pytest.skip("polars cannot be imported under ThreadSanitizer")


@pytest.fixture(scope="session", autouse=True)
def restore_ctrl_c() -> None:
    """Restore the default action of SIGINT (Ctrl-C), because some tests send it, and background processes ignore it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def native_library() -> None:
    """Load the native library, or skip the test if there is none.

    With GRU4REC_FAST_REQUIRE_NATIVE=1 the test fails instead, so that a broken build cannot go unnoticed.
    """
    from gru4rec_fast import _backend

    if not _backend.load():
        fail_or_skip = pytest.fail if os.environ.get("GRU4REC_FAST_REQUIRE_NATIVE") else pytest.skip
        fail_or_skip(f"no native library: {_backend.build_info()['why_not']}")


@pytest.fixture
def impl(request: pytest.FixtureRequest) -> str:
    """Run a test once per implementation: reference, native kernels, and emulated CUDA kernels if there are any."""
    if request.param == "native":
        request.getfixturevalue("native_library")
    return request.param


@pytest.fixture(params=["reference", "native", "fused"])
def training_impl(request: pytest.FixtureRequest) -> str:
    """Run a test once per implementation of a training step; `PackageRun` (package_run.py) describes them."""
    if request.param != "reference":
        request.getfixturevalue("native_library")
    return request.param


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize the fixture `impl`. A file test_FAMILY.py gets "emulated" if the operator family has CUDA code."""
    parametrized = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "impl" not in metafunc.fixturenames or any("impl" in names for names in parametrized):
        return
    from native import CUDA_FAMILIES, why_not_emulated

    family = metafunc.module.__name__.rpartition(".")[2].removeprefix("test_")
    emulated = ["emulated"] if family in CUDA_FAMILIES and not why_not_emulated(family) else []
    metafunc.parametrize("impl", ["reference", "native", *emulated], indirect=True)


@pytest.fixture(autouse=True)
def seed_torch() -> None:
    """Seed torch's generator, from which models without a seed draw theirs, so that no test depends on earlier ones."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Reset torch.compile after each test, because it limits the number of recompilations in a process."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.hookimpl(trylast=True)  # after the selection by -k and -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect most cases with emulated kernels (slow); those kept cover all pairs of values of two parameters."""
    if config.getoption("all_emulated"):
        return
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("impl") == "emulated":
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    deselected = {item for cases in tests.values() for item in set(cases) - set(pairwise_cover(cases))}
    config.hook.pytest_deselected(items=[item for item in items if item in deselected])
    items[:] = [item for item in items if item not in deselected]


def pairwise_cover(cases: list[pytest.Item]) -> list[pytest.Item]:
    """Return cases that together contain every pair of parameter values, chosen greedily by the number of new pairs.

    Parameters of one mark `parametrize`, such as ("rows", "columns"), count as one parameter.
    """

    def values(case: pytest.Item) -> list[tuple[str, tuple[int, ...]]]:
        """Return the parameters of a case with the id() of their values, because values may not be hashable."""
        params: dict[str, object] = case.callspec.params  # type: ignore[attr-defined]
        marked_names = [mark.args[0] for mark in case.iter_markers("parametrize")]
        groups = [names.split(",") if isinstance(names, str) else names for names in marked_names]
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
