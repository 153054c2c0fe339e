"""Run one diagnostic, a measurement that explains the times of the GPU benchmarks, and write a JSON file.

    PYTHONPATH=.:benchmarks python -m gpu.diagnostics NAME --out figures.json [--folder FOLDER] [--setting xe-100]

NAME is one of
library     device and versions; also loads the native library of FOLDER, or compiles it if its sources have changed
latencies   latencies of kernel launches, graph nodes, grid barriers and cluster barriers (latencies.cu)
rates       copy bandwidth, and rates of matrix products in fp32, TF32 and bf16
timeline    GPU timeline of two replays of the captured training step: kernels, times and gaps; also writes a trace
ncu         bytes, sectors per request and occupancy of the five longest kernels of one training step, without graphs
one-step    no measurement: runs the training step that `ncu` profiles
fused-step  time of the fused training step on the CPU, with 1 to 16 threads

The captured training step is the training step of `fit` on a GPU, replayed from a CUDA graph. The fused training step
is that of `fit` on the CPU, one C++ call. FOLDER is written by prepare_folder.py. --setting is the name of a training
setting of naive_pytorch.py.
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

from gpu.results import WAIT_VARIABLE, MissingInput, wait_for_device, write_json

HERE = Path(__file__).parent
CORES = len(os.sched_getaffinity(0))  # read before `import torch`, which binds this thread to one core (OMP_PROC_BIND)
REPLAYS = 2  # number of replays of a captured graph in `timeline`
REBUILT_VARIABLE = "GPU_CALL_REBUILT"  # environment variable, set after this program has deleted the library of FOLDER
CPU_SECONDS = 0.5  # duration of each measurement of `fused-step`
CPU_THREADS = (1, 2, 4, 8, 16)
N_KERNELS = 5  # number of kernels that `ncu` reports
# ncu's counter for each name in the results. A warp that reads 128 contiguous bytes has 4 sectors per request.
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


def load_library(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load the native library of FOLDER, and return the device and the versions.

    If FOLDER has no library for these sources and this torch, or it does not load, compile it on this machine.
    """
    import torch

    if arguments.device == "cuda":
        assert torch.cuda.is_available(), f"torch {torch.__version__} finds no GPU on this machine"
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "a CPU"
    result = {"device": name, "torch": str(torch.__version__), "cuda": torch.version.cuda, "tiny": arguments.tiny}
    print(result, flush=True)
    write_json(arguments.out, result)  # call.py reads this result even if loading the library fails below
    if arguments.device == "cuda":
        import gru4rec_fast
        from gru4rec_fast import _build, _compile

        required = _compile.library_identity(_build.source_folder(), str(torch.__version__), torch.version.cuda)
        cached = [_compile.read_record(path) for path in _build.cache_folder().glob("*/")]
        if required not in [record.get("identity") for record in cached]:
            reason = _build.why_unusable(cached[0], required) if cached else f"{_build.cache_folder()} holds no library"
            print(f"compiling the library on this machine: {reason}", flush=True)
            result["library"] = {"why_compiled": reason}
        try:
            info = gru4rec_fast.build_info()
        except RuntimeError as error:
            if REBUILT_VARIABLE in os.environ:
                raise
            print(f"compiling the library on this machine: {error}", flush=True)
            # Delete the library and start this program again, once; the new process compiles the library.
            shutil.rmtree(_build.cache_folder(), ignore_errors=True)
            os.environ[REBUILT_VARIABLE] = "1"
            os.execv(sys.executable, sys.orig_argv)
        print(json.dumps({key: value for key, value in info.items() if key != "kernels"}, indent=1))
        assert info["native_cuda"], info["why_not_cuda"]
    return result


