"""Write and merge result files: each process that call.py starts writes a JSON file, and call.py merges the files.

This module needs the standard library only.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

WAIT_VARIABLE = "GPU_CALL_WAITS"  # environment variable; see `wait_for_device`


class MissingInput(Exception):
    """Raised if the prepared folder lacks the data or the public code that a measurement needs."""


def wait_for_device() -> None:
    """Block until call.py writes a line to standard input, if WAIT_VARIABLE is set.

    call.py starts a process while another one still measures; the new process imports its modules and then waits here.
    """
    if os.environ.get(WAIT_VARIABLE):
        sys.stdin.readline()


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file atomically, because the process may be killed while it writes."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(partial, path)


def merge(results: dict[str, Any], stage_results: dict[str, Any]) -> None:
    """Add the results of a stage (a process that call.py starts) to `results`, in-place.

    Lists are appended, dictionaries are merged recursively, other values are replaced. In the list "rows", a row
    replaces an earlier row with the same name, the value of the key "row".
    """
    for key, value in stage_results.items():
        if key == "rows":
            names = {row["row"] for row in value}
            results[key] = [row for row in results.get(key, []) if row["row"] not in names] + value
        elif isinstance(value, list):
            results[key] = results.get(key, []) + value
        elif isinstance(value, dict):
            merge(results.setdefault(key, {}), value)
        else:
            results[key] = value
