"""The result of an evaluation, as a table and as JSON."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gru4rec_fast.data.array_folder import dropped_counts

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True)
class Report:
    """The metrics of a model and of baselines.

    Attributes:
        metrics: metrics of the model, {"recall@20": ..., "ndcg@20": ..., ...}.
        n_targets: number of test items whose rank was measured: items in sessions, or test items of users; number of
            ratings of a `RatingScorer`.
        n_items: size of the catalogue.
        n_sessions: number of sessions with targets; None for a graph model.
        n_users: number of users with targets; None for a session model.
        ties: how items with the same score were ranked, see `evaluate_sessions`; None: by index.
        dropped: number of test events, sessions or interactions that were not evaluated, {reason: count}.
        baselines: {"popularity": metrics, "random": metrics}, or {}.
        targets: "next", "last" or "remaining", see `evaluate_sessions`; None for a graph model.
        sampled: the sampled negatives that each ranking is limited to, such as "100 negatives"; None: all items.
        beyond_accuracy: {"coverage@20": ..., ...}, see `beyond_accuracy`, or {}.
        by: what the groups are formed by, "popularity", "length", "position" or, of ratings, "unknown ids"; or None.
        groups: metrics of each group that has targets, {"10-99": {"recall@20": ..., ..., "n": number of rankings}}.
        per_session: values of each session or user, see `evaluate_sessions`; not in `to_dict` and `to_json`.
    """

    metrics: dict[str, float]
    n_targets: int
    n_items: int
    n_sessions: int | None = None
    n_users: int | None = None
    ties: str | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    targets: str | None = None
    sampled: str | None = None
    beyond_accuracy: dict[str, float] = field(default_factory=dict)
    by: str | None = None
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    per_session: polars.DataFrame | None = field(default=None, compare=False, repr=False)

    def summary(self) -> str:
        """Return one line about what was evaluated and what was dropped."""
        if "rmse" in self.metrics:
            return f"{self.n_targets:,} ratings of {self.n_users:,} users"
        if self.n_users is None:
            owners, candidates = f"{self.n_sessions:,} sessions", f"{self.n_items:,} items"
        else:
            owners = f"{self.n_users:,} users"
            candidates = f"those of {self.n_items:,} items that the user has not seen"
        if self.sampled is not None:
            candidates = f"a few random items (sampled: {self.sampled})"
        targets = "targets" if self.targets in (None, "next") else f"targets ({self.targets})"
        line = f"{self.n_targets:,} {targets} of {owners}, each ranked among {candidates}"
        line += f", {self.ties} ties" if self.ties else ""
        dropped = dropped_counts(self.dropped)
        return f"{line}; dropped: {', '.join(dropped)}" if dropped else line

    def table(self, *, terminal: bool | None = None) -> str:
        """Return a table with a row per metric and a column per model, and the summary; then a table of the groups.

        With `terminal`, the table has lines and colors (by the library rich), else it is plain text. None means True if
        stdout is a terminal.
        """
        label = f" (sampled: {self.sampled})" if self.sampled else ""
        columns = {f"model{label}": self.metrics | self.beyond_accuracy, **self.baselines}
        tables = [format_table(*_cells("metric", columns), self.summary(), terminal=terminal)]
        if self.groups:
            caption = f"metrics by {self.by}{label}; n: number of {'ratings' if 'rmse' in self.metrics else 'rankings'}"
            tables.append(format_table(*_cells(f"{self.by}", self.groups), caption, terminal=terminal))
        return "\n\n".join(tables)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields but `per_session` as JSON values."""
        fields = asdict(replace(self, per_session=None))
        del fields["per_session"]
        return fields

    def to_json(self) -> str:
        """Return all fields but `per_session` as a JSON object."""
        return json.dumps(self.to_dict(), indent=2)


def _cells(corner: str, columns: dict[str, dict[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a table with these columns; a value that a column lacks is left blank."""
    names = next(iter(columns.values()))

    def text(value: float | None) -> str:
        return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"

    return [corner, *columns], [[name, *(text(column.get(name)) for column in columns.values())] for name in names]


def format_table(header: list[str], cells: list[list[str]], summary: str, *, terminal: bool | None = None) -> str:
    """Return a table with lines and colors on a terminal, else as plain text; see `Report.table`."""
    is_terminal = sys.stdout.isatty() if terminal is None else terminal
    return (_rich_table if is_terminal else _plain_table)(header, cells, summary)


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
