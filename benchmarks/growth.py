"""Measure how the time and the memory of training grow with the catalogue and with the log.

    python benchmarks/growth.py --folder SCRATCH

The script prints the results as JSON and plots them. It makes three measurements:
  items   time and memory of a training step with 10^4 to 10^7 items; the time must not grow linearly with the number
  events  time per event of training, and of session batches alone, with memory-mapped logs of 10^5 to 10^8 events
  memory  peak memory of training on 20 and on 40 million events

One process times all sizes alternately, so that a drift of the machine's speed affects all sizes. A turn is one timed
run of a size, a round is one turn of each size. Memory is measured in a separate process per size. Training is
`GRU4Rec.fit` with hidden size 100, mini-batches of 64, and 2048 negatives. A side (interleave.Side) is a function that
runs n units of work and returns the seconds per unit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleave import Side, spread, timed, units_per_turn
from machine import describe_machine
from synthetic import ZIPF_EXPONENT, synthetic_store
from trainers import estimator_side, gru_runner, runner_side

from gru4rec_fast import ops, profiling
from gru4rec_fast.data import SessionStore
from gru4rec_fast.data.array_folder import as_tensor
from gru4rec_fast.training import SessionEpochRunner

PARAMETERS: dict[str, Any] = {"layers": [100], "batch_size": 64, "logq": 1.0}
ROUNDS = 9
N_ITEMS = 100_000  # number of items in the logs of `events` and `memory`
TOTAL_SUPPORT = 10**8  # approximate sum of the items' supports (numbers of occurrences) in `items`
MEMORY_STEPS = 300  # training steps during which `items` measures memory
LOG_STEPS = 1000  # training steps during which `memory` measures memory
STEPS_PER_CALL = 256  # steps per call of ops.session_batch


def catalogue_store(n_items: int, n_events: int = 400_000) -> SessionStore:
    """Return a log of sessions of 4 events. Items follow Zipf's law.

    The index of an item does not depend on its popularity, as in a real log.

    The support of an item is its number of occurrences. The stored support is that of a much longer log, since most
    items do not occur in a short log.
    """
    rng = np.random.default_rng(0)
    weight = np.arange(1, n_items + 1) ** -ZIPF_EXPONENT
    item_of_rank = rng.permutation(n_items)
    cumulative = np.cumsum(weight)
    items = item_of_rank[np.searchsorted(cumulative, rng.random(n_events) * cumulative[-1])].astype(np.int32)
    store = SessionStore.from_arrays(items, np.arange(0, n_events + 1, 4), n_items=n_items)
    store.support = np.empty(n_items, np.int64)
    store.support[item_of_rank] = 1 + weight / cumulative[-1] * TOTAL_SUPPORT
    return store


def warm_runner(n_items: int) -> SessionEpochRunner:
    """Return a runner of training epochs, after writing all of its optimizer state once.

    The first write to a memory page costs a page fault, which should not be measured.
    """
    runner = gru_runner(catalogue_store(n_items), PARAMETERS)
    runner_side(runner)(10)
    for state in runner.optimizer.state.values():
        for tensor in state.values():
            if torch.is_tensor(tensor):
                tensor.add_(0)  # writes to all pages
    return runner


def time_sizes(sides: dict[int, Side], turn_seconds: float) -> dict[str, dict[int, dict[str, float]]]:
    """Time all sizes alternately.

    Returns:
        "seconds": for each size, median and quartiles of the seconds per unit. "ratio": for each size, median and
        quartiles of the seconds divided by the seconds of the first size in the same round.
    """
    units = {size: units_per_turn(side, turn_seconds) for size, side in sides.items()}
    times: dict[int, list[float]] = {size: [] for size in sides}
    for round_index in range(ROUNDS + 1):
        for size, side in sides.items():
            seconds = side(units[size])
            if round_index > 0:  # round 0 is a warm-up
                times[size].append(seconds)
    times_of_first = times[next(iter(sides))]
    return {
        "seconds": {size: spread(size_times) for size, size_times in times.items()},
        "ratio": {size: spread([s / f for s, f in zip(times[size], times_of_first, strict=True)]) for size in sides},
    }


def step_memory(n_items: int) -> dict[str, int]:
    """Return the bytes of the model and the additional peak bytes of training steps, measured in this process."""
    after_imports = baseline_with_library()
    runner = warm_runner(n_items)
    after_warmup = profiling.PeakMemory()  # .baseline: memory in use now; .bytes: peak above .baseline
    runner_side(runner)(MEMORY_STEPS)
    return {"model_bytes": after_warmup.baseline - after_imports.baseline, "step_bytes": after_warmup.bytes}


def log_memory(store: str) -> dict[str, int]:
    """Return the peak bytes of training on a store, measured in this process. Mapped pages of the store count."""
    peak = baseline_with_library()
    estimator_side(SessionStore.open(store), PARAMETERS)(LOG_STEPS)
    return {"peak_bytes": peak.bytes}


def baseline_with_library() -> profiling.PeakMemory:
    """Start and return a measurement of memory whose baseline includes the native library, which is loaded first."""
    ops.dropout_mask(1, 1, 1, 0.5, seed=0, stream=0, step=0)
    return profiling.PeakMemory()


def run_in_new_process(option: str, value: object) -> dict[str, int]:
    """Run this script with --one-size or --one-log in a new process, and return the numbers of bytes that it prints."""
    command = [sys.executable, __file__, option, str(value)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def grow_items(sizes: list[int], turn_seconds: float) -> dict[str, Any]:
    """Measure the time and the memory of training steps with catalogues of these sizes."""
    memory = {n: run_in_new_process("--one-size", n) for n in sizes}
    times = time_sizes({n: runner_side(warm_runner(n)) for n in sizes}, turn_seconds)
    return {"sizes": sizes, "memory": memory, **times}


def batches_side(store: SessionStore) -> Side:
    """Return the side that makes the session batches of whole epochs. The unit of work is an event."""
    items, offsets = as_tensor(store.items), as_tensor(store.offsets)

    def epoch() -> None:
        state = ops.session_batch_state(PARAMETERS["batch_size"])
        # until no lane is live in the last step of a call
        while bool((ops.session_batch(items, offsets, None, *state, STEPS_PER_CALL)[0][-1] >= 0).any()):
            pass

    return timed(epoch, store.n_targets)


def grow_events(sizes: list[int], folder: Path, turn_seconds: float) -> dict[str, Any]:
    """Measure the time per event of session batches and of training, and the setup time, with logs of these lengths."""
    stores = {n: synthetic_store(folder / str(n), n, N_ITEMS) for n in sizes}
    batches = time_sizes({n: batches_side(store) for n, store in stores.items()}, turn_seconds)
    sides, setup_seconds = {}, {}
    for n in sizes:
        started = time.perf_counter()
        sides[n] = estimator_side(SessionStore.open(folder / str(n)), PARAMETERS)
        setup_seconds[n] = time.perf_counter() - started
    training = time_sizes({n: per_event(side) for n, side in sides.items()}, turn_seconds)
    return {"sizes": sizes, "training": training, "session_batches": batches, "seconds_to_get_ready": setup_seconds}


def per_event(side: Side) -> Side:
    """Convert a side whose unit is a mini-batch to one whose unit is an event.

    A mini-batch has one event of each lane (a session that is processed in parallel with others).
    """
    lanes = PARAMETERS["batch_size"]
    return lambda n: side(max(1, n // lanes)) / lanes


def grow_memory(millions: list[float], folder: Path) -> dict[str, Any]:
    """Measure the peak memory of training on logs of these lengths, in millions of events."""
    peaks = {}
    for length in millions:
        store = folder / f"{length:g}M"
        synthetic_store(store, int(length * 1e6), N_ITEMS)
        peaks[length] = run_in_new_process("--one-log", store)
    return {"millions": millions, "peaks": peaks}


def plot(results: dict[str, Any], path: Path) -> None:
    """Plot the results, read from JSON (sizes are strings), to a file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(16, 4), layout="constrained")
    if items := results.get("items"):
        sizes = items["sizes"]
        _plot_curve(axes[0], items["seconds"], 1e3, "training step")
        axes[0].set(title="Time of a training step", xlabel="items in the catalogue", ylabel="ms")
        for key, label in (("model_bytes", "model and workspace"), ("step_bytes", "training steps, in addition")):
            values = [items["memory"][str(n)][key] / 2**20 for n in sizes]
            axes[1].plot(sizes, values, marker="o", label=label)
        axes[1].set(title="Memory", xlabel="items in the catalogue", ylabel="MiB", yscale="log")
        axes[1].legend()
    if events := results.get("events"):
        for key, label in (("training", "training"), ("session_batches", "session batches alone")):
            seconds = events[key]["seconds"][str(events["sizes"][0])]["median"]
            _plot_curve(axes[2], events[key]["ratio"], 1, f"{label}, shortest log: {seconds * 1e9:.3g} ns")
        axes[2].axhspan(0.9, 1.1, color="gray", alpha=0.2)
        axes[2].set(title="Time per event", xlabel="events in the log", ylabel="relative to the shortest log")
        axes[2].legend(loc="lower left")
    if memory := results.get("memory"):
        peaks = [memory["peaks"][str(length)]["peak_bytes"] / 2**20 for length in memory["millions"]]
        axes[3].bar([f"{length:g} M" for length in memory["millions"]], peaks, width=0.5)
        axes[3].set(title="Peak memory of training", xlabel="events in the log", ylabel="MiB above the imports")
    for axis in axes[:3]:
        axis.set_xscale("log")
        axis.grid(alpha=0.3)
    for axis in (axes[0], axes[2]):
        axis.set_ylim(bottom=0)
    figure.suptitle(f"{results['machine']['processor']}, threads: {results['machine']['threads']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _plot_curve(axis: Any, quartiles_by_size: dict[str, dict[str, float]], scale: float, label: str) -> None:
    """Plot the medians by size as a line and the range between the quartiles as a band, all multiplied by `scale`."""
    sizes = [int(size) for size in quartiles_by_size]
    median, q1, q3 = ([values[key] * scale for values in quartiles_by_size.values()] for key in ("median", "q1", "q3"))
    (line,) = axis.plot(sizes, median, marker="o", label=label)
    axis.fill_between(sizes, q1, q3, alpha=0.2, color=line.get_color())


def main() -> None:
    """Measure, print the results as JSON, write them to the file given by --json, if any, and plot them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", choices=["items", "events", "memory"], action="append", help="run this measurement; may be repeated"
    )
    parser.add_argument("--items", type=float, nargs="+", default=[1e4, 1e5, 1e6, 1e7], help="sizes of the catalogue")
    parser.add_argument("--events", type=float, nargs="+", default=[1e5, 1e6, 1e7, 1e8], help="lengths of the log")
    parser.add_argument(
        "--millions", type=float, nargs="+", default=[20, 40], help="lengths of the logs of `memory`, in million events"
    )
    parser.add_argument("--folder", type=Path, help="folder for temporary logs")
    parser.add_argument("--turn-seconds", type=float, default=0.4, help="approximate duration of one turn of a size")
    parser.add_argument("--threads", type=int, help="number of threads (default: torch's own choice)")
    parser.add_argument("--json", type=Path, help="a file for the results, such as build/benchmarks/growth.json")
    parser.add_argument("--plot", type=Path, default=Path(__file__).parents[1] / "docs" / "images" / "growth.png")
    parser.add_argument("--one-size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one-log", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_size or arguments.one_log:
        memory = step_memory(arguments.one_size) if arguments.one_size else log_memory(arguments.one_log)
        print(json.dumps(memory))
        return
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # for the processes that `run_in_new_process` starts
    measurements = arguments.only or ["items", "events", "memory"]
    results: dict[str, Any] = {"machine": describe_machine(), "parameters": PARAMETERS}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch)
        if "items" in measurements:
            results["items"] = grow_items([int(n) for n in arguments.items], arguments.turn_seconds)
        if "events" in measurements:
            results["events"] = grow_events([int(n) for n in arguments.events], folder, arguments.turn_seconds)
        if "memory" in measurements:
            results["memory"] = grow_memory(arguments.millions, folder)
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n")
    plot(json.loads(text), arguments.plot)


if __name__ == "__main__":
    main()
