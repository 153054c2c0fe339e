"""Rank of a target in the whole catalogue by counting, and the k best items.

The score of item j for query q is `hidden[q] @ weight[j] + bias[j]`. A NaN score is an error, not a rank. The reference
scores chunks of queries, at most `SCORES_PER_CHUNK` scores at a time, so memory does not grow with queries x catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load, register_composite

SCORES_PER_CHUNK = 2**22


class NanScoreError(ValueError):
    """A query has a NaN score, which has no rank."""


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
        impl: "auto", "native" or "reference". Native: every score, the target's too, is one chain of multiply-adds in
            the order of the hidden units, so equal rows tie exactly and no score depends on the batch, the tile or the
            number of threads; queries x catalogue scores are never held.

    Returns:
        (greater, equal), int64 [Q] each: how many *other* items score strictly higher than the target, and exactly as
        high. Rank, with ties counted not at all, whole or half: 1 + greater, + equal, + equal / 2.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, a target outside the catalogue.
        NanScoreError: a NaN score; a ValueError.
    """
    _check_table(hidden, weight, bias)
    if targets.dtype != torch.int64 or targets.shape != hidden.shape[:1] or targets.device != hidden.device:
        raise ValueError(
            f"targets must be int64 [Q] = [{hidden.shape[0]}] on {hidden.device}, "
            f"got {targets.dtype} {list(targets.shape)} on {targets.device}"
        )
    count = implementation("target_rank", impl, hidden.device, target_rank_reference)
    return _run(count, targets, 0, hidden, weight, bias, targets)


@torch.no_grad()
def top_k(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, k: int, exclude: Tensor | None = None, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return the k best items of each query, best first; equal scores are ordered by item index.

    Not differentiable: no gradient is recorded.

    Args:
        hidden, weight, bias: queries, output table and output bias, as in `target_rank`.
        k: how many items, 1 <= k <= I.
        exclude: items that a query must not be given, int64 [Q, E] padded with -1, or None.
        impl: "auto", "native" or "reference", as in `target_rank`.

    Returns:
        (scores, items), [Q, k] in the dtype of `hidden` and int64. Where fewer than k items are left, because of
        `exclude` or because their score is -inf (which excludes an item too), the row ends in item -1, score -inf.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, k or an excluded item out of range.
        NanScoreError: a NaN score; a ValueError.
    """
    _check_table(hidden, weight, bias)
    if not 1 <= k <= weight.shape[0]:
        raise ValueError(f"k={k}: choose 1 to {weight.shape[0]}, the number of items in the catalogue")
    if exclude is not None:
        fits = exclude.dim() == 2 and exclude.shape[0] == hidden.shape[0]
        if exclude.dtype != torch.int64 or not fits or exclude.device != hidden.device:
            raise ValueError(
                f"exclude must be int64 [Q, E] with Q = {hidden.shape[0]} on {hidden.device}, "
                f"got {exclude.dtype} {list(exclude.shape)} on {exclude.device}"
            )
    find = implementation("top_k", impl, hidden.device, top_k_reference)
    return _run(find, exclude, -1, hidden, weight, bias, k, exclude)


def _run(
    operator: Callable[..., Any], indices: Tensor | None, lowest: int, hidden: Tensor, weight: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    """Call the operator, whose kernels have one type of error: that of an index out of range and that of a NaN score.

    Everything else was checked before, so that the indices tell which of them it is.
    """
    try:
        return operator(hidden, weight, *others)
    except ValueError as error:
        if indices is not None and ((indices < lowest) | (indices >= len(weight))).any():
            raise
        raise NanScoreError(str(error)) from None


def _check_table(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError unless hidden [Q, H], weight [I >= 1, H] and bias [I] fit each other (float32 or float64)."""
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden must be [Q, H] and weight [I, H], got shapes {list(hidden.shape)} and {list(weight.shape)}"
        )
    if weight.shape[0] == 0:
        raise ValueError("weight has no rows: the catalogue is empty")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [I] = [{weight.shape[0]}], got shape {list(bias.shape)}")
    if hidden.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"hidden must be float32 or float64, got {hidden.dtype}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype != hidden.dtype or tensor.device != hidden.device):
            raise ValueError(
                f"{name} must match hidden ({hidden.dtype} on {hidden.device}), got {tensor.dtype} on {tensor.device}"
            )


