"""Measure the time and the memory of appending rows one at a time to a 64-wide table that Adam trains.

    python benchmarks/bench_growing_table.py --json build/benchmarks/growing_table.json

Sides, which are compared:
    growable   GrowableEmbedding.append_rows(1, row, optimizer=adam)
    re-created a new parameter from torch.cat, with Adam's state from torch.cat, too, as in plain PyTorch

Each side and number of rows has a process of its own. The table begins with one row, for which Adam has made an update.
Data are the bytes of weight and state at the end. Peak memory and resident memory (read at the end) are those of the
process minus its memory before the table was made. From --sampled-from rows on, a re-created table would take too long.
Its time is then estimated from 20 appended rows at each of 100 sizes. Its memory is measured while the last 20 rows are
appended.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from torch import Tensor, nn

from gru4rec_fast.nn import GrowableEmbedding
from gru4rec_fast.profiling import PeakMemory, memory_meter

WIDTH = 64
N_SAMPLES, ROWS_PER_SAMPLE = 100, 20
Append = Callable[[Tensor], None]  # appends a row [1, WIDTH]


def train_once(table: nn.Embedding) -> torch.optim.Adam:
    """Return an Adam of the table that has made an update, so that it has state."""
    optimizer = torch.optim.Adam(table.parameters())
    table(torch.zeros(1, dtype=torch.int64)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def growable(n_rows: int) -> tuple[torch.optim.Adam, Append]:
    """Return the optimizer of a GrowableEmbedding of n_rows, and the function that appends a row."""
    table = GrowableEmbedding(n_rows, WIDTH)
    optimizer = train_once(table)
    return optimizer, lambda row: table.append_rows(1, row, optimizer=optimizer)


def recreated(n_rows: int) -> tuple[torch.optim.Adam, Append]:
    """Return the optimizer of an nn.Embedding of n_rows, and the function that makes a new weight with one more row."""
    table = nn.Embedding(n_rows, WIDTH)
    optimizer = train_once(table)

    def append(row: Tensor) -> None:
        weight = nn.Parameter(torch.cat([table.weight.detach(), row]))
        state = optimizer.state.pop(table.weight)
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.cat([state[name], torch.zeros_like(row)])
        optimizer.state[weight] = state
        optimizer.param_groups[0]["params"] = [weight]
        table.weight = weight

    return optimizer, append


SIDES = {"growable": growable, "re-created": recreated}


def seconds_to_append(append: Append, n: int) -> float:
    """Append n rows, and return the seconds."""
    started = time.perf_counter()
    for _ in range(n):
        append(torch.randn(1, WIDTH))
    return time.perf_counter() - started


def measure(side: str, n: int, sampled: bool) -> dict[str, Any]:
    """Append n rows one at a time in this process; return the seconds and the bytes."""
    make = SIDES[side]
    seconds_to_append(make(1)[1], 10)  # so that what is loaded at first use is not measured
    peak = PeakMemory()
    optimizer, append = make(n - ROWS_PER_SAMPLE if sampled else 1)
    seconds = seconds_to_append(append, ROWS_PER_SAMPLE if sampled else n)
    resident = memory_meter().read()[0] - peak.baseline
    (weight,) = optimizer.param_groups[0]["params"]
    data = weight.nbytes * 3  # with the two tensors of Adam's state
    result = {"side": side, "rows": n, "is_estimate": sampled, "data_bytes": data, "peak_bytes": peak.bytes}
    if sampled:
        del optimizer, append, weight
        sizes = [1 + i * (n - ROWS_PER_SAMPLE) // (N_SAMPLES - 1) for i in range(N_SAMPLES)]
        seconds = sum(seconds_to_append(make(size)[1], ROWS_PER_SAMPLE) for size in sizes)
        seconds *= n / (N_SAMPLES * ROWS_PER_SAMPLE)
    return result | {"seconds": seconds, "resident_bytes": resident}


def main() -> None:
    """Measure each side and number of rows, print a line for it, and write the results to a file, if one is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=float, nargs="+", default=[1e3, 1e4, 1e5], help="numbers of appended rows")
    parser.add_argument("--growable-rows", type=float, nargs="*", default=[1e6], help="further numbers for growable")
    parser.add_argument("--sampled-from", type=float, default=3e4, help="see above; inf: never")
    parser.add_argument("--threads", type=int, default=1, help="number of threads")
    parser.add_argument("--json", type=Path, help="a file for the results")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # side, rows, 1 if sampled
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        side, n, sampled = arguments.one
        print(json.dumps(measure(side, int(n), sampled == "1")))
        return
    cases = [(side, int(n)) for n in arguments.rows for side in SIDES]
    cases += [("growable", int(n)) for n in arguments.growable_rows]
    runs = []
    for side, n in cases:
        sampled = side == "re-created" and n >= arguments.sampled_from
        command = [sys.executable, __file__, "--threads", str(arguments.threads)]
        command += ["--one", side, str(n), str(int(sampled))]
        run = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        runs.append(run)
        mib = {name: run[f"{name}_bytes"] / 2**20 for name in ("data", "peak", "resident")}
        print(
            f"{n:8,} rows, {side:10}: {run['seconds']:9.3f} s{' (estimate)' if sampled else ''}, "
            f"{run['seconds'] / n * 1e6:7.1f} us a row; data {mib['data']:6.1f} MiB, peak {mib['peak']:6.1f} MiB, "
            f"resident {mib['resident']:6.1f} MiB ({mib['resident'] / mib['data']:.2f}x)",
            flush=True,
        )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": describe_machine(), "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
