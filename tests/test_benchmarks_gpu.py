"""benchmarks/gpu on the CPU: measurements with small data, goals, the table, and the test cases for the sanitizer.

A row of the results table compares several implementations, called sides, at one workload. A call is one benchmark
session on a GPU machine, A or B. A stage is a process of a call. The prepared folder has the data sets and the public
implementations to compare with (peers).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu import diagnostics, stages, table, training_runs
from gpu.device import Device, measure_rates, precision
from gpu.measure_row import BUILDERS
from gpu.prepared_folder import PreparedFolder
from gpu.results import MissingInput, merge
from gpu.rows import Row, built_at_first_use, measure
from gpu.rows_graph import power_law_graph
from gpu.time_model import LAUNCH_LATENCY, WORK, Speed, Work, predict
from gpu.workloads import OURS, WORKLOADS, Goal, RowName, row_names
from native import threads, why_not_emulated
from synthetic import synthetic_store

from gru4rec_fast.data import InteractionGraph

CHECKOUT = Path(__file__).resolve().parents[1]
TINY = Device(torch.device("cpu"), tiny=True)
RATES = {"copy": 1e9, "fp32": 1e9, "tf32": 1e9, "bf16": 1e9}
# Launches of a captured update of one mini-batch: matrix products of torch ("mm") and kernels of this package.
LAUNCHES = {
    "L100 B32, cross-entropy": {"mm": 4, "own kernels": 7},
    "L100 B32, BPR-max": {"mm": 4, "own kernels": 7},
    "L100 B32, cross-entropy, two layers": {"mm": 5, "own kernels": 9},
    "L100 B32, cross-entropy, separate embedding": {"mm": 4, "own kernels": 8},
}


def row_parameters() -> list[Any]:
    """Return a pytest parameter for each row. Rows that use torch.compile, TF32 or bf16 are slow."""
    names = list(row_names())
    assert len({str(name) for name in names}) == len(names) > 30
    is_slow = ["loss" in name.workload or name.precision in ("tf32", "bf16") for name in names]
    return [
        pytest.param(name, id=str(name), marks=[pytest.mark.slow] if slow else [])
        for name, slow in zip(names, is_slow, strict=True)
    ]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread. The data are small, and threads that wait for each other are slow if other processes run."""
    with threads(1):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> PreparedFolder:
    """Create a prepared folder with synthetic data sets, without peers."""
    path = tmp_path_factory.mktemp("folder")
    for name in ("rsc15_100k", "diginetica"):
        synthetic_store(path / "data" / name / "train", 6000, 400)
    draws = np.random.default_rng(0).random((900, 2)) ** 2 * (50, 70)
    InteractionGraph.from_arrays(*draws.astype(np.int64).T, n_users=50, n_items=70).save(
        path / "data" / "gowalla" / "train"
    )
    return PreparedFolder(path)


@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize("name", row_parameters())
def test_every_row_is_measured(folder: PreparedFolder, name: RowName) -> None:
    row = measure(name, BUILDERS[name.workload], TINY, folder, [])
    peers = {"xe-100", "xe-480", "bprmax-224", "bprmax-512", "ngcf", "lightgcn"}
    baseline = WORKLOADS[name.workload].baseline
    assert row["failed"] == {}
    assert next(iter(row["seconds"])) == OURS and len(row["seconds"]) >= 2
    assert (baseline in row["seconds"]) == (name.workload not in peers)
    assert any("left out: no peers/" in note for note in row["notes"]) == (name.workload in peers)
    assert all(seconds["median"] > 0 for seconds in row["seconds"].values())
    json.dumps(row)  # raises if the row is not JSON
    without_ours = measure(name, BUILDERS[name.workload], TINY, folder, [OURS])
    assert [*without_ours["seconds"]] == [*row["seconds"]][1:] and without_ours["ratios"] == {}


def test_every_workload_has_a_builder_and_every_row_is_in_one_call() -> None:
    assert {name.workload for name in row_names()} == set(BUILDERS) == set(WORKLOADS) - {"ngcf-run"}
    call_a_rows, call_b_rows = [set(map(str, row_names(precisions))) for precisions in (("", "fp32"), ("tf32", "bf16"))]
    assert call_a_rows | call_b_rows == set(map(str, row_names())) and not call_a_rows & call_b_rows


