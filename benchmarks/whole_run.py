"""Time a whole training with its evaluation, from reading the log to Recall@20, and compare it with the official code.

    python benchmarks/whole_run.py --peer official=PATH --json build/benchmarks/whole_run.json

The model is trained on diginetica with cross-entropy, logQ 1, hidden size 100, mini-batches of 64, 2048 negatives and 5
epochs, and then evaluated on the test log. The official code (GRU4Rec_PyTorch_Official) takes long. Therefore this
package runs before and after it: the difference of these two runs shows how much the machine's speed has drifted. The
last run is this package with bf16 matrix products. Each finished run is written to the JSON file. If the script is
started again with the same options, machine and versions, it skips the finished runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from peers import checkout_path
from session_logs import SHARED

from gru4rec_fast import GRU4Rec

LOG = SHARED / "diginetica"
PARAMETERS: dict[str, Any] = {"layers": [100], "batch_size": 64, "logq": 1.0}


def run_package(n_epochs: int, **parameters: Any) -> dict[str, float]:
    """Train and evaluate this package's `GRU4Rec`; return seconds and metrics."""
    started = time.perf_counter()
    model = GRU4Rec(**{"seed": 0} | PARAMETERS | parameters, n_epochs=n_epochs).fit(
        LOG / "train.tsv.gz", progress=False
    )
    trained = time.perf_counter()
    metrics = model.evaluate(LOG / "test.tsv.gz").metrics
    ended = time.perf_counter()
    return run_entry(ended - started, ended - trained, metrics["recall@20"], metrics["mrr@20"])


def run_official(path: str, n_epochs: int) -> dict[str, float]:
    """Train and evaluate the official code of the checkout `path`; return seconds and metrics."""
    import pandas as pd
    from peers.official import OfficialGRU4Rec

    peer, started = OfficialGRU4Rec(path), time.perf_counter()
    estimator = peer.new_estimator(**PARAMETERS, n_epochs=n_epochs)
    peer.fit(estimator, pd.read_csv(LOG / "train.tsv.gz", sep="\t"))
    trained = time.perf_counter()
    recall, mrr = peer.evaluate(estimator, pd.read_csv(LOG / "test.tsv.gz", sep="\t"))
    ended = time.perf_counter()
    return run_entry(ended - started, ended - trained, recall, mrr)


def run_entry(seconds: float, evaluation_seconds: float, recall: float, mrr: float) -> dict[str, float]:
    """Return the results of a run under the keys of the JSON file. `seconds` is the total, with the evaluation."""
    return {"seconds": seconds, "seconds_of_evaluation": evaluation_seconds, "recall@20": recall, "mrr@20": mrr}


def main() -> None:
    """Make the runs that are not in the JSON file yet, and print the ratio of the times, official / this package."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--peer", required=True, type=checkout_path, metavar="official=PATH", help="a checkout of the official code"
    )
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, help="number of threads (default: torch's own choice)")
    parser.add_argument("--json", type=Path, required=True, help="file of the finished runs, read and written")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    runs: dict[str, Callable[[], dict[str, float]]] = {
        "GRU4Rec before": lambda: run_package(arguments.epochs),
        "official": lambda: run_official(arguments.peer, arguments.epochs),
        "GRU4Rec after": lambda: run_package(arguments.epochs),
        "GRU4Rec bf16": lambda: run_package(arguments.epochs, precision="bf16"),
    }
    setting = {"epochs": arguments.epochs, "parameters": PARAMETERS, "machine": describe_machine()}
    results = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    if {key: results.get(key) for key in setting} != setting:
        results = {**setting, "runs": {}}
    for name, run in runs.items():
        if name not in results["runs"]:
            results["runs"][name] = run()
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(results, indent=2) + "\n")
        print(name, results["runs"][name], flush=True)
    seconds = {name: run["seconds"] for name, run in results["runs"].items()}
    package_seconds = (seconds["GRU4Rec before"] + seconds["GRU4Rec after"]) / 2
    print(f"ratio {seconds['official'] / package_seconds:.2f} (goal >= 10)")


if __name__ == "__main__":
    main()
