"""The device that the GPU rows run on: timing, peak memory, precision of products, and its measured rates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from interleave import Side

from gpu.targets import PRECISIONS


@dataclass(frozen=True)
class Device:
    """A device and the kernels to use on it.

    torch: the torch device. impl: of the operators. tiny: use small sizes, to try the same code out on a processor.
    """

    torch: torch.device
    impl: str = "native"
    tiny: bool = False

    @property
    def is_gpu(self) -> bool:
        return self.torch.type == "cuda"

    def size(self, full: int, tiny: int) -> int:
        """Return the size of a dimension."""
        return tiny if self.tiny else full

    def wait(self) -> None:
        """Wait until all work on the device is done."""
        if self.is_gpu:
            torch.cuda.synchronize(self.torch)

    def side(self, work: Callable[[], object]) -> Side:
        """Time calls by CUDA events; host time counts where it is longer than the GPU's, as it does in use."""
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
        """Time calls by the host's clock, from an idle device to an idle device."""

        def run(n: int) -> float:
            self.wait()
            started = time.perf_counter()
            for _ in range(n):
                work()
            self.wait()
            return (time.perf_counter() - started) / n

        return run

    def peak_mib(self, side: Side) -> float | None:
        """Return the peak memory of one unit of work beyond what was allocated before it; None on a processor."""
        if not self.is_gpu:
            return None
        self.wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        side(1)
        return (torch.cuda.max_memory_allocated() - before) / 2**20


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Compute float32 products of torch and cuDNN in TF32 where `name` is "tf32" or "bf16", else in full.

    Their defaults differ: cuDNN uses TF32, torch's own products do not.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    kept = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = name in ("tf32", "bf16")
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = kept


def ceilings(device: Device) -> dict[str, float]:
    """Measure the device's rates: "copy" in bytes/s (read plus written), products of 8192 x 8192 in FLOP/s."""
    source = torch.ones(device.size(1 << 28, 1 << 10), device=device.torch)
    target = torch.empty_like(source)
    found = {"copy": 2 * source.nbytes / _median(device.side(lambda: target.copy_(source)))}
    size = device.size(8192, 64)
    for name in PRECISIONS:
        # Random numbers: products of zeros run faster than products of data.
        a, b = torch.randn(2, size, size, device=device.torch, dtype=torch.bfloat16 if name == "bf16" else None)
        with precision(name):
            found[name] = 2 * size**3 / _median(device.side(lambda a=a, b=b: a @ b))
    return found


def _median(side: Side) -> float:
    side(3)
    return median(side(5) for _ in range(7))
