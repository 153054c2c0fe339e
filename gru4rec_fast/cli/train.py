"""The command gru4rec-fast train: train a model, evaluate it, and write its files to a run folder."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gru4rec_fast.cli.inputs import open_interactions, open_sessions, read_ratings, refuse_unused_options
from gru4rec_fast.cli.options import (
    EvaluationOptions,
    JsonFile,
    LogFormat,
    Threads,
    given_options,
    running_option,
    use_threads,
    with_option_groups,
)
from gru4rec_fast.cli.output import make_parent_folders, print_note, write_json
from gru4rec_fast.cli.parameters import build_model, with_parameter_options
from gru4rec_fast.cli.processes import is_first_rank, is_one_of_many, join_ranks
from gru4rec_fast.cli.registry import BASELINES, GRU4REC
from gru4rec_fast.models.parameters import EPOCHS

if TYPE_CHECKING:
    from gru4rec_fast.data import InteractionGraph, SessionStore
    from gru4rec_fast.distributed import Ranks
    from gru4rec_fast.evaluation import Report
    from gru4rec_fast.models import Baseline, GraphRecommender, GRU4Rec

    Network = GRU4Rec | GraphRecommender
    Model = Network | Baseline

# For -ps and --params, each of which gives several hyper-parameters.
_source_option = partial(typer.Option, rich_help_panel="Hyper-parameters (an option wins over -ps, -ps over --params)")
_epochs_option = partial(typer.Option, rich_help_panel=EPOCHS)


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
            help="gru4rec for sessions; ngcf or lightgcn (graph models) for user-item interactions; or a baseline: "
            f"{', '.join(BASELINES)}.",
        ),
    ] = GRU4REC,
    interactions: Annotated[
        bool,
        typer.Option("--interactions", help="Fit a baseline to user-item interactions, as graph models always are."),
    ] = False,
    ratings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="highest-rated: table of items and ratings. Default: TRAIN has the ratings."),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="content-similarity: table of items and texts.")
    ] = None,
    text_key: Annotated[str, typer.Option(metavar="NAME", help="content-similarity: column of the texts.")] = "Text",
    test: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Test sessions, on which the trained model is evaluated.")
    ] = None,
    parameter_string: Annotated[
        str | None,
        _source_option(
            "-ps",
            "--parameter-string",
            metavar="NAME=VALUE,...",
            help="Hyper-parameters as in the official code, for example layers=512/256,loss=bpr-max.",
        ),
    ] = None,
    params: Annotated[Path | None, _source_option(metavar="FILE", help="TOML or JSON file of parameters.")] = None,
    validation: Annotated[Path | None, _epochs_option(metavar="PATH", help="Sessions to validate on.")] = None,
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
            min=1, metavar="N", help="Write last.safetensors every N mini-batches, and not only after each epoch."
        ),
    ] = None,
    threads: Threads = None,
    json_file: JsonFile = None,
    evaluation: EvaluationOptions,
    log_format: LogFormat,
    parameters: dict[str, Any] | None = None,
) -> None:
    """Train GRU4Rec on a click log, or a graph model on interactions; with --test, evaluate it.

    With --validation (or --monitor loss) the model of the best epoch is evaluated and saved, else the model of the last
    epoch. Ctrl-C (exit code 130) and SIGTERM (143) save and stop. The same command with --resume continues; on the CPU
    its result equals that of an uninterrupted training to the bit. A loss that is NaN or infinite stops the training
    (exit code 3).

    With --model ngcf or lightgcn, TRAIN, --test and --validation are interactions: .txt files of "user item item ..."
    lines, log files with columns of users and items, or folders that prepare --interactions wrote.

    A baseline counts: without epochs, checkpoints and curves. With --interactions, its logs are those of graph models.

    Several processes train together by: torchrun --nproc-per-node 4 -m gru4rec_fast train TRAIN ...

    Example: gru4rec-fast train train.tsv --test test.tsv -ps layers=100,logq=1 --n-epochs 5 --out run
    """
    from gru4rec_fast.models import Baseline
    from gru4rec_fast.training.earlier_training import MODEL_FILE, REPORT_FILE
    from gru4rec_fast.training.folder_lock import lock_folder
    from gru4rec_fast.training.run_folder import checkpoint_to_resume

    is_baseline = model_name in BASELINES
    if interactions and model_name == GRU4REC:
        raise ValueError("--interactions is for baselines: gru4rec needs sessions")
    reads_interactions = interactions if is_baseline else model_name != GRU4REC
    evaluate_arguments = evaluation.graph_arguments() if reads_interactions else evaluation.session_arguments()
    if is_baseline:
        given = {"--validation": validation, "--resume": resume, "--checkpoint-every": checkpoint_every}
        _refuse_training_options(model_name, given | {"--threads": threads}, out)
    given_tables = {"ratings": ratings, "texts": texts, "text_key": text_key}
    item_tables = _item_table_arguments(model_name, given_tables, log_format)
    if resume and out is None:
        raise ValueError("--resume needs --out, the folder of the training to resume")
    if checkpoint_every is not None and out is None:
        raise ValueError("--checkpoint-every needs --out, the folder of the checkpoints")
    if test is None and (unused := given_options(evaluation)):
        raise ValueError(f"{unused[0]} is for the evaluation of the trained model: give --test, or leave it out")
    refuse_unused_options(
        log_format, reads_interactions, train, test, validation, with_ratings="rating_key" in item_tables
    )
    model = build_model(model_name, parameters or {}, parameter_string, params)
    if resume and out is not None and is_first_rank():
        checkpoint_to_resume(out)  # raises an error for a missing checkpoint before the logs are read
    make_parent_folders(json_file)
    use_threads(threads)
    with join_ranks(getattr(model, "device", "cpu")) as ranks, lock_folder(out if is_first_rank() else None):
        logs = _open_logs(reads_interactions, train, test, validation, log_format)
        selected: Model = model
        if isinstance(model, Baseline):
            if "ratings" in item_tables and ratings is None:
                item_tables = read_ratings(train, log_format)
            model.fit(logs["train"], **item_tables)
            if out is not None:
                model.save(out / MODEL_FILE)
        else:
            selected = _fit(model, logs, out, resume, checkpoint_every, ranks)
        report: Report | None = None
        if "test" in logs:
            report = selected.evaluate(logs["test"], ranks=ranks, **evaluate_arguments)
        if not is_first_rank():
            return
        if report is not None:
            print(report.table())
        content = _report_content(model, selected, logs, report)
        if out is not None:
            write_json(out / REPORT_FILE, content)
            further = "" if is_baseline else ", checkpoints and curves"
            print_note(f"{out}: wrote {MODEL_FILE}, {REPORT_FILE}{further}")
    if json_file is not None:
        write_json(json_file, content)


def _refuse_training_options(model_name: str, given: dict[str, Any], out: Path | None) -> None:
    """Raise ValueError for an option that a baseline does not have, or a folder that has checkpoints of a training.

    given: values of these options by their flags.
    """
    from gru4rec_fast.training.earlier_training import MODEL_FILE, REPORT_FILE, existing_files

    for flag, value in given.items():
        if value not in (None, False):
            raise ValueError(f"{flag} has no effect on {model_name}, which is fitted in one pass: leave it out")
    if is_one_of_many():
        raise ValueError(f"train --model {model_name} runs in one process: start it without torchrun")
    if out is not None and (files := set(existing_files(out)) - {MODEL_FILE, REPORT_FILE}):
        raise ValueError(f"{out} has files of a training ({', '.join(sorted(files))}): choose another folder for --out")


def _item_table_arguments(model_name: str, given: dict[str, Any], log_format: LogFormat) -> dict[str, Any]:
    """Return the arguments of `fit` for a table of ratings or texts; {} for models without one.

    given: values of the options by their names. Raises ValueError for an option that the model does not have.
    """
    kind = {"highest-rated": "rating", "content-similarity": "text"}.get(model_name)
    for name, value in given.items():
        if value != {"text_key": "Text"}.get(name) and (kind is None or not name.startswith(kind)):
            raise ValueError(f"--{name.replace('_', '-')} has no effect on {model_name}: leave it out")
    if kind == "text":
        if given["texts"] is None:
            raise ValueError("--model content-similarity needs --texts, a table with columns of items and of texts")
        return {"texts": given["texts"], "text_key": given["text_key"], "item_key": log_format.item_key}
    if kind == "rating":
        keys = {"rating_key": log_format.rating_key, "item_key": log_format.item_key}
        return {"ratings": given["ratings"], **keys}
    return {}


def _open_logs(
    reads_interactions: bool, train: Path, test: Path | None, validation: Path | None, log_format: LogFormat
) -> dict[str, SessionStore] | dict[str, InteractionGraph]:
    """Return the logs as stores or graphs: "train" and, if given, "validation" and "test"."""
    from gru4rec_fast.profiling import set_baseline

    set_baseline()  # before the logs are read, so that the reported peak memory includes them
    held_out = {name: path for name, path in (("validation", validation), ("test", test)) if path is not None}
    if reads_interactions:
        graph = open_interactions(train, log_format)
        return {"train": graph} | {name: open_interactions(path, log_format, graph) for name, path in held_out.items()}
    store = open_sessions(train, log_format)
    vocabulary = store.vocabulary
    return {"train": store} | {name: open_sessions(path, log_format, vocabulary) for name, path in held_out.items()}


def _fit(
    model: Network,
    logs: dict[str, Any],
    out: Path | None,
    resume: bool,
    checkpoint_every: int | None,
    ranks: Ranks | None,
) -> Network:
    """Train the model; return the model of the best epoch if one was selected, else the model of the last epoch.

    Raises:
        TrainingInterrupted: a signal stopped the training; the message says how to continue.
    """
    from gru4rec_fast.training import TrainingInterrupted
    from gru4rec_fast.training.earlier_training import BEST_FILE

    with ExitStack() as stack:
        # Without `out`, best.safetensors is written to a temporary folder.
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        validation = logs.get("validation")
        needs_folder = out is not None or validation is not None or model.monitor == "loss"
        try:
            model.fit(
                logs["train"],
                validation=validation,
                out=folder if needs_folder else None,
                resume=resume,
                checkpoint_every=checkpoint_every,
                ranks=ranks,
            )
        except TrainingInterrupted as error:
            message = f"{error}: run the same command with --resume"
            if out is None:
                message = "training interrupted; nothing was saved, since no --out was given"
            raise TrainingInterrupted(message, error.signal_number) from None
        if model.best_epoch is None:
            return model
        selected = model
        if is_first_rank():
            print_note(f"the best epoch by {model.monitor} is {model.best_epoch} of {len(model.history)}")
            selected = type(model).load(folder / BEST_FILE, model.device, impl=model.impl)
        if ranks is not None and selected.network is not None:  # the folder may exist on rank 0 only
            ranks.copy_from_first(selected.network)
        return selected


def _report_content(model: Model, selected: Model, logs: dict[str, Any], evaluation: Report | None) -> dict[str, Any]:
    """Return the content of report.json, which docs/cli.md describes. `selected` is the model that `_fit` returned."""
    from gru4rec_fast.models import Baseline

    counts = ("n_sessions", "n_users", "n_events", "n_edges", "n_items")
    data = {
        name: {count: getattr(log, count) for count in counts if hasattr(log, count)}
        | {"dropped": log.meta.get("dropped", {})}
        for name, log in logs.items()
    }
    content = {"evaluation": None if evaluation is None else evaluation.to_dict(), "data": data}
    if isinstance(selected, Baseline):
        return model.report(evaluation) | content
    # Without an evaluation, `report` returns the metrics of the last validation. Take those of the selected model.
    of_selected = {"metrics": selected.report(evaluation)["metrics"], "model_of_epoch": len(selected.history)}
    return model.report(evaluation) | of_selected | content
