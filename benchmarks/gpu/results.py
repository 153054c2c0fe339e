"""The results of a call: JSON fragments written by its processes, merged as they come. Standard library only."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

WAIT_VARIABLE = "GPU_CALL_WAITS"


class Missing(Exception):
    """Something that a measurement needs is not in FOLDER; the message says what."""


def wait_for_turn() -> None:
    """Block until call.py lets this process use the device: it imports while the one before it measures."""
    if os.environ.get(WAIT_VARIABLE):
        sys.stdin.readline()


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file whole or not at all: the process may be killed at any time."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(partial, path)


def merge(into: dict[str, Any], fragment: dict[str, Any]) -> None:
    """Add a fragment: lists are appended, dictionaries merged level by level, other values replaced.

    A row replaces an earlier one of the same name.
    """
    for key, value in fragment.items():
        if key == "rows":
            names = {row["row"] for row in value}
            into[key] = [row for row in into.get(key, []) if row["row"] not in names] + value
        elif isinstance(value, list):
            into[key] = into.get(key, []) + value
        elif isinstance(value, dict):
            merge(into.setdefault(key, {}), value)
        else:
            into[key] = value
