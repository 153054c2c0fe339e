"""The command gru4rec-fast compare: bootstrap intervals of a run, and a paired test between two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gru4rec_fast.cli.options import JsonFile
from gru4rec_fast.cli.output import make_parent_folders, write_json


def compare(
    first: Annotated[
        Path, typer.Argument(metavar="FIRST", help="Values that evaluate --per-session wrote (.parquet or .tsv).")
    ],
    second: Annotated[
        Path | None, typer.Argument(metavar="SECOND", help="Values of another run on the same test data.")
    ] = None,
    *,
    n_resamples: Annotated[int, typer.Option(help="Number of bootstrap samples and of random exchanges.")] = 1000,
    confidence: Annotated[float, typer.Option(help="Confidence of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Show the metrics of a run with bootstrap intervals, or compare two runs by a paired test.

    Sessions (or users) are resampled. The p value of a difference is that of the paired randomization test.

    Example: gru4rec-fast compare first.parquet second.parquet
    """
    from gru4rec_fast.evaluation import significance
    from gru4rec_fast.evaluation.report import format_table

    make_parent_folders(json_file)
    if second is None:
        table = significance.bootstrap(first, n_resamples=n_resamples, confidence=confidence, seed=seed)
        caption = f"means, and intervals of {confidence:.0%} confidence"
    else:
        table = significance.compare(first, second, n_resamples=n_resamples, confidence=confidence, seed=seed)
        caption = f"difference: second minus first, with its interval of {confidence:.0%} confidence"
    cells = [[name, *(f"{value:.4f}" for value in values)] for name, *values in table.iter_rows()]
    print(format_table(table.columns, cells, f"{caption}; {n_resamples:,} resamples"))
    if json_file is not None:
        write_json(json_file, {"first": str(first), "second": second and str(second), "metrics": table.to_dicts()})
