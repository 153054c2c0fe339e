"""gru4rec-fast train."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gru4rec_fast.cli.inputs import open_interactions, open_sessions
from gru4rec_fast.cli.options import (
    Evaluation,
    JsonFile,
    LogFormat,
    Threads,
    running_option,
    use_threads,
    with_option_groups,
)
from gru4rec_fast.cli.output import make_parent_folders, note, write_json
from gru4rec_fast.cli.parameters import build_model, with_parameter_options
from gru4rec_fast.cli.registry import GRU4REC
from gru4rec_fast.models.parameter_fields import Parameters
from gru4rec_fast.models.parameters import EPOCHS

if TYPE_CHECKING:
    from gru4rec_fast.data import InteractionGraph, SessionStore
    from gru4rec_fast.evaluation import Report
    from gru4rec_fast.models import GraphRecommender, GRU4Rec

    Model = GRU4Rec | GraphRecommender

_parameters = partial(typer.Option, rich_help_panel="Hyper-parameters (an option wins over -ps, -ps over --params)")
_epochs = partial(typer.Option, rich_help_panel=EPOCHS)


@with_parameter_options
@with_option_groups
def train(
    train: Annotated[
        Path, typer.Argument(metavar="TRAIN", help="Training sessions: a log file, or a prepared folder.")
    ],
    *,
    model_name: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="NAME",
            help="gru4rec, or a graph model of interactions of users with items: ngcf, lightgcn.",
        ),
    ] = GRU4REC,
    test: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Test sessions, to evaluate the trained model on.")
    ] = None,
    parameter_string: Annotated[
        str | None,
        _parameters(
            "-ps",
            "--parameter-string",
            metavar="NAME=VALUE,...",
            help="As in the official code: layers=512/256,loss=bpr-max.",
        ),
    ] = None,
    params: Annotated[Path | None, _parameters(metavar="FILE", help="A .toml or .json file with name = value.")] = None,
    validation: Annotated[Path | None, _epochs(metavar="PATH", help="Sessions to evaluate on during training.")] = None,
    out: Annotated[
        Path | None,
        running_option(
            metavar="RUN_DIR",
            help="Folder for model, checkpoints, curves and report.json. An earlier training in it is moved to "
            "RUN_DIR/previous.",
        ),
    ] = None,
    resume: Annotated[bool, running_option("--resume", help="Resume the training in --out.")] = False,
    checkpoint_every: Annotated[
        int | None,
        running_option(
            min=1, metavar="N", help="Write the last checkpoint every N mini-batches in addition to each epoch's end."
        ),
    ] = None,
    threads: Threads = None,
    json_file: JsonFile = None,
    evaluation: Evaluation,
    log: LogFormat,
    parameters: dict[str, Any] | None = None,
) -> None:
    """Train GRU4Rec on a click log, or a graph model on interactions; with --test, evaluate it.

    With --validation (or --monitor loss) the model of the best epoch is evaluated and saved, else that of the last
    epoch. Ctrl-C (exit code 130) and SIGTERM (143) save and stop. The same command with --resume continues; on the CPU
    the result has the same bits. A loss that is NaN or infinite stops the training (exit code 3).

    With --model ngcf or lightgcn, TRAIN, --test and --validation are interactions: .txt files of "user item item ..."
    lines, log files with columns of users and items, or folders of prepare --interactions.

    Example: gru4rec-fast train train.tsv --test test.tsv -ps layers=100,logq=1 --n-epochs 5 --out run
    """
    from gru4rec_fast.training.folder_lock import exclusive
    from gru4rec_fast.training.run_folder import MODEL_FILE, REPORT_FILE, checkpoint_to_resume

    options = evaluation.arguments() if model_name == GRU4REC else evaluation.graph_arguments()
    if resume and out is None:
        raise ValueError("--resume needs --out, the folder of the training to resume")
    model, p = build_model(model_name, parameters or {}, parameter_string, params)
    if resume and out is not None:
        checkpoint_to_resume(out)  # an error before the logs are read
    make_parent_folders(json_file)
    use_threads(threads)
    with exclusive(out):
        logs = _open_all(model_name, train, test, validation, log)
        best = _trained(model, p, logs, out, resume, checkpoint_every)
        if out is not None:
            best.save(out / MODEL_FILE)
        report: Report | None = best.evaluate(logs["test"], **options) if "test" in logs else None
        if report is not None:
            print(report.table())
        content = _content(model, best, logs, report)
        if out is not None:
            write_json(out / REPORT_FILE, content)
            note(f"{out}: wrote {MODEL_FILE}, {REPORT_FILE}, checkpoints and curves")
    if json_file is not None:
        write_json(json_file, content)


def _open_all(
    model_name: str, train: Path, test: Path | None, validation: Path | None, log: LogFormat
) -> dict[str, SessionStore] | dict[str, InteractionGraph]:
    """Return the logs by name. The peak of memory is measured from here on."""
    from gru4rec_fast.profiling import set_baseline

    set_baseline()
    held_out = {name: path for name, path in (("validation", validation), ("test", test)) if path is not None}
    if model_name != GRU4REC:
        graph = open_interactions(train, log)
        return {"train": graph} | {name: open_interactions(path, log, graph) for name, path in held_out.items()}
    store = open_sessions(train, log)
    return {"train": store} | {name: open_sessions(path, log, store.vocabulary) for name, path in held_out.items()}


def _trained(
    model: Model, p: Parameters, logs: dict[str, Any], out: Path | None, resume: bool, checkpoint_every: int | None
) -> Model:
    """Train the model, and return that of the best epoch if one was selected, else that of the last epoch.

    Raises TrainingInterrupted, which says how to continue, where a signal stops the training.
    """
    from gru4rec_fast.training import TrainingInterrupted
    from gru4rec_fast.training.run_folder import BEST

    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory()))  # for the best epoch's weights
        validation = logs.get("validation")
        writes = out is not None or validation is not None or p.monitor == "loss"
        try:
            model.fit(
                logs["train"],
                validation=validation,
                out=folder if writes else None,
                resume=resume,
                checkpoint_every=checkpoint_every,
            )
        except TrainingInterrupted as error:
            message = f"{error}: the same command with --resume"
            if out is None:
                message = "training interrupted; nothing was saved, since no --out was given"
            raise TrainingInterrupted(message, error.signal_number) from None
        if model.best_epoch is None:
            return model
        note(f"the best epoch by {p.monitor} is {model.best_epoch} of {len(model.history)}")
        return type(model).load(folder / BEST, p.device, impl=p.impl)


def _content(model: Model, best: Model, logs: dict[str, Any], report: Report | None) -> dict[str, Any]:
    """Return the content of report.json."""
    counts = ("n_sessions", "n_users", "n_events", "n_edges", "n_items")
    data = {
        name: {count: getattr(log, count) for count in counts if hasattr(log, count)}
        | {"dropped": log.meta.get("dropped", {})}
        for name, log in logs.items()
    }
    return model.report(report) | {
        "metrics": best.report(report)["metrics"],
        "model_of_epoch": len(best.history),
        "evaluation": None if report is None else asdict(report),
        "data": data,
    }
