"""What an evaluation found, as a table and as JSON."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Report:
    """Metrics of a model and of the baselines beside it.

    Attributes:
        metrics: the model's, {"recall@20": ..., "mrr@20": ..., ...}.
        n_targets: next-item targets that were ranked.
        n_sessions: sessions they came from.
        n_items: size of the catalogue each was ranked in.
        ties: how equal scores were ranked.
        dropped: events and sessions of the log that were not evaluated, {reason: count}.
        baselines: {"popularity": metrics, "random": metrics}, or {}.
    """

    metrics: dict[str, float]
    n_targets: int
    n_sessions: int
    n_items: int
    ties: str
    dropped: dict[str, int] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)

    def summary(self) -> str:
        """What was evaluated and what was not, in one line."""
        line = (
            f"{self.n_targets:,} targets of {self.n_sessions:,} sessions, "
            f"each ranked among {self.n_items:,} items, {self.ties} ties"
        )
        dropped = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in self.dropped.items() if count]
        return f"{line}; dropped: {', '.join(dropped)}" if dropped else line

    def table(self, *, terminal: bool | None = None) -> str:
        """One row per metric, one column per model, and the summary.

        terminal: draw with rich (boxes and colors) or as plain text; by default whichever suits sys.stdout.
        """
        columns = {"model": self.metrics, **self.baselines}
        cells = [[name, *(f"{values[name]:.4f}" for values in columns.values())] for name in self.metrics]
        draw = _rich_table if (sys.stdout.isatty() if terminal is None else terminal) else _plain_table
        return draw(["metric", *columns], cells, self.summary())

    def to_json(self) -> str:
        """All fields as a JSON object."""
        return json.dumps(asdict(self), indent=2)


def _plain_table(header: list[str], cells: list[list[str]], summary: str) -> str:
    widths = [max(len(row[column]) for row in [header, *cells]) for column in range(len(header))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in [header, *cells]
    ]
    return "\n".join([*lines, summary])


def _rich_table(header: list[str], cells: list[list[str]], summary: str) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(caption=summary)
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", style="bold" if number == 1 else None)
    for row in cells:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, force_terminal=True).print(table)
    return text.getvalue().rstrip("\n")
