"""The rows of the GPU table and the goal of each. Standard library only: call.py plans its processes from this list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

FP32, TF32, BF16 = "fp32", "tf32", "bf16"
PRECISIONS = (FP32, TF32, BF16)
OURS = "ours"  # the side of every row that is this package's
OURS_STEADY = "ours without the starts of epochs"  # and a second one of training rows

# What a goal limits: its text in the table, and whether a larger value is better.
_KINDS = {
    "ratio": (">= {:g}x", True),  # the other side's time over ours
    "copy": (">= {:.0%} of copy bandwidth", True),  # counted bytes over our time
    "memory": ("memory <= {:g} of theirs", False),  # peak memory beyond the inputs
    "microseconds": ("<= {:g} us", False),  # our time per unit of work
    "seconds": ("<= {:g} s", False),  # our time for a whole run
}


@dataclass(frozen=True)
class Goal:
    """A limit on one measured value of a row."""

    kind: str
    limit: float

    def text(self) -> str:
        """Return the limit as the table shows it."""
        return _KINDS[self.kind][0].format(self.limit)

    def met(self, value: float) -> bool:
        """Return whether the value satisfies the limit."""
        return value >= self.limit if _KINDS[self.kind][1] else value <= self.limit


@dataclass(frozen=True)
class Target:
    """A kind of work, the implementation it is compared with, and its goals.

    precisions: those of the matrix products of every side; ("",) where the work has none. cases: shapes or variants.
    A row of the table is one case in one precision.
    """

    work: str
    against: str
    goals: tuple[Goal, ...] = ()
    precisions: tuple[str, ...] = ("",)
    cases: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class RowName:
    """A row of the table: `target` is a key of TARGETS."""

    target: str
    case: str
    precision: str

    def __str__(self) -> str:
        return ", ".join(part for part in (TARGETS[self.target].work, self.case, self.precision) if part)


_TRAINING = Goal("ratio", 20)
_PRODUCT = (Goal("ratio", 2), Goal("copy", 0.7))
_PASSES = ("forward", "forward + backward")

TARGETS = {
    "xe-100": Target(
        "training, xe-100 (L100 B32), rsc15_100k", "official", (_TRAINING, Goal("microseconds", 60)), PRECISIONS
    ),
    "xe-480": Target("training, xe-480, rsc15_100k", "official", (_TRAINING,), PRECISIONS),
    "bprmax-224": Target("training, bprmax-224, rsc15_100k", "official", (_TRAINING,), PRECISIONS),
    "bprmax-512": Target("training, bprmax-512, diginetica", "official", (_TRAINING,), PRECISIONS),
    "gru": Target(
        "GRU with resets, T=50 B=512 H=512, forward + backward",
        "nn.GRU (cuDNN) without resets",
        (Goal("ratio", 1),),
        (FP32, TF32),
    ),
    "ranking": Target(
        "ranking, 512 lanes x 1M items, H=256",
        "matmul + compare",
        (Goal("ratio", 2), Goal("memory", 0.1)),
        (FP32, TF32),
    ),
    "gowalla": Target("L @ E, Gowalla, d=64", "torch CSR (cuSPARSE)", _PRODUCT, cases=_PASSES),
    "power-law": Target("L @ E, power-law graph of 10M edges, d=64", "torch CSR (cuSPARSE)", _PRODUCT, cases=_PASSES),
    "ngcf": Target("NGCF-3 training step, Gowalla", "public", (Goal("ratio", 10),), (FP32, TF32)),
    "lightgcn": Target("LightGCN-3 training step, Gowalla", "public", (), (FP32, TF32)),
    # torch.compile takes half a minute for each of its rows.
    "loss": Target(
        "sampled loss, 6400 rows, own target + 8192 shared negatives, H=512, forward + backward",
        "torch.compile",
        (Goal("ratio", 1.2), Goal("memory", 0.2)),
        PRECISIONS,
    ),
    "ngcf-run": Target(
        "NGCF-3 to Recall@20 >= .1557 on Gowalla", "published log, 32,904 s", (Goal("seconds", 600),), cases=()
    ),
    "small-gru": Target(
        "GRU with resets, H=100, forward + backward",
        "nn.GRU (cuDNN) without resets",
        (),
        (FP32,),
        ("T=1 B=32", "T=50 B=128"),
    ),
    "top-k": Target("top 20, 512 lanes x 1M items, H=256", "matmul + topk", (), (FP32,)),
    "update": Target("row update, 2144 gradients, 480 wide", "coalesce, gather, scatter"),
    "batches": Target("session batch, 128 lanes, 16 steps", "the CPU kernel and a copy"),
    "negatives": Target("negatives, 2048 of 100k items", "torch.multinomial"),
    "masks": Target("dropout mask", "bernoulli_", cases=("1 x 32 x 100", "16 x 128 x 512")),
    "small-loss": Target(
        "sampled loss, in batch, 32 rows + 2048 negatives, H=100, forward + backward", "torch.compile", (), (FP32,)
    ),
}


def row_names(precisions: tuple[str, ...] = ("", *PRECISIONS)) -> Iterator[RowName]:
    """Yield the rows with one of these precisions."""
    for target, given in TARGETS.items():
        for precision in precisions:
            for case in given.cases if precision in given.precisions else ():
                yield RowName(target, case, precision)