def measured_row(sides: dict[str, Callable[[int], float]], workload: str = "gru", **fields: Any) -> dict[str, Any]:
    """Measure a row and return its figures as JSON. A side does n units of work and returns the seconds per unit."""
    row = Row(sides, rounds=3, **fields)
    return measure(RowName(workload, "", "tf32"), lambda *_: row, TINY, PreparedFolder(None), [])


def test_ratios_and_goal_values_of_a_row() -> None:
    baseline = WORKLOADS["gowalla"].baseline
    sides = {OURS: lambda n: 0.001, baseline: lambda n: 0.003}
    row = measured_row(sides, "gowalla", n_bytes=800_000, flops=7)
    assert row["ratios"][baseline] == pytest.approx({"median": 3.0, "q1": 3.0, "q3": 3.0})
    assert table.goal_values(row, 1e9) == {
        "ratio": pytest.approx(3), "memory": None, "copy": pytest.approx(0.8), "microseconds": pytest.approx(1000),
        "seconds": pytest.approx(0.001),
    }  # fmt: skip
    assert table.goal_values(row, None)["copy"] is None
    (line,) = [line for line in table.render([{"call": "A", "rows": [row], "ceilings": RATES}]) if "3.00 [" in line]
    assert line.endswith("| 80% of copy, 0% of tf32 products | >= 2x; >= 70% of copy bandwidth | yes; yes |")


def failing_side(n: int) -> float:
    raise RuntimeError("no\nsuch kernel")


def build_without_data() -> Any:
    raise MissingInput("no data/x in the prepared folder")


def test_other_sides_are_measured_if_one_fails_or_lacks_its_data() -> None:
    working_side, baseline = (lambda n: 0.001), WORKLOADS["gru"].baseline
    row = measured_row({OURS: failing_side, baseline: working_side, "other": built_at_first_use(build_without_data)})
    assert row["failed"] == {OURS: "RuntimeError: no such kernel"} and [*row["seconds"]] == [baseline]
    assert row["notes"] == ["other left out: no data/x in the prepared folder"] and row["ratios"] == {}
    lines = table.render([{"call": "A", "rows": [row]}])
    assert f"| {row['row']} | failed | {baseline} | 1 ms |  |  |  | >= 1x | not measured |" in lines
    assert f"- ours failed: {row['row']}: RuntimeError: no such kernel" in lines
    row = measured_row({OURS: working_side, baseline: failing_side, "other": working_side})
    assert row["failed"] == {baseline: "RuntimeError: no such kernel"}
    lines = table.render([{"call": "A", "rows": [row]}])
    assert f"| {row['row']} | 1 ms | {baseline} |  | left out |  |  | >= 1x | not measured |" in lines


def test_results_of_stages_are_merged() -> None:
    results: dict[str, Any] = {"rows": [{"row": "a", "x": 1}], "facts": {"timeline": {"xe": 1}}}
    merge(results, {"rows": [{"row": "b"}], "facts": {"timeline": {"ye": 2}, "ncu": {}}, "left_out": ["c"]})
    merge(results, {"rows": [{"row": "a", "x": 2}], "left_out": ["d"], "device": "some GPU"})
    assert results == {
        "rows": [{"row": "b"}, {"row": "a", "x": 2}],
        "facts": {"timeline": {"xe": 1, "ye": 2}, "ncu": {}},
        "left_out": ["c", "d"],
        "device": "some GPU",
    }


def test_goals_are_met_at_their_limits_and_every_kind_of_goal_is_used() -> None:
    assert Goal("ratio", 2).is_met(2.0) and not Goal("ratio", 2).is_met(1.9)
    assert Goal("memory", 0.2).is_met(0.2) and not Goal("memory", 0.2).is_met(0.3)
    assert {goal.kind for workload in WORKLOADS.values() for goal in workload.goals} == {
        "ratio", "copy", "memory", "microseconds", "seconds",
    }  # fmt: skip


def test_rates_are_measured_and_precision_is_restored() -> None:
    assert set(measure_rates(TINY)) == {"copy", "fp32", "tf32", "bf16"}
    previous_cudnn = torch.backends.cudnn.allow_tf32
    with precision("tf32"):
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
        with precision("fp32"):
            assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32 == previous_cudnn


