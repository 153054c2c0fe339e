"""Predict the times of the rows of the GPU benchmarks. `gpu.table` shows the prediction of rows without a measurement.

    seconds = launches * seconds per launch + bytes / copy rate + FLOP / rate of matrix products

The terms are added as if nothing overlapped. On the other hand, the rates are peak rates. So a prediction is neither a
lower nor an upper bound. The model leaves out caches, the shapes of products, the time of the host, and steps that wait
for each other within a kernel. This module needs the standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Work:
    """The work of a unit of a row in fp32: number of kernel launches, bytes that must be moved, FLOP of products."""

    launches: float
    n_bytes: int
    flops: float = 0.0


@dataclass(frozen=True)
class Speed:
    """The speed of a GPU. The defaults are those of an H200 and hold until they are measured.

    Attributes:
        launch: seconds from the end of a kernel to the start of the next one. An estimate.
        latency: seconds that a kernel takes in addition to the time of its bytes and products: it reads from memory
            twice, one read after the other. An estimate.
        copy: bytes/s, read plus written. products: FLOP/s of matrix products in fp32. Peak rates without sparsity, of
            NVIDIA's data sheet of the H200 SXM.
    """

    launch: float = 2e-6
    latency: float = 1e-6
    copy: float = 4.8e12
    products: float = 67e12

    @classmethod
    def measured(cls, results: Iterable[dict[str, Any]]) -> Speed:
        """Return the speed with the values that the results of calls (results.json) have in place of the defaults."""
        values: dict[str, float] = {}
        for result in results:
            rates, latencies = result.get("ceilings", {}), result.get("facts", {}).get("latencies", {})
            values |= {name: rates[key] for name, key in (("copy", "copy"), ("products", "fp32")) if key in rates}
            if LAUNCH_LATENCY in latencies:
                values["launch"] = latencies[LAUNCH_LATENCY] * 1e-9
        return cls(**values)

    def seconds(self, work: Work) -> tuple[float, float, float]:
        """Return the seconds of the launches, of the bytes and of the products."""
        return work.launches * (self.launch + self.latency), work.n_bytes / self.copy, work.flops / self.products


LAUNCH_LATENCY = "graph node, 132 x 256"  # a latency of latencies.cu: 132 blocks of 256 threads
# Launches of an update (gpu.count_launches): 11, and those of a graph of 16 updates.
_LAUNCHES_XE, _LAUNCHES_BPR_MAX = 11 + 28 / 16, 11 + 31 / 16
# The work of each workload, or of its cases. Bytes and FLOP are those of gpu.rows.Row, which is built from the data
# sets. Launches of operators are counted in the emulator as in gpu.count_launches; torch's sort is one of them.
WORK: dict[str, dict[str, Work]] = {
    "xe-100": {"": Work(_LAUNCHES_XE, 2_840_928, 51_456_000)},
    "xe-480": {"": Work(_LAUNCHES_XE, 33_593_040, 687_882_240)},
    "bprmax-224": {"": Work(_LAUNCHES_BPR_MAX, 14_968_800, 373_309_440)},
    "bprmax-512": {"": Work(_LAUNCHES_BPR_MAX, 65_105_856, 2_063_597_568)},
    # A product and a kernel per step, forward and backward, less one in the last step; 6 for the weights and inputs.
    "gru": {"": Work(2 * 2 * 50 - 1 + 6, 2_254_438_400, 241_591_910_400)},
    # A product and a kernel for each of 123 parts of the catalogue; 7 before and after them.
    "ranking": {"": Work(2 * 123 + 7, 1_024_000_000, 262_144_000_000)},
    "gowalla": {"forward": Work(5, 445_882_368), "forward + backward": Work(10, 891_764_736)},
    "power-law": {"forward": Work(5, 5_536_000_000), "forward + backward": Work(10, 11_072_000_000)},
    # Three products, a kernel and two operators for the bias for each of 7 chunks of rows; 2 after them.
    "loss": {"": Work(6 * 7 + 2, 1_216_872_448, 161_061_273_600)},
    "small-gru": {"T=1 B=32": Work(8, 713_600, 11_520_000)},  # T=50: the steps wait for each other within a kernel
    "top-k": {"": Work(2 * 123 + 5, 1_024_000_000, 262_144_000_000)},
    "update": {"": Work(4, 18_320_384)},
    "batches": {"": Work(1, 51_200)},
    "negatives": {"": Work(1, 65_536)},
    "masks": {"1 x 32 x 100": Work(1, 12_800), "16 x 128 x 512": Work(1, 4_194_304)},
    "small-loss": {"": Work(7, 3_904_000, 39_936_000)},
}


def predict(workload: str, speed: Speed) -> list[tuple[str, tuple[float, float, float]]]:
    """Return the name of each case of a workload, and the three terms of its time in seconds.

    Returns [] for the steps of NGCF and LightGCN and for whole trainings, whose work is not counted.
    """
    return [(case, speed.seconds(work)) for case, work in WORK.get(workload, {}).items()]
