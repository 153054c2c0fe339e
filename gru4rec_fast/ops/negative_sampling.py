"""Negative sampling: draws items with replacement, p(item) proportional to support ** alpha, from an alias table.

The support of an item is the number of its occurrences in the training log.

Walker, "An efficient method for generating discrete random variables with general distributions", ACM TOMS 3 (1977);
the table has one column for each item and is constructed by the algorithm of Vose, IEEE TSE 17 (1991). The draws are
computed in integers, so a seed gives the same negatives in every implementation and for any number of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.ops._checks import check_n_elements, check_tensor, split_step
from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load, register
from gru4rec_fast.ops.philox import STREAM_NEGATIVES, WORD_RANGE, philox4x32, step_word

COLUMN_MASS = 1 << 31  # probability mass of each column of the table: one unit per value of a 31-bit random number


@dataclass(frozen=True)
class AliasTable:
    """A distribution over items 0 .. n_items - 1, from which an item is drawn in constant time.

    A draw chooses a column c uniformly and a 31-bit random number; the item is c if the number is less than
    threshold[c], else alias[c].

    threshold: int64 [n_items], in [0, 2**31].
    alias: int64 [n_items].
    log_prob: float32 [n_items], natural logarithm of the probability of each item, -inf for probability 0.
    alpha: the exponent with which the table was built.
    """

    threshold: Tensor
    alias: Tensor
    log_prob: Tensor
    alpha: float

    @property
    def n_items(self) -> int:
        """Number of items, including items of probability 0."""
        return self.threshold.shape[0]

    def to(self, device: torch.device | str) -> AliasTable:
        """Return a copy of this table on a device."""
        return AliasTable(self.threshold.to(device), self.alias.to(device), self.log_prob.to(device), self.alpha)


def build_alias_table(support: Tensor, alpha: float, *, impl: str = "auto") -> AliasTable:
    """Return the alias table for drawing negatives with p(item) proportional to support ** alpha.

    Args:
        support: integer [n_items], the number of occurrences of each item in the training log; n_items in [1, 2**31).
        alpha: exponent, not negative: 0 draws uniformly, 1 by popularity. With alpha > 0 an item of support 0 is never
            drawn; with alpha = 0 it is as likely as any other item.
        impl: "auto", "native" or "reference"; all return the same bits.

    Returns:
        The table, on the CPU; copy it to a GPU with `.to(device)`.

    Raises:
        ValueError: the catalogue is empty, a support is negative, every support is 0, or alpha is negative or not
            finite.
    """
    if support.dim() != 1 or support.is_floating_point() or support.is_complex() or support.dtype == torch.bool:
        raise ValueError(f"support must be a one-dimensional integer tensor, not {support.dtype} {[*support.shape]}")
    if not 1 <= support.shape[0] < 2**31:
        raise ValueError(f"support of {support.shape[0]} items: there must be at least one and fewer than 2**31")
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha={alpha}: must be finite and not negative (0 draws uniformly)")
    support = support.cpu()
    if support.min() < 0:
        item = int(support.argmin())
        raise ValueError(f"support[{item}]={int(support[item])}: must not be negative")
    if alpha > 0 and not support.any():
        raise ValueError(f"support is 0 for every item: with alpha={alpha} no item can be drawn")
    mass, log_prob = alias_masses(support, alpha)
    # The CPU always builds the table. "emulated" (in tests, CUDA kernels that run on the CPU) has no kernel for it.
    impl = "auto" if impl == "emulated" else impl
    threshold, alias = implementation("build_alias_table", impl, support.device, build_alias_table_reference)(mass)
    return AliasTable(threshold, alias, log_prob, alpha)


def alias_masses(support: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return the probabilities p ~ support ** alpha as integers, mass int64 [n_items], and log_prob float32 [n_items].

    The masses are p in units of 1 / (n_items * 2**31). Each mass is rounded down, but to at least 1 where p is
    positive. The difference to the required sum n_items * 2**31 is added to the most probable item; if several items
    are equally probable, to the first of them.

    Powers and their sum are computed over the distinct supports. There are so few of them that torch uses a single
    thread, so the bits of the table do not depend on the number of threads. Supports are first divided by the largest
    support, so that no power overflows.
    """
    distinct, index, count = torch.unique(support, return_inverse=True, return_counts=True)
    relative = distinct.double() / distinct.max().clamp(min=1)
    weight = relative**alpha
    weight_sum = (weight * count).sum()
    possible = (distinct > 0) | (alpha == 0)
    total = support.shape[0] * COLUMN_MASS
    mass = ((weight / weight_sum * total).floor().long().clamp(min=1) * possible)[index]
    mass[mass.argmax()] += total - mass.sum()
    log_prob = torch.xlogy(alpha, relative) - weight_sum.log()  # xlogy returns 0 for 0 * log(0)
    return mass, log_prob.float()[index]


