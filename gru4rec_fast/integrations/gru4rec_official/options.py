"""Command-line options that the programs `run` and `paropt` share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch

from gru4rec_fast.data import SessionStore, Vocabulary
from gru4rec_fast.integrations.gru4rec_official.estimator import GRU4Rec, batch_eval


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of both programs to a parser."""
    parser.add_argument("-g", "--gru4rec_model", choices=["gru4rec_pytorch"], help="has no effect: there is one model")
    parser.add_argument(
        "-e",
        "--eval_type",
        choices=["standard", "conservative", "median"],
        default="standard",
        help="rank of the target among items with equal scores: before them, after them, or in their middle "
        "(default: standard)",
    )
    parser.add_argument(
        "-pm", "--primary_metric", choices=["recall", "mrr"], default="recall", help="recall or mrr (default: recall)"
    )
    parser.add_argument(
        "-d",
        "--device",
        default="cuda:0" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda:0 ... (default: cuda:0 if there is one, else cpu)",
    )
    for flag, name, default in (
        ("-ik", "item", "ItemId"),
        ("-sk", "session", "SessionId"),
        ("-tk", "time", "Time"),
    ):
        parser.add_argument(
            flag, f"--{name}_key", metavar="COLUMN", default=default, help=f"column of the {name}s (default: {default})"
        )
    parser.add_argument("--allow_pickle", action="store_true", help="read .pickle files, which runs the code in them")


def open_log(path: str, options: argparse.Namespace, vocabulary: Vocabulary | None = None) -> SessionStore:
    """Read a log; test logs get the vocabulary of the training log."""
    return SessionStore.from_events(
        path,
        session_key=options.session_key,
        item_key=options.item_key,
        time_key=options.time_key,
        allow_pickle=options.allow_pickle,
        vocabulary=vocabulary,
    )


def print_metrics(model: GRU4Rec, test: SessionStore, cutoffs: list[int], eval_type: str) -> dict[str, float]:
    """Evaluate a model, print a line for each cut-off, and return recall and MRR at the first cut-off."""
    recall, mrr = batch_eval(model, test, cutoffs, mode=eval_type)  # type: ignore[arg-type]  # checked by argparse
    for k in cutoffs:
        print(f"Recall@{k}: {recall[k]:.6f} MRR@{k}: {mrr[k]:.6f}", flush=True)
    return {"recall": recall[cutoffs[0]], "mrr": mrr[cutoffs[0]]}


def run_program(
    parser: argparse.ArgumentParser, program: Callable[[argparse.Namespace], None], arguments: list[str] | None
) -> int:
    """Parse the arguments and run a program; return its exit code: 0, or 2 after an error.

    An error is one line on stderr.
    """
    options = parser.parse_args(arguments)
    try:
        program(options)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
