"""What every row of benchmarks/gpu is held against: one line per row of the table, with its goals."""

from __future__ import annotations

from dataclasses import dataclass

# What a goal looks at: how it is written, and whether more of it is better.
_KINDS = {
    "ratio": (">= {:g}x", True),  # the other side's time, ours being 1
    "copy": (">= {:.0%} of copy bandwidth", True),  # of ours, in counted bytes
    "memory": ("memory <= {:g} of theirs", False),  # the most that a call takes beyond its inputs
    "microseconds": ("<= {:g} us", False),  # a unit of ours
    "seconds": ("<= {:g} s", False),  # a whole run of ours
}


@dataclass(frozen=True)
class Goal:
    """A limit that a measured value is to keep."""

    of: str
    limit: float

    def text(self) -> str:
        """As the table has it."""
        return _KINDS[self.of][0].format(self.limit)

    def met(self, value: float) -> bool:
        """Whether the value is at least, or at most, the limit."""
        return value >= self.limit if _KINDS[self.of][1] else value <= self.limit


@dataclass(frozen=True)
class Target:
    """A line of the table: what is done, the side it is held against, and how far it is to get."""

    work: str
    against: str
    goals: tuple[Goal, ...] = ()


_TRAINING = Goal("ratio", 20)
_PRODUCT = (Goal("ratio", 2), Goal("copy", 0.7))

TARGETS = {
    "xe-100": Target("training, xe-100 (L100 B32), rsc15_100k", "official", (_TRAINING, Goal("microseconds", 60))),
    "xe-480": Target("training, xe-480, rsc15_100k", "official", (_TRAINING,)),
    "bprmax-224": Target("training, bprmax-224, rsc15_100k", "official", (_TRAINING,)),
    "bprmax-512": Target("training, bprmax-512, diginetica", "official", (_TRAINING,)),
    "gru": Target(
        "GRU with resets, T=50 B=512 H=512, forward + backward", "nn.GRU (cuDNN) without resets", (Goal("ratio", 1),)
    ),
    "loss": Target(
        "sampled loss, 6400 rows, own target + 8192 shared negatives, H=512, forward + backward",
        "torch.compile",
        (Goal("ratio", 1.2), Goal("memory", 0.2)),
    ),
    "ranking": Target(
        "ranking, 512 lanes x 1M items, H=256", "matmul + compare", (Goal("ratio", 2), Goal("memory", 0.1))
    ),
    "gowalla": Target("L @ E, Gowalla, d=64", "torch CSR (cuSPARSE)", _PRODUCT),
    "power-law": Target("L @ E, power-law graph of 10M edges, d=64", "torch CSR (cuSPARSE)", _PRODUCT),
    "ngcf": Target("NGCF-3 training step, Gowalla", "public", (Goal("ratio", 10),)),
    "ngcf-run": Target("NGCF-3 to Recall@20 >= .1557 on Gowalla", "published log, 32,904 s", (Goal("seconds", 600),)),
    "lightgcn": Target("LightGCN-3 training step, Gowalla", "public"),
    "small-gru": Target("GRU with resets, H=100, forward + backward", "nn.GRU (cuDNN) without resets"),
    "small-loss": Target(
        "sampled loss, in batch, 32 rows + 2048 negatives, H=100, forward + backward", "torch.compile"
    ),
    "top-k": Target("top 20, 512 lanes x 1M items, H=256", "matmul + topk"),
    "update": Target("row update, 2144 gradients, 480 wide", "coalesce, gather, scatter"),
    "batches": Target("session batch, 128 lanes, 16 steps", "the CPU kernel and a copy"),
    "negatives": Target("negatives, 2048 of 100k items", "torch.multinomial"),
    "masks": Target("dropout mask", "bernoulli_"),
}
