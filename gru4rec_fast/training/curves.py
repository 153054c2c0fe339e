"""Writes loss and validation curves: a CSV file, and a PNG picture if matplotlib is installed."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru4rec_fast._atomic_writes import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger("gru4rec_fast")

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e3e7ec"  # colors of text, of axis labels and of grid lines
CURVE_COLORS = ("#0b6e99", "#d1603d", "#4c8b4a", "#8a5fa8", "#b08900", "#3a6ea5")

_missing_matplotlib_logged = False


def write_csv(history: Sequence[dict[str, Any]], path: Path) -> Path:
    """Write one row per epoch: epoch, loss, seconds, mini_batches, events, learning_rate, then validation metrics."""
    metrics = list(dict.fromkeys(name for record in history for name in record.get("validation", {})))
    columns = list(dict.fromkeys(key for record in history for key in record if key != "validation"))
    with replace_file(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *(f"validation_{name}" for name in metrics)])
        for record in history:
            validation = record.get("validation", {})
            values = [record.get(key, "") for key in columns]
            writer.writerow([*values, *(validation.get(name, "") for name in metrics)])
    return path


def _style_axes(axes: Axes, ylabel: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch", color=MUTED)
    axes.set_ylabel(ylabel, color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.tick_params(colors=MUTED, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.06, y=0.12)
    for spine in ("top", "right", "left"):
        axes.spines[spine].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _draw_curve(axes: Axes, epochs: list[int], values: list[float], color: str, label: str) -> None:
    """Draw values over epochs, and write the last value above its point."""
    axes.plot(epochs, values, color=color, linewidth=2, marker="o", markersize=4.5, label=label)
    axes.annotate(
        f"{values[-1]:.4g}",
        (epochs[-1], values[-1]),
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
        color=color,
        fontweight="bold",
    )


def write_png(history: Sequence[dict[str, Any]], path: Path, title: str = "") -> Path | None:
    """Draw training loss and validation metrics to a PNG file. Without matplotlib, return None; log a warning once."""
    global _missing_matplotlib_logged
    if find_spec("matplotlib") is None:
        if not _missing_matplotlib_logged:
            logger.warning("curves are written as CSV only: matplotlib is not installed (pip install matplotlib)")
        _missing_matplotlib_logged = True
        return None
    import matplotlib
    from matplotlib.figure import Figure

    validated = [record for record in history if record.get("validation")]
    metrics = list(dict.fromkeys(name for record in validated for name in record["validation"]))
    panels = 2 if metrics else 1
    with matplotlib.rc_context({"font.size": 10, "text.color": INK, "axes.labelcolor": INK}):
        figure = Figure(figsize=(5.2 * panels, 3.6), dpi=160, layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        _style_axes(axes[0], "training loss")
        if history:
            losses = [record["loss"] for record in history]
            _draw_curve(axes[0], [record["epoch"] for record in history], losses, CURVE_COLORS[0], "training loss")
        if metrics:
            _style_axes(axes[1], "validation")
            for index, name in enumerate(metrics):
                points = [(record["epoch"], record["validation"][name]) for record in validated]
                epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
                _draw_curve(axes[1], epochs, values, CURVE_COLORS[(index + 1) % len(CURVE_COLORS)], name)
            axes[1].legend(
                frameon=False, labelcolor=INK, ncols=min(4, len(metrics)), loc="lower left", bbox_to_anchor=(0, 1)
            )
        if title:
            figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold")
        with replace_file(path) as temporary:
            figure.savefig(temporary)
    return path


def write_curves(history: Sequence[dict[str, Any]], folder: Path, title: str = "") -> list[Path]:
    """Write curves.csv and curves.png into `folder`; return the paths of the written files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [write_csv(history, folder / "curves.csv"), write_png(history, folder / "curves.png", title)]
    return [path for path in written if path is not None]
