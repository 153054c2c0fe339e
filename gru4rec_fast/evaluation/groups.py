"""Metrics by group: by the popularity of the target, the length of the session or the position in the session."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from gru4rec_fast.distributed import Ranks
from gru4rec_fast.evaluation.lists import find_hits
from gru4rec_fast.evaluation.metrics import Hits, Ties

By = Literal["popularity", "length", "position"]
_POWERS_OF_10, _POWERS_OF_2 = 10 ** np.arange(19), 2 ** np.arange(63)


def check_by(by: str | None, allowed: Sequence[str] = get_args(By)) -> None:
    """Raise ValueError for an unknown way to form groups."""
    if by is not None and by not in allowed:
        raise ValueError(f"by={by!r}: choose one of {', '.join(allowed)}, or None for no groups")


def groups_of(values: ArrayLike, by: By) -> np.ndarray:
    """Return the number of the group of each value, int64: of popularities by powers of 10, of others by powers of 2.

    The groups are 0, 1-9, 10-99, 100-999 ... for popularities, 0-1, 2, 3-4, 5-8 ... for lengths, and 1, 2, 3-4, 5-8 ...
    for positions.
    """
    if by == "popularity":
        return np.searchsorted(_POWERS_OF_10, values, side="right")
    return np.searchsorted(_POWERS_OF_2, values, side="left")


def group_label(group: int, by: By) -> str:
    """Return the values of a group as text, such as "10-99"."""
    low, high = (10**group // 10, 10**group - 1) if by == "popularity" else (2**group // 2 + 1, 2**group)
    low = 0 if group == 0 and by == "length" else low
    return f"{low}-{high}" if low < high else f"{high}"


class MetricSums:
    """Adds up the metrics of rankings by group.

    The sums of each batch are stored, and are added up exactly at the end. So the result has the same bits for every
    number of processes.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._parts: dict[int, list[list[float]]] = {}

    def add(self, values: Mapping[str, np.ndarray], groups: np.ndarray | int = 0) -> None:
        """Add metrics [R] of some rankings; `groups` are the numbers of their groups, [R], or of the only one."""
        self._names = [*values, "n"]
        table = np.stack(np.broadcast_arrays(*values.values(), 1.0))
        groups = np.broadcast_to(groups, table.shape[1:])
        for group in np.unique(groups).tolist():
            self._parts.setdefault(group, []).append(table[:, groups == group].sum(axis=1).tolist())

    def means(self, ranks: Ranks | None = None) -> dict[int, dict[str, float]]:
        """Return the mean metrics of each group and, as "n", the number of its rankings, over all `ranks`."""
        gathered = [(self._names, self._parts)] if ranks is None else ranks.gather((self._names, self._parts))
        names = max((names for names, _ in gathered), key=len)
        means = {}
        for group in sorted({group for _, parts in gathered for group in parts}):
            rows = [row for _, parts in gathered for row in parts.get(group, ())]
            *sums, n = (math.fsum(column) for column in zip(*rows, strict=True))
            means[group] = dict(zip(names, [*(value / n for value in sums), int(n)], strict=True))
        return means

    def table(self, by: By, ranks: Ranks | None = None) -> dict[str, dict[str, float]]:
        """Return `means` by the labels of the groups."""
        return {group_label(group, by): means for group, means in self.means(ranks).items()}


def hits_by_popularity(
    scores: np.ndarray,
    items: np.ndarray,
    relevant: Sequence[np.ndarray],
    support: np.ndarray,
    n_items: int,
    ties: Ties | None,
) -> Iterator[tuple[int, Hits]]:
    """Yield each group of popularity with the hits of the rankings that have relevant items in it.

    Only the relevant items of the group count as relevant. The other arguments: see `find_hits`.
    """
    groups = [groups_of(support[row], "popularity") for row in relevant]
    for group in np.unique(np.concatenate(groups)).tolist():
        chosen = [row[own == group] for row, own in zip(relevant, groups, strict=True)]
        rows = np.flatnonzero([len(row) for row in chosen])
        yield group, find_hits(scores[rows], items[rows], [chosen[row] for row in rows], n_items, ties)
