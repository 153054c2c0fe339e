"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

_LOG = "Reading log files"
_RUN = "Running"
_EVALUATION = "Evaluation"

SessionKey = Annotated[str, typer.Option(metavar="NAME", help="Column of the session ids.", rich_help_panel=_LOG)]
ItemKey = Annotated[str, typer.Option(metavar="NAME", help="Column of the item ids.", rich_help_panel=_LOG)]
TimeKey = Annotated[
    str, typer.Option(metavar="NAME", help="Column of the times: numbers or dates.", rich_help_panel=_LOG)
]
Separator = Annotated[
    str | None,
    typer.Option(
        metavar="CHARACTER",
        help="Between the columns of a text file; 'tab' for a tab. By default the one that splits its header.",
        rich_help_panel=_LOG,
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Read .pickle files too. Reading one runs the code in it.", rich_help_panel=_LOG
    ),
]
Cutoffs = Annotated[
    str,
    typer.Option(metavar="K,K,...", help="The k of recall@k and the other metrics.", rich_help_panel=_EVALUATION),
]
TiesOption = Annotated[
    str,
    typer.Option(
        metavar="MODE",
        help="Rank of a target whose score others share: behind all of them (conservative), before them (standard), "
        "in the middle (median).",
        rich_help_panel=_EVALUATION,
    ),
]
Baselines = Annotated[
    bool,
    typer.Option(
        "--baselines", help="Put popularity and a random order beside the model.", rich_help_panel=_EVALUATION
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON too.", rich_help_panel=_RUN)
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; by default PyTorch's choice.", rich_help_panel=_RUN)
]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, ...", rich_help_panel=_RUN)]


def parse_cutoffs(text: str) -> list[int]:
    """Cut-offs from "20,5"; ValueError where a part is no whole number."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--cutoffs {text}: give whole numbers with commas between them, as in 20,5") from None


def check_evaluation(cutoffs: str, ties: str) -> list[int]:
    """The cut-offs; ValueError, before any work is done, for cut-offs or a tie mode that cannot be."""
    from gru4rec_fast.evaluation import RankMetrics, Ties

    if ties not in get_args(Ties):
        raise ValueError(f"--ties {ties}: choose one of {', '.join(get_args(Ties))}")
    return list(RankMetrics(parse_cutoffs(cutoffs)).cutoffs)


def use_threads(threads: int | None) -> None:
    """Let PyTorch and the kernels use that many CPU threads."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