def measure_latencies(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run FOLDER/latencies. If it is missing or prints no latency, compile latencies.cu and run the new program."""
    program = arguments.folder / "latencies" if arguments.folder else None
    figures = run_latencies(program) if program and program.exists() else {}
    if not figures:
        print("compiling latencies.cu on this machine: FOLDER/latencies is missing or printed no latency", flush=True)
        with tempfile.TemporaryDirectory() as work:
            compiled = Path(work, "latencies")
            source = HERE / "latencies.cu"
            subprocess.run(["nvcc", "-std=c++17", "-O3", "-arch=sm_90", source, "-o", compiled], check=True)
            figures = run_latencies(compiled)
    if not figures:
        raise RuntimeError("no latency was measured")
    return {"facts": {"latencies": figures}}


def run_latencies(program: Path) -> dict[str, float]:
    """Run the compiled latencies.cu and return the latencies that it prints, in ns. It prints them even if it fails."""
    process = subprocess.run([program.resolve()], capture_output=True, text=True, check=False)
    if process.returncode:
        print(f"{program} ended with status {process.returncode}: {process.stderr.strip()[-300:]}", flush=True)
    try:
        return dict(json.loads(process.stdout))
    except ValueError:
        return {}


def measure_all_rates(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the speed of copies and matrix products. The table shows what fraction of it each row reaches."""
    from gpu.device import measure_rates

    return {"ceilings": measure_rates(make_device(arguments))}


def profile_timeline(arguments: argparse.Namespace) -> dict[str, Any]:
    """Profile replays of the captured training step (CUDA graphs of 16 mini-batches)."""
    import torch
    from torch.profiler import ProfilerActivity

    device = make_device(arguments)
    run = make_training(arguments)
    per_replay = device.size(16, 1)  # mini-batches per replay of a graph
    for _ in range(4):  # warm-up: the first run has no graph, the second run captures one, the others replay it
        run(per_replay)
    device.wait()
    started = time.perf_counter()
    run(REPLAYS * per_replay)
    device.wait()
    untraced_seconds = (time.perf_counter() - started) / (REPLAYS * per_replay)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.is_gpu else [])]
    with torch.profiler.profile(activities=activities) as profile:
        run(REPLAYS * per_replay)
        device.wait()
    trace = arguments.out.with_name(f"trace_{arguments.setting}.json")
    profile.export_chrome_trace(str(trace))
    trace.with_suffix(".json.gz").write_bytes(gzip.compress(trace.read_bytes()))
    trace.unlink()
    device_type = torch.autograd.DeviceType.CUDA if device.is_gpu else torch.autograd.DeviceType.CPU
    events = [
        (event.name, event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == device_type and (device.is_gpu or event.cpu_parent is None)
    ]
    figures = {"untraced_us_per_mini_batch": untraced_seconds * 1e6} | summarize_timeline(events, REPLAYS * per_replay)
    return {"facts": {"timeline": {arguments.setting: figures}}}


def summarize_timeline(events: Iterable[tuple[str, float, float]], mini_batches: int) -> dict[str, Any]:
    """Summarize the GPU events (name, start, end, in microseconds) of `mini_batches` mini-batches.

    Returns:
        us_per_mini_batch: time from the first start to the last end. busy_us_per_mini_batch: sum of the events' times.
        kernels: [name, count per mini-batch, mean us], sorted by decreasing total time. gaps_us: time between the end
        of all earlier events and the start of the next one; negative if events overlap. Tracing makes gaps longer.
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


def run_one_step(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one mini-batch without a CUDA graph, between cudaProfilerStart and cudaProfilerStop."""
    import torch

    run = make_training(arguments)
    run(2 if arguments.tiny else 16)  # warm-up: CUDA loads kernels at first use
    if arguments.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    run(1)  # not captured: a graph is captured in the second run of the same number of mini-batches
    if arguments.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    return {}


def measure_counters(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the counters METRICS of one training step with ncu, and return them for the longest kernels."""
    program = shutil.which("ncu")
    if program is None:
        print("warning: ncu is not on PATH, so no counters are measured")
        return {}
    with tempfile.TemporaryDirectory() as work:
        report = Path(work, "ncu.csv")
        # The clocks are not fixed, since the GPU is shared. The caches are not flushed, since they hold tables between
        # training steps.
        command = [
            program, "--clock-control", "none", "--cache-control", "none", "--profile-from-start", "off", "--csv",
            "--page", "raw",
            "--print-units", "base", "--metrics", ",".join(METRICS.values()), "--log-file", str(report),
            # -P keeps the working directory off sys.path, where a checkout would hide the installed package.
            sys.executable, "-P", "-W", "ignore", "-m", "gpu.diagnostics", "one-step",
            "--out", str(Path(work, "none.json")),
            "--setting", arguments.setting, "--device", arguments.device, *(["--tiny"] if arguments.tiny else []),
            *(["--folder", str(arguments.folder)] if arguments.folder else []),
        ]  # fmt: skip
        # Without WAIT_VARIABLE, since call.py has already let this process start.
        environment = {name: value for name, value in os.environ.items() if name != WAIT_VARIABLE}
        status = subprocess.run(command, env=environment, check=False).returncode
        text = report.read_text() if report.exists() else ""
        if status:
            print(f"ncu ended with status {status}: {text.strip()[-1500:]}")
        kernels = parse_counters(text)
    return {"facts": {"ncu": {arguments.setting: kernels}}}


def parse_counters(report: str) -> list[dict[str, Any]]:
    """Return the counters of the longest kernels, a dictionary per kernel.

    report: ncu's raw CSV page: a line of names, a line of units, and a line per kernel.
    """
    lines = [line for line in report.splitlines() if line.startswith('"')]
    if len(lines) < 3:
        raise RuntimeError(f"ncu counted no kernel: {report.strip()[-300:]}")
    names, units, *rows = csv.reader(lines)
    kernels = []
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
        kernels.append(kernel)
    return sorted(kernels, key=lambda kernel: -(kernel["us"] or 0))[:N_KERNELS]


def measure_fused_step_on_cpu(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time the fused training step of all settings on the CPU, with increasing numbers of threads.

    The times are written after each number of threads, since the process may be stopped.
    """
    import torch
    from machine import processor_name
    from naive_pytorch import SETTINGS
    from trainers import gru_runner, runner_side

    from gpu.prepared_folder import PreparedFolder

    folder = PreparedFolder(arguments.folder)
    sides = {s.name: runner_side(gru_runner(folder.sessions(s.log), s.parameters())) for s in SETTINGS}
    by_threads: dict[str, dict[str, float]] = {}
    result = {"facts": {"fused_step": {"processor": processor_name(), "us_per_mini_batch": by_threads}}}
    # The number of threads increases, because the idle threads of an earlier measurement would slow down a later one.
    for threads in [n for n in CPU_THREADS if n <= CORES]:
        torch.set_num_threads(threads)
        for name, side in sides.items():
            seconds = side(5 if arguments.tiny else 50)
            if not arguments.tiny:
                seconds = side(max(1, int(CPU_SECONDS / seconds)))
            by_threads.setdefault(str(threads), {})[name] = seconds * 1e6
            print(f"{name}, {threads} threads: {seconds * 1e6:.0f} us per mini-batch", flush=True)
        write_json(arguments.out, result)
    return result


def make_device(arguments: argparse.Namespace) -> Any:
    """Return the `gpu.device.Device` that the command-line options select."""
    import torch

    from gpu.device import Device

    return Device(torch.device(arguments.device), arguments.impl, arguments.tiny)


def make_training(arguments: argparse.Namespace) -> Callable[[int], None]:
    """Return a function that trains n mini-batches of the setting, on a GPU by the captured training step."""
    from naive_pytorch import SETTINGS

    from gpu.prepared_folder import PreparedFolder
    from gpu.rows_sessions import make_updates_function, runner_on

    (setting,) = [setting for setting in SETTINGS if setting.name == arguments.setting]
    return make_updates_function(
        runner_on(make_device(arguments), PreparedFolder(arguments.folder).sessions(setting.log), setting)
    )


DIAGNOSTICS = {
    "library": load_library,
    "latencies": measure_latencies,
    "rates": measure_all_rates,
    "timeline": profile_timeline,
    "ncu": measure_counters,
    "one-step": run_one_step,
    "fused-step": measure_fused_step_on_cpu,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=DIAGNOSTICS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--setting", default="xe-100")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--impl", default="native")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if arguments.name not in ("library", "latencies", "ncu"):
        from gpu import rows_sessions  # noqa: F401  # imports torch and the package before `wait_for_device`
    wait_for_device()
    started = time.perf_counter()
    try:
        result = DIAGNOSTICS[arguments.name](arguments)
    except MissingInput as missing:
        result = {"left_out": [f"{arguments.name}: {missing}"]}
    write_json(arguments.out, result)
    print(f"{arguments.name}: {time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
