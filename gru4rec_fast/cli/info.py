"""The command gru4rec-fast info: version, torch and native kernels."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from gru4rec_fast.cli.output import print_pairs


def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """Show the versions, the native kernels and the instruction set.

    Compiles the native kernels if they are not compiled yet, as training does.

    Example: gru4rec-fast info --json
    """
    from gru4rec_fast import build_info

    build = build_info()
    if as_json:
        print(json.dumps(build, indent=2))
    else:
        kernels = build.pop("kernels")
        rows = [(name, _format_value(value)) for name, value in build.items()]
        rows += [(f"kernel {name}", ", ".join(devices) or "pure PyTorch") for name, devices in kernels.items()]
        print_pairs(rows)


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
