"""Hyper-parameters on the command line: one option for each, a parameter string (-ps), a parameter file (--params)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gru4rec_fast.cli.options import with_signature
from gru4rec_fast.cli.registry import BASELINES, PARAMETERS, estimator_class, parameter_class
from gru4rec_fast.models.parameter_fields import Parameters
from gru4rec_fast.models.parameter_text import parse_parameter_string, read_parameter_file

if TYPE_CHECKING:
    from gru4rec_fast.cli.registry import AnyModel


# Defaults that differ from those of the models. A fixed seed makes a command give the same result each time.
_DEFAULTS = {"seed": 0}


def with_parameter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command for Typer with an option for every hyper-parameter of every model.

    The options that the user gave are passed to `command` in its argument `parameters`, {name: value}. All parameters
    of `command` must be keyword-only, as after `with_option_groups`.
    """
    signature = inspect.signature(command, eval_str=True).parameters
    names = dict.fromkeys(name for cls in (PARAMETERS | BASELINES).values() for name in cls.names())
    options = [_parameter_option(name) for name in names]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        values_by_name = {name: values.pop(name) for name in names}
        command(**values, parameters={name: value for name, value in values_by_name.items() if value is not None})

    return with_signature(wrapper, [*(signature[name] for name in signature if name != "parameters"), *options])


def _parameter_option(name: str) -> inspect.Parameter:
    """Return the option of a hyper-parameter: a flag without a value if the default is False, else a text option.

    The option's default is None, which means "not given". So an option that is given with the hyper-parameter's default
    value still wins over a parameter string.
    """
    models = PARAMETERS | BASELINES
    fields = {model: cls.__dataclass_fields__[name] for model, cls in models.items() if name in cls.names()}
    metadata = next(iter(fields.values())).metadata
    is_flag = all(entry.default is False for entry in fields.values())
    helps = _models_by_value({model: entry.metadata["help"] for model, entry in fields.items()})
    defaults = _models_by_value(
        {model: _format_default(_DEFAULTS.get(name, entry.default)) for model, entry in fields.items()}
    )
    # A parameter that all networks have is named without them.
    sentences = [text if models == [*PARAMETERS] else f"{', '.join(models)}: {text}" for text, models in helps]
    if len(defaults) > 1:
        defaults_with_models = (f"{text} ({', '.join(models)})" for text, models in defaults if text)
        sentences.append(f"Default: {', '.join(defaults_with_models)}.")
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
    """Group models by value: return each distinct value with the list of the models that have it."""
    return [(value, [model for model in values if values[model] == value]) for value in dict.fromkeys(values.values())]


def _format_default(default: Any) -> str:
    """Return a default value as it is written on the command line; "" for None."""
    return "" if default is None else "/".join(map(str, default)) if isinstance(default, tuple) else str(default)


def build_parameters(
    cls: type[Parameters], options: dict[str, Any], parameter_string: str | None, parameter_file: Path | None
) -> Any:
    """Return the parameters of a model. An option wins over the string, and the string over the file.

    Raises:
        ValueError: an unknown parameter, with the nearest known names; or a wrong value.
        FileNotFoundError: there is no such file.
    """
    try:
        from_file = read_parameter_file(parameter_file, cls) if parameter_file else {}
        from_string = parse_parameter_string(parameter_string, cls) if parameter_string else {}
        defaults = {name: value for name, value in _DEFAULTS.items() if name in cls.names()}
        return cls.create({**defaults, **from_file, **from_string, **options})
    except (TypeError, ValueError) as error:
        raise ValueError(str(error)) from error


def build_model(
    name: str, options: dict[str, Any], parameter_string: str | None, parameter_file: Path | None
) -> AnyModel:
    """Return a new model with these hyper-parameters.

    Raises the errors of `build_parameters`, and RuntimeError if this machine has no such device.
    """
    parameters = build_parameters(parameter_class(name), options, parameter_string, parameter_file)
    if name not in BASELINES:
        from gru4rec_fast.models.builders import find_device

        find_device(parameters.device)  # raises an error for a device that is missing before the logs are read
    return estimator_class(name)(**vars(parameters))
