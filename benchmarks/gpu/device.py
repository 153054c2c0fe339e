"""Time sides on the device of the GPU benchmarks, and measure peak memory, copy bandwidth and matrix product rates.

A side is one of the implementations that a benchmark compares. In the code (interleave.Side) it is a function that runs
n units of work and returns the seconds per unit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from interleave import Side

from gpu.workloads import PRECISIONS


@dataclass(frozen=True)
class Device:
    """A device to measure on.

    torch_device: the device in torch. impl: implementation of this package's operators. tiny: use small sizes, to test
    the benchmarks on a CPU.
    """

    torch_device: torch.device
    impl: str = "native"
    tiny: bool = False

    @property
    def is_gpu(self) -> bool:
        return self.torch_device.type == "cuda"

    def size(self, full: int, tiny: int) -> int:
        """Return the size to use: `tiny` if this device uses small sizes, else `full`."""
        return tiny if self.tiny else full

    def wait(self) -> None:
        """Wait until all work on the device is done."""
        if self.is_gpu:
            torch.cuda.synchronize(self.torch_device)

    def side(self, work: Callable[[], object]) -> Side:
        """Return the side that calls `work`, timed by CUDA events (by the host's clock on a CPU).

        If the host takes longer to launch the kernels than the GPU takes to run them, the result is the host's time.
        """
        if not self.is_gpu:
            return self.host_side(work)

        def run(n: int) -> float:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(n):
                work()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / n / 1e3

        return run

    def host_side(self, work: Callable[[], object]) -> Side:
        """Return the side that calls `work`, timed by the host's clock, from an idle device to an idle device."""

        def run(n: int) -> float:
            self.wait()
            started = time.perf_counter()
            for _ in range(n):
                work()
            self.wait()
            return (time.perf_counter() - started) / n

        return run

    def peak_mib(self, side: Side) -> float | None:
        """Return the MiB that a unit of work allocates at its peak, beyond its inputs; None on a CPU."""
        if not self.is_gpu:
            return None
        self.wait()
        baseline = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        side(1)
        return (torch.cuda.max_memory_allocated() - baseline) / 2**20


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Set the precision of float32 matrix products within a `with` block: TF32 for "tf32" and "bf16", full for others.

    Without this, cuDNN would use TF32 and torch's own products would not.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    previous = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = name in ("tf32", "bf16")
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = previous


def measure_rates(device: Device) -> dict[str, float]:
    """Measure the speed of copies and of matrix products on the device.

    Returns:
        "copy": bytes/s, read plus written. "fp32", "tf32", "bf16": FLOP/s of 8192 x 8192 matrix products.
    """
    source = torch.ones(device.size(1 << 28, 1 << 10), device=device.torch_device)
    destination = torch.empty_like(source)
    rates = {"copy": 2 * source.nbytes / _median_seconds(device.side(lambda: destination.copy_(source)))}
    size = device.size(8192, 64)
    for name in PRECISIONS:
        # Random values, since products of zeros take less power and run faster.
        a, b = torch.randn(2, size, size, device=device.torch_device, dtype=torch.bfloat16 if name == "bf16" else None)
        with precision(name):
            rates[name] = 2 * size**3 / _median_seconds(device.side(lambda a=a, b=b: a @ b))
    return rates


def _median_seconds(side: Side) -> float:
    """Return the median of 7 turns of 5 calls, in seconds per call, after a warm-up."""
    side(3)
    return median(side(5) for _ in range(7))
