"""Hyper-parameters of GRU4Rec: names, defaults and checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from gru4rec_fast.evaluation.metrics import METRICS
from gru4rec_fast.ops.sampled_loss import LOSSES
from gru4rec_fast.training.options import LOSS
from gru4rec_fast.training.schedules import scheduler_names

LAYERSIZE = "layersize"
DTYPES = {"float32": torch.float32, "float64": torch.float64}
GRU_FORMS = ("reset_after", "reset_before")
IMPLEMENTATIONS = ("auto", "native", "reference")
PRECISIONS = ("full", "bf16")


def _choice(value: Any, choices: tuple[str, ...]) -> str | None:
    return None if value in choices else f"choose one of {', '.join(choices)}"


def _at_least(least: float) -> Callable[[Any], str | None]:
    return lambda value: None if value >= least else f"must be at least {least:g}"


def _probability(value: float) -> str | None:
    return None if 0 <= value < 1 else "must lie in [0, 1)"


def _monitored(value: str, metrics: tuple[str, ...] = METRICS) -> str | None:
    metric, at, cutoff = value.partition("@")
    if value == LOSS or (metric in metrics and at and cutoff.isdecimal() and int(cutoff) > 0):
        return None
    return f"choose {LOSS!r}, or {', '.join(metrics)} at a cut-off, as in 'recall@20'"


def _rule(default: Any, check: Callable[[Any], str | None]) -> Any:
    """A field with a check: called with the value, it returns what is wrong with it, or None."""
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, kw_only=True)
class GRU4RecParameters:
    """Hyper-parameters, named and set by default as in the official PyTorch code; the second group is ours.

    Attributes:
        layers: units of each GRU layer, first layer first.
        loss: "cross-entropy", "bpr-max", "top1", "top1-max" or "bpr".
        batch_size: lanes, sessions played in parallel.
        dropout_p_embed, dropout_p_hidden: probability to drop a unit of the input embedding, of each layer's output.
        learning_rate, momentum: of Adagrad.
        n_sample, sample_alpha: negatives per mini-batch, drawn with p ~ support^sample_alpha, with replacement: more
            than there are items is legal. 0: the other lanes' targets are the only negatives.
        embedding: width of a separate input embedding, or "layersize": as wide as the first layer. Read where
            constrained_embedding is False; 0 is then one-hot input, whose first layer is always reset_before.
        constrained_embedding: the output table is the input embedding too.
        n_epochs: passes over the log.
        bpreg, elu_param: score regularization and activation of bpr-max (elu_param 0: none).
        logq: strength of the logQ correction of cross-entropy.
        label_smoothing: of cross-entropy.
        mask_accidental_hits: a negative that is the target is no negative.
        bptt: steps the gradient goes back; accumulate: blocks of that many steps per update.
        gru_form: "reset_after" (as torch.nn.GRU) or "reset_before" (the original form).
        shuffle: play the sessions in a new order each epoch, instead of by time.
        lr_scheduler, lr_scheduler_options: see `gru4rec_fast.training.Schedule`.
        monitor: the validation metric that picks the best epoch, or "loss".
        patience, min_delta: stop after `patience` epochs without a gain above `min_delta`; None: never.
        eps: added to Adagrad's accumulator inside the root.
        seed: of weights, dropout, negatives and shuffle.
        dtype: "float32" or "float64".
        precision: "full", or "bf16": training multiplies numbers rounded to bfloat16 and sums in float32; weights and
            everything else stay in float32. Of the fused step, so with native kernels; on a GPU, the products with the
            output table's rows.
        device: "cpu", "cuda", "cuda:1" ...
        impl: "auto", "native" or "reference", for every operator.
        fused: train by the fused step (`gru4rec_fast.training.fused`; on a GPU, `.cuda_step`); False: through autograd.
            The same training within rounding.

    Raises:
        TypeError: a value of the wrong type; ValueError: one out of range. Both name the parameter and the remedy.
    """

    layers: tuple[int, ...] = (100,)
    loss: str = _rule("cross-entropy", lambda value: _choice(value, LOSSES))
    batch_size: int = _rule(64, _at_least(1))
    dropout_p_embed: float = _rule(0.0, _probability)
    dropout_p_hidden: float = _rule(0.0, _probability)
    learning_rate: float = _rule(0.05, lambda value: None if value > 0 else "must be positive")
    momentum: float = _rule(0.0, _probability)
    sample_alpha: float = _rule(0.5, _at_least(0))
    n_sample: int = _rule(2048, _at_least(0))
    embedding: int | str = 0
    constrained_embedding: bool = True
    n_epochs: int = _rule(10, _at_least(1))
    bpreg: float = _rule(1.0, _at_least(0))
    elu_param: float = _rule(0.5, _at_least(0))
    logq: float = _rule(0.0, _at_least(0))

    label_smoothing: float = _rule(0.0, _probability)
    mask_accidental_hits: bool = False
    bptt: int = _rule(1, _at_least(1))
    accumulate: int = _rule(1, _at_least(1))
    gru_form: str = _rule("reset_after", lambda value: _choice(value, GRU_FORMS))
    shuffle: bool = False
    lr_scheduler: str | None = None
    lr_scheduler_options: dict[str, Any] | None = None
    monitor: str = _rule("recall@20", _monitored)
    patience: int | None = _rule(None, lambda value: None if value is None else _at_least(1)(value))
    min_delta: float = _rule(0.0, _at_least(0))
    eps: float = _rule(1e-6, lambda value: None if value > 0 else "must be positive")
    seed: int = _rule(0, _at_least(0))
    dtype: str = _rule("float32", lambda value: _choice(value, tuple(DTYPES)))
    precision: str = _rule("full", lambda value: _choice(value, PRECISIONS))
    device: str = "cpu"
    impl: str = _rule("auto", lambda value: _choice(value, IMPLEMENTATIONS))
    fused: bool = True

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = _convert(entry.name, str(entry.type), getattr(self, entry.name))
            object.__setattr__(self, entry.name, value)
            wrong = entry.metadata["check"](value) if "check" in entry.metadata else None
            if wrong:
                raise ValueError(f"{entry.name}={value!r}: {wrong}")
        self._check_together()

    def _check_together(self) -> None:
        if not self.layers or min(self.layers) < 1:
            raise ValueError(f"layers={list(self.layers)}: give at least one layer, each of at least 1 unit")
        if isinstance(self.embedding, int) and self.embedding < 0:
            raise ValueError(f"embedding={self.embedding}: must be a width, 0 or {LAYERSIZE!r}")
        for name in ("logq", "label_smoothing"):
            if getattr(self, name) and self.loss != "cross-entropy":
                raise ValueError(
                    f"{name}={getattr(self, name):g} belongs to loss='cross-entropy'; set it to 0 for {self.loss}"
                )
        if self.n_sample == 0 and self.batch_size == 1:
            raise ValueError("n_sample=0 with batch_size=1 leaves nothing to tell the target from; raise either")
        if self.lr_scheduler_options and self.lr_scheduler is None:
            raise ValueError(f"lr_scheduler_options={self.lr_scheduler_options}: give the lr_scheduler they belong to")
        if self.lr_scheduler is not None and self.lr_scheduler not in scheduler_names():
            raise ValueError(f"lr_scheduler={self.lr_scheduler!r}: choose one of {', '.join(scheduler_names())}")
        if self.precision == "bf16" and (self.dtype != "float32" or not self.fused or self.impl == "reference"):
            raise ValueError(
                "precision='bf16' belongs to the fused step in float32: leave dtype, fused and impl at their defaults"
            )
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"device={self.device!r}: {str(error).splitlines()[0]}") from None

    @property
    def embedding_mode(self) -> str:
        """What SessionNetwork calls it: "constrained", "separate" or "none"."""
        return "constrained" if self.constrained_embedding else "separate" if self.embedding else "none"

    @property
    def embedding_dim(self) -> int:
        """Width of the separate embedding; 0 where there is none."""
        if self.embedding_mode != "separate":
            return 0
        return self.layers[0] if isinstance(self.embedding, str) else self.embedding

    @property
    def not_read(self) -> list[str]:
        """What was set and has no effect beside the other parameters, each with its reason."""
        reasons = []
        if self.constrained_embedding and self.embedding != 0:
            reasons.append(f"embedding={self.embedding!r} has no effect: constrained_embedding=True takes its place")
        if self.embedding_mode == "none" and self.dropout_p_embed:
            reasons.append(f"dropout_p_embed={self.dropout_p_embed:g} has no effect: one-hot input has no embedding")
        return reasons

    def to_dict(self) -> dict[str, Any]:
        """All parameters as JSON values."""
        return {**asdict(self), "layers": list(self.layers)}

    def changed(self, parameters: Mapping[str, Any]) -> GRU4RecParameters:
        """A copy with some parameters set anew; TypeError where a name is unknown."""
        refuse_unknown(parameters)
        return replace(self, **parameters)

    @classmethod
    def create(cls, parameters: Mapping[str, Any]) -> GRU4RecParameters:
        """From a mapping; TypeError where a name is unknown."""
        return cls().changed(parameters)


def parameter_names() -> list[str]:
    """Names of all parameters."""
    return [entry.name for entry in fields(GRU4RecParameters)]


class UnknownParameterError(TypeError):
    """Parameters were given by names that the model does not have.

    Attributes:
        unknown: the names given; known: the names of the model's parameters.
    """

    def __init__(self, unknown: Sequence[str], known: Sequence[str]) -> None:
        super().__init__(unknown, known)
        self.unknown, self.known = unknown, known

    def __str__(self) -> str:
        return f"unknown parameter {', '.join(self.unknown)}; there are {', '.join(self.known)}"


def refuse_unknown(parameters: Mapping[str, Any], names: Sequence[str] | None = None) -> None:
    """Raise UnknownParameterError where a name is not among `names`, by default those of GRU4Rec's parameters."""
    names = names or parameter_names()
    unknown = [name for name in parameters if name not in names]
    if unknown:
        raise UnknownParameterError(unknown, names)


