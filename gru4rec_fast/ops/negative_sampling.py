"""Negative sampling: items drawn with replacement, p(item) proportional to support ** alpha, by an alias table.

Walker, "An efficient method for generating discrete random variables with general distributions", ACM TOMS 3 (1977);
table construction after Vose, IEEE TSE 17 (1991). All of it is done in integers, so that a seed means the same
negatives on every backend and for any thread count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load
from gru4rec_fast.ops.philox import STREAM_NEGATIVES, WORD_RANGE, check_counters, philox4x32

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


def build_alias_table(support: Tensor, alpha: float, *, impl: str = "auto") -> AliasTable:
    """Build the table from which negatives with p(item) proportional to support ** alpha are drawn.

    Args:
        support: integer [n_items], how often each item occurs; n_items in [1, 2**31).
        alpha: 0 for uniform, 1 for popularity, anything between or beyond. With alpha > 0 an item of support 0 is
            never drawn; with alpha 0 it is as likely as any other.
        impl: "auto", "native" or "reference"; the tables are equal bit for bit.

    Returns:
        The table, on the CPU: built there once, then moved with `.to(device)`.

    Raises:
        ValueError: an empty catalogue, a negative support, no support at all, an alpha that is negative or not finite.
    """
    if support.dim() != 1 or support.is_floating_point() or support.is_complex() or support.dtype == torch.bool:
        raise ValueError(f"support must be a one-dimensional integer tensor, not {support.dtype} {[*support.shape]}")
    if not 1 <= support.shape[0] < COLUMN_MASS:
        raise ValueError(f"support of {support.shape[0]} items: there must be at least one and fewer than 2**31")
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha={alpha}: must be a finite number, 0 (uniform) or more")
    support = support.cpu()
    if support.min() < 0:
        item = int(support.argmin())
        raise ValueError(f"support[{item}]={int(support[item])}: an item cannot occur a negative number of times")
    if alpha > 0 and not support.any():
        raise ValueError(f"support is 0 for every item: with alpha={alpha} there is nothing to draw")
    mass, log_prob = alias_masses(support, alpha)
    # No CUDA kernel builds a table, so there is none to emulate.
    impl = "auto" if impl == "emulated" else impl
    threshold, alias = implementation("build_alias_table", impl, support.device, build_alias_table_reference)(mass)
    return AliasTable(threshold, alias, log_prob, alpha)


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


def build_alias_table_reference(mass: Tensor) -> tuple[Tensor, Tensor]:
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


def negative_sampling(
    table: AliasTable, n: int, *, seed: int, step: int, steps: int = 1, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Draw items with replacement; each draw is a function of (seed, step, number of the draw) alone.

    Args:
        table: from `build_alias_table`, on the device on which to draw.
        n: draws per step, shared by the lanes of a step; may exceed the number of items.
        seed: the key, in [0, 2**63).
        step: number of the first step; step + steps must not exceed 2**32.
        steps: how many steps to draw for. One call for T steps gives what T calls for one step give.
        impl: "auto", "native" or "reference".

    Returns:
        (items int64 [steps, n], log_prob float32 [steps, n]): log_prob is the natural logarithm of each drawn item's
        probability.

    Raises:
        ValueError: an argument outside its range, or tensors of the table that do not fit each other, named.
    """
    check_counters(seed, step, steps)
    if not 0 <= n <= WORD_RANGE:
        raise ValueError(f"n={n}: must be in [0, 2**32]")
    if not 1 <= table.n_items < COLUMN_MASS:
        raise ValueError(f"table of {table.n_items} items: there must be at least one and fewer than 2**31")
    for name, dtype in (("threshold", torch.int64), ("alias", torch.int64), ("log_prob", torch.float32)):
        tensor = getattr(table, name)
        if tensor.dtype != dtype or tensor.shape != (table.n_items,) or tensor.device != table.threshold.device:
            raise ValueError(
                f"table.{name} must be {dtype} [{table.n_items}] on {table.threshold.device}, "
                f"not {tensor.dtype} {[*tensor.shape]} on {tensor.device}"
            )
    draw = implementation("negative_sampling", impl, table.threshold.device, negative_sampling_reference)
    return draw(table.threshold, table.alias, table.log_prob, n, seed, step, steps)


def negative_sampling_reference(
    threshold: Tensor, alias: Tensor, log_prob: Tensor, n: int, seed: int, step: int, steps: int
) -> tuple[Tensor, Tensor]:
    """Return the items drawn and their log-probabilities, [steps, n].

    Draw d of step t takes the Philox4x32-10 words w0, w1, w2 of counter (0, step + t, d, 0) under key `seed`. w0 and
    w1, read as a 64-bit fraction, choose the column; the upper 31 bits of w2 choose its item or its alias.
    """
    device, n_items = threshold.device, threshold.shape[0]
    zero = torch.tensor(0, device=device)
    counter = (
        zero + STREAM_NEGATIVES,
        torch.arange(step, step + steps, device=device)[:, None],
        torch.arange(n, device=device),
        zero,
    )
    w0, w1, w2, _ = philox4x32(counter, seed)
    column = (w0 * n_items + ((w1 * n_items) >> 32)) >> 32
    items = torch.where((w2 >> 1) < threshold[column], column, alias[column])
    return items, log_prob[items]


def _fake_build(mass: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mass), torch.empty_like(mass)


def _fake_draw(threshold: Tensor, alias: Tensor, log_prob: Tensor, n: int, *rest: int) -> tuple[Tensor, Tensor]:
    _seed, _step, steps = rest
    return threshold.new_empty(steps, n), log_prob.new_empty(steps, n)


@on_load
def _register(library: str) -> None:
    torch.library.register_fake(f"{library}::build_alias_table", _fake_build)
    torch.library.register_fake(f"{library}::negative_sampling", _fake_draw)