def test_power_law_graph_is_symmetric_without_loops() -> None:
    offsets, neighbors = power_law_graph(40, 200, torch.device("cpu"))
    rows = torch.repeat_interleave(offsets.diff())
    assert len(neighbors) == 400 and neighbors.dtype == torch.int32
    entries, transposed = rows * 40 + neighbors, neighbors * 40 + rows
    assert torch.equal(entries, transposed.sort().values) and len(entries.unique()) == 400 and (rows != neighbors).all()


def sample_results() -> dict[str, Any]:
    """Return the results.json of a call with one row, two stages and all diagnostics."""
    seconds = {OURS: 2e-5, "matmul + compare": 5e-5, "another": 1e-5}
    row = {"row": "ranking, tf32", "workload": "ranking", "precision": "tf32", "n_bytes": 60_000_000, "flops": 4e9}
    row["seconds"] = {name: dict.fromkeys(("median", "q1", "q3"), value) for name, value in seconds.items()}
    row["ratios"] = {name: {"median": value / 2e-5, "q1": 0.1, "q3": 9.0} for name, value in seconds.items()}
    del row["ratios"][OURS]
    row |= {"mib": {OURS: 10.0, "matmul + compare": 50.0, "another": None}, "failed": {}, "notes": []}
    events = [("a|b", 0, 4), ("c", 5, 8), ("a|b", 10, 16)]
    timeline = diagnostics.summarize_timeline(events, 2) | {"untraced_us_per_mini_batch": 7.0}
    return {
        "call": "B", "device": "some GPU", "torch": "2.11", "cuda": "13.0", "tiny": False,
        "ceilings": {"copy": 4e12, "fp32": 5e13, "tf32": 4e14, "bf16": 8e14},
        "rows": [row],
        "left_out": ["this: no peer"],
        "stages": {"rates": {"outcome": "ok"}, "ncu": {"outcome": "exit status 1"}},
        "facts": {
            "latencies": {"graph node": 1500.0},
            "timeline": {"xe-100": timeline},
            "ncu": {"xe-100": [{"kernel": "k", "us": 3.25, "load_sectors_per_request": None}]},
            "fused_step": {"processor": "a CPU", "us_per_mini_batch": {"1": {"xe-100": 170.0}, "2": {}}},
        },
    }  # fmt: skip


def test_table_shows_rows_goals_device_stages_and_diagnostics() -> None:
    lines = table.render([sample_results()])
    assert (
        "| ranking, tf32 | 20 us | matmul + compare | 50 us | 2.50 [0.10, 9.00] | 10.0 / 50.0 "
        "| 75% of copy, 50% of tf32 products | >= 2x; memory <= 0.1 of theirs | yes; no |"
    ) in lines
    assert "| ranking, tf32 | 20 us | another | 10 us | 0.50 [0.10, 9.00] |  |  |  |  |" in lines
    assert sum("not measured yet" in line for line in lines) == len(WORKLOADS) - 1
    text = "\n".join(lines)
    for expected in (
        "some GPU, torch 2.11, CUDA 13.0, call B; measured: copy 4000 GB/s, products fp32 50.0, tf32 400.0, bf16 800.0",
        "- left out: this: no peer\n- stage ncu: exit status 1\n",
        "| graph node | 1.50 |",
        "GPU timeline of xe-100, replayed: 7.0 us per mini-batch untraced, 8.0 traced, 6.5 of them in 1.5 kernels; ",
        "kernels; gaps in us: median 2.00, ",
        "| `a/b` | 1 | 5.00 |\n| `c` | 0.5 | 3.00 |",
        "| kernel of an uncaptured step, xe-100 | us | load sectors per request |",
        "| `k` | 3.25 |  |",
        "| fused training step on the CPU, us per mini-batch (a CPU) | 1 threads | 2 threads |",
        "| xe-100 | 170 |  |",
    ):
        assert expected in text, expected


