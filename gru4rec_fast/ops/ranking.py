"""Rank of a target in the whole catalogue, and the k best items. Specification: `gru4rec_fast.reference.ranking`."""

from __future__ import annotations

import torch
from torch import Tensor

from gru4rec_fast._backend import resolve
from gru4rec_fast.ops._registry import on_load, operators, register_composite
from gru4rec_fast.reference import ranking as reference


@torch.no_grad()
def target_rank(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Count the items that outscore each query's target; the score of item j is `hidden[q] @ weight[j] + bias[j]`.

    Not differentiable: no gradient is recorded.

    Args:
        hidden: queries, float32 or float64 [Q, H].
        weight: output table [I, H], I >= 1, dtype and device of `hidden`.
        bias: output bias [I], or None.
        targets: index of each query's true item, int64 [Q], 0 <= target < I.
        impl: "auto", "native", "reference" or "emulated". Native: every score, the target's too, is one chain of
            multiply-adds in the order of the hidden units, so equal rows tie exactly and no score depends on the batch,
            the tile or the number of threads; queries x catalogue scores are never held.

    Returns:
        (greater, equal), int64 [Q] each: how many *other* items score strictly higher than the target, and exactly as
        high. Rank, with ties counted not at all, whole or half: 1 + greater, + equal, + equal / 2.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, a target outside the catalogue, a NaN score.
    """
    reference.check_table(hidden, weight, bias)
    reference.check_targets(hidden, targets)
    chosen = resolve(impl, "target_rank", hidden.device.type)
    if chosen != "reference":
        return operators(chosen).target_rank(hidden, weight, bias, targets)
    return reference.target_rank(hidden, weight, bias, targets)


@torch.no_grad()
def top_k(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k: int,
    exclude: Tensor | None = None,
    *,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The k best items of each query, best first; equal scores are ordered by item index.

    Not differentiable: no gradient is recorded.

    Args:
        hidden: queries, float32 or float64 [Q, H].
        weight: output table [I, H], I >= 1, dtype and device of `hidden`.
        bias: output bias [I], or None.
        k: how many items, 1 <= k <= I.
        exclude: items that a query must not be given, int64 [Q, E] padded with -1, or None.
        impl: "auto", "native", "reference" or "emulated", as in `target_rank`.

    Returns:
        (scores, items), [Q, k] in the dtype of `hidden` and int64. Where fewer than k items are left, because of
        `exclude` or because their score is -inf (which excludes an item too), the row ends in item -1, score -inf.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, k or an excluded item out of range, a NaN score.
    """
    reference.check_table(hidden, weight, bias)
    reference.check_top_k(hidden, weight, k, exclude)
    chosen = resolve(impl, "top_k", hidden.device.type)
    if chosen != "reference":
        return operators(chosen).top_k(hidden, weight, bias, k, exclude)
    return reference.top_k(hidden, weight, bias, k, exclude)


def _fake_target_rank(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(targets), torch.empty_like(targets)


def _fake_top_k(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, k: int, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    shape = (hidden.shape[0], k)
    return hidden.new_empty(shape), hidden.new_empty(shape, dtype=torch.int64)


@on_load
def _register(library: str) -> None:
    register_composite(library, "target_rank", reference.target_rank)
    register_composite(library, "top_k", reference.top_k)
    torch.library.register_fake(f"{library}::target_rank", _fake_target_rank)
    torch.library.register_fake(f"{library}::top_k", _fake_top_k)
