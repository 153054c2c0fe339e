"""Train NGCF on the GPU and measure the training time until the validation metric reaches a given value.

    PYTHONPATH=.:benchmarks python -m gpu.training_runs ngcf_gowalla_b8192 --out row.json --folder FOLDER

The measured time is the time of the training epochs, without start-up, evaluations and checkpoints. The result is a row
of the table of GPU results. After SIGINT the training ends, and the row has the best metric value so far.
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

PUBLISHED_SECONDS = 32_904.0  # from the log of NGCF on Gowalla that the authors of the public code published


@dataclass(frozen=True)
class TrainingRun:
    """A training of NGCF on Gowalla.

    workload: a key of WORKLOADS. metric, value: the validation metric and the value that it must reach. parameters:
    parameters of NGCF.
    """

    workload: str
    metric: str
    value: float
    parameters: dict[str, Any]


_GOAL = ("ngcf-run", "recall@20", 0.1557)  # workload, metric, value
_COMMON = {"adjacency": "norm", "n_epochs": 400, "evaluate_every": 5}
RUNS = {
    "ngcf_gowalla": TrainingRun(*_GOAL, _COMMON | {"batch_size": 1024, "learning_rate": 1e-4}),
    "ngcf_gowalla_b8192": TrainingRun(*_GOAL, _COMMON | {"batch_size": 8192, "learning_rate": 1e-3}),
}


def build_row(name: str, run: TrainingRun, history: list[dict[str, Any]], wall_seconds: float) -> dict[str, Any]:
    """Return the row of a training as JSON.

    history: the record of each epoch, as in `NGCF.history`. wall_seconds: the total time, with evaluations.
    """
    seconds, best, epoch_reached = 0.0, 0.0, None
    for epoch in history:
        seconds += epoch["seconds"]
        value = epoch.get("validation", {}).get(run.metric, 0.0)
        best = max(best, value)
        if value >= run.value:
            epoch_reached = epoch["epoch"]
            break
    outcome = f"epoch {epoch_reached}" if epoch_reached else f"not reached: {best:.4f} at best in {len(history)} epochs"
    baseline = WORKLOADS[run.workload].baseline
    times = {OURS: seconds, baseline: PUBLISHED_SECONDS}
    ratio = PUBLISHED_SECONDS / seconds if epoch_reached else None
    return {
        "row": f"{WORKLOADS[run.workload].description} ({name}: {outcome}; {wall_seconds:.0f} s with evaluations)",
        "workload": run.workload,
        "precision": "",
        "reached": epoch_reached is not None,
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
    parser.add_argument("--folder", type=Path, help="written by prepare_folder.py")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--impl", default="native")
    parser.add_argument("--tiny", action="store_true", help="train two epochs only")
    arguments = parser.parse_args()
    # Let SIGINT raise KeyboardInterrupt: a shell starts background processes with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run, folder = RUNS[arguments.run], PreparedFolder(arguments.folder)
    parameters = run.parameters | {
        "device": arguments.device,
        "impl": "auto" if arguments.impl == "native" else arguments.impl,
    }
    try:
        train, test = folder.graph("gowalla"), folder.graph("gowalla", "test")
    except MissingInput as missing:
        print(f"left out: {missing}")
        write_json(arguments.out, {"left_out": [f"{arguments.run}: {missing}"]})
        return 0
    model = NGCF(**{"seed": 0} | parameters | ({"n_epochs": 2, "evaluate_every": 1} if arguments.tiny else {}))
    started = time.perf_counter()
    try:
        model.fit(train, validation=test, progress=True)
    except (KeyboardInterrupt, TrainingInterrupted):
        print("interrupted")
    row = build_row(arguments.run, run, model.history, time.perf_counter() - started)
    print(row["row"])
    write_json(arguments.out, {"rows": [row]})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
