"""Options of the benchmarks, and the logs and peers they share."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from interleave import Comparison

PEERS = ("official", "ngcf", "lightgcn")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gru4rec_fast benchmarks")
    group.addoption("--peer", action="append", default=[], metavar="NAME=PATH", help="a checkout to measure against")
    group.addoption("--sides", metavar="A,B", help="measure these sides only, e.g. official,GRU4Rec")
    group.addoption("--turn-seconds", type=float, default=0.4, help="about how long one side's turn takes")
    group.addoption("--rounds", type=int, default=9, help="turns of each side that count")
    group.addoption("--threads", type=int, help="threads of every side; by default torch's own choice")


def pytest_configure(config: pytest.Config) -> None:
    for given in config.getoption("--peer"):
        if given.partition("=")[0] not in PEERS or not given.partition("=")[2]:
            raise pytest.UsageError(f"--peer {given}: give {' or '.join(f'{name}=PATH' for name in PEERS)}")
    if (threads := config.getoption("--threads")) is not None:
        if threads < 1:
            raise pytest.UsageError(f"--threads {threads}: must be at least 1")
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def official(request: pytest.FixtureRequest) -> Any:
    """`peers.official.Official` of the checkout that was given, or None, with a warning that says so."""
    paths = dict(given.split("=", 1) for given in request.config.getoption("--peer"))
    if "official" not in paths:
        warnings.warn("no --peer official=PATH: rows against the official code are left out", stacklevel=1)
        return None
    from peers.official import Official

    return Official(Path(paths["official"]))


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark: Any) -> Comparison:
    """Measures the sides of a row in turns."""
    option = request.config.getoption
    only = None if option("--sides") is None else option("--sides").split(",")
    return Comparison(benchmark, only, option("--turn-seconds"), option("--rounds"))


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The real and the synthetic logs: `logs.LogShelf`."""
    from datasets import LogShelf

    return LogShelf(tmp_path_factory.mktemp("logs"))
