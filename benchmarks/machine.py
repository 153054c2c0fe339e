"""Describe this machine, and measure its copy bandwidth and the speed of its matrix products."""

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
_COPIED_FLOATS = 64 * 2**20  # number of elements of an array (256 MiB) that is larger than every cache


def describe_machine() -> dict[str, Any]:
    """Return processor, thread count and versions. Paths are left out, because the result is published."""
    info = gru4rec_fast.build_info()
    library = info.get("library")
    return {
        "processor": processor_name(),
        "cores": len(_affinity()),  # cores this process may use
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "gru4rec_fast": info | {"library": library and Path(library).name},
    }


def _affinity() -> set[int]:
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def processor_name() -> str:
    """Return the processor's name, family and model. In a virtual machine the name alone is often generic."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines()  # of the first processor
    fields = dict(pair for line in lines if len(pair := _split_field(line)) == 2)
    family = f"family {fields['cpu family']}, model {fields['model']}" if "cpu family" in fields else platform.machine()
    return f"{fields.get('model name', platform.machine())} ({family})"


def _split_field(line: str) -> tuple[str, ...]:
    """Return the name and the value of a line "name: value", or the whole line if it has no colon."""
    return tuple(text.strip() for text in line.split(":", 1))


def _seconds(work: Callable[[], Any], min_seconds: float = 0.02, repeats: int = 5) -> float:
    """Return the seconds per call of `work`: the median of `repeats` measurements of about `min_seconds` each."""
    work()
    started = time.perf_counter()
    work()
    calls = max(1, int(min_seconds / (time.perf_counter() - started)))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(calls):
            work()
        seconds.append((time.perf_counter() - started) / calls)
    return median(seconds)


def flops(shapes: Iterable[Shape]) -> int:
    """Return the number of multiplications and additions in matrix products of these shapes."""
    return sum(2 * m * n * k for m, n, k in shapes)


@cache
def product_rate(shapes: tuple[Shape, ...], dtype: torch.dtype = torch.float32) -> float:
    """Return the FLOP/s that torch.mm (BLAS; oneDNN for bf16) reaches on products of these shapes, in sequence."""
    seconds = 0.0
    for m, n, k in shapes:
        a, b, c = (torch.randn(shape).to(dtype) for shape in ((m, k), (k, n), (m, n)))
        seconds += _seconds(lambda a=a, b=b, c=c: torch.mm(a, b, out=c))
    return flops(shapes) / seconds


@cache
def copy_bandwidth() -> float:
    """Return the bytes/s of a copy between arrays larger than every cache; bytes read and bytes written both count."""
    source, target = torch.ones(_COPIED_FLOATS), torch.empty(_COPIED_FLOATS)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), 0.1)


def rate_shares(seconds: float, shapes: Iterable[Shape] = (), n_bytes: float = 0.0) -> dict[str, float]:
    """Return the FLOP/s and bytes/s of a computation, the rates of torch.mm and of a copy on this machine, and shares.

    A share ("..._share") is a rate of the computation divided by the rate of torch.mm or of the copy.

    seconds: time of the computation. shapes: the matrix products that it cannot avoid. n_bytes: the bytes that it must
    read and write.
    """
    shapes, figures = tuple(shapes), {}
    if shapes:
        rate = product_rate(shapes)
        figures |= {"sgemm_gflops": rate / 1e9, "gflops": flops(shapes) / seconds / 1e9}
        figures["sgemm_share"] = figures["gflops"] / figures["sgemm_gflops"]
        figures["bf16_gflops"] = product_rate(shapes, torch.bfloat16) / 1e9
        figures["bf16_share"] = figures["gflops"] / figures["bf16_gflops"]
    if n_bytes:
        figures |= {"copy_gbytes": copy_bandwidth() / 1e9, "gbytes": n_bytes / seconds / 1e9}
        figures["copy_share"] = figures["gbytes"] / figures["copy_gbytes"]
    return figures
