"""Negative sampling: items drawn with replacement, p(item) proportional to support ** alpha, by an alias table.

Walker, "An efficient method for generating discrete random variables with general distributions", ACM TOMS 3 (1977);
table construction after Vose, IEEE TSE 17 (1991). All of it is done in integers, so that a seed means the same
negatives on every backend and for any thread count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gru4rec_fast.reference.philox import STREAM_NEGATIVES, philox4x32

COLUMN_MASS = 1 << 31  # what one column of the table holds: one unit per value of the 31-bit number that is drawn


@dataclass(frozen=True)
class AliasTable:
    """A distribution over items 0 .. n_items - 1, from which one item is drawn in constant time.

    threshold: int64 [n_items] in [0, 2**31]. Column c, each as likely as any other, yields item c for `threshold[c]` of
    the 2**31 values of a random number, else item alias[c].
    alias: int64 [n_items]. log_prob: float32 [n_items], natural logarithm of p, -inf where p is 0.
    alpha: the exponent that the table was built with.
    """

    threshold: Tensor
    alias: Tensor
    log_prob: Tensor
    alpha: float

    @property
    def n_items(self) -> int:
        """Number of items, those of probability 0 included."""
        return self.threshold.shape[0]

    def to(self, device: torch.device | str) -> AliasTable:
        """Return this table on another device."""
        return AliasTable(self.threshold.to(device), self.alias.to(device), self.log_prob.to(device), self.alpha)


def alias_masses(support: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return (mass int64 [n_items], log_prob float32 [n_items]) of p proportional to support ** alpha.

    The masses are p in units of 1 / (n_items * 2**31) and sum to n_items * 2**31 exactly: each is rounded down, to no
    less than 1 where p is positive, and the most probable item (the first of equals) takes the difference.

    Powers and their sum are taken over the distinct supports: few enough for torch to compute them in one thread, so
    that not a bit of the table depends on the number of threads. Supports are divided by the largest one first, so that
    no power overflows.
    """
    distinct, index, count = torch.unique(support, return_inverse=True, return_counts=True)
    relative = distinct.double() / distinct.max().clamp(min=1)
    weight = relative**alpha
    weight_sum = (weight * count).sum()
    possible = (distinct > 0) | (alpha == 0)
    total = support.shape[0] * COLUMN_MASS
    mass = ((weight / weight_sum * total).floor().long().clamp(min=1) * possible)[index]
    mass[mass.argmax()] += total - mass.sum()
    log_prob = torch.xlogy(alpha, relative) - weight_sum.log()  # xlogy: 0 * log(0) is 0
    return mass, log_prob.float()[index]


def alias_columns(mass: Tensor) -> tuple[Tensor, Tensor]:
    """Return (threshold, alias), both int64 [n_items], of int64 masses that sum to n_items * 2**31.

    Vose's construction: a column short of mass is filled up from the item that is then last among those with enough.
    """
    threshold = mass.tolist()
    alias = list(range(len(threshold)))
    small = [item for item, m in enumerate(threshold) if m < COLUMN_MASS]
    large = [item for item, m in enumerate(threshold) if m >= COLUMN_MASS]
    while small:
        column, donor = small.pop(), large[-1]
        alias[column] = donor
        threshold[donor] -= COLUMN_MASS - threshold[column]
        if threshold[donor] < COLUMN_MASS:
            small.append(large.pop())
    return torch.tensor(threshold, dtype=torch.int64), torch.tensor(alias, dtype=torch.int64)


def build_alias_table(support: Tensor, alpha: float) -> AliasTable:
    """Build the table of p(item) proportional to support ** alpha (0: uniform; 1: popularity).

    support: integer tensor [n_items] on the CPU, how often each item occurs. With alpha > 0 an item of support 0 is
    never drawn; with alpha 0 it is as likely as any other.
    """
    mass, log_prob = alias_masses(support, alpha)
    threshold, alias = alias_columns(mass)
    return AliasTable(threshold, alias, log_prob, alpha)


def negative_sampling(table: AliasTable, n: int, *, seed: int, step: int, steps: int = 1) -> tuple[Tensor, Tensor]:
    """Draw `n` items with replacement for each of `steps` steps, shared by the lanes of a step.

    Draw d of step t takes the Philox4x32-10 words w0, w1, w2 of counter (0, step + t, d, 0) under key `seed`. w0 and
    w1, read as a 64-bit fraction, choose the column; the upper 31 bits of w2 choose its item or its alias.

    Returns (items int64 [steps, n], log_prob float32 [steps, n], the log-probability of each drawn item), both on the
    table's device. n may exceed the number of items.
    """
    device = table.threshold.device
    zero = torch.tensor(0, device=device)
    counter = (
        zero + STREAM_NEGATIVES,
        torch.arange(step, step + steps, device=device)[:, None],
        torch.arange(n, device=device),
        zero,
    )
    w0, w1, w2, _ = philox4x32(counter, seed)
    column = (w0 * table.n_items + ((w1 * table.n_items) >> 32)) >> 32
    items = torch.where((w2 >> 1) < table.threshold[column], column, table.alias[column])
    return items, table.log_prob[items]
