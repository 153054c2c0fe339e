"""A whole training with its evaluation, from the log's file to Recall@20.

    python benchmarks/whole_run.py --peer official=PATH --json build/benchmarks/whole_run.json

Diginetica, cross-entropy with logQ 1, L100 B64 N2048, 5 epochs, then the test log: everything both sides do is timed,
the reading of the files included. Ours is run before and after the official code, whose run takes long, so that a drift
of the machine shows. What is done stands in the JSON file, and is not done again when the script is started again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import SHARED
from machine import facts

from gru4rec_fast import GRU4Rec

LOG = SHARED / "diginetica"
PARAMETERS: dict[str, Any] = {"layers": [100], "batch_size": 64, "logq": 1.0}


def ours(n_epochs: int, **parameters: Any) -> dict[str, float]:
    """Fit and evaluate."""
    started = time.perf_counter()
    model = GRU4Rec(**PARAMETERS, n_epochs=n_epochs, **parameters).fit(LOG / "train.tsv.gz", progress=False)
    trained = time.perf_counter()
    found = model.evaluate(LOG / "test.tsv.gz").metrics
    ended = time.perf_counter()
    return figures(ended - started, ended - trained, found["recall@20"], found["mrr@20"])


def official(path: str, n_epochs: int) -> dict[str, float]:
    """The same by the official code."""
    import pandas as pd
    from peers.official import Official

    peer, started = Official(path), time.perf_counter()
    estimator = peer.new(**PARAMETERS, n_epochs=n_epochs)
    peer.fit(estimator, pd.read_csv(LOG / "train.tsv.gz", sep="\t"))
    trained = time.perf_counter()
    recall, mrr = peer.evaluate(estimator, pd.read_csv(LOG / "test.tsv.gz", sep="\t"))
    ended = time.perf_counter()
    return figures(ended - started, ended - trained, recall, mrr)


def figures(seconds: float, evaluating: float, recall: float, mrr: float) -> dict[str, float]:
    """What is kept of a run."""
    return {"seconds": seconds, "seconds_of_evaluation": evaluating, "recall@20": recall, "mrr@20": mrr}


def main() -> None:
    """Run what is not in the JSON file yet, and print the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", required=True, metavar="official=PATH", help="a checkout of the official code")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, help="by default torch's own choice")
    parser.add_argument("--json", type=Path, required=True, help="what is done so far, read and written")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    name, _, path = arguments.peer.partition("=")
    if name != "official" or not path:
        parser.error(f"--peer {arguments.peer}: give official=PATH")
    runs: dict[str, Callable[[], dict[str, float]]] = {
        "GRU4Rec before": lambda: ours(arguments.epochs),
        "official": lambda: official(path, arguments.epochs),
        "GRU4Rec after": lambda: ours(arguments.epochs),
        "GRU4Rec bf16": lambda: ours(arguments.epochs, precision="bf16"),
    }
    setting = {"epochs": arguments.epochs, "parameters": PARAMETERS, "machine": facts()}
    done = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    if {key: done.get(key) for key in setting} != setting:
        done = {**setting, "runs": {}}
    for side, run in runs.items():
        if side not in done["runs"]:
            done["runs"][side] = run()
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(done, indent=2) + "\n")
        print(side, done["runs"][side], flush=True)
    found = done["runs"]
    mine = (found["GRU4Rec before"]["seconds"] + found["GRU4Rec after"]["seconds"]) / 2
    print(f"ratio {found['official']['seconds'] / mine:.2f} (goal >= 10)")


if __name__ == "__main__":
    main()
