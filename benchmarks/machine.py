"""What this machine does by itself: its rate at a row's matrix products, its copy bandwidth, and its name."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import gru4rec_fast

Shape = tuple[int, int, int]  # m, n, k of [m, k] @ [k, n]
_COPIED = 64 * 2**20  # floats in an array that is copied: beyond every cache


def facts() -> dict[str, Any]:
    """The machine and the versions that a figure belongs to; no path of the machine."""
    info = gru4rec_fast.build_info()
    library = info.get("library")
    return {
        "processor": processor(),
        "cores": torch.get_num_threads() if not hasattr(torch, "cpu") else len(_affinity()),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "gru4rec_fast": info | {"library": library and Path(library).name},
    }


def _affinity() -> set[int]:
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def processor() -> str:
    """The processor's name, with its family and model, which virtual machines often leave out of the name."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    found = dict(part for line in cpuinfo.read_text().split("\n\n")[0].splitlines() if len(part := _pair(line)) == 2)
    family = f"family {found['cpu family']}, model {found['model']}" if "cpu family" in found else platform.machine()
    return f"{found.get('model name', platform.machine())} ({family})"


def _pair(line: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in line.split(":", 1))


def _seconds(run: Callable[[], Any], at_least: float = 0.02, repeats: int = 5) -> float:
    """Median seconds of one call, over `repeats` stretches of at least `at_least` seconds."""
    run()
    started = time.perf_counter()
    run()
    calls = max(1, int(at_least / (time.perf_counter() - started)))
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(calls):
            run()
        taken.append((time.perf_counter() - started) / calls)
    return median(taken)


def flops(shapes: Iterable[Shape]) -> int:
    """Multiplications and additions of these products."""
    return sum(2 * m * n * k for m, n, k in shapes)


@cache
def product_rate(shapes: tuple[Shape, ...], dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of torch's own products (BLAS; oneDNN for bf16) of these shapes, one after another."""
    seconds = 0.0
    for m, n, k in shapes:
        a, b, c = (torch.randn(shape).to(dtype) for shape in ((m, k), (k, n), (m, n)))
        seconds += _seconds(lambda a=a, b=b, c=c: torch.mm(a, b, out=c))
    return flops(shapes) / seconds


@cache
def copy_bandwidth() -> float:
    """Bytes/s of a copy between arrays beyond every cache, read and written bytes both counted."""
    source, target = torch.ones(_COPIED), torch.empty(_COPIED)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), 0.1)


def limits(seconds: float, shapes: Iterable[Shape] = (), n_bytes: float = 0.0) -> dict[str, float]:
    """The shares of this machine's rates that work done in `seconds` reached.

    shapes: of the matrix products the work cannot do without. n_bytes: what it has to read and write at least.
    """
    shapes, found = tuple(shapes), {}
    if shapes:
        rate = product_rate(shapes)
        found |= {"sgemm_gflops": rate / 1e9, "gflops": flops(shapes) / seconds / 1e9}
        found["sgemm_share"] = found["gflops"] / found["sgemm_gflops"]
        found["bf16_gflops"] = product_rate(shapes, torch.bfloat16) / 1e9
        found["bf16_share"] = found["gflops"] / found["bf16_gflops"]
    if n_bytes:
        found |= {"copy_gbytes": copy_bandwidth() / 1e9, "gbytes": n_bytes / seconds / 1e9}
        found["copy_share"] = found["gbytes"] / found["copy_gbytes"]
    return found