def test_parse_counters_returns_the_longest_kernels() -> None:
    names = ["ID", "Kernel Name", *diagnostics.METRICS.values()]
    units = ["", "", "ns", "byte", "sector", "", "sector", "", "%", "register/thread"]
    kernels = [["1", f"grf::k{n}(T1)", f"{n},000", "64", "8", "2", "0", "0", "12.5", "40"] for n in range(1, 8)]
    csv = "\n".join(",".join(f'"{cell}"' for cell in line) for line in (names, units, *kernels))
    parsed = diagnostics.parse_counters(f"==PROF== Connected\n{csv}\n")
    assert [kernel["us"] for kernel in parsed] == [7.0, 6.0, 5.0, 4.0, 3.0]
    assert parsed[0] == {
        "kernel": "grf::k7(T1)", "us": 7.0, "dram_bytes": 64.0, "occupancy_percent": 12.5, "registers": 40.0,
        "load_sectors_per_request": 4.0, "store_sectors_per_request": None,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="ncu counted no kernel: ==ERROR== no access"):
        diagnostics.parse_counters("==ERROR== no access")


def test_performance_page_has_the_table_of_the_committed_results() -> None:
    files = sorted((CHECKOUT / "benchmarks" / "results" / "gpu").glob("*.json"))
    _, _, rest = (CHECKOUT / "docs" / "performance.md").read_text().partition(table.BEGIN + "\n")
    expected = table.render([json.loads(path.read_text()) for path in files])
    assert rest.partition("\n" + table.END)[0].splitlines() == expected


def test_row_of_a_training_run_shows_if_the_metric_was_reached() -> None:
    run = training_runs.RUNS["ngcf_gowalla"]
    metrics = [{}, {"recall@20": 0.1}, {"recall@20": 0.16}, {"recall@20": 0.2}]
    history = [{"epoch": n, "seconds": 100.0, "validation": values} for n, values in enumerate(metrics, 1)]
    row = training_runs.build_row("ngcf_gowalla", run, history, 500)
    assert row["seconds"][OURS]["median"] == 300.0 and row["ratios"][WORKLOADS["ngcf-run"].baseline]["median"] == 109.68
    assert row["row"].endswith("(ngcf_gowalla: epoch 3; 500 s with evaluations)")
    (line,) = [line for line in table.render([{"call": "B", "rows": [row]}]) if "109.68" in line]
    assert line.endswith("| <= 600 s | yes |")
    missed = training_runs.build_row("ngcf_gowalla", run, history[:2], 90)
    assert missed["ratios"] == {} and "not reached: 0.1000 at best in 2 epochs" in missed["row"]
    (line,) = [line for line in table.render([{"call": "B", "rows": [missed]}]) if "0.1000" in line]
    assert line.endswith("| <= 600 s | no |")


def test_every_gpu_test_is_in_a_stage() -> None:
    import test_cuda

    assert set(stages.kernel_families()) == set(test_cuda.EXACT) | set(test_cuda.CLOSE)
    functions = {name: value for name, value in vars(test_cuda).items() if name.startswith("test_") and callable(value)}
    per_family = {
        name for name, value in functions.items() if "sanitizer" in [m.name for m in getattr(value, "pytestmark", [])]
    }
    assert per_family == {"test_same_bits_as_the_reference", "test_small_cases_are_as_close_as_the_reference"}
    other_functions = stages.functions_without_sanitizer_mark(CHECKOUT / "tests" / "test_cuda.py")
    assert (
        set(other_functions) == set(functions) - per_family
        and len(other_functions) > 15
        and set(stages.LONG_TESTS) < set(other_functions)
    )
    other_files = {
        f"tests/{path.name}"
        for path in (CHECKOUT / "tests").glob("test_*.py")
        if "skipif(not torch.cuda.is_available()" in path.read_text()
        and path.name not in ("test_cuda.py", Path(__file__).name)
    }
    assert other_files == set(stages.OTHER_GPU_TESTS)


@pytest.mark.parametrize("family", stages.kernel_families())
@pytest.mark.slow
@pytest.mark.skipif(bool(why_not_emulated("dropout")), reason=why_not_emulated("dropout") or "-")
def test_cases_for_the_sanitizer_pass_with_emulated_kernels(family: str) -> None:
    import test_cuda

    test_cuda.assert_family("cpu", "emulated", family)


