"""gru4rec-fast info."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from gru4rec_fast.cli.output import print_facts


def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """Show version, torch, native kernels and instruction set.

    Compiles the native kernels if that was not done yet, as training does.

    Example: gru4rec-fast info --json
    """
    from gru4rec_fast import build_info

    facts = build_info()
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        kernels = facts.pop("kernels")
        rows = [(name, _text(value)) for name, value in facts.items()]
        rows += [(f"kernel {name}", ", ".join(devices) or "pure PyTorch") for name, devices in kernels.items()]
        print_facts(rows)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
