"""Hyper-parameters of GRU4Rec, NGCF and LightGCN: names, defaults, checks and help. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gru4rec_fast.models.parameter_fields import (
    LAYERSIZE,
    Check,
    Parameters,
    at_least,
    one_of,
    option,
    parameter_class,
    positive,
    probability,
    shared_field,
)

# Allowed values. These are copies, since the modules that define the values import torch. A test compares the copies
# with the originals.
LOSSES = ("cross-entropy", "bpr-max", "top1", "top1-max", "bpr")
GRU_FORMS = ("reset_after", "reset_before")
MATRICES = ("symmetric", "mean", "norm", "plain", "symmetric+I", "mean+I", "norm+I", "plain+I")
ACTIVATIONS = ("sum", "per_term")
SAMPLING_UNITS = ("users", "interactions")
DTYPES = ("float32", "float64")
PRECISIONS = ("full", "bf16")
IMPLEMENTATIONS = ("auto", "native", "reference")
LANES = ("joint", "independent")
SESSION_METRICS = ("recall", "mrr", "ndcg", "map", "precision", "hitrate")
GRAPH_METRICS = SESSION_METRICS
RATING_METRICS = ("rmse", "mae")
TRAINING_LOSS = "loss"

# Titles of the groups of options in `gru4rec-fast train --help`.
NETWORK, LOSS, SAMPLING, OPTIMIZER = "Network", "Loss", "Sampling", "Optimizer"
EPOCHS, RUNNING = "Epochs and validation", "Running"


def _make_monitor_check(*metrics: str) -> Check:
    """Return a check that a value is "loss" or one of the metrics at a cut-off."""

    def check(value: str) -> str | None:
        metric, separator, cutoff = value.partition("@")
        if value == TRAINING_LOSS or (metric in metrics and separator and cutoff.isdecimal() and int(cutoff) > 0):
            return None
        return f"choose {TRAINING_LOSS!r}, or {', '.join(metrics)} at a cut-off, as in 'recall@20'"

    return check


def _check_layers(value: tuple[int, ...]) -> str | None:
    return None if value and min(value) >= 1 else "give at least one layer, each of at least 1 unit"


def _check_width(value: int | str) -> str | None:
    return None if isinstance(value, str) or value >= 0 else f"must be a width, 0 or {LAYERSIZE!r}"


def _check_scheduler(value: str | None) -> str | None:
    if value is None:
        return None
    from gru4rec_fast.training.schedules import scheduler_names

    return one_of(*scheduler_names())(value)


def _check_seed(value: int | None) -> str | None:
    return None if value is None or 0 <= value < 1 << 63 else "must be in [0, 2**63)"


def _check_device(value: str) -> str | None:
    return None if re.fullmatch(r"(cpu|cuda)(:\d+)?", value) else "choose 'cpu', 'cuda', 'cuda:1' ..."


def split_adjacency(adjacency: str) -> tuple[str, str]:
    """Return the names of the propagation matrices P and Q of NGCF's two terms.

    `adjacency` is "paper" (P = L + I and Q = L, equation (7) of the paper), "P/Q" with the names of two matrices, or
    the name of one matrix that is both P and Q.
    """
    if adjacency == "paper":
        return "symmetric+I", "symmetric"
    p, _, q = adjacency.partition("/")
    return p, q or p


def _check_n_layers(value: int) -> str | None:
    """Return what is wrong with a number of propagations, else None. A damaged file may have any number."""
    return None if 0 <= value <= 100 else "must be 0 to 100"


def _check_adjacency(value: str) -> str | None:
    if all(matrix in MATRICES for matrix in split_adjacency(value)):
        return None
    return f"choose 'paper', one of {', '.join(MATRICES)}, or two of these as P/Q"


# The arguments of `option` are the default, the title of the option's group, the metavar, the help and the check.
@parameter_class
@dataclass(kw_only=True)
class GRU4RecParameters(Parameters):
    """Hyper-parameters of GRU4Rec. Names and defaults down to `logq` are those of the official PyTorch code."""

    layers: tuple[int, ...] = option(
        (100,), NETWORK, "SIZE/SIZE/...", "Units of each GRU layer, first layer first.", _check_layers
    )
    loss: str = option("cross-entropy", LOSS, "NAME", f"One of {', '.join(LOSSES)}.", one_of(*LOSSES))
    batch_size: int = option(64, OPTIMIZER, "N", "Sessions processed in parallel.", at_least(1))
    dropout_p_embed: float = option(
        0.0, NETWORK, "P", "Probability to drop a unit of the input embedding.", probability
    )
    dropout_p_hidden: float = option(0.0, NETWORK, "P", "Probability to drop a unit of a layer's output.", probability)
    learning_rate: float = option(0.05, OPTIMIZER, "RATE", "Learning rate of Adagrad.", positive)
    momentum: float = option(0.0, OPTIMIZER, "M", "Momentum of Adagrad.", probability)
    sample_alpha: float = option(
        0.5,
        SAMPLING,
        "ALPHA",
        "Negatives are sampled with probability proportional to occurrences^ALPHA: 0 is uniform, 1 is by popularity.",
        at_least(0),
    )
    n_sample: int = option(
        2048,
        SAMPLING,
        "N",
        "Negatives per mini-batch, sampled with replacement, in addition to the targets of the other sessions.",
        at_least(0),
    )
    embedding: int | str = option(
        0,
        NETWORK,
        "WIDTH",
        "Width of a separate input embedding; 'layersize' is the width of the first layer. 0 is one-hot input, with "
        "which the first layer always has the form reset_before. Has no effect if constrained_embedding is True.",
        _check_width,
    )
    constrained_embedding: bool = option(True, NETWORK, "BOOL", "Use the output weights also as input embedding.")
    n_epochs: int = option(10, EPOCHS, "N", "Number of epochs.", at_least(1))
    bpreg: float = option(1.0, LOSS, "STRENGTH", "Score regularization of bpr-max.", at_least(0))
    elu_param: float = option(0.5, LOSS, "ALPHA", "ELU parameter of bpr-max; 0 is no activation.", at_least(0))
    logq: float = option(
        0.0,
        LOSS,
        "STRENGTH",
        "Strength of cross-entropy's logQ correction for sampling by popularity; 1 is the full correction.",
        at_least(0),
    )

    label_smoothing: float = option(0.0, LOSS, "SHARE", "Label smoothing of cross-entropy.", probability)
    mask_accidental_hits: bool = option(False, LOSS, "BOOL", "Ignore a negative that is also the session's target.")
    bptt: int = option(
        1, OPTIMIZER, "STEPS", "Time steps per block, through which the gradient is propagated back.", at_least(1)
    )
    accumulate: int = option(1, OPTIMIZER, "N", "Blocks of bptt steps per update of the weights.", at_least(1))
    lanes: str = option(
        "joint",
        SAMPLING,
        "NAME",
        "In a training by several processes, a session's negatives are the targets of all sessions (joint), or of "
        "those of its own process (independent, faster), in addition to the sampled ones.",
        one_of(*LANES),
    )
    gru_form: str = option(
        "reset_after",
        NETWORK,
        "FORM",
        "reset_after (as torch.nn.GRU) or reset_before (the original form).",
        one_of(*GRU_FORMS),
    )
    shuffle: bool = option(False, EPOCHS, "BOOL", "Shuffle the sessions each epoch; otherwise their order is by time.")
    lr_scheduler: str | None = option(
        None,
        OPTIMIZER,
        "NAME",
        "Learning-rate schedule: step, cosine, plateau, or a class of torch.optim.lr_scheduler.",
        _check_scheduler,
    )
    lr_scheduler_options: Mapping[str, Any] | None = option(
        None, OPTIMIZER, "JSON", "Arguments of the scheduler's class, and interval: 'epoch' (default) or 'update'."
    )
    evaluate_every: int = option(
        1, EPOCHS, "N", "Epochs between two validations; the last epoch is always validated.", at_least(1)
    )
    monitor: str = option(
        "recall@20",
        EPOCHS,
        "METRIC",
        "Validation metric that selects the best epoch, or 'loss' for the training loss.",
        _make_monitor_check(*SESSION_METRICS),
    )
    patience: int | None = option(
        None, EPOCHS, "N", "Stop after N validations without an improvement; by default never.", at_least(1)
    )
    min_delta: float = option(
        0.0, EPOCHS, "DELTA", "Smallest change of the monitored value that counts as an improvement.", at_least(0)
    )
    eps: float = option(1e-6, OPTIMIZER, "EPS", "Added to Adagrad's accumulator under the square root.", positive)
    seed: int | None = option(
        None,
        RUNNING,
        "SEED",
        "Seed of weights, dropout, sampling and shuffling. None draws one from torch's CPU generator in every fit.",
        _check_seed,
    )
    dtype: str = option("float32", NETWORK, "TYPE", f"{' or '.join(DTYPES)}.", one_of(*DTYPES))
    precision: str = option(
        "full",
        NETWORK,
        "NAME",
        "full, or bf16: the fused step rounds factors of products to bfloat16; sums and weights stay float32.",
        one_of(*PRECISIONS),
    )
    device: str = option("cpu", RUNNING, "NAME", "cpu, cuda, cuda:1, ...", _check_device)
    impl: str = option(
        "auto",
        RUNNING,
        "NAME",
        "Kernels: auto, native or reference (pure PyTorch). gru4rec-fast info lists the native ones.",
        one_of(*IMPLEMENTATIONS),
    )
    fused: bool = option(
        True, RUNNING, "BOOL", "Train by the fused step, else by autograd; the results are equal up to rounding."
    )

    def _convert_and_check(self) -> None:
        super()._convert_and_check()
        for name in ("logq", "label_smoothing"):
            if getattr(self, name) and self.loss != "cross-entropy":
                raise ValueError(
                    f"{name}={getattr(self, name):g} belongs to loss='cross-entropy'; set it to 0 for {self.loss}"
                )
        if self.n_sample == 0 and self.batch_size == 1:
            raise ValueError("n_sample=0 with batch_size=1 gives mini-batches without negatives; increase one of them")
        if self.precision == "bf16" and (self.dtype != "float32" or not self.fused or self.impl == "reference"):
            raise ValueError(
                "precision='bf16' belongs to the fused step in float32: leave dtype, fused and impl at their defaults"
            )

    @property
    def embedding_mode(self) -> str:
        """The `embedding` argument of SessionNetwork: "constrained", "separate" or "none"."""
        return "constrained" if self.constrained_embedding else "separate" if self.embedding else "none"

    @property
    def embedding_dim(self) -> int:
        """Width of the separate embedding; 0 without one."""
        if self.embedding_mode != "separate":
            return 0
        return self.layers[0] if isinstance(self.embedding, str) else self.embedding

    @property
    def ignored_parameter_warnings(self) -> list[str]:
        """One warning for each parameter that has no effect because of other parameters, with the reason."""
        messages = []
        if self.constrained_embedding and self.embedding != 0:
            messages.append(f"embedding={self.embedding!r} has no effect: constrained_embedding=True replaces it")
        if self.embedding_mode == "none" and self.dropout_p_embed:
            messages.append(f"dropout_p_embed={self.dropout_p_embed:g} has no effect: one-hot input has no embedding")
        return messages


@parameter_class
@dataclass(kw_only=True)
class GraphParameters(Parameters):
    """Hyper-parameters that NGCF and LightGCN share."""

    embedding_dim: int = option(64, NETWORK, "WIDTH", "Width of the node embeddings.", at_least(1))
    node_dropout: float = option(
        0.0, NETWORK, "P", "Probability to drop an entry of the propagation matrix.", probability
    )
    reg_weight: float = option(
        1e-4,
        LOSS,
        "STRENGTH",
        "Strength of the L2 penalty on the embeddings of each triple (u, i, j), which are final embeddings for "
        "ngcf and initial embeddings for lightgcn: reg_weight * (|u|^2 + |i|^2 + |j|^2) / (2 * batch_size).",
        at_least(0),
    )
    learning_rate: float = option(1e-3, OPTIMIZER, "RATE", "Learning rate of Adam.", positive)
    batch_size: int = option(
        2048,
        OPTIMIZER,
        "N",
        "Triples (user, positive, negative) per mini-batch; an epoch has one triple per interaction.",
        at_least(1),
    )
    n_epochs: int = shared_field(GRU4RecParameters, "n_epochs", 1000)
    lr_scheduler: str | None = shared_field(GRU4RecParameters, "lr_scheduler", None)
    lr_scheduler_options: Mapping[str, Any] | None = shared_field(GRU4RecParameters, "lr_scheduler_options", None)
    only_needed: bool = option(
        True,
        RUNNING,
        "BOOL",
        "Compute in each step only the embeddings that its mini-batch needs; results are equal up to rounding.",
    )
    reorder: bool = option(
        False,
        RUNNING,
        "BOOL",
        "Renumber the nodes before training, so that neighbors are close in memory; a seed then samples other triples.",
    )
    sample_by: str = option(
        "users",
        SAMPLING,
        "UNIT",
        "users: sample a user uniformly, then one of the user's items. interactions: sample an interaction uniformly.",
        one_of(*SAMPLING_UNITS),
    )
    evaluate_every: int = shared_field(GRU4RecParameters, "evaluate_every", 10)
    monitor: str = option(
        "recall@20",
        EPOCHS,
        "METRIC",
        GRU4RecParameters.__dataclass_fields__["monitor"].metadata["help"],
        _make_monitor_check(*GRAPH_METRICS),
    )
    patience: int | None = shared_field(GRU4RecParameters, "patience", None)
    min_delta: float = shared_field(GRU4RecParameters, "min_delta", 0.0)
    seed: int | None = shared_field(GRU4RecParameters, "seed", None)
    dtype: str = shared_field(GRU4RecParameters, "dtype", "float32")
    device: str = shared_field(GRU4RecParameters, "device", "cpu")
    impl: str = shared_field(GRU4RecParameters, "impl", "auto")


@parameter_class
@dataclass(kw_only=True)
class NGCFParameters(GraphParameters):
    """Hyper-parameters of NGCF. Defaults are those of the paper's run on Gowalla."""

    layer_sizes: tuple[int, ...] = option(
        (64, 64, 64), NETWORK, "SIZE/SIZE/...", "Output widths of the layers, first layer first.", _check_layers
    )
    adjacency: str = option(
        "paper",
        NETWORK,
        "NAME",
        "Propagation matrices: paper (equation 7: P = L + I, Q = L), one matrix for both terms, for example "
        "norm (most published code), or P/Q, for example mean+I/mean.",
        _check_adjacency,
    )
    activation: str = option(
        "sum",
        NETWORK,
        "NAME",
        "LeakyReLU of the sum of the two terms (sum) or of each term (per_term).",
        one_of(*ACTIVATIONS),
    )
    node_dropout: float = shared_field(GraphParameters, "node_dropout", 0.1)
    message_dropout: float = option(0.1, NETWORK, "P", "Probability to drop a unit of a layer's output.", probability)
    normalize_messages: bool = option(
        False, NETWORK, "BOOL", "Give each layer the L2-normalized output of the previous layer."
    )
    reg_weight: float = shared_field(GraphParameters, "reg_weight", 1e-5)
    learning_rate: float = shared_field(GraphParameters, "learning_rate", 1e-4)
    batch_size: int = shared_field(GraphParameters, "batch_size", 1024)
    n_epochs: int = shared_field(GraphParameters, "n_epochs", 400)


