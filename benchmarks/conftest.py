"""Command-line options and fixtures of the benchmarks.

A peer is a public implementation that this package is compared with. --peer NAME=PATH names a checkout: "official"
(hidasib/GRU4Rec_PyTorch_Official), "ngcf" (huangtinglin/NGCF-PyTorch) or "lightgcn" (gusye1234/LightGCN-PyTorch).

A row of the results table compares several implementations, called sides. They run alternately: a turn is one timed run
of a side, a round is one turn of each side.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_PROC_BIND", "true")  # read when torch is imported

import pytest
import torch
from interleave import Comparison

PEERS = ("official", "ngcf", "lightgcn")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gru4rec_fast benchmarks")
    group.addoption(
        "--peer", action="append", default=[], metavar="NAME=PATH", help="a checkout of a public implementation"
    )
    group.addoption("--sides", metavar="A,B", help="measure only these implementations (sides), e.g. official,fused")
    group.addoption("--turn-seconds", type=float, default=0.4, help="approximate duration of one turn of a side")
    group.addoption("--rounds", type=int, default=9, help="number of turns of each side, without the warm-up")
    group.addoption("--threads", type=int, help="number of threads of every side (default: torch's own choice)")


def pytest_configure(config: pytest.Config) -> None:
    for peer in config.getoption("--peer"):
        name, _, path = peer.partition("=")
        if name not in PEERS or not path:
            raise pytest.UsageError(f"--peer {peer}: give {' or '.join(f'{name}=PATH' for name in PEERS)}")
    if (threads := config.getoption("--threads")) is not None:
        if threads < 1:
            raise pytest.UsageError(f"--threads {threads}: must be at least 1")
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def official(request: pytest.FixtureRequest) -> Any:
    """Return the official code as a `peers.official.OfficialGRU4Rec`; warn and return None if no checkout was given."""
    paths = dict(peer.split("=", 1) for peer in request.config.getoption("--peer"))
    if "official" not in paths:
        warnings.warn("no --peer official=PATH: comparisons with the official code are left out", stacklevel=1)
        return None
    from peers.official import OfficialGRU4Rec

    return OfficialGRU4Rec(Path(paths["official"]))


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark: Any) -> Comparison:
    """Return the object that measures the sides of a row."""
    option = request.config.getoption
    only = None if option("--sides") is None else option("--sides").split(",")
    return Comparison(benchmark, only, option("--turn-seconds"), option("--rounds"))


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the real and the synthetic logs, a `session_logs.SessionLogs`."""
    from session_logs import SessionLogs

    return SessionLogs(tmp_path_factory.mktemp("logs"))
