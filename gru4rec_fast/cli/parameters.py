"""Hyper-parameters on the command line: one option for each, parameter strings, parameter files."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gru4rec_fast.cli.options import with_signature
from gru4rec_fast.cli.registry import PARAMETERS, estimator_class, parameter_class
from gru4rec_fast.models.parameter_fields import Parameters, UnknownParameterError
from gru4rec_fast.models.parameter_text import parse_parameter_string, read_parameter_file

if TYPE_CHECKING:
    from gru4rec_fast.models import GraphRecommender, GRU4Rec


def with_parameter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option for every parameter of every model to a command.

    The command receives the options in use as `parameters`, {name: value}. Its own parameters must be keywords, as
    `with_option_groups` makes them.
    """
    signature = inspect.signature(command, eval_str=True).parameters
    names = dict.fromkeys(name for cls in PARAMETERS.values() for name in cls.names())
    options = [_parameter_option(name) for name in names]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        values_by_name = {name: values.pop(name) for name in names}
        command(**values, parameters={name: value for name, value in values_by_name.items() if value is not None})

    return with_signature(wrapper, [*(signature[name] for name in signature if name != "parameters"), *options])


def _parameter_option(name: str) -> inspect.Parameter:
    """Return the option of a parameter. It is text, or a flag without a value where the parameter is False by default.

    The option's own default is None, so that an option at the parameter's default still wins over a parameter string.
    """
    fields = {model: cls.__dataclass_fields__[name] for model, cls in PARAMETERS.items() if name in cls.names()}
    metadata = next(iter(fields.values())).metadata
    is_flag = all(entry.default is False for entry in fields.values())
    helps = _models_by_value({model: entry.metadata["help"] for model, entry in fields.items()})
    defaults = _models_by_value({model: _text(entry.default) for model, entry in fields.items()})
    sentences = [text if len(models) == len(PARAMETERS) else f"{', '.join(models)}: {text}" for text, models in helps]
    if len(defaults) > 1:
        listed = (f"{text} ({', '.join(models)})" for text, models in defaults)
        sentences.append(f"Default: {', '.join(listed)}.")
    elif defaults[0][0] and not is_flag:
        sentences.append(f"Default: {defaults[0][0]}.")
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        metavar=None if is_flag else metadata["metavar"],
        help=" ".join(sentences),
        rich_help_panel=metadata["panel"],
    )
    annotation = Annotated[bool | None, option] if is_flag else Annotated[str | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _models_by_value(values: dict[str, str]) -> list[tuple[str, list[str]]]:
    """Return each value once, with the models that have it."""
    return [(value, [model for model in values if values[model] == value]) for value in dict.fromkeys(values.values())]


def _text(default: Any) -> str:
    return "" if default is None else "/".join(map(str, default)) if isinstance(default, tuple) else str(default)


def build_model(
    name: str, options: dict[str, Any], parameter_string: str | None, parameter_file: Path | None
) -> tuple[GRU4Rec | GraphRecommender, Parameters]:
    """Return a new model and its parameters. An option wins over the string, and the string over the file.

    Raises:
        ValueError: an unknown parameter, with the nearest known names; or a wrong value.
        FileNotFoundError: there is no such file. RuntimeError: this machine has no such device.
    """
    cls = parameter_class(name)
    try:
        from_file = read_parameter_file(parameter_file, cls.names()) if parameter_file else {}
        from_string = parse_parameter_string(parameter_string, cls.names()) if parameter_string else {}
        parameters = cls.create({**from_file, **from_string, **options})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error}{_nearest_names(error)}") from error
    from gru4rec_fast.models.builders import find_device

    find_device(parameters.device)  # an error before the logs are read
    return estimator_class(name)(**vars(parameters)), parameters


def _nearest_names(error: Exception) -> str:
    """Return a question with the known names nearest to the unknown ones that the error is about, or ""."""
    reason = error if isinstance(error, UnknownParameterError) else error.__cause__  # a parameter file's
    if not isinstance(reason, UnknownParameterError):
        return ""
    matches = (match for name in reason.unknown for match in difflib.get_close_matches(name, reason.known))
    nearest = list(dict.fromkeys(matches))
    return f" (did you mean {' or '.join(nearest)}?)" if nearest else ""