@parameter_class
@dataclass(kw_only=True)
class LightGCNParameters(GraphParameters):
    """Hyper-parameters of LightGCN. Defaults are those of the paper's run on Gowalla."""

    n_layers: int = option(3, NETWORK, "N", "Number of propagations.", _check_n_layers)
    adjacency: str = option(
        "symmetric", NETWORK, "NAME", f"Propagation matrix: {', '.join(MATRICES)}.", one_of(*MATRICES)
    )


@parameter_class
@dataclass(kw_only=True)
class RatingScorerParameters(Parameters):
    """Hyper-parameters of RatingScorer."""

    user_dim: int = option(100, NETWORK, "WIDTH", "Width of the user embedding.", at_least(1))
    group_dim: int = option(
        80, NETWORK, "WIDTH", "Width of the embedding of the item's group; 0: no groups are read.", at_least(0)
    )
    item_dim: int = option(20, NETWORK, "WIDTH", "Width of the item embedding.", at_least(1))
    layer_sizes: tuple[int, ...] = option(
        (70,), NETWORK, "SIZE/SIZE/...", "Widths of the hidden layers, first layer first.", _check_layers
    )
    id_dropout: float = option(
        0.0, NETWORK, "P", "Probability to replace an id by an unknown one (zeros) in training.", probability
    )
    weight_decay: float = option(
        0.0, OPTIMIZER, "STRENGTH", "Strength of Adam's weight decay (L2), of the rows of a mini-batch.", at_least(0)
    )
    learning_rate: float = shared_field(GraphParameters, "learning_rate", 1e-3)
    batch_size: int = option(256, OPTIMIZER, "N", "Ratings per mini-batch.", at_least(1))
    n_epochs: int = shared_field(GRU4RecParameters, "n_epochs", 20)
    lr_scheduler: str | None = shared_field(GRU4RecParameters, "lr_scheduler", None)
    lr_scheduler_options: Mapping[str, Any] | None = shared_field(GRU4RecParameters, "lr_scheduler_options", None)
    evaluate_every: int = shared_field(GRU4RecParameters, "evaluate_every", 1)
    monitor: str = option(
        "rmse",
        EPOCHS,
        "METRIC",
        GRU4RecParameters.__dataclass_fields__["monitor"].metadata["help"],
        one_of(*RATING_METRICS, TRAINING_LOSS),
    )
    patience: int | None = shared_field(GRU4RecParameters, "patience", None)
    min_delta: float = shared_field(GRU4RecParameters, "min_delta", 0.0)
    seed: int | None = shared_field(GRU4RecParameters, "seed", None)
    dtype: str = shared_field(GRU4RecParameters, "dtype", "float32")
    device: str = shared_field(GRU4RecParameters, "device", "cpu")
    impl: str = shared_field(GRU4RecParameters, "impl", "auto")