def build_alias_table_reference(mass: Tensor) -> tuple[Tensor, Tensor]:
    """Return (threshold, alias), both int64 [n_items], from int64 masses that sum to n_items * 2**31.

    Vose's construction: a column whose item has less mass than COLUMN_MASS is filled up from the last item in `large`,
    the list of the items that still have at least COLUMN_MASS.
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
    table: AliasTable, n: int, *, seed: int, step: int | Tensor, steps: int = 1, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Draw items with replacement; each draw depends only on seed, step and the index of the draw.

    Args:
        table: the result of `build_alias_table`, on the device on which to draw.
        n: number of draws per training step; may exceed the number of items. All lanes of a step share its negatives.
        seed: the key of the random numbers, in [0, 2**63).
        step: number of the first training step, an integer or a 0-dim int64 tensor on the device of the table; step +
            steps must not exceed 2**32.
        steps: number of steps. One call for T steps returns the draws of T calls for one step.
        impl: "auto", "native" or "reference".

    Returns:
        (items int64 [steps, n], log_prob float32 [steps, n]): log_prob is the natural logarithm of the probability of
        each drawn item.

    Raises:
        ValueError: an argument is out of range, or the tensors of the table do not fit each other.
    """
    device = table.threshold.device
    draw = implementation("negative_sampling", impl, device, negative_sampling_reference)
    step, counter = split_step(seed, step, steps, device, reads_value=draw is negative_sampling_reference)
    if not 0 <= n <= WORD_RANGE:
        raise ValueError(f"n={n}: must be in [0, 2**32]")
    check_n_elements(steps=steps, n=n)
    if not 1 <= table.n_items < 2**31:
        raise ValueError(f"table of {table.n_items} items: there must be at least one and fewer than 2**31")
    for name, dtype in (("threshold", torch.int64), ("alias", torch.int64), ("log_prob", torch.float32)):
        check_tensor(f"table.{name}", getattr(table, name), dtype, (table.n_items,), device)
    return draw(table.threshold, table.alias, table.log_prob, n, seed, step, counter, steps)


def negative_sampling_reference(
    threshold: Tensor,
    alias: Tensor,
    log_prob: Tensor,
    n: int,
    seed: int,
    step: int,
    counter: Tensor | None,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Return the drawn items and their log-probabilities, [steps, n].

    Draw d of step t uses the Philox4x32-10 words w0, w1, w2 of the counter (STREAM_NEGATIVES, step + t, d, 0) under the
    key `seed`. w0 and w1, as a 64-bit fraction, choose the column; the upper 31 bits of w2 choose between the item of
    the column and its alias. The value of the argument `counter` is added to `step`.
    """
    device, n_items = threshold.device, threshold.shape[0]
    if steps == 0 or n == 0:
        return threshold.new_empty(steps, n), log_prob.new_empty(steps, n)
    zero = torch.tensor(0, device=device)
    words = (
        zero + STREAM_NEGATIVES,
        (step_word(step, counter, device) + torch.arange(steps, device=device))[:, None],
        torch.arange(n, device=device),
        zero,
    )
    w0, w1, w2, _ = philox4x32(words, seed)
    column = (w0 * n_items + ((w1 * n_items) >> 32)) >> 32
    items = torch.where((w2 >> 1) < threshold[column], column, alias[column])
    return items, log_prob[items]


def _fake_build(mass: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mass), torch.empty_like(mass)


def _fake_draw(threshold: Tensor, alias: Tensor, log_prob: Tensor, n: int, *rest: Any) -> tuple[Tensor, Tensor]:
    _seed, _step, _counter, steps = rest
    return threshold.new_empty(steps, n), log_prob.new_empty(steps, n)


@on_load
def _register(library: str) -> None:
    register(library, "build_alias_table", None, _fake_build)
    register(library, "negative_sampling", None, _fake_draw)
