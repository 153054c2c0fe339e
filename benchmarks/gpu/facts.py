"""Facts about the device that explain the rows; each is measured in a process of its own and written to a JSON file.

    PYTHONPATH=.:benchmarks python -m gpu.facts FACT --out fact.json [--folder FOLDER] [--setting xe-100]

library     the device, and whether the native library that FOLDER carries loads, or has to be compiled there and why
latencies   launches, graph nodes, grid barriers and cluster barriers (latencies.cu)
rates       copy bandwidth, and product rates in fp32, TF32 and bf16
timeline    GPU timeline of two replays of the training graph: kernels, counts, mean times, gaps; writes a trace, too
ncu         bytes, sectors per request and occupancy of the five longest kernels of one uncaptured training step
one-step    that training step by itself: the program that ncu runs
cpu-engine  this package's own training step on the processor, on 1 to 16 cores; threads are bound by the environment
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

from gpu.results import WAIT_VARIABLE, Missing, wait_for_turn, write_json

HERE = Path(__file__).parent
CORES = len(os.sched_getaffinity(0))  # before torch is imported: OMP_PROC_BIND binds this thread to one of them
REPLAYS = 2
REBUILT = "GPU_CALL_REBUILT"  # set once a carried library has been replaced
MEASURED_SECONDS = 0.5  # of one setting of the CPU engine
CPU_THREADS = (1, 2, 4, 8, 16)
LONGEST = 5
# Raw counters by the name they have in the results. Sectors per request: 4 where a warp reads 128 contiguous bytes.
METRICS = {
    "us": "gpu__time_duration.sum",
    "dram_bytes": "dram__bytes.sum",
    "load_sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "load_requests": "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
    "store_sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",
    "store_requests": "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum",
    "occupancy_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
}


def library(given: argparse.Namespace) -> dict[str, Any]:
    """Load the native library; compile it here where the one that FOLDER carries does not fit."""
    import torch

    if given.device == "cuda":
        assert torch.cuda.is_available(), f"torch {torch.__version__} sees no GPU here"
    name = torch.cuda.get_device_name() if given.device == "cuda" else "a processor"
    found = {"device": name, "torch": str(torch.__version__), "cuda": torch.version.cuda, "tiny": given.tiny}
    print(found, flush=True)
    write_json(given.out, found)  # the rows of the peers need no more than this
    if given.device == "cuda":
        import gru4rec_fast
        from gru4rec_fast import _build, _compile

        wanted = _compile.identity(_build.source_folder(), str(torch.__version__), torch.version.cuda)
        carried = [_compile.read_record(path) for path in _build.cache_folder().glob("*/")]
        if wanted not in [record.get("identity") for record in carried]:
            reason = _build.difference(carried[0], wanted) if carried else f"{_build.cache_folder()} holds no library"
            print(f"compiling the library here: {reason}", flush=True)
            found["library"] = {"compiled_there": reason}
        try:
            info = gru4rec_fast.build_info()
        except RuntimeError as error:
            if REBUILT in os.environ:
                raise
            print(f"compiling the library here: {error}", flush=True)
            shutil.rmtree(_build.cache_folder(), ignore_errors=True)
            os.environ[REBUILT] = "1"
            os.execv(sys.executable, [*sys.orig_argv])
        print(json.dumps({key: value for key, value in info.items() if key != "kernels"}, indent=1))
        assert info["native_cuda"], info["why_not_cuda"]
    return found


def latencies(given: argparse.Namespace) -> dict[str, Any]:
    """Run the program that build_library.sh compiled; compile it here where it is missing or does not run."""
    program = given.folder / "latencies" if given.folder else None
    found = latencies_of(program) if program and program.exists() else {}
    if not found:
        print("compiling latencies.cu here: FOLDER holds no program latencies that measures anything", flush=True)
        with tempfile.TemporaryDirectory() as work:
            compiled = Path(work, "latencies")
            source = HERE / "latencies.cu"
            subprocess.run(["nvcc", "-std=c++17", "-O3", "-arch=sm_90", source, "-o", compiled], check=True)
            found = latencies_of(compiled)
    if not found:
        raise RuntimeError("no latency was measured")
    return {"facts": {"latencies": found}}


def latencies_of(program: Path) -> dict[str, float]:
    """Run the program and return what it measured, which it prints even where it fails half-way."""
    ran = subprocess.run([program.resolve()], capture_output=True, text=True, check=False)
    if ran.returncode:
        print(f"{program} ended with code {ran.returncode}: {ran.stderr.strip()[-300:]}", flush=True)
    try:
        return dict(json.loads(ran.stdout))
    except ValueError:
        return {}


def rates(given: argparse.Namespace) -> dict[str, Any]:
    """Measure the ceilings that the rows' shares are of."""
    from gpu.device import ceilings

    return {"ceilings": ceilings(device_of(given))}


