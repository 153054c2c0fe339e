"""Measure the memory and the time that `SessionStore.from_events` needs for logs of growing length.

    python benchmarks/bench_ingest_memory.py 20 40

The arguments are the lengths in million events. Each log is written to a temporary folder, and a separate process
converts the log to a `SessionStore`. Peak memory is the maximum resident memory (VmHWM, Linux) of the separate process,
minus the maximum right after its imports.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

N_ITEMS = 1_000_000

_CHILD_PROGRAM = """
import json, sys, time
import polars
from gru4rec_fast.data import SessionStore

def high_water_mark():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

baseline, start = high_water_mark(), time.perf_counter()
store = SessionStore.from_events(sys.argv[1], out=sys.argv[2])
seconds, peak = time.perf_counter() - start, high_water_mark() - baseline
print(json.dumps({"n_events": store.n_events, "n_sessions": store.n_sessions, "n_items": store.n_items,
                  "seconds": seconds, "baseline_bytes": baseline, "peak_bytes": peak}))
"""


def measure_ingest(log: Path, out: Path) -> dict[str, Any]:
    """Convert a log in a new process, and return what `_CHILD_PROGRAM` prints.

    "baseline_bytes" is the maximum memory up to the end of the imports, "peak_bytes" what the conversion adds to it.
    """
    child = subprocess.run(
        [sys.executable, "-c", _CHILD_PROGRAM, str(log), str(out)], stdout=subprocess.PIPE, check=True
    )
    return json.loads(child.stdout)


def main() -> None:
    """Measure each length and print a line for it; write the results to the file given by --json, if any."""
    from synthetic import synthetic_log

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("millions", nargs="*", type=float, default=[20, 40], help="lengths in million events")
    parser.add_argument("--items", type=int, default=N_ITEMS, help="number of items in the catalogue")
    parser.add_argument("--folder", type=Path, help="folder for temporary logs and stores")
    parser.add_argument("--json", type=Path, help="a file for the results")
    arguments = parser.parse_args()
    results = []
    for millions in arguments.millions:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            log = Path(folder, "log.tsv")
            synthetic_log(log, int(millions * 1e6), arguments.items)
            result = {**measure_ingest(log, Path(folder, "store")), "log_bytes": log.stat().st_size}
        results.append(result)
        print(
            f"{result['n_events'] / 1e6:6.1f} M events, {result['n_sessions'] / 1e6:5.2f} M sessions, "
            f"log {result['log_bytes'] / 2**20:6.0f} MiB: peak {result['peak_bytes'] / 2**20:5.0f} MiB above "
            f"{result['baseline_bytes'] / 2**20:.0f} MiB, {result['seconds']:5.1f} s",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": platform.platform(), "runs": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
