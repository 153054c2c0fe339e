"""gru4rec-fast prepare."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gru4rec_fast.cli.inputs import open_interactions
from gru4rec_fast.cli.options import LogFormat, with_option_groups
from gru4rec_fast.cli.output import row_counter

_filter = partial(typer.Option, rich_help_panel="Filters")
_split = partial(typer.Option, rich_help_panel="Splits by time")
_interactions = partial(typer.Option, rich_help_panel="Interactions")


@with_option_groups
def prepare(
    source: Annotated[
        Path, typer.Argument(metavar="LOG", help="TSV or CSV (also .gz, .zst), Parquet or RecBole .inter file.")
    ],
    out_dir: Annotated[
        Path, typer.Argument(metavar="OUT_DIR", help="Folder to write to; an earlier prepared log in it is replaced.")
    ],
    *,
    min_item_support: Annotated[int, _filter(help="Keep items that occur at least this often.")] = 1,
    min_session_length: Annotated[int, _filter(help="Keep sessions of at least this many events.")] = 2,
    remove_duplicates: Annotated[
        bool, _filter(help="Keep one of several rows with the same session, item and time.")
    ] = True,
    collapse_repeats: Annotated[
        bool, _filter(help="Keep one of consecutive events with the same item in a session.")
    ] = False,
    split: Annotated[
        str | None, _split(metavar="last-day|days=N|fraction=F", help="Sessions to hold out for testing.")
    ] = None,
    validation_split: Annotated[
        str | None,
        _split(metavar="last-day|days=N|fraction=F", help="Sessions of the training part to hold out for validation."),
    ] = None,
    time_unit: Annotated[str, _split(metavar="s|ms|us|ns", help="Unit of times that are numbers.")] = "s",
    interactions: Annotated[
        bool,
        _interactions(
            "--interactions",
            help='Store user-item interactions for graph models; LOG may also be a .txt of "user item item ..." lines. '
            "--split and --validation-split are then fraction=F of each user's interactions.",
        ),
    ] = False,
    seed: Annotated[int, _interactions(help="Seed of the random choice of held-out interactions.")] = 0,
    log: LogFormat,
) -> None:
    """Filter a click log, split it by time, and store the parts for training; or store interactions.

    The log may be larger than memory. OUT_DIR/train is always written, OUT_DIR/test with --split, and OUT_DIR/train_tr
    and OUT_DIR/train_valid with --validation-split. Training memory-maps these folders.

    Example: gru4rec-fast prepare clicks.csv data --min-item-support 5 --split last-day
    """
    from gru4rec_fast import data

    if interactions:
        in_use = {
            "--min-item-support": min_item_support != 1,
            "--min-session-length": min_session_length != 2,
            "--collapse-repeats": collapse_repeats,
        }
        for flag in (flag for flag, is_used in in_use.items() if is_used):
            raise ValueError(f"{flag} is for session logs, not for --interactions")
        _prepare_interactions(source, out_dir, split, validation_split, seed, log)
        return
    splits = [None if name is None else data.Split.parse(name, time_unit) for name in (split, validation_split)]
    with row_counter(source.name) as progress:
        stores = data.prepare(
            source,
            out_dir,
            min_item_support=min_item_support,
            min_session_length=min_session_length,
            remove_duplicates=remove_duplicates,
            collapse_repeats=collapse_repeats,
            split=splits[0],
            validation_split=splits[1],
            progress=progress,
            **log.arguments(),
        )
    for name, store in stores.items():
        print(f"{out_dir / name}: {store.summary()}")


def _prepare_interactions(
    source: Path, out_dir: Path, split: str | None, validation_split: str | None, seed: int, log: LogFormat
) -> None:
    """Write OUT_DIR/train, and with the splits test, train_tr and train_valid, as graphs."""
    from gru4rec_fast.data.graphs.split import split_interactions

    fractions = [None if text is None else _fraction(text) for text in (split, validation_split)]
    graphs = {"train": open_interactions(source, log)}
    if fractions[0] is not None:
        graphs["train"], graphs["test"] = split_interactions(graphs["train"], fractions[0], seed=seed)
    if fractions[1] is not None:
        graphs["train_tr"], graphs["train_valid"] = split_interactions(graphs["train"], fractions[1], seed=seed)
    for name, graph in graphs.items():
        graph.save(out_dir / name)
        print(f"{out_dir / name}: {graph.summary()}")


def _fraction(text: str) -> float:
    kind, _, value = text.partition("=")
    try:
        if kind == "fraction":
            return float(value)
    except ValueError:
        pass
    raise ValueError(f"split {text!r}: with --interactions choose fraction=F, as in fraction=0.2")