def timeline(given: argparse.Namespace) -> dict[str, Any]:
    """Profile replays of the captured training step of a setting."""
    import torch
    from torch.profiler import ProfilerActivity

    device = device_of(given)
    run = training_of(given)
    per_replay = device.size(16, 1)
    for _ in range(4):  # the first launch is not captured, the second is
        run(per_replay)
    device.wait()
    started = time.perf_counter()
    run(REPLAYS * per_replay)
    device.wait()
    untraced = (time.perf_counter() - started) / (REPLAYS * per_replay)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.is_gpu else [])]
    with torch.profiler.profile(activities=activities) as profile:
        run(REPLAYS * per_replay)
        device.wait()
    trace = given.out.with_name(f"trace_{given.setting}.json")
    profile.export_chrome_trace(str(trace))
    trace.with_suffix(".json.gz").write_bytes(gzip.compress(trace.read_bytes()))
    trace.unlink()
    kind = torch.autograd.DeviceType.CUDA if device.is_gpu else torch.autograd.DeviceType.CPU
    events = [
        (event.name, event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == kind and (device.is_gpu or event.cpu_parent is None)
    ]
    found = {"untraced_us_per_mini_batch": untraced * 1e6} | summary(events, REPLAYS * per_replay)
    return {"facts": {"timeline": {given.setting: found}}}


def summary(events: Iterable[tuple[str, float, float]], mini_batches: int) -> dict[str, Any]:
    """Summarize GPU events (name, start, end, in microseconds) of so many mini-batches.

    Returns:
        us_per_mini_batch: from the first start to the last end. kernels: [name, count per mini-batch, mean us] by
        total time. gaps_us: time from the latest end so far to the next start; negative where events overlap.
        Tracing lengthens gaps.
    """
    ordered = sorted(events, key=lambda event: event[1])
    if not ordered:
        raise RuntimeError("the profiler recorded no event")
    by_name: dict[str, list[float]] = {}
    for name, start, end in ordered:
        by_name.setdefault(name[:120], []).append(end - start)
    ends = accumulate((end for _, _, end in ordered), max)
    gaps = sorted(event[1] - end for event, end in zip(ordered[1:], ends, strict=False))
    span = max(end for _, _, end in ordered) - ordered[0][1]
    return {
        "us_per_mini_batch": span / mini_batches,
        "busy_us_per_mini_batch": sum(map(sum, by_name.values())) / mini_batches,
        "events_per_mini_batch": len(ordered) / mini_batches,
        "gaps_us": {"median": gaps[len(gaps) // 2], "p90": gaps[len(gaps) * 9 // 10], "max": gaps[-1]} if gaps else {},
        "kernels": [
            [name, len(times) / mini_batches, sum(times) / len(times)]
            for name, times in sorted(by_name.items(), key=lambda item: -sum(item[1]))
        ],
    }


def one_step(given: argparse.Namespace) -> dict[str, Any]:
    """Train one mini-batch without a graph, between cudaProfilerStart and cudaProfilerStop."""
    import torch

    run = training_of(given)
    run(2 if given.tiny else 16)  # loads the kernels
    if given.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    run(1)  # the first launch of this size: not captured
    if given.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    return {}


def ncu(given: argparse.Namespace) -> dict[str, Any]:
    """Count bytes, sectors and occupancy of every kernel of one step; keep the longest."""
    program = shutil.which("ncu")
    if program is None:
        print("warning: ncu is not on PATH, no counters")
        return {}
    with tempfile.TemporaryDirectory() as work:
        report = Path(work, "ncu.csv")
        # Clocks are left as they are, since the card is shared; so are caches, in which a step finds its tables.
        command = [
            program, "--clock-control", "none", "--cache-control", "none", "--profile-from-start", "off", "--csv",
            "--page", "raw",
            "--print-units", "base", "--metrics", ",".join(METRICS.values()), "--log-file", str(report),
            sys.executable, "-W", "ignore", "-m", "gpu.facts", "one-step", "--out", str(Path(work, "none.json")),
            "--setting", given.setting, "--device", given.device, *(["--tiny"] if given.tiny else []),
            *(["--folder", str(given.folder)] if given.folder else []),
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name != WAIT_VARIABLE}
        code = subprocess.run(command, env=environment, check=False).returncode
        text = report.read_text() if report.exists() else ""
        if code:
            print(f"ncu ended with code {code}: {text.strip()[-1500:]}")
        kernels = counters(text)
    return {"facts": {"ncu": {given.setting: kernels}}}


def counters(report: str) -> list[dict[str, Any]]:
    """Read ncu's raw CSV page (a line of names, a line of units, a line per kernel); return the longest kernels."""
    lines = [line for line in report.splitlines() if line.startswith('"')]
    if len(lines) < 3:
        raise RuntimeError(f"ncu counted no kernel: {report.strip()[-300:]}")
    names, units, *rows = csv.reader(lines)
    found = []
    for row in rows:
        values = dict(zip(names, row, strict=True))
        kernel: dict[str, Any] = {"kernel": values["Kernel Name"][:120]}
        for name, metric in METRICS.items():
            text = values.get(metric, "").replace(",", "")
            kernel[name] = float(text) if text.replace(".", "", 1).isdigit() else None
        if kernel["us"] is not None and units[names.index(METRICS["us"])] in ("ns", "nsecond"):
            kernel["us"] /= 1e3
        for direction in ("load", "store"):
            sectors, requests = kernel.pop(f"{direction}_sectors"), kernel.pop(f"{direction}_requests")
            kernel[f"{direction}_sectors_per_request"] = sectors / requests if sectors and requests else None
        found.append(kernel)
    return sorted(found, key=lambda kernel: -(kernel["us"] or 0))[:LONGEST]


def cpu_engine(given: argparse.Namespace) -> dict[str, Any]:
    """Measure the fused CPU step of the four settings on ever more cores; what was measured is kept."""
    import torch
    from machine import processor
    from naive_pytorch import SETTINGS
    from trainers import runner_of, runner_side

    from gpu.folder import Folder

    folder = Folder(given.folder)
    sides = {s.name: runner_side(runner_of(folder.sessions(s.log), s.parameters())) for s in SETTINGS}
    by_threads: dict[str, dict[str, float]] = {}
    found = {"facts": {"cpu_engine": {"processor": processor(), "us_per_mini_batch": by_threads}}}
    # In rising order: a thread of a larger team that has nothing to do would spin beside a smaller one.
    for threads in [n for n in CPU_THREADS if n <= CORES]:
        torch.set_num_threads(threads)
        for name, side in sides.items():
            seconds = side(5 if given.tiny else 50)
            if not given.tiny:
                seconds = side(max(1, int(MEASURED_SECONDS / seconds)))
            by_threads.setdefault(str(threads), {})[name] = seconds * 1e6
            print(f"{name}, {threads} threads: {seconds * 1e6:.0f} us a mini-batch", flush=True)
        write_json(given.out, found)
    return found


def device_of(given: argparse.Namespace) -> Any:
    """Return the device as the rows see it."""
    import torch

    from gpu.device import Device

    return Device(torch.device(given.device), given.impl, given.tiny)


def training_of(given: argparse.Namespace) -> Callable[[int], None]:
    """Return a function that trains so many mini-batches of a setting by the fused step."""
    from naive_pytorch import SETTINGS

    from gpu.folder import Folder
    from gpu.rows_sessions import trainer_on, updates_of

    (setting,) = [setting for setting in SETTINGS if setting.name == given.setting]
    return updates_of(trainer_on(device_of(given), Folder(given.folder).sessions(setting.log), setting))


FACTS = {
    "library": library,
    "latencies": latencies,
    "rates": rates,
    "timeline": timeline,
    "ncu": ncu,
    "one-step": one_step,
    "cpu-engine": cpu_engine,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fact", choices=FACTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--setting", default="xe-100")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--impl", default="native")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    if given.fact not in ("library", "latencies", "ncu"):  # those import torch, if at all, in their own time
        from gpu import rows_sessions  # noqa: F401
    wait_for_turn()
    started = time.perf_counter()
    try:
        found = FACTS[given.fact](given)
    except Missing as missing:
        found = {"left_out": [f"{given.fact}: {missing}"]}
    write_json(given.out, found)
    print(f"{given.fact}: {time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
