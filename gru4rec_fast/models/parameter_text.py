"""Hyper-parameters from text: the official code's parameter strings, TOML and JSON files."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gru4rec_fast.models.parameters import refuse_unknown, to_number


def parse_parameter_string(text: str, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Parameters from `name=value,name=value` as in the official code; lists are written with `/` (layers=512/256).

    What the Theano code writes is understood where it means the same here: final_act (linear, softmax, elu-X),
    hidden_act=tanh and adapt=adagrad. Values stay text; the class of the parameters turns them into numbers.
    names: of the parameters there are; by default GRU4Rec's.

    Raises:
        TypeError: an unknown parameter.
        ValueError: a part that is no name=value, a name given twice, an activation or optimizer that is not here.
    """
    parameters: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not name or not value:
            raise ValueError(f"parameter string: {part!r} is not name=value")
        if name in parameters:
            raise ValueError(f"parameter string: {name} is given twice")
        parameters[name] = value
    final = parameters.pop("final_act", None)
    if final is not None:
        parameters.setdefault("elu_param", _elu_param(final))
    for name, only in (("hidden_act", "tanh"), ("adapt", "adagrad")):
        if parameters.pop(name, only) != only:
            raise ValueError(f"parameter string: {name} can only be {only} here")
    refuse_unknown(parameters, names)
    return parameters


def _elu_param(final_act: str) -> float:
    kind, _, size = final_act.partition("-")
    if kind in ("linear", "softmax", "softmax_logit"):
        return 0.0
    if kind == "elu" and size:
        return to_number(size)
    raise ValueError(f"parameter string: final_act={final_act}: choose linear, softmax or elu-X")


def read_parameter_file(path: str | Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Parameters from a .toml or .json file: one table, or one named "parameters".

    names: as in `parse_parameter_string`.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it cannot be parsed, or holds unknown parameters.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not parameters by name")
    parameters = content.get("parameters", content)
    if not isinstance(parameters, dict):
        raise ValueError(f'{path}: its "parameters" are {parameters!r}, not parameters by name')
    try:
        refuse_unknown(parameters, names)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error
    return dict(parameters)
