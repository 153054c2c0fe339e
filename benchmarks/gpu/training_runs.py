"""Train a whole model on the GPU and measure the training time until its validation metric reaches a given value.

    PYTHONPATH=.:benchmarks python -m gpu.training_runs ngcf_gowalla_b8192 --out row.json --folder FOLDER

Start-up, evaluations and checkpoints do not count. SIGINT ends the training; the row has the best value until then.
"""

from __future__ import annotations

import argparse
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.prepared_folder import PreparedFolder
from gpu.results import MissingInput, write_json
from gpu.workloads import OURS, WORKLOADS
from gru4rec_fast import NGCF
from gru4rec_fast.training import TrainingInterrupted

PUBLISHED_SECONDS = 32_904.0  # from the training log of NGCF on Gowalla that the public code's authors published


@dataclass(frozen=True)
class Run:
    """A training on Gowalla: its workload (a key of WORKLOADS), the metric value to reach, and its parameters."""

    workload: str
    metric: str
    value: float
    parameters: dict[str, Any]


_NGCF = {"adjacency": "norm", "n_epochs": 400, "evaluate_every": 5}
RUNS = {
    "ngcf_gowalla": Run("ngcf-run", "recall@20", 0.1557, _NGCF | {"batch_size": 1024, "learning_rate": 1e-4}),
    "ngcf_gowalla_b8192": Run("ngcf-run", "recall@20", 0.1557, _NGCF | {"batch_size": 8192, "learning_rate": 1e-3}),
}


def row_of(name: str, run: Run, history: list[dict[str, Any]], wall: float) -> dict[str, Any]:
    """Return the row of a training with these epochs; `wall` is its total time in seconds, with evaluations."""
    seconds, best, reached_in = 0.0, 0.0, None
    for epoch in history:
        seconds += epoch["seconds"]
        value = epoch.get("validation", {}).get(run.metric, 0.0)
        best = max(best, value)
        if value >= run.value:
            reached_in = epoch["epoch"]
            break
    outcome = f"epoch {reached_in}" if reached_in else f"not reached: {best:.4f} at best in {len(history)} epochs"
    baseline = WORKLOADS[run.workload].baseline
    times = {OURS: seconds, baseline: PUBLISHED_SECONDS}
    ratio = PUBLISHED_SECONDS / seconds if reached_in else None
    return {
        "row": f"{WORKLOADS[run.workload].description} ({name}: {outcome}; {wall:.0f} s with evaluations)",
        "target": run.workload,
        "precision": "",
        "reached": reached_in is not None,
        "seconds": {side: dict.fromkeys(("median", "q1", "q3"), value) for side, value in times.items()},
        "ratios": {baseline: dict.fromkeys(("median", "q1", "q3"), ratio)} if ratio else {},
        "mib": {},
        "notes": [],
        "failed": {},
        "n_bytes": 0,
        "flops": 0.0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--impl", default="native")
    parser.add_argument("--tiny", action="store_true", help="two epochs")
    given = parser.parse_args()
    # A shell starts background processes with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run, folder = RUNS[given.run], PreparedFolder(given.folder)
    parameters = run.parameters | {"device": given.device, "impl": "auto" if given.impl == "native" else given.impl}
    try:
        train, test = folder.graph("gowalla"), folder.graph("gowalla", "test")
    except MissingInput as missing:
        print(f"left out: {missing}")
        write_json(given.out, {"left_out": [f"{given.run}: {missing}"]})
        return 0
    model = NGCF(**parameters | ({"n_epochs": 2, "evaluate_every": 1} if given.tiny else {}))
    started = time.perf_counter()
    try:
        model.fit(train, validation=test, progress=True)
    except (KeyboardInterrupt, TrainingInterrupted):
        print("interrupted")
    row = row_of(given.run, run, model.history, time.perf_counter() - started)
    print(row["row"])
    write_json(given.out, {"rows": [row]})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
