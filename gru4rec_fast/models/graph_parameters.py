"""Hyper-parameters of NGCF and LightGCN: names, defaults and checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import torch

from gru4rec_fast.data.graphs.triples import SAMPLE_BY
from gru4rec_fast.evaluation.graph import GRAPH_METRICS
from gru4rec_fast.models.parameters import (
    DTYPES,
    IMPLEMENTATIONS,
    _at_least,
    _choice,
    _convert,
    _monitored,
    _probability,
    _rule,
    refuse_unknown,
)
from gru4rec_fast.ops.ngcf_layer import ACTIVATIONS, PROPAGATION_MATRICES


def _positive(value: float) -> str | None:
    return None if value > 0 else "must be positive"


@dataclass(frozen=True, kw_only=True)
class GraphParameters:
    """What both models share.

    Attributes:
        embedding_dim: width of the node embeddings.
        node_dropout: probability to drop an entry of the propagation matrix, in training.
        reg_weight: strength of the L2 penalty, reg_weight * (|u|^2 + |i|^2 + |j|^2) / (2 * batch_size).
        learning_rate: of Adam.
        batch_size: triples of a mini-batch; an epoch draws one triple per edge.
        n_epochs: epochs.
        only_needed: compute in each step only what its batch needs, see `gru4rec_fast.nn.GraphNetwork`; the same
            training, to rounding.
        reorder: renumber the graph's nodes first, so that neighbors stand close in memory
            (`gru4rec_fast.data.graphs.order`); ids are what they were, but another order draws other triples.
        sample_by: "users" (a user uniformly, then one of its items) or "interactions" (uniformly).
        evaluate_every: epochs between two validations.
        monitor: the validation metric that picks the best epoch, or "loss".
        patience, min_delta: stop after `patience` validations without a gain above `min_delta`; None: never.
        seed: of weights, dropouts and triples.
        dtype: "float32" or "float64".
        device: "cpu", "cuda", "cuda:1" ...
        impl: "auto", "native" or "reference", for every operator.

    Raises:
        TypeError: a value of the wrong type; ValueError: one out of range. Both name the parameter and the remedy.
    """

    embedding_dim: int = _rule(64, _at_least(1))
    node_dropout: float = _rule(0.0, _probability)
    reg_weight: float = _rule(1e-4, _at_least(0))
    learning_rate: float = _rule(1e-3, _positive)
    batch_size: int = _rule(2048, _at_least(1))
    n_epochs: int = _rule(1000, _at_least(1))
    only_needed: bool = True
    reorder: bool = False
    sample_by: str = _rule("users", lambda value: _choice(value, SAMPLE_BY))
    evaluate_every: int = _rule(10, _at_least(1))
    monitor: str = _rule("recall@20", lambda value: _monitored(value, GRAPH_METRICS))
    patience: int | None = _rule(None, lambda value: None if value is None else _at_least(1)(value))
    min_delta: float = _rule(0.0, _at_least(0))
    seed: int = _rule(0, _at_least(0))
    dtype: str = _rule("float32", lambda value: _choice(value, tuple(DTYPES)))
    device: str = "cpu"
    impl: str = _rule("auto", lambda value: _choice(value, IMPLEMENTATIONS))

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = _convert(entry.name, str(entry.type), getattr(self, entry.name))
            object.__setattr__(self, entry.name, value)
            wrong = entry.metadata["check"](value) if "check" in entry.metadata else None
            if wrong:
                raise ValueError(f"{entry.name}={value!r}: {wrong}")
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"device={self.device!r}: {str(error).splitlines()[0]}") from None

    def to_dict(self) -> dict[str, Any]:
        """All parameters as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def changed(self, parameters: Mapping[str, Any]) -> Self:
        """A copy with some parameters set anew; TypeError where a name is unknown."""
        refuse_unknown(parameters, self.names())
        return replace(self, **parameters)

    @classmethod
    def names(cls) -> list[str]:
        """Names of all parameters."""
        return [entry.name for entry in fields(cls)]

    @classmethod
    def create(cls, parameters: Mapping[str, Any]) -> Self:
        """From the default, with some parameters set; raises as `changed` and the class."""
        return cls().changed(parameters)


def split_adjacency(adjacency: str) -> tuple[str, str]:
    """P and Q: "paper" is L + I and L of equation (7), one name stands for both, "P/Q" for one each."""
    if adjacency == "paper":
        return "symmetric+I", "symmetric"
    p, _, q = adjacency.partition("/")
    return p, q or p


def _adjacency(value: str) -> str | None:
    if all(matrix in PROPAGATION_MATRICES for matrix in split_adjacency(value)):
        return None
    return f"choose 'paper', one of {', '.join(PROPAGATION_MATRICES)}, or two of these as P/Q"


def _sizes(value: tuple[int, ...]) -> str | None:
    return None if value and min(value) >= 1 else "give at least one layer, each of at least 1 unit"


@dataclass(frozen=True, kw_only=True)
class NGCFParameters(GraphParameters):
    """Hyper-parameters of NGCF; defaults are those of the paper's Gowalla run. See also `GraphParameters`.

    Attributes:
        layer_sizes: widths of the layers' outputs, first layer first.
        adjacency: "paper" (equation (7): P = L + I, Q = L), one propagation matrix for both terms, e.g. "norm" (most
            published code), or "P/Q", e.g. "mean+I/mean".
        activation: "sum" (LeakyReLU of the two terms' sum) or "per_term" (of each).
        message_dropout: probability to drop a unit of a layer's output, in training.
        normalize_messages: each layer reads the L2-normalized output of the one before.
    """

    layer_sizes: tuple[int, ...] = _rule((64, 64, 64), _sizes)
    adjacency: str = _rule("paper", _adjacency)
    activation: str = _rule("sum", lambda value: _choice(value, ACTIVATIONS))
    node_dropout: float = _rule(0.1, _probability)
    message_dropout: float = _rule(0.1, _probability)
    normalize_messages: bool = False
    reg_weight: float = _rule(1e-5, _at_least(0))
    learning_rate: float = _rule(1e-4, _positive)
    batch_size: int = _rule(1024, _at_least(1))
    n_epochs: int = _rule(400, _at_least(1))


@dataclass(frozen=True, kw_only=True)
class LightGCNParameters(GraphParameters):
    """Hyper-parameters of LightGCN; defaults are those of the paper's Gowalla run. See also `GraphParameters`.

    Attributes:
        n_layers: number of propagations.
        adjacency: the propagation matrix.
    """

    n_layers: int = _rule(3, _at_least(0))
    adjacency: str = _rule("symmetric", lambda value: _choice(value, PROPAGATION_MATRICES))
