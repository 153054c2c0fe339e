"""Handles values from files and users: parses JSON, checks numbers, and shortens values for error messages."""

from __future__ import annotations

import json
import operator
from numbers import Real
from typing import Any


def parse_json(text: str) -> Any:
    """Return the value of a JSON text. Raises ValueError if the text is invalid or too deeply nested."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None


def brief(value: object, length: int = 100) -> str:
    """Return an error's message, or the repr of any other value, as one line of at most `length` characters."""
    text = str(value) if isinstance(value, BaseException) else repr(value)
    line = " ".join(text[: 10 * length].split())
    return line if len(line) <= length else f"{line[: length - 3]}..."


def whole_numbers(minimum: int, **values: Any) -> list[int]:
    """Return the values as Python integers, which do not overflow.

    Raises TypeError for a value of another type, and ValueError for one below `minimum`.
    """
    integers = []
    for name, value in values.items():
        try:
            integers.append(operator.index(value))
        except TypeError:
            raise TypeError(f"{name}={brief(value)}: must be an integer") from None
        if integers[-1] < minimum:
            raise ValueError(f"{name}={value}: must be at least {minimum}")
    return integers


def check_numbers(**values: Any) -> None:
    """Raise TypeError for a value that is neither a number nor None."""
    for name, value in values.items():
        if value is not None and not isinstance(value, Real):
            raise TypeError(f"{name}={brief(value)}: must be a number")
