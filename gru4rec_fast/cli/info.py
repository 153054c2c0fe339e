"""The command gru4rec-fast info: version, torch and native kernels, or an estimate of memory."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gru4rec_fast.cli.output import print_pairs
from gru4rec_fast.cli.parameters import build_parameters
from gru4rec_fast.cli.registry import PARAMETERS
from gru4rec_fast.models.memory_estimate import estimate_memory

_estimate_option = functools.partial(typer.Option, rich_help_panel="Estimate")


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    estimate: Annotated[
        str | None,
        _estimate_option(
            metavar="MODEL", help=f"Estimate the memory of {', '.join(PARAMETERS)} instead; needs --n-items."
        ),
    ] = None,
    n_items: Annotated[int, _estimate_option(metavar="N", help="Number of items.")] = 0,
    n_users: Annotated[int, _estimate_option(metavar="N", help="Number of users (ngcf, lightgcn).")] = 0,
    n_edges: Annotated[int, _estimate_option(metavar="N", help="Number of interactions (ngcf, lightgcn).")] = 0,
    memory_budget: Annotated[
        int | None,
        _estimate_option(
            metavar="BYTES", help="Choose the batch size of evaluation and the number of parts of an update to fit it."
        ),
    ] = None,
    parameter_string: Annotated[
        str | None,
        _estimate_option("-ps", "--parameter-string", metavar="NAME=VALUE,...", help="Hyper-parameters as in train."),
    ] = None,
    params: Annotated[Path | None, _estimate_option(metavar="FILE", help="TOML or JSON file of parameters.")] = None,
) -> None:
    """Show the versions, the native kernels and the instruction set; or estimate the memory of a model.

    Compiles the native kernels if they are not compiled yet, as training does. An estimate needs neither kernels nor
    data.

    Example: gru4rec-fast info --estimate gru4rec --n-items 1000000 -ps layers=256,momentum=0.3
    """
    sizes = {"n_items": n_items, "n_users": n_users, "n_edges": n_edges}
    if estimate is not None:
        if estimate not in PARAMETERS:
            raise ValueError(f"--estimate {estimate}: choose one of {', '.join(PARAMETERS)}")
        parameters = build_parameters(PARAMETERS[estimate], {}, parameter_string, params)
        estimated = estimate_memory(parameters, **sizes, memory_budget=memory_budget)
        if as_json:
            print(json.dumps(estimated.to_dict(), indent=2))
        else:
            print_pairs(estimated.rows())
        return
    if any(sizes.values()) or memory_budget or parameter_string or params:
        raise ValueError("sizes, parameters and --memory-budget belong to an estimate: also give --estimate MODEL")
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
