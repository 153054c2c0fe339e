"""Hyper-parameters on the command line: one flag each, parameter strings, parameter files."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from gru4rec_fast.cli.kinds import estimator_class
from gru4rec_fast.cli.options import with_signature

if TYPE_CHECKING:
    from gru4rec_fast.models import GraphRecommender, GRU4Rec

_NETWORK, _LOSS, _OPTIMIZER, _NEGATIVES = "Network", "Loss", "Optimizer", "Negative samples"
_EPOCHS, _RUN = "Epochs and validation", "Running"


class Flag(NamedTuple):
    """The flag of one parameter. Its default is here for the help alone: a flag that is not given sets nothing."""

    panel: str
    default: str | bool | None
    metavar: str
    help: str


# The parameters of GRU4RecParameters and their defaults, written out so that --help need not wait for torch.
FLAGS = {
    "layers": Flag(_NETWORK, "100", "SIZE/SIZE/...", "Units of each GRU layer, first layer first: 512/256."),
    "embedding": Flag(_NETWORK, "0", "WIDTH", "Width of a separate input embedding, or 'layersize'; 0: one-hot input."),
    "constrained_embedding": Flag(
        _NETWORK, "True", "BOOL", "True: the output table is the input embedding too, and --embedding is not read."
    ),
    "dropout_p_embed": Flag(_NETWORK, "0.0", "P", "Probability to drop a unit of the input embedding."),
    "dropout_p_hidden": Flag(_NETWORK, "0.0", "P", "Probability to drop a unit of a layer's output."),
    "gru_form": Flag(_NETWORK, "reset_after", "FORM", "reset_after (as torch.nn.GRU) or reset_before."),
    "dtype": Flag(_NETWORK, "float32", "TYPE", "float32 or float64."),
    "precision": Flag(_NETWORK, "full", "NAME", "full, or bf16: products of numbers rounded to bfloat16."),
    "loss": Flag(_LOSS, "cross-entropy", "NAME", "cross-entropy, bpr-max, top1, top1-max or bpr."),
    "logq": Flag(
        _LOSS, "0.0", "STRENGTH", "Correction of cross-entropy for sampling by popularity; 1 is the full one."
    ),
    "label_smoothing": Flag(_LOSS, "0.0", "SHARE", "Of cross-entropy."),
    "bpreg": Flag(_LOSS, "1.0", "STRENGTH", "Score regularization of bpr-max."),
    "elu_param": Flag(_LOSS, "0.5", "ALPHA", "Of the activation of bpr-max; 0: none."),
    "mask_accidental_hits": Flag(_LOSS, False, "", "A negative that is the target is no negative."),
    "n_sample": Flag(_NEGATIVES, "2048", "N", "Negatives per mini-batch, besides the other lanes' targets."),
    "sample_alpha": Flag(_NEGATIVES, "0.5", "ALPHA", "Drawn with p ~ occurrences^ALPHA: 0 evenly, 1 by popularity."),
    "batch_size": Flag(_OPTIMIZER, "64", "N", "Sessions played in parallel."),
    "learning_rate": Flag(_OPTIMIZER, "0.05", "RATE", "Of Adagrad."),
    "momentum": Flag(_OPTIMIZER, "0.0", "M", "Of Adagrad."),
    "eps": Flag(_OPTIMIZER, "1e-06", "EPS", "Added to Adagrad's accumulator, inside the root."),
    "bptt": Flag(_OPTIMIZER, "1", "STEPS", "How many steps the gradient goes back."),
    "accumulate": Flag(_OPTIMIZER, "1", "N", "Blocks of --bptt steps per update."),
    "lr_scheduler": Flag(_OPTIMIZER, None, "NAME", "step, cosine, plateau, or a class of torch.optim.lr_scheduler."),
    "lr_scheduler_options": Flag(_OPTIMIZER, None, "JSON", "The scheduler's arguments, as a JSON object."),
    "n_epochs": Flag(_EPOCHS, "10", "N", "Passes over the training log."),
    "shuffle": Flag(_EPOCHS, False, "", "A new order of the sessions each epoch, instead of by time."),
    "monitor": Flag(_EPOCHS, "recall@20", "METRIC", "Validation metric that picks the best epoch, or 'loss'."),
    "patience": Flag(_EPOCHS, None, "N", "Stop after N epochs without a better one."),
    "min_delta": Flag(_EPOCHS, "0.0", "DELTA", "By how much a better one must be better."),
    "seed": Flag(_RUN, "0", "SEED", "Of weights, dropout, negatives and shuffle."),
    "device": Flag(_RUN, "cpu", "NAME", "cpu, cuda, cuda:1, ..."),
    "impl": Flag(
        _RUN,
        "auto",
        "NAME",
        "Kernels: auto, native or reference (pure PyTorch). gru4rec-fast info lists the native ones.",
    ),
    "fused": Flag(_RUN, "True", "BOOL", "Train by the fused step; False: through autograd."),
}

_GRAPH = "Graph models (--model ngcf, lightgcn)"

# What only graph models have. Parameters they share with GRU4Rec are above; their defaults are in docs/graph_models.md.
GRAPH_FLAGS = {
    "embedding_dim": Flag(_GRAPH, None, "WIDTH", "Width of the node embeddings (64)."),
    "layer_sizes": Flag(_GRAPH, None, "SIZE/SIZE/...", "ngcf: widths of the layers, first layer first (64/64/64)."),
    "n_layers": Flag(_GRAPH, None, "N", "lightgcn: propagations (3)."),
    "adjacency": Flag(
        _GRAPH, None, "NAME", "Propagation matrix: paper (ngcf's), symmetric (lightgcn's), norm, mean, plain or P/Q."
    ),
    "activation": Flag(_GRAPH, None, "NAME", "ngcf: LeakyReLU of the terms' sum, or per_term (sum)."),
    "node_dropout": Flag(_GRAPH, None, "P", "Probability to drop an entry of the matrix (ngcf 0.1, lightgcn 0)."),
    "message_dropout": Flag(_GRAPH, None, "P", "ngcf: probability to drop a unit of a layer's output (0.1)."),
    "normalize_messages": Flag(_GRAPH, False, "", "ngcf: each layer reads the normalized output of the one before."),
    "reg_weight": Flag(_GRAPH, None, "STRENGTH", "L2 penalty (ngcf 1e-5, lightgcn 1e-4)."),
    "sample_by": Flag(
        _GRAPH,
        None,
        "UNIT",
        "A triple begins with a user, or an interaction, drawn evenly: users (default) or interactions.",
    ),
    "only_needed": Flag(_GRAPH, None, "BOOL", "Compute in each step only what its batch needs (True)."),
    "reorder": Flag(_GRAPH, False, "", "Renumber the nodes first, so that neighbors stand close in memory."),
    "evaluate_every": Flag(_GRAPH, None, "N", "Epochs between two validations (10)."),
}


def with_parameter_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every flag of `FLAGS` and `GRAPH_FLAGS`; those used reach it as its `flags`, {name: value}.

    The command's own parameters must be keywords, as `with_option_groups` makes them.
    """
    own = inspect.signature(command, eval_str=True).parameters
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    @functools.wraps(command)
    def wrapper(context: typer.Context, **values: Any) -> None:
        given = {name: values.pop(name) for name in (*FLAGS, *GRAPH_FLAGS)}
        flags = {name: value for name, value in given.items() if _is_given(context, name)}
        command(**values, flags=flags)

    rest = [parameter for name, parameter in own.items() if name != "flags"]
    flags = [_as_parameter(name, flag) for name, flag in (FLAGS | GRAPH_FLAGS).items()]
    return with_signature(wrapper, [context, *rest, *flags])