def target_rank_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how many other items score higher than each query's target, and how many exactly as high."""
    outside = ((targets < 0) | (targets >= weight.shape[0])).nonzero()
    if len(outside):
        q = int(outside[0])
        raise ValueError(
            f"targets out of range: targets[{q}] = {int(targets[q])}, the catalogue has {len(weight)} items"
        )
    greater, equal = torch.empty_like(targets), torch.empty_like(targets)
    for queries, scores in _score_chunks(hidden, weight, bias):
        own = scores.gather(1, targets[queries, None])
        greater[queries] = (scores > own).sum(dim=1)
        equal[queries] = (scores == own).sum(dim=1) - 1  # the target ties with itself
    return greater, equal


def top_k_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, k: int, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return scores and items of the k best, best first, equal scores by item index."""
    if exclude is not None and exclude.numel() and not (exclude.min() >= -1 and exclude.max() < weight.shape[0]):
        raise ValueError(f"exclude out of range: items are 0 to {weight.shape[0] - 1}, padding is -1")
    best = hidden.new_empty(hidden.shape[0], k)
    items = torch.empty_like(best, dtype=torch.int64)
    for queries, scores in _score_chunks(hidden, weight, bias):
        if exclude is not None:
            row, column = (exclude[queries] >= 0).nonzero(as_tuple=True)
            scores[row, exclude[queries][row, column]] = -torch.inf
        values, chosen = scores.topk(min(k + 1, scores.shape[1]))
        tied = (values[:, k - 1, None] == values[:, k:]).any(dim=1)  # with the next: topk takes any of equals
        chosen = chosen[:, :k]
        if tied.any():
            chosen[tied] = _lowest_of_equals(scores[tied], values[tied, k - 1, None], k)
        chosen = chosen.sort(dim=1).values
        best[queries], order = scores.gather(1, chosen).sort(dim=1, descending=True, stable=True)
        items[queries] = chosen.gather(1, order)
    return best, items.masked_fill_(best == -torch.inf, -1)


def _score_chunks(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Scores [q, I] of successive slices of the queries; NanScoreError at the first query with a NaN score."""
    size = max(1, SCORES_PER_CHUNK // weight.shape[0])
    for begin in range(0, hidden.shape[0], size):
        queries = slice(begin, begin + size)
        scores = torch.nn.functional.linear(hidden[queries], weight, bias)
        nan = scores.amax(dim=1).isnan()  # amax hands NaN on
        if nan.any():
            raise NanScoreError(
                f"query {begin + int(nan.int().argmax())} has a NaN score: "
                "look for NaN or infinity in hidden, weight and bias"
            )
        yield queries, scores


def _lowest_of_equals(scores: Tensor, kth: Tensor, k: int) -> Tensor:
    """Items [q, k] of all scores above the k-th best, kth [q, 1], and of those equal to it the ones of lowest index."""
    above, level = scores > kth, scores == kth
    free = k - above.sum(dim=1, keepdim=True)
    return (above | (level & (level.cumsum(dim=1, dtype=torch.int32) <= free))).nonzero()[:, 1].view(-1, k)


def _fake_target_rank(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(targets), torch.empty_like(targets)


def _fake_top_k(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, k: int, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    shape = (hidden.shape[0], k)
    return hidden.new_empty(shape), hidden.new_empty(shape, dtype=torch.int64)


@on_load
def _register(library: str) -> None:
    register_composite(library, "target_rank", target_rank_reference)
    register_composite(library, "top_k", top_k_reference)
    torch.library.register_fake(f"{library}::target_rank", _fake_target_rank)
    torch.library.register_fake(f"{library}::top_k", _fake_top_k)
