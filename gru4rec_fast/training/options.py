"""What a training run is told besides its network, its data and its loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LOSS = "loss"


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a training run.

    Attributes:
        n_epochs: epochs in all, those before a resume included.
        n_sample: negatives drawn per mini-batch, shared by its lanes; 0: the other lanes' targets only.
        accumulate: blocks per update of the weights: their losses are averaged, no gradient flows between them.
        seed: of the negatives (the network has its own for weights and dropout, the loader for its shuffle).
        lr_scheduler, lr_scheduler_options: see `gru4rec_fast.training.Schedule`; None: a constant learning rate.
        monitor: the validation metric that picks the best epoch, e.g. "recall@20", larger is better; or "loss", the
            training loss, smaller is better.
        patience: stop after this many epochs without a better value; None: never.
        min_delta: by how much a value must beat the best to count as better.
        checkpoint_every: also write the `last` checkpoint inside an epoch, every so many mini-batches; None: per epoch.
        fused: train by the fused step (`gru4rec_fast.training.fused`) where it can, else by autograd, which says why.
        precision: "full" or "bf16", of the fused step's products; "bf16" is an error where autograd has to train.
        impl: implementation of the negative sampling, "auto", "native" or "reference".

    Raises:
        ValueError: a value out of range, named.
    """

    n_epochs: int = 10
    n_sample: int = 2048
    accumulate: int = 1
    seed: int = 0
    lr_scheduler: str | None = None
    lr_scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    monitor: str = "recall@20"
    patience: int | None = None
    min_delta: float = 0.0
    checkpoint_every: int | None = None
    fused: bool = True
    precision: str = "full"
    impl: str = "auto"

    def __post_init__(self) -> None:
        smallest = {"n_epochs": 1, "n_sample": 0, "accumulate": 1, "seed": 0, "min_delta": 0}
        smallest |= {name: 1 for name in ("patience", "checkpoint_every") if getattr(self, name) is not None}
        for name, least in smallest.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")
        if self.precision not in ("full", "bf16"):
            raise ValueError(f"precision={self.precision!r}: choose 'full' or 'bf16'")
