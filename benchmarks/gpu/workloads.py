"""Define the workloads of the GPU benchmarks, with their baselines and goals.

A row of the results table is a workload in one case and one precision. It compares several implementations ("sides").
This module needs only the standard library, since call.py imports it to list the rows to measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

FP32, TF32, BF16 = "fp32", "tf32", "bf16"
PRECISIONS = (FP32, TF32, BF16)
# Names of this package's sides.
OURS = "ours"
OURS_STEADY = "ours without the starts of epochs"  # a second side in rows of GRU4Rec training

# For each kind of goal: its text in the table, and whether a larger value is better.
_KINDS = {
    "ratio": (">= {:g}x", True),  # the baseline's time divided by our time
    "copy": (">= {:.0%} of copy bandwidth", True),  # bytes/s (Row.n_bytes / our time) divided by the bytes/s of a copy
    "memory": ("memory <= {:g} of theirs", False),  # our peak memory divided by the baseline's, both without the inputs
    "microseconds": ("<= {:g} us", False),  # our time per unit of work
    "seconds": ("<= {:g} s", False),  # our time for a whole training
}


@dataclass(frozen=True)
class Goal:
    """A limit for one measured value of a row; `kind` is a key of _KINDS."""

    kind: str
    limit: float

    def text(self) -> str:
        """Return the goal as text, for the table."""
        return _KINDS[self.kind][0].format(self.limit)

    def is_met(self, value: float) -> bool:
        """Return whether the value satisfies the limit."""
        return value >= self.limit if _KINDS[self.kind][1] else value <= self.limit


@dataclass(frozen=True)
class Workload:
    """A computation to measure, the baseline that this package is compared with, and this package's goals.

    precisions: precisions of the matrix products, the same for all sides; ("",) if the workload has no products.
    cases: shapes or variants. There is a row for each case in each precision.
    """

    description: str
    baseline: str
    goals: tuple[Goal, ...] = ()
    precisions: tuple[str, ...] = ("",)
    cases: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class RowName:
    """Identifies a row of the table; `workload` is a key of WORKLOADS."""

    workload: str
    case: str
    precision: str

    def __str__(self) -> str:
        return ", ".join(filter(None, (WORKLOADS[self.workload].description, self.case, self.precision)))


_TRAINING_GOAL = Goal("ratio", 20)
_SPMM = (Goal("ratio", 2), Goal("copy", 0.7))  # goals of the sparse product L @ E
_PASSES = ("forward", "forward + backward")

WORKLOADS = {
    "xe-100": Workload(
        "training, xe-100 (L100 B32), rsc15_100k", "official", (_TRAINING_GOAL, Goal("microseconds", 60)), PRECISIONS
    ),
    "xe-480": Workload("training, xe-480, rsc15_100k", "official", (_TRAINING_GOAL,), PRECISIONS),
    "bprmax-224": Workload("training, bprmax-224, rsc15_100k", "official", (_TRAINING_GOAL,), PRECISIONS),
    "bprmax-512": Workload("training, bprmax-512, diginetica", "official", (_TRAINING_GOAL,), PRECISIONS),
    "gru": Workload(
        "GRU with resets, T=50 B=512 H=512, forward + backward",
        "nn.GRU (cuDNN) without resets",
        (Goal("ratio", 1),),
        (FP32, TF32),
    ),
    "ranking": Workload(
        "ranking, 512 lanes x 1M items, H=256",
        "matmul + compare",
        (Goal("ratio", 2), Goal("memory", 0.1)),
        (FP32, TF32),
    ),
    "gowalla": Workload("L @ E, Gowalla, d=64", "torch CSR (cuSPARSE)", _SPMM, cases=_PASSES),
    "power-law": Workload("L @ E, power-law graph of 10M edges, d=64", "torch CSR (cuSPARSE)", _SPMM, cases=_PASSES),
    "ngcf": Workload("NGCF-3 training step, Gowalla", "public", (Goal("ratio", 10),), (FP32, TF32)),
    "lightgcn": Workload("LightGCN-3 training step, Gowalla", "public", (), (FP32, TF32)),
    # Each row of this workload spends half a minute in torch.compile.
    "loss": Workload(
        "sampled loss, 6400 rows, own target + 8192 shared negatives, H=512, forward + backward",
        "torch.compile",
        (Goal("ratio", 1.2), Goal("memory", 0.2)),
        PRECISIONS,
    ),
    # No cases: training_runs.py measures this row.
    "ngcf-run": Workload(
        "NGCF-3 to Recall@20 >= .1557 on Gowalla", "published log, 32,904 s", (Goal("seconds", 600),), cases=()
    ),
    "small-gru": Workload(
        "GRU with resets, H=100, forward + backward",
        "nn.GRU (cuDNN) without resets",
        (),
        (FP32,),
        ("T=1 B=32", "T=50 B=128"),
    ),
    "top-k": Workload("top 20, 512 lanes x 1M items, H=256", "matmul + topk", (), (FP32,)),
    "update": Workload("row update, 2144 gradients, 480 wide", "coalesce, gather, scatter"),
    "batches": Workload("session batch, 128 lanes, 16 steps", "the CPU kernel and a copy"),
    "negatives": Workload("negatives, 2048 of 100k items", "torch.multinomial"),
    "masks": Workload("dropout mask", "bernoulli_", cases=("1 x 32 x 100", "16 x 128 x 512")),
    "small-loss": Workload(
        "sampled loss, in batch, 32 rows + 2048 negatives, H=100, forward + backward", "torch.compile", (), (FP32,)
    ),
}


def row_names(precisions: tuple[str, ...] = ("", *PRECISIONS)) -> Iterator[RowName]:
    """Yield the names of all rows with one of these precisions."""
    for key, workload in WORKLOADS.items():
        for precision in precisions:
            for case in workload.cases if precision in workload.precisions else ():
                yield RowName(key, case, precision)
