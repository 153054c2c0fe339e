"""How time and memory grow with the catalogue and with the log: python benchmarks/growth.py --folder SCRATCH

Prints JSON and draws a picture. Three questions:
  items   time and memory of a training step from 10^4 to 10^7 items: no term of it may be linear in the catalogue
  events  time per event of training, and of session batches alone, from 10^5 to 10^8 events, memory-mapped
  memory  peak memory of training on 20 and 40 million events
Times are taken in turns of all sizes within one process (interleave.py), memory in a process of its own for each size. All
of it is what `GRU4Rec.fit` plays, at the default parameters, L100 B64 N2048.
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
from machine import facts
from synthetic import ZIPF_EXPONENT, synthetic_store
from trainers import estimator_side, runner_of, runner_side

from gru4rec_fast import ops, profiling
from gru4rec_fast.data import SessionStore
from gru4rec_fast.data.array_folder import as_tensor
from gru4rec_fast.training import SessionEpochRunner

PARAMETERS: dict[str, Any] = {"layers": [100], "batch_size": 64, "logq": 1.0}
ROUNDS = 9
N_ITEMS = 100_000  # where the log grows
CLICKS = 10**8  # that the support of a growing catalogue is made of
MEMORY_STEPS, LOG_STEPS = 300, 1000
CALL_STEPS = 256


def catalogue_store(n_items: int, n_events: int = 400_000) -> SessionStore:
    """Clicks by Zipf's law on a catalogue whose popular items are no neighbors; each item has a support."""
    rng = np.random.default_rng(0)
    weight = np.arange(1, n_items + 1) ** -ZIPF_EXPONENT
    place = rng.permutation(n_items)
    cumulative = np.cumsum(weight)
    items = place[np.searchsorted(cumulative, rng.random(n_events) * cumulative[-1])].astype(np.int32)
    store = SessionStore.from_arrays(items, np.arange(0, n_events + 1, 4), n_items=n_items)
    store.support = np.empty(n_items, np.int64)
    store.support[place] = 1 + weight / cumulative[-1] * CLICKS
    return store


def touched_runner(n_items: int) -> SessionEpochRunner:
    """Return a runner whose optimizer state was written once: the first write to a fresh page costs a page fault."""
    runner = runner_of(catalogue_store(n_items), PARAMETERS)
    runner_side(runner)(10)
    for state in runner.optimizer.state.values():
        for tensor in state.values():
            if torch.is_tensor(tensor):
                tensor.add_(0)
    return runner


def in_turns(sides: dict[int, Side], turn_seconds: float) -> dict[str, dict[int, dict[str, float]]]:
    """Medians and quartiles of every size: seconds per unit, and their ratio to the first size's in the same round."""
    n = {size: units_per_turn(side, turn_seconds) for size, side in sides.items()}
    taken: dict[int, list[float]] = {size: [] for size in sides}
    for turn in range(ROUNDS + 1):
        for size, side in sides.items():
            seconds = side(n[size])
            if turn:
                taken[size].append(seconds)
    first = taken[next(iter(sides))]
    return {
        "seconds": {size: spread(times) for size, times in taken.items()},
        "ratio": {size: spread([t / f for t, f in zip(taken[size], first, strict=True)]) for size in sides},
    }


def step_memory(n_items: int) -> dict[str, int]:
    """In this process: bytes that the model holds, and that steps need on top of them at their peak."""
    imports = after_the_imports()
    runner = touched_runner(n_items)
    during = profiling.PeakMemory()
    runner_side(runner)(MEMORY_STEPS)
    return {"model_bytes": during.baseline - imports.baseline, "step_bytes": during.bytes}


def log_memory(store: str) -> dict[str, int]:
    """In this process: peak bytes of training on a store, its mapped pages included."""
    peak = after_the_imports()
    estimator_side(SessionStore.open(store), PARAMETERS)(LOG_STEPS)
    return {"peak_bytes": peak.bytes}


def after_the_imports() -> profiling.PeakMemory:
    """The baseline: the native library is loaded with the imports."""
    ops.dropout_mask(1, 1, 1, 0.5, seed=0, stream=0, step=0)
    return profiling.PeakMemory()


