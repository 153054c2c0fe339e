"""benchmarks/gpu on a processor: every row in small, goals, the table, the sanitizer's cases."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu import reached, table
from gpu.bench import all_plans, play
from gpu.clock import Place, ceilings, precision
from gpu.folder import Folder, Missing
from gpu.goals import TARGETS, Goal
from gpu.rows import OURS, Plan, Row, measure
from gpu.rows_graph import power_law_graph
from native import threads, why_not_emulated
from synthetic import synthetic_store

from gru4rec_fast.data import InteractionGraph

CHECKOUT = Path(__file__).resolve().parents[1]
TINY = Place(torch.device("cpu"), tiny=True)
CEILINGS = {"copy": 1e9, "fp32": 1e9, "tf32": 1e9, "bf16": 1e9}


def named_plans() -> list[Any]:
    """A parameter per row of the table; torch.compile takes its time, and TF32 and bf16 run the same code again."""
    names = [(plan.name, plan.target, plan.precision) for plan in all_plans(TINY, Folder(None))]
    assert len(dict.fromkeys(names)) == len(names)
    slow = ["loss" in key or precision in ("tf32", "bf16") for _, key, precision in names]
    return [
        pytest.param(name, marks=[pytest.mark.slow] if takes_long else [])
        for name, takes_long in zip((name for name, *_ in names), slow, strict=True)
    ]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Nothing here is large enough for two, and waiting for each other takes long where others work too."""
    with threads(1):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Data of every name, made up; no peers."""
    path = tmp_path_factory.mktemp("folder")
    for name in ("rsc15_100k", "diginetica"):
        synthetic_store(path / "data" / name / "train", 6000, 400)
    draws = np.random.default_rng(0).random((900, 2)) ** 2 * (50, 70)
    InteractionGraph.from_arrays(*draws.astype(np.int64).T, n_users=50, n_items=70).save(
        path / "data" / "gowalla" / "train"
    )
    return Folder(path)


@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize("name", named_plans())
def test_every_row_is_measured(folder: Folder, name: str) -> None:
    (plan,) = [plan for plan in all_plans(TINY, folder) if plan.name == name]
    row = measure(plan, TINY, CEILINGS)
    peers = {"xe-100", "xe-480", "bprmax-224", "bprmax-512", "ngcf", "lightgcn"}
    expected = TARGETS[plan.target].against
    assert [note for note in row["notes"] if "failed" in note] == []
    assert next(iter(row["seconds"])) == OURS and len(row["seconds"]) >= 2
    assert (expected in row["seconds"]) == (plan.target not in peers)
    assert any("left out: no peers/" in note for note in row["notes"]) == (plan.target in peers)
    assert all(seconds["median"] > 0 for seconds in row["seconds"].values())
    assert [goal["of"] for goal in row["goals"]] == [goal.of for goal in TARGETS[plan.target].goals]
    json.dumps(row)


def plan_of(sides: dict[str, Callable[[int], float]], target: str = "gru") -> Plan:
    return Plan(target, lambda: Row(sides, rounds=3, n_bytes=5, flops=7), precision="tf32")


def test_figures_of_a_row() -> None:
    against = TARGETS["gowalla"].against
    row = measure(plan_of({OURS: lambda n: 0.001, against: lambda n: 0.003}, "gowalla"), TINY, CEILINGS)
    assert row["ratios"][against] == pytest.approx({"median": 3.0, "q1": 3.0, "q3": 3.0})
    assert row["copy_share"] == pytest.approx(5 / 0.001 / 1e9) and row["product_share"] == pytest.approx(7e-6)
    assert [(goal["of"], goal["met"]) for goal in row["goals"]] == [("ratio", True), ("copy", False)]


def broken(n: int) -> float:
    raise RuntimeError("no\nsuch kernel")


def test_what_is_missing_or_fails_leaves_the_others_their_turn(tmp_path: Path) -> None:
    def lacking() -> Row:
        raise Missing("no data/x in FOLDER")

    fine, against = (lambda n: 0.001), TARGETS["gru"].against
    plans = [Plan("ranking", lacking), plan_of({OURS: broken}), plan_of({OURS: fine, against: broken, "other": fine})]
    answer = play(plans, TINY, 60, tmp_path / "gpu.json")
    assert answer["left_out"] == [f"{TARGETS['ranking'].work}: no data/x in FOLDER"]
    gru = f"{TARGETS['gru'].work}, tf32"
    assert answer["failed"] == [
        f"{gru}: RuntimeError: no such kernel",
        f"{gru}: {against} failed: RuntimeError: no such kernel",
    ]
    (row,) = answer["rows"]
    assert row["goals"] == [{"of": "ratio", "limit": 1, "value": None, "met": None}]
    assert json.loads((tmp_path / "gpu.json").read_text()) == answer
    late = play(plans, TINY, -1, tmp_path / "late.json")
    assert late["rows"] == [] and late["failed"]  # those with goals
    assert all(line.endswith("no time left") for line in (*late["left_out"], *late["failed"]))


def test_goals() -> None:
    assert Goal("ratio", 2).met(2.0) and not Goal("ratio", 2).met(1.9)
    assert Goal("memory", 0.2).met(0.2) and not Goal("memory", 0.2).met(0.3)
    assert {goal.of for target in TARGETS.values() for goal in target.goals} == {
        "ratio", "copy", "memory", "microseconds", "seconds",
    }  # fmt: skip


def test_ceilings_and_precision() -> None:
    assert set(ceilings(TINY)) == {"copy", "fp32", "tf32", "bf16"}
    cudnn = torch.backends.cudnn.allow_tf32
    with precision("tf32"):
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
        with precision("fp32"):
            assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32 == cudnn


def test_power_law_graph() -> None:
    offsets, neighbours = power_law_graph(40, 200, torch.device("cpu"))
    rows = torch.repeat_interleave(offsets.diff())
    assert len(neighbours) == 400 and neighbours.dtype == torch.int32
    forth, back = rows * 40 + neighbours, neighbours * 40 + rows
    assert torch.equal(forth, back.sort().values) and len(forth.unique()) == 400 and (rows != neighbours).all()


def sample() -> dict[str, Any]:
    seconds = {OURS: 2e-5, "matmul + compare": 5e-5, "another": 1e-5}
    row = {"row": "ranking, tf32", "target": "ranking", "precision": "tf32", "copy_share": 0.75, "product_share": 0.5}
    row["seconds"] = {name: dict.fromkeys(("median", "q1", "q3"), value) for name, value in seconds.items()}
    row["ratios"] = {name: {"median": value / 2e-5, "q1": 0.1, "q3": 9.0} for name, value in seconds.items()}
    del row["ratios"][OURS]
    row["mib"] = {OURS: 10.0, "matmul + compare": 50.0, "another": None}
    row["goals"] = [
        {"of": "ratio", "limit": 2, "value": 2.5, "met": True},
        {"of": "memory", "limit": 0.1, "value": 0.2, "met": False},
    ]
    machine = {"device": "some GPU", "torch": "2.11", "cuda": "13.0", "tiny": False}
    rates = {"copy": 4e12, "fp32": 5e13, "tf32": 4e14, "bf16": 8e14}
    return {**machine, "ceilings": rates, "rows": [row], "left_out": ["this: no peer"], "failed": ["that: broken"]}


def test_the_table_can_be_read_alone() -> None:
    lines = table.render([sample()])
    assert (
        "| ranking, tf32 | 20 us | matmul + compare | 50 us | 2.50 [0.10, 9.00] | 10.0 / 50.0 "
        "| 75% of copy, 50% of tf32 products | >= 2x; memory <= 0.1 of theirs | yes; no |"
    ) in lines
    assert "| ranking, tf32 | 20 us | another | 10 us | 0.50 [0.10, 9.00] |  |  |  |  |" in lines
    assert sum("not measured yet" in line for line in lines) == len(TARGETS) - 1
    assert lines[-3:] == [
        "some GPU, torch 2.11, CUDA 13.0; measured: copy 4000 GB/s, products fp32 50.0, tf32 400.0, bf16 800.0 TFLOP/s",
        "- left out: this: no peer",
        "- failed: that: broken",
    ]


def test_the_performance_page_has_the_table_of_the_results() -> None:
    found = sorted((CHECKOUT / "benchmarks" / "results" / "gpu").glob("*.json"))
    _, _, rest = (CHECKOUT / "docs" / "performance.md").read_text().partition(table.BEGIN + "\n")
    expected = table.render([json.loads(path.read_text()) for path in found])
    assert rest.partition("\n" + table.END)[0].splitlines() == expected


def test_when_a_run_reached_its_metric(tmp_path: Path) -> None:
    run = tmp_path / "ngcf"
    run.mkdir()
    rows = ["epoch,loss,seconds,validation_recall@20", "1,1,100,", "2,1,100,0.1", "3,1,100,0.16", "4,1,100,0.2"]
    (run / "curves.csv").write_text("\n".join(rows))
    (tmp_path / "ngcf.pieces").write_text("200\n300\n")
    row = reached.reached(run, "ngcf-run", "recall@20", 0.1557)
    assert row["goals"] == [{"of": "seconds", "limit": 600, "value": 300.0, "met": True}]
    assert "(ngcf: after 300 s of training, epoch 3; 500 s in all pieces so far)" in row["row"]
    assert any("109.68" in line for line in table.render([{"rows": [row], "device": "a", "torch": "b", "cuda": "c"}]))
    missed = reached.reached(run, "ngcf-run", "recall@20", 0.5)
    assert missed["goals"][0]["met"] is False and missed["ratios"] == {} and "0.2000 at best" in missed["row"]


def test_the_sanitizer_has_a_case_of_every_family() -> None:
    import test_cuda

    families = {path.stem for path in (CHECKOUT / "csrc" / "cuda").glob("*.cu")}
    assert families == set(test_cuda.EXACT) | set(test_cuda.CLOSE)


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not_emulated("dropout")), reason=why_not_emulated("dropout") or "-")
def test_the_sanitizer_s_cases_under_emulation() -> None:
    import test_cuda

    for family in (*test_cuda.EXACT, *test_cuda.CLOSE):
        test_cuda.assert_family("cpu", "emulated", family)


def test_the_official_code_gets_the_same_log(folder: Folder) -> None:
    pytest.importorskip("pandas")
    from peers.official import frame_of

    store = folder.sessions("rsc15_100k")
    frame = frame_of(store)
    assert frame.columns.tolist() == ["SessionId", "ItemId", "Time"] and frame["Time"].is_monotonic_increasing
    assert frame.groupby("SessionId").size().tolist() == np.diff(store.offsets).tolist()
    assert frame["ItemId"].tolist() == store.items.tolist()


def test_a_folder_is_made_of_logs_and_checkouts(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    from gpu.prepare_folder import prepare_data, prepare_peers

    for part, item in (("train", 7), ("test", 7)):
        log = f"SessionId\tItemId\tTime\n1\t{item}\t1\n1\t8\t2\n1\t7\t3\n"
        for name in ("rsc15_100k", "gowalla"):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "rsc15_100k" / f"{part}.tsv.gz").write_bytes(gzip.compress(log.encode()))
        (tmp_path / "data" / "gowalla" / f"{part}.txt.gz").write_bytes(gzip.compress(b"0 1 2\n1 2\n"))
    checkout = tmp_path / "official"
    checkout.mkdir()
    for name in ("gru4rec_pytorch.py", "LICENSE", "picture.png"):
        (checkout / name).write_text("x")
    out = tmp_path / "folder"
    said = [*prepare_data(tmp_path / "data", out), *prepare_peers({"official": checkout}, out)]
    assert sum("left out" in line for line in said) == 3  # diginetica, ngcf, lightgcn
    made = Folder(out)
    assert made.sessions("rsc15_100k").n_events == 3 and made.graph("gowalla").n_edges == 3
    assert sorted(path.name for path in made.peer("official").iterdir()) == ["LICENSE", "gru4rec_pytorch.py"]
    with pytest.raises(Missing, match="no peers/ngcf in FOLDER"):
        made.peer("ngcf")
    with pytest.raises(FileNotFoundError, match=r"there is no NGCF/NGCF\.py"):
        list(prepare_peers({"ngcf": checkout}, out))
