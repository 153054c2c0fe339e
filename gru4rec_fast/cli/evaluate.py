"""gru4rec-fast evaluate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from gru4rec_fast.cli.logs import LogFormat, open_sessions
from gru4rec_fast.cli.options import (
    AllowPickle,
    Baselines,
    Cutoffs,
    Device,
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
from gru4rec_fast.cli.output import make_room, write_json

if TYPE_CHECKING:
    from gru4rec_fast.evaluation import Ties
    from gru4rec_fast.models import GRU4Rec

MODEL_FILE = "model.safetensors"  # in the folder of a training run

ModelPath = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A .safetensors file, or the folder that train --out wrote.")
]


def load_model(path: Path, device: str) -> GRU4Rec:
    """The model in a file, or in the folder of a training run. Raises as `GRU4Rec.load`."""
    from gru4rec_fast.models import GRU4Rec

    return GRU4Rec.load(path / MODEL_FILE if path.is_dir() else path, device)


def evaluate(
    model: ModelPath,
    test: Annotated[Path, typer.Argument(metavar="TEST", help="Test sessions: a log file, or a prepared folder.")],
    cutoffs: Cutoffs = "20",
    ties: TiesOption = "conservative",
    baselines: Baselines = False,
    batch_size: Annotated[int, typer.Option(help="Sessions played in parallel.", rich_help_panel="Evaluation")] = 512,
    device: Device = "cpu",
    threads: Threads = None,
    json_file: JsonFile = None,
    session_key: SessionKey = "SessionId",
    item_key: ItemKey = "ItemId",
    time_key: TimeKey = "Time",
    separator: Separator = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Rank the true next item of every event of the test sessions among the whole catalogue.

    Test events of items that were not trained on are left out, then sessions of one event; both are counted.

    Example: gru4rec-fast evaluate run test.tsv --cutoffs 20,5 --baselines
    """
    checked_cutoffs = check_evaluation(cutoffs, ties)
    make_room(json_file)
    use_threads(threads)
    loaded = load_model(model, device)
    log = LogFormat(session_key, item_key, time_key, separator, allow_pickle)
    report = loaded.evaluate(
        open_sessions(test, log, loaded.vocabulary),
        cutoffs=checked_cutoffs,
        ties=cast("Ties", ties),
        batch_size=batch_size,
        baselines=baselines,
    )
    print(report.table())
    if json_file is not None:
        from gru4rec_fast import build_info

        write_json(json_file, {"model": str(model), "test": str(test), **asdict(report), "build": build_info()})
