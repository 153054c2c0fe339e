"""One device: its clock, its memory meter, the precision of its products, and its ceilings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from turns import Side

PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True)
class Place:
    """Where rows run, and by which kernels.

    tiny: small sizes in the place of a row's own, so that the same code can be tried out on a processor.
    """

    device: torch.device
    impl: str = "native"
    tiny: bool = False

    def size(self, full: int, tiny: int) -> int:
        """A size of a row."""
        return tiny if self.tiny else full

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def side(self, work: Callable[[], object]) -> Side:
        """A side of calls, by the GPU's own clock; what the host adds to short ones is in it, as in real use."""
        if self.device.type != "cuda":
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
        """A side of calls by the host's clock, from an idle device to an idle device."""

        def run(n: int) -> float:
            self.wait()
            started = time.perf_counter()
            for _ in range(n):
                work()
            self.wait()
            return (time.perf_counter() - started) / n

        return run

    def peak_mib(self, side: Side) -> float | None:
        """The most memory that a unit of work takes beyond what was there before it; None on a processor."""
        if self.device.type != "cuda":
            return None
        self.wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        side(1)
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def facts(self) -> dict[str, Any]:
        """What the figures belong to."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "a processor"
        return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "tiny": self.tiny}


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Products of float32 numbers in TF32 where `name` is "tf32" or "bf16", else in full: torch's and cuDNN's.

    Their defaults differ: cuDNN takes TF32, torch's own products do not.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    kept = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = name in ("tf32", "bf16")
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = kept


def ceilings(place: Place) -> dict[str, float]:
    """Rates of this device, measured: "copy" in bytes/s, read and written both counted; products in FLOP/s."""
    source = torch.ones(place.size(1 << 28, 1 << 10), device=place.device)
    target = torch.empty_like(source)
    found = {"copy": 2 * source.nbytes / _median(place.side(lambda: target.copy_(source)))}
    size = place.size(8192, 64)
    for name in PRECISIONS:
        # Random numbers: on zeros a product can run faster than on anything real.
        a, b = torch.randn(2, size, size, device=place.device, dtype=torch.bfloat16 if name == "bf16" else None)
        with precision(name):
            found[name] = 2 * size**3 / _median(place.side(lambda a=a, b=b: a @ b))
    return found


def _median(side: Side) -> float:
    side(3)
    return median(side(5) for _ in range(7))