_TRUE, _FALSE = (True, 1, "1", "true", "True"), (False, 0, "0", "false", "False")


def _convert(name: str, kind: str, value: Any) -> Any:
    """A value, or its text as in a parameter string, as the type of its field."""
    try:
        if name in ("layers", "layer_sizes"):
            parts = (
                value.split("/") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
            )
            return tuple(_integer(part) for part in parts)
        if name == "embedding":
            return value if value == LAYERSIZE else _integer(value)
        if value is None or (value == "None" and "None" in kind):
            if "None" in kind:
                return None
            raise ValueError
        if kind == "bool":
            if value not in (*_TRUE, *_FALSE):
                raise ValueError
            return value in _TRUE
        if kind.startswith("int"):
            return _integer(value)
        if kind == "float":
            return to_number(value)
        if kind.startswith("dict"):
            return dict(json.loads(value) if isinstance(value, str) else value)
        return str(value)
    except (TypeError, ValueError):
        sizes = "sizes, as [512, 256] or 512/256"
        wanted = {"layers": sizes, "layer_sizes": sizes, "embedding": f"a whole number or {LAYERSIZE!r}"}
        kinds = {
            "int": "a whole number",
            "float": "a finite number",
            "bool": "True or False",
            "dict": "a mapping",
            "str": "text",
        }
        what = wanted.get(name) or next(text for start, text in kinds.items() if kind.startswith(start))
        raise TypeError(f"{name}={value!r}: must be {what}") from None


def _integer(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError
    number = int(value)
    if not isinstance(value, str) and number != value:
        raise ValueError
    return number


def to_number(value: Any) -> float:
    """A finite float from a number or its text; ValueError or TypeError where it is none."""
    number = float(value)
    if isinstance(value, bool) or number - number != 0:
        raise ValueError
    return number
