"""gru4rec-fast train."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gru4rec_fast.cli.evaluate import MODEL_FILE
from gru4rec_fast.cli.logs import LogFormat, open_sessions
from gru4rec_fast.cli.options import (
    AllowPickle,
    Baselines,
    Cutoffs,
    ItemKey,
    JsonFile,
    Separator,
    SessionKey,
    Threads,
    TiesOption,
    TimeKey,
    check_evaluation,
    use_threads,
)
from gru4rec_fast.cli.output import make_room, note, write_json
from gru4rec_fast.cli.parameters import build_model, with_parameter_flags

if TYPE_CHECKING:
    from gru4rec_fast.data import SessionStore
    from gru4rec_fast.evaluation import Report, Ties
    from gru4rec_fast.models import GRU4Rec

REPORT_FILE = "report.json"
_PARAMETERS = "Hyper-parameters (a flag wins over -ps, -ps over --params)"
_EPOCHS, _RUN = "Epochs and validation", "Running"


@with_parameter_flags
def train(
    train: Annotated[
        Path, typer.Argument(metavar="TRAIN", help="Training sessions: a log file, or a prepared folder.")
    ],
    test: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Test sessions, to evaluate the trained model on.")
    ] = None,
    parameter_string: Annotated[
        str | None,
        typer.Option(
            "-ps",
            "--parameter-string",
            metavar="NAME=VALUE,...",
            help="As in the official code: layers=512/256,loss=bpr-max.",
            rich_help_panel=_PARAMETERS,
        ),
    ] = None,
    params: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A .toml or .json file with name = value.", rich_help_panel=_PARAMETERS),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Sessions to measure after each epoch.", rich_help_panel=_EPOCHS),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN_DIR", help="Folder for model, checkpoints, curves and report.json.", rich_help_panel=_RUN
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the training in --out.", rich_help_panel=_RUN)
    ] = False,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Write the last checkpoint every N mini-batches too, not only after each epoch.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    threads: Threads = None,
    json_file: JsonFile = None,
    cutoffs: Cutoffs = "20",
    ties: TiesOption = "conservative",
    baselines: Baselines = False,
    session_key: SessionKey = "SessionId",
    item_key: ItemKey = "ItemId",
    time_key: TimeKey = "Time",
    separator: Separator = None,
    allow_pickle: AllowPickle = False,
    flags: dict[str, Any] | None = None,
) -> None:
    """Train GRU4Rec on a click log; with --test, evaluate it.

    With --validation (or --monitor loss) the model that is evaluated and saved is that of the best epoch, else that of
    the last one. Ctrl-C saves and stops (exit code 130); the same command with --resume goes on, on the CPU to the same
    bits. A loss that is not a number stops the training (exit code 3).

    Example: gru4rec-fast train train.tsv --test test.tsv -ps layers=100,logq=1 --n-epochs 5 --out run
    """
    checked_cutoffs = check_evaluation(cutoffs, ties)
    if resume and out is None:
        raise ValueError("--resume needs --out, the folder of the training to go on with")
    make_room(json_file)
    use_threads(threads)
    model = build_model(flags or {}, parameter_string, params)
    stores = _open_all(train, test, validation, LogFormat(session_key, item_key, time_key, separator, allow_pickle))
    if out is not None and not resume:
        out.mkdir(parents=True, exist_ok=True)  # told now if it cannot be, not after the first epoch
    with ExitStack() as stack:
        run_folder = out
        if out is None and (validation is not None or model.parameters.monitor == "loss"):
            run_folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # for the best epoch's weights
        _fit(model, stores, run_folder, resume, checkpoint_every, told=out)
        best = _best(model, run_folder)
    if out is not None:
        best.save(out / MODEL_FILE)
    report = None
    if "test" in stores:
        report = best.evaluate(stores["test"], cutoffs=checked_cutoffs, ties=cast("Ties", ties), baselines=baselines)
        print(report.table())
    content = _content(model, best, stores, report)
    if out is not None:
        write_json(out / REPORT_FILE, content)
        note(f"{out}: wrote {MODEL_FILE}, {REPORT_FILE}, checkpoints and curves")
    if json_file is not None:
        write_json(json_file, content)


def _open_all(train: Path, test: Path | None, validation: Path | None, log: LogFormat) -> dict[str, SessionStore]:
    """The stores by name; memory is counted from here on."""
    from gru4rec_fast.profiling import set_baseline

    set_baseline()
    stores = {"train": open_sessions(train, log)}
    for name, path in (("validation", validation), ("test", test)):
        if path is not None:
            stores[name] = open_sessions(path, log, stores["train"].vocabulary)
    return stores


def _fit(
    model: GRU4Rec,
    stores: dict[str, SessionStore],
    run_folder: Path | None,
    resume: bool,
    checkpoint_every: int | None,
    told: Path | None,
) -> None:
    """Train; where Ctrl-C stops that, say how to go on from the folder that the user was told of."""
    from gru4rec_fast.training import TrainingInterrupted

    try:
        model.fit(
            stores["train"],
            validation=stores.get("validation"),
            out=run_folder,
            resume=resume,
            checkpoint_every=checkpoint_every,
        )
    except TrainingInterrupted as error:
        if told is None:
            raise TrainingInterrupted("training interrupted; nothing was saved, since no --out was given") from None
        raise TrainingInterrupted(f"{error}: the same command with --resume") from None


def _best(model: GRU4Rec, run_folder: Path | None) -> GRU4Rec:
    """The model of the best epoch where the training picked one, else the model as it is."""
    from gru4rec_fast.models import GRU4Rec
    from gru4rec_fast.training.run_folder import BEST

    if run_folder is None or not (run_folder / BEST).exists():
        return model
    best = GRU4Rec.load(run_folder / BEST, model.parameters.device)
    best.set_params(impl=model.parameters.impl)
    note(f"the best epoch by {model.parameters.monitor} is {len(best.history)} of {len(model.history)}")
    return best


def _content(model: GRU4Rec, best: GRU4Rec, stores: dict[str, SessionStore], report: Report | None) -> dict[str, Any]:
    """What report.json holds."""
    data = {
        name: {
            "n_sessions": store.n_sessions,
            "n_events": store.n_events,
            "n_items": store.n_items,
            "dropped": store.meta.get("dropped", {}),
        }
        for name, store in stores.items()
    }
    return model.report(report) | {
        "metrics": best.report(report)["metrics"],
        "model_of_epoch": len(best.history),
        "evaluation": None if report is None else asdict(report),
        "data": data,
    }
