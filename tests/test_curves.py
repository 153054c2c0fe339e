"""Learning curves: the CSV file, the picture that matplotlib draws, and the warning if matplotlib is missing."""

import csv
import logging
import math
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from gru4rec_fast.training import curves, write_curves


def make_history(n_epochs: int, validation: bool = True) -> list[dict[str, Any]]:
    """Return one record per epoch, as a trainer writes them, with or without validation metrics."""
    records: list[dict[str, Any]] = []
    for epoch in range(1, n_epochs + 1):
        record = {"epoch": epoch, "loss": 5 + math.exp(-epoch), "seconds": 1.5, "mini_batches": 9, "events": 70}
        if validation:
            record["validation"] = {"recall@20": 0.5 - 0.1 / epoch, "mrr@20": 0.2}
        records.append(record)
    return records


def test_the_csv_has_the_history(tmp_path: Path):
    write_curves(make_history(3), tmp_path / "run")
    with open(tmp_path / "run" / "curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "epoch", "loss", "seconds", "mini_batches", "events", "validation_recall@20", "validation_mrr@20",
    ]  # fmt: skip
    for row, record in zip(rows, make_history(3), strict=True):
        assert float(row["loss"]) == record["loss"]
        assert float(row["validation_recall@20"]) == record["validation"]["recall@20"]


def test_an_epoch_without_validation_has_empty_cells(tmp_path: Path):
    write_curves([*make_history(1, validation=False), *make_history(2)[1:]], tmp_path)
    with open(tmp_path / "curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["validation_mrr@20"] for row in rows] == ["", "0.2"]


@pytest.mark.parametrize(("epochs", "validation", "panels"), [(1, False, 1), (1, True, 2), (12, True, 2)])
def test_the_picture_has_a_colored_line_in_every_panel(tmp_path: Path, epochs: int, validation: bool, panels: int):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    written = write_curves(make_history(epochs, validation), tmp_path)
    assert written == [tmp_path / "curves.csv", tmp_path / "curves.png"]
    pixels = imread(tmp_path / "curves.png")
    panel_width = 832  # pixels
    assert pixels.shape[1] == panel_width * panels
    for panel in range(panels):
        rgb = pixels[:, panel * panel_width : (panel + 1) * panel_width, :3]
        share_of_colored_pixels = (rgb.max(2) - rgb.min(2) > 0.3).mean()
        assert share_of_colored_pixels > 0.001


def test_without_matplotlib_a_warning_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def find_nothing(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(curves, "find_spec", find_nothing)
    monkeypatch.setattr(curves, "_missing_matplotlib_logged", False)
    with caplog.at_level(logging.WARNING, "gru4rec_fast"):
        for _ in range(2):
            assert write_curves(make_history(2), tmp_path) == [tmp_path / "curves.csv"]
    assert len(caplog.records) == 1
    assert "pip install matplotlib" in caplog.text
    assert not (tmp_path / "curves.png").exists()
