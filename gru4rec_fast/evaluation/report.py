"""The result of an evaluation, as a table and as JSON."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict, dataclass, field

from gru4rec_fast.data.array_folder import dropped_counts


@dataclass(frozen=True)
class Report:
    """The metrics of a model and of baselines.

    Attributes:
        metrics: metrics of the model, {"recall@20": ..., "ndcg@20": ..., ...}.
        n_targets: number of test items whose rank was measured: next items in sessions, or test items of users.
        n_items: size of the catalogue.
        n_sessions: number of sessions with targets; None for a graph model.
        n_users: number of users with targets; None for a session model.
        ties: how items with the same score were ranked, see `evaluate_sessions`; None for a graph model, which ranks
            them by index.
        dropped: number of test events, sessions or interactions that were not evaluated, {reason: count}.
        baselines: {"popularity": metrics, "random": metrics}, or {}.
    """

    metrics: dict[str, float]
    n_targets: int
    n_items: int
    n_sessions: int | None = None
    n_users: int | None = None
    ties: str | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)

    def summary(self) -> str:
        """Return one line about what was evaluated and what was dropped."""
        if self.n_users is None:
            owners, candidates = f"{self.n_sessions:,} sessions", f"{self.n_items:,} items"
        else:
            owners = f"{self.n_users:,} users"
            candidates = f"those of {self.n_items:,} items that the user has not seen"
        line = f"{self.n_targets:,} targets of {owners}, each ranked among {candidates}"
        line += f", {self.ties} ties" if self.ties else ""
        dropped = dropped_counts(self.dropped)
        return f"{line}; dropped: {', '.join(dropped)}" if dropped else line

    def table(self, *, terminal: bool | None = None) -> str:
        """Return a table with a row per metric and a column per model, and the summary.

        With `terminal`, the table has lines and colors (by the library rich), else it is plain text. None means True if
        stdout is a terminal.
        """
        columns = {"model": self.metrics, **self.baselines}
        cells = [[name, *(f"{values[name]:.4f}" for values in columns.values())] for name in self.metrics]
        format_table = _rich_table if (sys.stdout.isatty() if terminal is None else terminal) else _plain_table
        return format_table(["metric", *columns], cells, self.summary())

    def to_json(self) -> str:
        """Return all fields as a JSON object."""
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
    for column, name in enumerate(header):
        table.add_column(name, justify="right" if column else "left", style="bold" if column == 1 else None)
    for row in cells:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, force_terminal=True).print(table)
    return text.getvalue().rstrip("\n")
