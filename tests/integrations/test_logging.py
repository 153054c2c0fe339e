"""docs/integrations/logging.md: its callbacks write to real loggers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "integrations" / "logging.md").read_text()
TENSORBOARD, WANDB = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the TensorBoard example in a new folder and return its names."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (pip install tensorboard)")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(TENSORBOARD, "docs/integrations/logging.md", "exec"), names)
    return names


def test_examples_are_short() -> None:
    assert len(TENSORBOARD.splitlines()) < 40 and len(WANDB.splitlines()) < 40


def test_tensorboard(names: dict[str, Any], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    model = names["model"]
    end_of_epoch = list(accumulate(epoch["mini_batches"] for epoch in model.history))
    recall = events.Scalars("validation/recall@20")
    assert [scalar.step for scalar in recall] == end_of_epoch
    assert [scalar.value for scalar in recall] == pytest.approx(
        [epoch["validation"]["recall@20"] for epoch in model.history], rel=1e-6
    )
    losses = events.Scalars("train/loss")
    assert losses[-1].step == end_of_epoch[-1] and len(losses) >= 4
    assert all(scalar.value > 0 for scalar in losses)
    rates = events.Scalars("train/learning_rate")
    assert [scalar.value for scalar in rates] == pytest.approx([0.05] * len(losses), rel=1e-6)


def test_wandb_offline(tmp_path: Path) -> None:
    for library in ("tensorboard", "wandb"):
        pytest.importorskip(library, reason=f"{library} is not installed (pip install {library})")
    # In a process of its own, because wandb completes its file when the process ends.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "WANDB_SILENT": "true"}
    (tmp_path / "page.py").write_text(TENSORBOARD + WANDB)
    subprocess.run([sys.executable, "page.py"], cwd=tmp_path, env=environment, check=True, timeout=300)
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = log.read_bytes()
    for name in (b"epoch", b"loss", b"recall@20", b"mrr@20"):
        assert name in content
