"""Negatives drawn from an alias table. Specification: `gru4rec_fast.reference.negative_sampling`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gru4rec_fast._backend import resolve
from gru4rec_fast.ops._registry import on_load, operators
from gru4rec_fast.reference.negative_sampling import COLUMN_MASS, AliasTable, alias_columns, alias_masses
from gru4rec_fast.reference.negative_sampling import negative_sampling as reference_negative_sampling
from gru4rec_fast.reference.philox import WORD_RANGE, check_counters

__all__ = ["AliasTable", "build_alias_table", "negative_sampling"]


def build_alias_table(support: Tensor, alpha: float, *, impl: str = "auto") -> AliasTable:
    """Build the table from which negatives with p(item) proportional to support ** alpha are drawn.

    Args:
        support: integer [n_items], how often each item occurs; n_items in [1, 2**31).
        alpha: 0 for uniform, 1 for popularity, anything between or beyond. With alpha > 0 an item of support 0 is
            never drawn; with alpha 0 it is as likely as any other.
        impl: "auto", "native" or "reference"; the tables are equal bit for bit. "emulated" is "auto" here: no kernel
            builds a table.

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
    chosen = resolve("auto" if impl == "emulated" else impl, "build_alias_table", "cpu")
    if chosen != "reference":
        threshold, alias = operators(chosen).build_alias_table(mass)
    else:
        threshold, alias = alias_columns(mass)
    return AliasTable(threshold, alias, log_prob, alpha)


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
        impl: "auto", "native", "reference" or "emulated".

    Returns:
        (items int64 [steps, n], log_prob float32 [steps, n]): log_prob is the natural logarithm of each drawn item's
        probability.

    Raises:
        ValueError: an argument outside its range, or tensors of the table that do not fit each other, named.
    """
    check_counters(seed, step, steps)
    if not 0 <= n <= WORD_RANGE:
        raise ValueError(f"n={n}: must be in [0, 2**32]")
    _check_table(table)
    chosen = resolve(impl, "negative_sampling", table.threshold.device.type)
    if chosen != "reference":
        return operators(chosen).negative_sampling(table.threshold, table.alias, table.log_prob, n, seed, step, steps)
    return reference_negative_sampling(table, n, seed=seed, step=step, steps=steps)


def _check_table(table: AliasTable) -> None:
    if not 1 <= table.n_items < COLUMN_MASS:
        raise ValueError(f"table of {table.n_items} items: there must be at least one and fewer than 2**31")
    for name, dtype in (("threshold", torch.int64), ("alias", torch.int64), ("log_prob", torch.float32)):
        tensor = getattr(table, name)
        if tensor.dtype != dtype or tensor.shape != (table.n_items,) or tensor.device != table.threshold.device:
            raise ValueError(
                f"table.{name} must be {dtype} [{table.n_items}] on {table.threshold.device}, "
                f"not {tensor.dtype} {[*tensor.shape]} on {tensor.device}"
            )


def _fake_build(mass: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mass), torch.empty_like(mass)


def _fake_draw(
    threshold: Tensor, alias: Tensor, log_prob: Tensor, n: int, seed: int, step: int, steps: int
) -> tuple[Tensor, Tensor]:
    return threshold.new_empty(steps, n), log_prob.new_empty(steps, n)


@on_load
def _register(library: str) -> None:
    torch.library.register_fake(f"{library}::build_alias_table", _fake_build)
    torch.library.register_fake(f"{library}::negative_sampling", _fake_draw)
