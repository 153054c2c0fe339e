"""Compare the models of `gru4rec_fast.integrations.cornac` with Cornac's: test metrics of several seeds, and time.

    python benchmarks/integrations/cornac_models.py GRU4Rec --data ../shared/data/rsc15_100k
    python benchmarks/integrations/cornac_models.py LightGCN NGCF --data ml-100k.inter --set learning_rate=0.002

GRU4Rec needs a folder with train.tsv.gz and test.tsv.gz (SessionId, ItemId, Time); the graph models need a file of
interactions in any form that `gru4rec_fast.LightGCN.fit` reads, of which a fifth is the test data. Cornac's graph
models need dgl: pip install dgl==1.1.3. Both models of a pair get the same arguments. They take turns, seed by seed, so
that other load of the machine slows both. Cornac measures metrics and seconds, on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from pathlib import Path
from typing import Any

import cornac
import torch
from cornac.eval_methods import NextItemEvaluation, RatioSplit
from cornac.metrics import MRR, NDCG, Recall
from seeds import mean_and_deviation

from gru4rec_fast import SessionStore
from gru4rec_fast.integrations import cornac as gru4rec_fast_cornac
from gru4rec_fast.models.builders import open_graph

# Names of the models, and arguments besides Cornac's defaults.
MODELS: dict[str, dict[str, Any]] = {
    "GRU4Rec": {"n_epochs": 10, "batch_size": 128},
    "LightGCN": {"num_epochs": 15, "learning_rate": 0.01},
    "NGCF": {"num_epochs": 3, "learning_rate": 0.005},
}


def split_sessions(folder: Path, max_test_sessions: int | None) -> NextItemEvaluation:
    """Return the train and test sessions of a folder, as Cornac's evaluation of every next item."""

    def rows(name: str, max_sessions: int | None) -> list[tuple[int, int, float]]:
        store = SessionStore.from_events(folder / name)
        ends = store.offsets[1:].tolist()[:max_sessions]
        ids, events = store.vocabulary.ids[store.items].tolist(), []
        for session, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            events += [(f"{name} {session}", item, store.start_times[session]) for item in ids[start:end]]
        return events

    train, test = rows("train.tsv.gz", None), rows("test.tsv.gz", max_test_sessions)
    return NextItemEvaluation.from_splits(train, test, fmt="SIT", mode="next")


def split_interactions(path: Path, max_users: int | None) -> RatioSplit:
    """Return the interactions of a file, or of the first users in it, as Cornac's random split."""
    users, items = open_graph(path).interactions()
    rows = [
        (u, i, 1.0) for u, i in zip(users.tolist(), items.tolist(), strict=True) if max_users is None or u < max_users
    ]
    return RatioSplit(rows, test_size=0.2, seed=0, exclude_unknowns=True)


def train(model: Any, split: Any, seed: int) -> dict[str, float]:
    """Train and evaluate a model; return the test metrics and the seconds of both."""
    split.train_set.seed = seed  # Cornac shuffles mini-batches and draws the negatives of graph models with it
    metrics = [Recall(k=20), NDCG(k=20), MRR()]
    result, _ = split.evaluate(model, metrics, user_based=False)
    return {name: float(value) for name, value in result.metric_avg_results.items()}


def main() -> None:
    """Print a table for each pair of models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help=f"any of {', '.join(MODELS)}")
    parser.add_argument("--data", type=Path, required=True, help="folder of sessions, or file of interactions")
    parser.add_argument("--limit", type=int, help="number of test sessions, or of users (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=JSON", help="an argument of both models, e.g. n_epochs=5"
    )
    options = parser.parse_args()
    if unknown := set(options.models) - set(MODELS):
        parser.error(f"{unknown.pop()} is none of {', '.join(MODELS)}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    changed = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in options.set)}
    for name in options.models:
        prepare = split_sessions if name == "GRU4Rec" else split_interactions
        split = prepare(options.data, options.limit)
        classes = {"Cornac": getattr(cornac.models, name), "gru4rec_fast": getattr(gru4rec_fast_cornac, name)}
        runs: dict[str, list[dict[str, float]]] = {library: [] for library in classes}
        for seed in range(options.seeds):
            for library, cls in classes.items():
                runs[library].append(train(cls(**MODELS[name] | changed, seed=seed), split, seed))
                values = (f"{k}={v:.4g}" for k, v in runs[library][-1].items())
                print(name, library, f"seed={seed}", *values, flush=True)
        print_table(name, runs)


def print_table(name: str, runs: dict[str, list[dict[str, float]]]) -> None:
    """Print mean and standard deviation over the seeds for both models, and the ratio of the seconds."""
    print(f"\n| {name} | {' | '.join(runs)} |\n|---|---|---|")
    means = {}
    for metric in next(iter(runs.values()))[0]:
        columns = [[run[metric] for run in results] for results in runs.values()]
        means[metric] = [statistics.mean(column) for column in columns]
        cells = [mean_and_deviation(c) for c in columns]
        print(f"| {metric} | {cells[0]} | {cells[1]} |")
    for metric, (theirs, ours) in means.items():
        if metric.endswith("(s)"):
            print(f"| speed: {metric.removesuffix(' (s)')} | 1 | {theirs / ours:.2f} |")
    print(flush=True)


if __name__ == "__main__":
    main()
