"""The command gru4rec-fast prepare: filter and split a log, and store it in the form that training reads."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gru4rec_fast.cli.inputs import open_interactions, refuse_unused_options
from gru4rec_fast.cli.options import LogFormat, with_option_groups
from gru4rec_fast.cli.output import print_note, row_counter
from gru4rec_fast.cli.processes import is_first_rank, is_one_of_many, join_ranks

if TYPE_CHECKING:
    from gru4rec_fast.data import Split

_filter_option = partial(typer.Option, rich_help_panel="Filters")
_split_option = partial(typer.Option, rich_help_panel="Splits by time")
_interactions_option = partial(typer.Option, rich_help_panel="Interactions")


@with_option_groups
def prepare(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="LOG", help="TSV or CSV (also .gz, .zst), Parquet or RecBole .inter file, or a folder of parts."
        ),
    ],
    out_dir: Annotated[
        Path, typer.Argument(metavar="OUT_DIR", help="Folder to write to; an earlier prepared log in it is replaced.")
    ],
    *,
    min_item_support: Annotated[int, _filter_option(help="Keep items that occur at least this often.")] = 1,
    min_session_length: Annotated[int, _filter_option(help="Keep sessions of at least this many events.")] = 2,
    remove_duplicates: Annotated[
        bool, _filter_option(help="Keep one of several rows with the same session, item and time.")
    ] = True,
    collapse_repeats: Annotated[
        bool, _filter_option(help="Keep one of consecutive events with the same item in a session.")
    ] = False,
    split: Annotated[
        str | None,
        _split_option(
            metavar="last-day|days=N|fraction=F|last-event",
            help="Sessions to hold out for testing, or the last event of each session. "
            "last-day,windows=K,window-days=D cuts the log into windows first and splits each of them.",
        ),
    ] = None,
    validation_split: Annotated[
        str | None,
        _split_option(
            metavar="last-day|days=N|fraction=F|last-event", help="Training sessions to hold out for validation."
        ),
    ] = None,
    time_unit: Annotated[str, _split_option(metavar="s|ms|us|ns", help="Unit of times that are numbers.")] = "s",
    interactions: Annotated[
        bool,
        _interactions_option(
            "--interactions",
            help='Store user-item interactions for graph models; LOG may also be a .txt of "user item item ..." lines. '
            "--split and --validation-split then take fraction=F, a random share of each user's interactions; "
            "last-event, the last interaction of each user; or last-day or days=N, the latest interactions.",
        ),
    ] = False,
    k_core: Annotated[
        int | None,
        _interactions_option(metavar="K", help="Keep users and items with at least K interactions among themselves."),
    ] = None,
    seed: Annotated[int, _interactions_option(help="Seed of the random choice of held-out interactions.")] = 0,
    log_format: LogFormat,
) -> None:
    """Filter a click log, split it by time, and store it for training; or store user-item interactions.

    The log may be larger than memory. OUT_DIR/train is always written, and OUT_DIR/test with --split. With
    --validation-split the training sessions are also written in two parts, OUT_DIR/train_tr to train on and
    OUT_DIR/train_valid to validate on. Training memory-maps these folders. With windows, the names have the number of
    the window: OUT_DIR/train_1, OUT_DIR/test_1 and so on.

    Several processes read a folder of parts together by: torchrun --nproc-per-node 4 -m gru4rec_fast prepare LOG ...

    Example: gru4rec-fast prepare clicks.csv data --min-item-support 5 --split last-day
    """
    from gru4rec_fast import data
    from gru4rec_fast.data.array_folder import reading_notes

    splits = [None if text is None else data.Split.parse(text) for text in (split, validation_split)]
    splits = [replace(split, time_unit=time_unit) if split and split.uses_time_unit else split for split in splits]
    if time_unit != "s" and not any(split and split.uses_time_unit for split in splits):
        raise ValueError("--time-unit is for splits by days: give --split last-day or days=N, or leave it out")
    with_times = any(split is not None and split.fraction is None for split in splits)
    refuse_unused_options(log_format, interactions, source, with_times=with_times)
    if interactions:
        if is_one_of_many():
            raise ValueError("prepare --interactions runs in one process: start it without torchrun")
        is_used = {
            "--min-item-support": min_item_support != 1,
            "--min-session-length": min_session_length != 2,
            "--collapse-repeats": collapse_repeats,
            "--no-remove-duplicates": not remove_duplicates,
        }
        for flag, used in is_used.items():
            if used:
                raise ValueError(f"{flag} is for session logs, not for --interactions")
        if seed != 0 and not any(split is not None and split.fraction is not None for split in splits):
            raise ValueError("--seed is for --split and --validation-split by fraction=F: give one, or leave it out")
        _prepare_interactions(source, out_dir, k_core, splits, seed, log_format, with_times)
        return
    if k_core is not None:
        raise ValueError("--k-core is for --interactions: sessions have --min-item-support and --min-session-length")
    if seed != 0:
        raise ValueError("--seed is for --interactions: sessions are held out by time, not at random")
    with join_ranks("cpu") as ranks, row_counter(source.name) as progress:
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
            ranks=ranks,
            **log_format.session_arguments(),
        )
    if not is_first_rank():
        return
    if notes := reading_notes(next(iter(stores.values())).meta):
        print_note("\n".join([f"{source}:", *notes]))
    for name, store in stores.items():
        print(f"{out_dir / name}: {store.summary(notes=False)}")


def _prepare_interactions(
    source: Path,
    out_dir: Path,
    k: int | None,
    splits: list[Split | None],
    seed: int,
    log_format: LogFormat,
    with_times: bool,
) -> None:
    """Write graphs to OUT_DIR: train; with the first split also test; with the second also train_tr and train_valid."""
    from gru4rec_fast.data import k_core
    from gru4rec_fast.data.graphs.split import replace_parts, split_interactions

    with replace_parts(out_dir) as graphs:  # before the log is read: raises an error for a folder of other content
        graphs["train"] = open_interactions(source, log_format, with_times=with_times)
        if k is not None:
            graphs["train"] = k_core(graphs["train"], k)
            print_note(f"{k}-core: {graphs['train'].summary(notes=False)}")
        for split, names in zip(splits, (("train", "test"), ("train_tr", "train_valid")), strict=True):
            if split is not None:
                graphs.update(zip(names, split_interactions(graphs["train"], split, seed=seed), strict=True))
    for name, graph in graphs.items():
        print(f"{out_dir / name}: {graph.summary(notes=False)}")
