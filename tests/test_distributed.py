"""Training by several processes: as by one process, replicas equal to the bit, and what happens when one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markov import markov_store
from ranks_program import CONFIGURATIONS, GRAPH_CONFIGURATIONS
from run_cli import cli, write_logs

from gru4rec_fast import NGCF, GRU4Rec, SessionParallelLoader, _backend
from gru4rec_fast.distributed import Ranks

pytestmark = [
    pytest.mark.usefixtures("native_library"),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
]
PROGRAM = Path(__file__).parent / "ranks_program.py"


def torchrun(n: int, *arguments: str | Path, folder: Path | None = None) -> subprocess.Popen[str]:
    """Start a program in n processes; stdout and stderr are pipes."""
    paths = [entry for entry in sys.path if entry]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def results(request: pytest.FixtureRequest) -> Any:
    """Return what the program printed, for 2 and 4 processes."""
    if not _backend.load():
        pytest.skip("no native library")
    process = torchrun(request.param, PROGRAM)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("impl", ["fused", "autograd", "dense", "reference", "graphs"])
def test_ranks_train_as_one_process_does(results: Any, impl: str) -> None:
    for name, result in results[impl].items():
        # bf16 rounds the factors of products. A sum of gradients in another order changes a few of these roundings.
        tolerance = {"float64": 1e-12, "LightGCN, float64": 1e-12, "bf16": 2e-2}.get(name, 1e-5)
        assert result["updates"] > 15, name
        assert result["loss"] < tolerance and result["weights"] < tolerance, (name, result)
        assert result["identical"], name
        if name.startswith("LightGCN") and name != "LightGCN, reference":
            assert result["weights"] == 0, "a row of a native product has the same bits on any rank"
    assert results[impl].keys() <= {*CONFIGURATIONS, *GRAPH_CONFIGURATIONS}


@pytest.mark.parametrize("impl", ["fused", "autograd", "graphs"])
def test_an_update_exchanges_the_bytes_of_the_formula(results: Any, impl: str) -> None:
    measured, expected = results[f"bytes, {impl}"]
    assert measured == expected


def test_estimators(results: Any) -> None:
    r = results["estimators"]
    together, alone = r["validation"]
    assert len(together) == 2
    for record, expected in zip(together, alone, strict=True):
        assert record == pytest.approx(expected, abs=1e-6)
    compared = [name for name in r if name.startswith(("evaluate", "values of"))]
    assert len(compared) == 13
    for name in compared:
        assert r[name][0] == r[name][1], name
    assert r["partial_fit"] < 1e-5
    assert r["seed=None"] == r["graph, seed=None"] == 1, "the ranks have drawn different seeds"
    assert r["stop"] == {"on_fit_start": [1, 0], "on_step_end": [1, 0], "on_checkpoint": [1, 0]}
    assert r["other data"].startswith("sessions is 90 on rank 0, and 50 on rank 1: give all ranks the same parameters")
    assert r["other parameters"].startswith("learning_rate is 0.1 on rank 0, and 0.2 on rank 1")
    assert r["few lanes"].startswith("1 lanes are too few for")
    assert r["no negatives"].startswith("independent lanes need n_sample > 0")
    for name, difference in {
        "validation on one rank": "has validation data is True on rank 0, and False on rank 1",
        "other folder": "out is 'folder-0' on rank 0, and 'folder-1' on rank 1",
        "other ids": "vocabulary.ids is",
        "other edges": "graph.offsets is",
        "other step": "trained by the fused step is False on rank 0, and True on rank 1",
        "other weights": "weights is",
        "other cutoffs": "cutoffs is (5, 20) on rank 0, and (20,) on rank 1",
        "other cutoffs of a graph": "cutoffs is (5, 20) on rank 0, and (20,) on rank 1",
        "runner with other learning rate": "lr of the optimizer is [0.1] on rank 0, and [0.05] on rank 1",
        "runner with other layers": "gru.layers.0.weight_ih is 'torch.float32 [24, 8]' on rank 0, and",
        "runner with other accumulators": "state of the optimizer is",
        "other checkpoint": "position of the checkpoint is",
        "runner with other loss": "logq is 0.5 on rank 0, and 0.0 on rank 1",
    }.items():
        assert r[name].startswith(difference), name
    assert r["graph of a folder"] and r["edges are unchanged"]
    assert r["other graph runner"].startswith("reg_weight is 0.1 on rank 0, and 0.2 on rank 1")


def test_the_lanes_of_a_loader_make_up_the_whole_blocks() -> None:
    store, options = markov_store(), {"steps": 3, "shuffle": True, "seed": 4}
    whole = SessionParallelLoader(store, 7, **options)
    parts = [SessionParallelLoader(store, 7, **options, rank=rank, world_size=3) for rank in range(3)]
    assert [part.n_lanes for part in parts] == [2, 2, 3]
    assert {len(part) for part in parts} == {len(whole)}
    for block, *own in zip(whole, *parts, strict=True):
        for name in ("inputs", "targets", "reset"):
            assert torch.equal(torch.cat([getattr(part, name) for part in own], 1), getattr(block, name))
        assert [sum(live) for live in zip(*(part.n_live for part in own), strict=True)] == block.n_live


def test_a_loader_resumes_with_another_number_of_processes() -> None:
    store = markov_store()
    first = SessionParallelLoader(store, 6, steps=2, rank=0, world_size=2)
    blocks = iter(first)
    for _ in range(5):
        next(blocks)
    rest = SessionParallelLoader(store, 6, steps=2)
    rest.load_state_dict(first.state_dict())
    assert torch.equal(next(iter(rest)).inputs[:, :3], next(blocks).inputs)


@pytest.mark.parametrize("options, message", [
    ({"rank": 2, "world_size": 2}, "rank=2, world_size=2: must be 0 <= rank < world_size"),
    ({"world_size": 9}, "8 lanes are too few for world_size=9: increase batch_size"),
    ({"world_size": 2, "shuffle": True}, "shuffle=True with world_size > 1 needs a seed"),
])  # fmt: skip
def test_loader_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SessionParallelLoader(markov_store(), 8, **options)


def test_ranks_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="there is one process only: start it by torchrun"):
        Ranks()


@pytest.mark.parametrize("n", [2, 3])
def test_prepare_by_ranks(tmp_path: Path, n: int) -> None:
    write_logs(tmp_path)
    header, *rows = (tmp_path / "train.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "log").mkdir()
    for part in range(7):
        (tmp_path / "log" / f"{part}.tsv").write_text("".join([header, *rows[part::7]]))
    options = ["--split", "fraction=0.2"]
    expected = cli("prepare", tmp_path / "log", tmp_path / "data", *options)
    one = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.*")}
    process = torchrun(n, "-m", "gru4rec_fast", "prepare", tmp_path / "log", tmp_path / "data", *options)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out == expected.stdout
    assert {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.*")} == one


def test_an_error_in_prepare_is_printed_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    for part, time_ in enumerate(("1", "2", "foo")):
        (log / f"{part}.tsv").write_text(f"SessionId\tItemId\tTime\n1\t2\t{time_}\n")
    process = torchrun(2, "-m", "gru4rec_fast", "prepare", log, tmp_path / "data")
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {log / '2.tsv'}: column 'Time', row 1 (the first after the header is 1)"), line
    assert list(tmp_path.iterdir()) == [log]


def test_commands_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in (["recommend", "model", "1"], ["prepare", "log.tsv", "data", "--interactions"]):
        assert "runs in one process: start it without torchrun" in cli(*command).stderr


TRAIN = [
    "-m",
    "gru4rec_fast",
    "train",
    "train.tsv",
    "--test",
    "test.tsv",
    "-ps",
    "layers=16,batch_size=8",
    "--seed",
    "1",
]


def run_training(n: int, folder: Path, *options: str) -> str:
    """Run a training by n processes to its end; return its output."""
    process = torchrun(n, *TRAIN, *options, folder=folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def weights(run_folder: Path, kind: type[GRU4Rec] | type[NGCF] = GRU4Rec) -> torch.Tensor:
    network = kind.load(run_folder / "model.safetensors").network
    assert network is not None
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize(
    "rank, every", [(0, 1), (1, 40)], ids=["rank 0 while checkpoints are written", "rank 1 between checkpoints"]
)
def test_kill_of_one_rank_and_resume(tmp_path: Path, rank: int, every: int) -> None:
    write_logs(tmp_path)
    options = ["--n-epochs", "3", "--checkpoint-every", str(every)]
    out = run_training(2, tmp_path, *options, "--out", "whole")
    killed = torchrun(2, *TRAIN, *options, "--out", "killed", folder=tmp_path)
    last = tmp_path / "killed" / "last.safetensors"
    while not last.exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    started = time.monotonic()
    os.kill(rank_pids(killed.pid)[rank], signal.SIGKILL)
    _, err = killed.communicate(timeout=60)
    assert killed.returncode != 0 and time.monotonic() - started < 30
    assert f"rank      : {rank}" in err and "SIGKILL" in err
    assert run_training(2, tmp_path, *options, "--out", "killed", "--resume") == out
    assert torch.equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


@pytest.mark.slow
def test_resume_with_another_number_of_ranks(tmp_path: Path) -> None:
    write_logs(tmp_path)
    run_training(2, tmp_path, "--n-epochs", "3", "--out", "whole")
    for n in (1, 3):
        run_training(2, tmp_path, "--n-epochs", "1", "--checkpoint-every", "30", "--out", f"by{n}")
        run_training(n, tmp_path, "--n-epochs", "3", "--out", f"by{n}", "--resume")
        torch.testing.assert_close(weights(tmp_path / f"by{n}"), weights(tmp_path / "whole"), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_graph_model_resumes_with_another_number_of_ranks(tmp_path: Path) -> None:
    items = np.random.default_rng(0).permuted(np.tile(np.arange(40), (60, 1)), axis=1)
    for name, part in (("train", items[:, :8]), ("test", items[:, 8:11])):
        lines = [" ".join(map(str, [user, *row])) for user, row in enumerate(part)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    arguments = [*TRAIN[:3], "train.txt", "--model", "ngcf", "-ps", "embedding_dim=8,layer_sizes=8", "--seed", "1"]
    options = ["--test", "test.txt", "--n-epochs", "3"]

    def run(n: int, *more: str) -> str:
        process = torchrun(n, *arguments, *more, folder=tmp_path)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return out

    reports = {n: run(n, *options, "--out", f"whole{n}") for n in (1, 2)}
    assert reports[1] == reports[2]
    for n in (1, 2, 3):
        run(2, "--n-epochs", "1", "--out", f"by{n}")
        assert run(n, *options, "--out", f"by{n}", "--resume") == reports[1]
        resumed, whole = weights(tmp_path / f"by{n}", NGCF), weights(tmp_path / "whole2", NGCF)
        assert torch.equal(resumed, whole) if n == 2 else torch.allclose(resumed, whole, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_interrupt_stops_all_ranks_after_the_same_update(tmp_path: Path) -> None:
    write_logs(tmp_path)
    options = ["--n-epochs", "200", "--checkpoint-every", "20", "--out", "run"]
    process = torchrun(2, *TRAIN, *options, folder=tmp_path)
    while not (tmp_path / "run" / "last.safetensors").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(rank_pids(process.pid)[1], signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert err.count("interrupted: training interrupted in epoch") == 2, err
    places = {line.split(";")[0] for line in err.splitlines() if "training interrupted in epoch" in line}
    assert len(places) == 1, places


def rank_pids(torchrun_pid: int) -> list[int]:
    """Return the process ids of the ranks that a torchrun has started, by rank."""
    pids = {}
    for entry in Path("/proc").iterdir():
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            if parent == str(torchrun_pid):
                variables = (entry / "environ").read_bytes().split(b"\0")
                pids |= {int(v.removeprefix(b"RANK=")): int(entry.name) for v in variables if v.startswith(b"RANK=")}
        except (OSError, IndexError):  # not a process, or it has ended
            continue
    return [pids[rank] for rank in sorted(pids)]