def in_a_process(option: str, value: object) -> dict[str, int]:
    """This script with one of its hidden options, in a fresh process."""
    command = [sys.executable, __file__, option, str(value)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def grow_items(sizes: list[int], turn_seconds: float) -> dict[str, Any]:
    """Seconds of a step and its memory, by size of the catalogue."""
    memory = {n: in_a_process("--one-size", n) for n in sizes}
    times = in_turns({n: runner_side(touched_runner(n)) for n in sizes}, turn_seconds)
    return {"sizes": sizes, "memory": memory, **times}


def batches_side(store: SessionStore) -> Side:
    """Session batches alone: whole epochs, in seconds per event."""
    items, offsets = as_tensor(store.items), as_tensor(store.offsets)

    def epoch() -> None:
        state = ops.session_batch_state(PARAMETERS["batch_size"])
        while bool((ops.session_batch(items, offsets, None, *state, CALL_STEPS)[0][-1] >= 0).any()):
            pass

    return timed(epoch, store.n_targets)


def grow_events(sizes: list[int], folder: Path, turn_seconds: float) -> dict[str, Any]:
    """Seconds per event, by length of the log, of session batches and of training, and of getting ready to train."""
    stores = {n: synthetic_store(folder / str(n), n, N_ITEMS) for n in sizes}
    batches = in_turns({n: batches_side(store) for n, store in stores.items()}, turn_seconds)
    sides, ready = {}, {}
    for n in sizes:
        started = time.perf_counter()
        sides[n] = estimator_side(SessionStore.open(folder / str(n)), PARAMETERS)
        ready[n] = time.perf_counter() - started
    training = in_turns({n: per_event(side) for n, side in sides.items()}, turn_seconds)
    return {"sizes": sizes, "training": training, "session_batches": batches, "seconds_to_get_ready": ready}


def per_event(side: Side) -> Side:
    """A side of mini-batches as one of events; all lanes live."""
    lanes = PARAMETERS["batch_size"]
    return lambda n: side(max(1, n // lanes)) / lanes


def grow_memory(millions: list[float], folder: Path) -> dict[str, Any]:
    """Peak memory of training, by length of the log in millions of events."""
    peaks = {}
    for length in millions:
        store = folder / f"{length:g}M"
        synthetic_store(store, int(length * 1e6), N_ITEMS)
        peaks[length] = in_a_process("--one-log", store)
    return {"millions": millions, "peaks": peaks}


def draw(found: dict[str, Any], path: Path) -> None:
    """The picture of what was found."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(16, 4), layout="constrained")
    if items := found.get("items"):
        sizes = items["sizes"]
        _curve(axes[0], items["seconds"], 1e3, "training step")
        axes[0].set(title="Time of a training step", xlabel="items in the catalogue", ylabel="ms")
        for what, name in (("model_bytes", "model and workspace"), ("step_bytes", "steps, on top")):
            values = [items["memory"][str(n)][what] / 2**20 for n in sizes]
            axes[1].plot(sizes, values, marker="o", label=name)
        axes[1].set(title="Memory", xlabel="items in the catalogue", ylabel="MiB", yscale="log")
        axes[1].legend()
    if events := found.get("events"):
        for what, name in (("training", "training"), ("session_batches", "session batches alone")):
            first = events[what]["seconds"][str(events["sizes"][0])]["median"]
            _curve(axes[2], events[what]["ratio"], 1, f"{name}, {first * 1e9:.3g} ns at first")
        axes[2].axhspan(0.9, 1.1, color="gray", alpha=0.2)
        axes[2].set(title="Time per event", xlabel="events in the log", ylabel="of that in the shortest log")
        axes[2].legend(loc="lower left")
    if memory := found.get("memory"):
        peaks = [memory["peaks"][str(length)]["peak_bytes"] / 2**20 for length in memory["millions"]]
        axes[3].bar([f"{length:g} M" for length in memory["millions"]], peaks, width=0.5)
        axes[3].set(title="Peak memory of training", xlabel="events in the log", ylabel="MiB above the imports")
    for axis in axes[:3]:
        axis.set_xscale("log")
        axis.grid(alpha=0.3)
    for axis in (axes[0], axes[2]):
        axis.set_ylim(bottom=0)
    figure.suptitle(f"{found['machine']['processor']}, threads: {found['machine']['threads']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _curve(axis: Any, seconds: dict[str, dict[str, float]], scale: float, label: str) -> None:
    sizes = [int(size) for size in seconds]
    middle, low, high = ([s[k] * scale for s in seconds.values()] for k in ("median", "q1", "q3"))
    (line,) = axis.plot(sizes, middle, marker="o", label=label)
    axis.fill_between(sizes, low, high, alpha=0.2, color=line.get_color())


def main() -> None:
    """Measure, print, write the JSON file that is asked for and draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=["items", "events", "memory"], action="append", help="one of the questions")
    parser.add_argument("--items", type=float, nargs="+", default=[1e4, 1e5, 1e6, 1e7], help="sizes of the catalogue")
    parser.add_argument("--events", type=float, nargs="+", default=[1e5, 1e6, 1e7, 1e8], help="lengths of the log")
    parser.add_argument("--millions", type=float, nargs="+", default=[20, 40], help="lengths of the memory's logs")
    parser.add_argument("--folder", type=Path, help="where to put logs while measuring")
    parser.add_argument("--turn-seconds", type=float, default=0.4, help="about how long one size's turn takes")
    parser.add_argument("--threads", type=int, help="by default torch's own choice")
    parser.add_argument("--json", type=Path, help="a file for what is printed, such as build/benchmarks/growth.json")
    parser.add_argument("--plot", type=Path, default=Path(__file__).parents[1] / "docs" / "images" / "growth.png")
    parser.add_argument("--one-size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one-log", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_size or arguments.one_log:
        one = step_memory(arguments.one_size) if arguments.one_size else log_memory(arguments.one_log)
        print(json.dumps(one))
        return
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # of the processes started from here
    wanted = arguments.only or ["items", "events", "memory"]
    found: dict[str, Any] = {"machine": facts(), "parameters": PARAMETERS}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch)
        if "items" in wanted:
            found["items"] = grow_items([int(n) for n in arguments.items], arguments.turn_seconds)
        if "events" in wanted:
            found["events"] = grow_events([int(n) for n in arguments.events], folder, arguments.turn_seconds)
        if "memory" in wanted:
            found["memory"] = grow_memory(arguments.millions, folder)
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n")
    draw(json.loads(text), arguments.plot)


if __name__ == "__main__":
    main()
