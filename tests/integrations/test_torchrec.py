"""integrations.torchrec, by two processes with the real torchrec: losses of a whole table, half of the memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchrec", reason="torchrec is not installed: see docs/integrations/torchrec.md")

from gru4rec_fast.integrations.torchrec import ShardedTable

ROOT = Path(__file__).parents[2]


def run(*program: Path) -> str:
    """Run a program in two processes; return its output."""
    paths = [entry for entry in sys.path if entry]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *map(str, program),
    ]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("checkpoint")
    return json.loads(run(ROOT / "tests" / "torchrec_program.py", folder).splitlines()[-1])


def test_two_processes_train_as_one_with_the_whole_table(results: Any) -> None:
    trainings = results["trainings"]
    assert set(trainings) == {"SGD", "Adagrad", "row-wise Adagrad", "SparseAdagrad, eps near 0"}
    for name, result in trainings.items():
        assert result["updates"] >= 50, name
        assert result["loss"] < 1e-5 and result["table"] < 1e-3, (name, result)
        first, last = result["share"]
        assert 0.3 < first < 0.7 and last == 1, (name, result)  # at the end, only rank 0 has a session left


def test_each_process_has_half_of_the_table_and_of_the_state(results: Any) -> None:
    for name, result in results["trainings"].items():
        row = result["replicated"] // 501
        state = {"SGD": 0, "row-wise Adagrad": 4}.get(name, row)
        assert result["bytes"] == [[251 * row, 251 * state], [250 * row, 250 * state]], name


def test_a_table_and_its_optimizer_are_saved(results: Any) -> None:
    assert results["restored"] is True


def test_page(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "integrations" / "torchrec.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "sharded.py").write_text(example)
    losses = [float(loss) for loss in re.findall(r"step \d+: loss ([\d.]+)", run(tmp_path / "sharded.py"))]
    assert len(losses) >= 5 and losses[-1] < 0.5 * losses[0]


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_lookups(one_process: None) -> None:
    table = ShardedTable(10, 5)
    rows, index = table(torch.tensor([[7, -1], [2, 7]]))
    assert table.first == 0 and table.weight.shape == (10, 8)
    assert torch.equal(rows, table.weight[[2, 7], :5]) and index.tolist() == [[1, -1], [0, 1]]
    assert table(torch.tensor([-1]))[0].shape == (0, 5)
    for wrong in (-2, 10):
        with pytest.raises(ValueError, match=rf"items .*{wrong}.*: the table has items 0 to 9"):
            table(torch.tensor([3, wrong]))


def test_an_optimizer_that_does_not_run_on_the_cpu(one_process: None) -> None:
    with pytest.raises(ValueError, match="optimizer='adam': choose from exact_adagrad"):
        ShardedTable(10, 4, optimizer="adam")
