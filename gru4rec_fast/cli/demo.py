"""The command gru4rec-fast demo: train on synthetic sessions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gru4rec_fast.cli.options import use_threads
from gru4rec_fast.cli.output import print_note

if TYPE_CHECKING:
    from gru4rec_fast.evaluation import Report

N_ITEMS = 2000
PRINTED_METRICS = ("recall@20", "mrr@20")
MODEL_PARAMETERS: dict[str, Any] = {
    "layers": [64],
    "loss": "cross-entropy",
    "logq": 1.0,
    "n_sample": 256,
    "batch_size": 64,
    "learning_rate": 0.1,
}


def demo(
    out: Annotated[Path, typer.Option(help="Folder for sessions, model and curves.")] = Path("demo_run"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sessions and the model.")] = 0,
    sessions: Annotated[int, typer.Option(min=100, help="Number of sessions to generate.")] = 20_000,
    epochs: Annotated[int, typer.Option(min=1, help="Number of epochs.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; one is enough for a model of this size.")] = 1,
) -> None:
    """Train on synthetic sessions and compare with ranking by popularity; takes half a minute and needs no data.

    The sessions are generated in memory. A few items are popular (Zipf), and each item is often followed by certain
    other items (a Markov chain). The model can learn which items follow; ranking by popularity ignores the session.

    Example: gru4rec-fast demo --out demo_run
    """
    from gru4rec_fast import GRU4Rec
    from gru4rec_fast.data.sessions.synthetic import markov_sessions
    from gru4rec_fast.training.earlier_training import MODEL_FILE
    from gru4rec_fast.training.folder_lock import lock_folder

    use_threads(threads)
    train, validation, test = markov_sessions(sessions, N_ITEMS, parts=(0.8, 0.1, 0.1), zipf_exponent=0.8, seed=seed)
    print_note(f"{train.n_sessions:,} sessions to train on: {train.n_events:,} events, {train.n_items:,} items")
    with lock_folder(out):
        for name, store in (("train", train), ("validation", validation), ("test", test)):
            store.save(out / name)
        model = GRU4Rec(**MODEL_PARAMETERS, n_epochs=epochs, seed=seed)
        model.fit(train, validation=validation, out=out)
    report = GRU4Rec.load(out / MODEL_FILE).evaluate(test, cutoffs=(20,), baselines=True)
    print(_select_metrics(report, PRINTED_METRICS).table())
    print(f"training curves: {out / 'curves.png' if find_spec('matplotlib') else out / 'curves.csv'}")
    print(f"next: gru4rec-fast recommend {out} {out / 'test'} --k 5 --out recommended.tsv")


def _select_metrics(report: Report, names: Iterable[str]) -> Report:
    """Return a copy of the report in which the model and the baselines have only the metrics in `names`."""
    metrics = {name: report.metrics[name] for name in names}
    baselines = {baseline: {name: values[name] for name in names} for baseline, values in report.baselines.items()}
    return replace(report, metrics=metrics, baselines=baselines)
