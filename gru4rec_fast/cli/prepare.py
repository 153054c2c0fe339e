"""gru4rec-fast prepare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gru4rec_fast.cli.options import LogFormat, with_option_groups
from gru4rec_fast.cli.output import row_counter

_FILTERS = "Filters"
_SPLITS = "Splits by time"


@with_option_groups
def prepare(
    source: Annotated[
        Path, typer.Argument(metavar="LOG", help="TSV or CSV (also .gz, .zst), Parquet or RecBole .inter file.")
    ],
    out_dir: Annotated[
        Path, typer.Argument(metavar="OUT_DIR", help="Folder to write to; a prepared log in it is replaced.")
    ],
    *,
    min_item_support: Annotated[
        int, typer.Option(help="Keep items that occur at least this often.", rich_help_panel=_FILTERS)
    ] = 1,
    min_session_length: Annotated[
        int, typer.Option(help="Keep sessions of at least this many events.", rich_help_panel=_FILTERS)
    ] = 2,
    remove_duplicates: Annotated[
        bool, typer.Option(help="Of rows with the same session, item and time keep one.", rich_help_panel=_FILTERS)
    ] = True,
    collapse_repeats: Annotated[
        bool,
        typer.Option(help="Of consecutive events of a session with the same item keep one.", rich_help_panel=_FILTERS),
    ] = False,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="last-day|days=N|fraction=F", help="Sessions to hold out for testing.", rich_help_panel=_SPLITS
        ),
    ] = None,
    validation_split: Annotated[
        str | None,
        typer.Option(
            metavar="last-day|days=N|fraction=F",
            help="Sessions of the training part to hold out once more.",
            rich_help_panel=_SPLITS,
        ),
    ] = None,
    time_unit: Annotated[
        str,
        typer.Option(metavar="s|ms|us|ns", help="Unit of times that are numbers.", rich_help_panel=_SPLITS),
    ] = "s",
    log: LogFormat,
) -> None:
    """Filter a click log, split it by time, and store the parts for training.

    Logs larger than memory go through. OUT_DIR/train is always written, OUT_DIR/test with --split, and OUT_DIR/train_tr
    and OUT_DIR/train_valid with --validation-split. Training reads these folders without holding them in memory.

    Example: gru4rec-fast prepare clicks.csv data --min-item-support 5 --split last-day
    """
    from gru4rec_fast import data

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
