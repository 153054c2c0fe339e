"""Results of a call: each process writes a JSON fragment, and call.py merges the fragments. Standard library only."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

WAIT_VARIABLE = "GPU_CALL_WAITS"  # environment variable; see `wait_for_device`


class MissingInput(Exception):
    """A measurement's data or peer is not in FOLDER; the message names it."""


def wait_for_device() -> None:
    """Block until call.py writes a line to standard input, if WAIT_VARIABLE is set.

    A process imports its modules while the previous process still measures; it then waits here for the device.
    """
    if os.environ.get(WAIT_VARIABLE):
        sys.stdin.readline()


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file atomically, since the process may be killed at any time."""
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
