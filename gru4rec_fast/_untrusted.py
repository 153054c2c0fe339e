"""Handles values from files and users: parses JSON, and shortens values for error messages."""

from __future__ import annotations

import json
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
