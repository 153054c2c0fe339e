"""Read parameter files of the official code, which are Python programs, without running them."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

from gru4rec_fast._untrusted import brief
from gru4rec_fast.models.parameters import GRU4RecParameters

_VARIABLE = "gru4rec_params"


def read_paramfile(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the parameters in a Python file that assigns them to `gru4rec_params`, as the official code wants them.

        from collections import OrderedDict
        gru4rec_params = OrderedDict([("loss", "bpr-max"), ("layers", [100])])

    The file is parsed and not run, so values must be literals. Statements other than the assignment have no effect.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Python file, does not have exactly one such assignment of literals, or has an unknown
            parameter.
    """
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} is no Python file: {brief(error, 200)}") from error
    values = [node.value for node in tree.body if isinstance(node, ast.Assign) and _assigns_parameters(node)]
    if len(values) != 1:
        raise ValueError(f"{path} must assign the parameters to {_VARIABLE} once, not {len(values)} times")
    try:
        parameters = _read_dict(values[0])
        GRU4RecParameters.check_names(parameters)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {values[0].lineno}: {brief(error, 200)}") from error
    return parameters


def _assigns_parameters(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == _VARIABLE for target in node.targets)


def _read_dict(node: ast.expr) -> dict[str, Any]:
    """Return the value of a dict literal, or of a call of dict or OrderedDict, whose arguments are literals."""
    if not isinstance(node, ast.Call):
        return dict(ast.literal_eval(node))
    function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
    if function not in ("dict", "OrderedDict"):
        raise ValueError(f"{_VARIABLE} must be a dict or an OrderedDict of literals")
    arguments = [ast.literal_eval(argument) for argument in node.args]
    return dict(*arguments, **{str(word.arg): ast.literal_eval(word.value) for word in node.keywords})