def test_data_frame_for_the_official_code_has_the_same_log(folder: PreparedFolder) -> None:
    pytest.importorskip("pandas")
    from peers.official import to_data_frame

    store = folder.sessions("rsc15_100k")
    frame = to_data_frame(store)
    assert frame.columns.tolist() == ["SessionId", "ItemId", "Time"] and frame["Time"].is_monotonic_increasing
    assert frame.groupby("SessionId").size().tolist() == np.diff(store.offsets).tolist()
    assert frame["ItemId"].tolist() == store.items.tolist()


def test_prepare_folder_converts_logs_and_copies_checkouts(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    from gpu.prepare_folder import prepare_data, prepare_peers

    for part in ("train", "test"):
        log = "SessionId\tItemId\tTime\n1\t7\t1\n1\t8\t2\n1\t7\t3\n"
        for name in ("rsc15_100k", "gowalla"):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "rsc15_100k" / f"{part}.tsv.gz").write_bytes(gzip.compress(log.encode()))
        (tmp_path / "data" / "gowalla" / f"{part}.txt.gz").write_bytes(gzip.compress(b"0 1 2\n1 2\n"))
    checkout = tmp_path / "official"
    checkout.mkdir()
    for name in ("gru4rec_pytorch.py", "LICENSE", "picture.png"):
        (checkout / name).write_text("x")
    out = tmp_path / "folder"
    messages = [*prepare_data(tmp_path / "data", out), *prepare_peers({"official": checkout}, out)]
    assert sum("left out" in line for line in messages) == 3  # diginetica, ngcf, lightgcn
    prepared = PreparedFolder(out)
    assert prepared.sessions("rsc15_100k").n_events == 3 and prepared.graph("gowalla").n_edges == 3
    assert sorted(path.name for path in prepared.peer("official").iterdir()) == ["LICENSE", "gru4rec_pytorch.py"]
    with pytest.raises(MissingInput, match="no peers/ngcf in the prepared folder"):
        prepared.peer("ngcf")
    with pytest.raises(FileNotFoundError, match=r"there is no NGCF/NGCF\.py"):
        list(prepare_peers({"ngcf": checkout}, out))


META = Device(torch.device("meta"), "reference")  # full sizes without memory
# Workloads whose rows can be built without data.
WITHOUT_DATA = ["gru", "ranking", "loss", "top-k", "batches", "negatives", "masks", "small-loss", "small-gru"]


@pytest.mark.parametrize("workload", WITHOUT_DATA)
def test_the_model_has_the_bytes_and_products_of_the_rows(workload: str) -> None:
    for case, work in WORK[workload].items():
        name = RowName(workload, case, WORKLOADS[workload].precisions[0])
        row = BUILDERS[workload](name, META, PreparedFolder(None))
        assert (work.n_bytes, work.flops) == (row.n_bytes, row.flops)


def test_the_model_adds_launches_bytes_and_products() -> None:
    work = Work(launches=10, n_bytes=3_000_000, flops=4e9)
    assert Speed(launch=2e-6, latency=1e-6, copy=1e12, products=1e13).seconds(work) == pytest.approx((3e-5, 3e-6, 4e-4))
    results = {"ceilings": {"copy": 4e12, "fp32": 5e13}, "facts": {"latencies": {LAUNCH_LATENCY: 1500.0}}}
    assert Speed.measured([results, {}]) == Speed(launch=1.5e-6, copy=4e12, products=5e13)
    assert Speed.measured([]) == Speed() and not predict("ngcf", Speed())
    assert {*WORK} <= {*WORKLOADS} and all({*WORK[key]} <= {*WORKLOADS[key].cases} for key in WORK)
    line = next(line for line in table.render([results | {"call": "A", "rows": []}]) if "xe-100" in line)
    assert "| model: 34 us (32 + 0.71 + 1) | official |  | not measured yet |" in line


@pytest.mark.skipif(bool(why_not_emulated("training_step")), reason=why_not_emulated("training_step") or "-")
@pytest.mark.parametrize("case", LAUNCHES)
def test_launches_of_a_captured_step(case: str) -> None:
    """The counts are in docs/performance_notes.md."""
    from gpu.count_launches import CASES, count_step

    setting, network_arguments = CASES[case]
    assert count_step(setting, **network_arguments)[0] == LAUNCHES[case]