def _as_parameter(name: str, flag: Flag) -> inspect.Parameter:
    """Values are text, and read as those of a parameter string are; a flag whose default is False takes none."""
    decl = f"--{name.replace('_', '-')}"
    annotation: Any
    if flag.default is False:
        annotation = Annotated[bool, typer.Option(decl, help=flag.help, rich_help_panel=flag.panel)]
    else:
        option = typer.Option(decl, metavar=flag.metavar, help=flag.help, rich_help_panel=flag.panel)
        annotation = Annotated[str | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=flag.default, annotation=annotation)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def build_model(
    kind: str, flags: dict[str, Any], parameter_string: str | None, parameter_file: Path | None
) -> GRU4Rec | GraphRecommender:
    """A model of a kind (see `cli.kinds`); its parameters come from the flags, else the string, else the file.

    Raises:
        ValueError: an unknown parameter, with the nearest known ones; or a value that cannot be.
        FileNotFoundError: there is no such file. RuntimeError: there is no such device here.
    """
    from gru4rec_fast.models import parse_parameter_string, read_parameter_file
    from gru4rec_fast.models.parts import find_device

    found = estimator_class(kind)
    names = list(found.parameter_class.create({}).to_dict())
    try:
        from_file = read_parameter_file(parameter_file, names) if parameter_file else {}
        from_string = parse_parameter_string(parameter_string, names) if parameter_string else {}
        model = found(**{**from_file, **from_string, **flags})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error}{_nearest_names(error)}") from error
    find_device(model.parameters.device)  # before a log is read for nothing
    return model


def _nearest_names(error: Exception) -> str:
    """Name the known parameters nearest to the unknown ones, where these are the error's reason."""
    from gru4rec_fast.models.parameter_fields import UnknownParameterError

    reason = error if isinstance(error, UnknownParameterError) else error.__cause__  # a parameter file's
    if not isinstance(reason, UnknownParameterError):
        return ""
    found = (match for name in reason.unknown for match in difflib.get_close_matches(name, reason.known))
    nearest = list(dict.fromkeys(found))
    return f" (did you mean {' or '.join(nearest)}?)" if nearest else ""
