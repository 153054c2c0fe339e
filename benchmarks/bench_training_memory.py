"""Does the memory of training grow with the log? python benchmarks/bench_training_memory.py 20 40

Each log (millions of events) is written, ingested in one fresh process and trained on for 1000 steps, as GRU4Rec
trains, in another. Peak memory is a process's high-water mark of resident memory (VmHWM, Linux), pages of the
memory-mapped store included, less what was resident once everything was imported.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

N_ITEMS = 100_000
N_STEPS = 1000

_CHILD = """
import json, sys, time
from gru4rec_fast import ops, profiling
from gru4rec_fast.data import SessionStore
from playing import estimator_side

ops.dropout_mask(1, 1, 1, 0.5, seed=0, stream=0, step=0)  # the native library is loaded with the imports
profiling.set_baseline()
store, n_steps = SessionStore.open(sys.argv[1]), int(sys.argv[2])
side = estimator_side(store, {"layers": [100], "batch_size": 64, "dropout_p_embed": 0.1, "logq": 1.0})
started = time.perf_counter()
side(n_steps)
print(json.dumps({"n_events": store.n_events, "n_sessions": store.n_sessions, "n_items": store.n_items,
                  "seconds": time.perf_counter() - started, "peak_bytes": profiling.peak_memory_bytes()}))
"""


def measure_training(store: Path, n_steps: int = N_STEPS) -> dict[str, Any]:
    """Train on a store in a fresh process; its counts, seconds and peak bytes above the post-import baseline."""
    command = [sys.executable, "-c", _CHILD, str(store), str(n_steps)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout)


def main() -> None:
    """Measure and print one line per length, and how far apart the peaks of training are; --json writes a file too."""
    from bench_ingest_memory import measure_ingest
    from synthetic import synthetic_log

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("millions", nargs="*", type=float, default=[20, 40], help="lengths in millions of events")
    parser.add_argument("--items", type=int, default=N_ITEMS, help="size of the catalogue drawn from")
    parser.add_argument("--folder", type=Path, help="where to put logs and stores while measuring")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    results = []
    for millions in arguments.millions:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            log, store = Path(folder, "log.tsv"), Path(folder, "store")
            synthetic_log(log, int(millions * 1e6), arguments.items)
            result = {"ingest": measure_ingest(log, store), "training": measure_training(store)}
        results.append(result)
        ingest, training = result["ingest"], result["training"]
        print(
            f"{millions:5.0f} M events: ingest peak {ingest['peak_bytes'] / 2**20:5.0f} MiB, "
            f"{ingest['seconds']:5.1f} s; "
            f"{N_STEPS} steps peak {training['peak_bytes'] / 2**20:6.1f} MiB, {training['seconds']:5.1f} s",
            flush=True,
        )
    peaks = [result["training"]["peak_bytes"] for result in results]
    print(f"training peaks differ by {100 * (max(peaks) / min(peaks) - 1):.1f} %")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": platform.platform(), "runs": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
