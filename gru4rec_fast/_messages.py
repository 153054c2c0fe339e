"""Shortens values that error messages show: one line of limited length."""

from __future__ import annotations


def brief(value: object, length: int = 100) -> str:
    """Return an error's message, or the repr of any other value, as one line of at most `length` characters."""
    text = str(value) if isinstance(value, BaseException) else repr(value)
    line = " ".join(text[: 10 * length].split())
    return line if len(line) <= length else f"{line[: length - 3]}..."
