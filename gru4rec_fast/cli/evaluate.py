"""The command gru4rec-fast evaluate: measure how well a trained model ranks held-out items."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gru4rec_fast.cli.inputs import open_interactions, open_sessions, refuse_unused_options
from gru4rec_fast.cli.options import EvaluationOptions, JsonFile, LogFormat, RuntimeOptions, with_option_groups
from gru4rec_fast.cli.output import make_parent_folders, write_json
from gru4rec_fast.cli.processes import is_first_rank, join_ranks
from gru4rec_fast.cli.registry import item_ids, load_model, ranks_users

if TYPE_CHECKING:
    from gru4rec_fast.data import InteractionGraph, SessionStore
    from gru4rec_fast.evaluation import Report

ModelPath = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A .safetensors file, or the folder that train --out wrote.")
]


@with_option_groups
def evaluate(
    model: ModelPath,
    test: Annotated[
        Path, typer.Argument(metavar="TEST", help="Test sessions, or interactions: a log file, or a prepared folder.")
    ],
    *,
    evaluation: EvaluationOptions,
    batch_size: Annotated[
        int, typer.Option(help="Sessions or users that are processed in parallel.", rich_help_panel="Evaluation")
    ] = 512,
    per_session: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the metrics of each session, or user, to a .parquet or .tsv file, for compare.",
            rich_help_panel="Evaluation",
        ),
    ] = None,
    runtime: RuntimeOptions,
    json_file: JsonFile = None,
    log_format: LogFormat,
) -> None:
    """Rank the true next item of every event of the test sessions among all items.

    Test events of items that were not trained on are dropped. Then sessions with fewer than two events are dropped. The
    report counts the dropped events and sessions.

    With a model of interactions: for every user with test items, rank all items that the user lacks in training.

    Several processes share out the work by: torchrun --nproc-per-node 4 -m gru4rec_fast evaluate RUN_DIR TEST

    Example: gru4rec-fast evaluate run test.tsv --cutoffs 20,5 --baselines
    """
    from gru4rec_fast.evaluation.significance import check_suffix, write_values

    evaluation.session_arguments()  # raises an error for a wrong option before the model is loaded
    if per_session is not None:
        check_suffix(per_session)
    make_parent_folders(json_file, per_session)
    loaded = load_model(model, runtime)
    refuse_unused_options(log_format, ranks_users(loaded), test)
    report: Report
    data: SessionStore | InteractionGraph
    with join_ranks(getattr(loaded, "device", "cpu")) as ranks:
        if ranks_users(loaded):
            arguments = evaluation.graph_arguments() | {"per_user": per_session is not None}
            data = open_interactions(test, log_format, getattr(loaded, "graph", None))
        else:
            arguments = evaluation.session_arguments() | {"per_session": per_session is not None}
            data = open_sessions(test, log_format, item_ids(loaded))
        report = loaded.evaluate(data, batch_size=batch_size, ranks=ranks, **arguments)
    if not is_first_rank():
        return
    print(report.table())
    if per_session is not None and report.per_session is not None:
        write_values(report.per_session, per_session)
    if json_file is not None:
        from gru4rec_fast import build_info

        write_json(json_file, {"model": str(model), "test": str(test), **report.to_dict(), "build": build_info()})
