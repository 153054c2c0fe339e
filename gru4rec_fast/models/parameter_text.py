"""Read hyper-parameters from a parameter string of the official code, or from a TOML or JSON file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from gru4rec_fast._untrusted import brief, parse_json
from gru4rec_fast.models.parameter_fields import Parameters, parse_number
from gru4rec_fast.models.parameters import GRU4RecParameters


def parse_parameter_string(text: str, cls: type[Parameters] = GRU4RecParameters) -> dict[str, Any]:
    """Return the parameters of a string `name=value,name=value`, as in the official code.

    Lists are written with `/` (layers=512/256). Three parameters of the Theano code are also accepted: final_act
    (linear, softmax, softmax_logit or elu-X) sets elu_param; hidden_act=tanh and adapt=adagrad have no effect. The
    returned values are text, which `create` of the parameter class converts.

    Args:
        text: the parameter string.
        cls: the parameter class of the model.

    Raises:
        TypeError: an unknown parameter.
        ValueError: text that is not name=value, a name given twice, an unsupported activation or optimizer.
    """
    parameters: dict[str, Any] = {}
    for assignment in filter(None, (assignment.strip() for assignment in text.split(","))):
        name, equals, value = (word.strip() for word in assignment.partition("="))
        if not equals or not name or not value:
            raise ValueError(f"parameter string: {brief(assignment)} is not name=value")
        if name in parameters:
            raise ValueError(f"parameter string: {brief(name)} is given twice")
        parameters[name] = value
    final_act = parameters.pop("final_act", None)
    if final_act is not None:
        parameters.setdefault("elu_param", _elu_param(final_act))
    for name, supported in (("hidden_act", "tanh"), ("adapt", "adagrad")):
        if parameters.pop(name, supported) != supported:
            raise ValueError(f"parameter string: {name} can only be {supported} here")
    cls.check_names(parameters)
    return parameters


def _elu_param(final_act: str) -> float:
    """Return elu_param for an activation of the Theano code."""
    activation, _, alpha = final_act.partition("-")
    if activation in ("linear", "softmax", "softmax_logit"):
        return 0.0
    if activation == "elu" and alpha:
        return parse_number(alpha)
    raise ValueError(f"parameter string: final_act={brief(final_act)}: choose linear, softmax, softmax_logit or elu-X")


def read_parameter_file(path: str | Path, cls: type[Parameters] = GRU4RecParameters) -> dict[str, Any]:
    """Return the parameters at the top level of a .toml or .json file, or in its table "parameters" if it has one.

    Args:
        path: the file.
        cls: the parameter class of the model.

    Raises:
        FileNotFoundError: there is no such file. ValueError: the file cannot be parsed, or has an unknown parameter.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    try:
        content = parse_json(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # tomllib recurses for nested lists
        raise ValueError(f"{path}: {brief(error, 200)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not parameters by name")
    parameters = content.get("parameters", content)
    if not isinstance(parameters, dict):
        raise ValueError(f'{path}: its "parameters" are {brief(parameters)}, not parameters by name')
    try:
        cls.check_names(parameters)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error
    return dict(parameters)
