"""What every estimator has: parameters by name, a history, a report."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from gru4rec_fast._backend import build_info
from gru4rec_fast.training.checkpoint import CheckpointError
from gru4rec_fast.training.options import LOSS
from gru4rec_fast.training.run_folder import checkpoint_to_resume

NOT_STORED = ("device", "impl", "fused")  # where and how a model runs is no property of the model
FREE_ON_RESUME = ("n_epochs", "patience", "min_delta", *NOT_STORED)  # what changes nothing of what was computed so far


class Parameters(Protocol):
    """Hyper-parameters: a frozen dataclass that checks itself."""

    @property
    def monitor(self) -> str: ...
    @property
    def patience(self) -> int | None: ...

    def to_dict(self) -> dict[str, Any]:
        """All parameters as JSON values."""

    def changed(self, parameters: Mapping[str, Any]) -> Any:
        """A copy with some parameters set anew."""

    @classmethod
    def create(cls, parameters: Mapping[str, Any]) -> Any:
        """From the default, with some parameters set."""


class Metrics(Protocol):
    """A report of an evaluation."""

    @property
    def metrics(self) -> dict[str, float]: ...


class Estimator:
    """What GRU4Rec, NGCF and LightGCN share.

    Attributes:
        parameters: the hyper-parameters, of `parameter_class`.
        history: one dict per epoch, see the trainers in `gru4rec_fast.training`.
        best_epoch: the epoch whose model the last `fit` put into best.safetensors; None where it picked none.
        peak_memory_bytes: of the last `fit`: peak resident size above that at its beginning, or above the process's
            baseline where `gru4rec_fast.profiling.set_baseline` took one.
    """

    parameter_class: ClassVar[type[Parameters]]
    parameters: Any

    def __init__(self, **parameters: Any) -> None:
        self.parameters = self.parameter_class.create(parameters)
        self.history: list[dict[str, Any]] = []
        self.best_epoch: int | None = None
        self.peak_memory_bytes = 0

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All parameters by name."""
        return dict(self.parameters.to_dict())

    def set_params(self, **parameters: Any) -> Self:
        """Change parameters by name (values may be text, as in a parameter string); they count from the next `fit`."""
        self.parameters = self.parameters.changed(parameters)
        return self

    def __repr__(self) -> str:
        default = self.parameter_class.create({}).to_dict()
        changed = {name: value for name, value in self.get_params().items() if value != default[name]}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"

    def report(self, evaluation: Metrics | None = None) -> dict[str, Any]:
        """What there is to say about this model, as JSON values: `metrics` of an evaluation (else of the last
        validation, else none), `epochs`, `peak_memory_bytes`, `build` and `parameters`."""
        measured = [record["validation"] for record in self.history if "validation" in record]
        return {
            "metrics": evaluation.metrics if evaluation is not None else measured[-1] if measured else {},
            "epochs": self.history,
            "peak_memory_bytes": self.peak_memory_bytes,
            "build": build_info(),
            "parameters": self.get_params(),
        }

    def _check_patience(self, validation: Any) -> None:
        """ValueError where there is patience, but nothing to be patient by."""
        p = self.parameters
        if p.patience is not None and validation is None and p.monitor != LOSS:
            raise ValueError(f"patience={p.patience} watches {p.monitor}: give validation=, or set monitor='loss'")


def resumed_file(resume: bool | str | os.PathLike[str], out: str | os.PathLike[str] | None) -> Path | None:
    """The file that `fit` is to go on from; None for a new training.

    Raises:
        ValueError: resume=True without a folder. FileNotFoundError: there is no checkpoint in it.
    """
    if resume is False:
        return None
    if resume is not True:
        return Path(resume)
    if out is None:
        raise ValueError("resume=True needs out=, the folder of the training to go on with; or give a file's path")
    return checkpoint_to_resume(out)


def check_same_parameters(path: Path, saved: Mapping[str, Any], mine: Mapping[str, Any], free: Collection[str]) -> None:
    """Raise CheckpointError where a parameter that is not `free` differs from that of the checkpoint at `path`."""
    differing = [name for name in mine if name not in free and saved.get(name) != mine[name]]
    if differing:
        changes = ", ".join(f"{name}={saved.get(name)!r} there, {mine[name]!r} here" for name in differing)
        raise CheckpointError(f"{path} cannot be resumed with other parameters: {changes}")
