"""Rank of a target in the whole catalogue by counting, and the k best items (semantics.md, "Evaluation").

The score of item j for query q is `hidden[q] @ weight[j] + bias[j]`. Queries are scored in chunks of at most
`SCORES_PER_CHUNK` scores, so memory does not grow with queries x catalogue. A NaN score is an error, not a rank.
Neither function is differentiable: both run without recording gradients.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SCORES_PER_CHUNK = 2**22


def check_table(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
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


def check_targets(hidden: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless targets is int64 [Q] on the device of hidden [Q, H]."""
    if targets.dtype != torch.int64 or targets.shape != hidden.shape[:1] or targets.device != hidden.device:
        raise ValueError(
            f"targets must be int64 [Q] = [{hidden.shape[0]}] on {hidden.device}, "
            f"got {targets.dtype} {list(targets.shape)} on {targets.device}"
        )


def check_top_k(hidden: Tensor, weight: Tensor, k: int, exclude: Tensor | None) -> None:
    """Raise ValueError unless 1 <= k <= I and exclude is int64 [Q, E] on the device of hidden [Q, H]."""
    if not 1 <= k <= weight.shape[0]:
        raise ValueError(f"k={k}: choose 1 to {weight.shape[0]}, the number of items in the catalogue")
    if exclude is None:
        return
    fits = exclude.dim() == 2 and exclude.shape[0] == hidden.shape[0]
    if exclude.dtype != torch.int64 or not fits or exclude.device != hidden.device:
        raise ValueError(
            f"exclude must be int64 [Q, E] with Q = {hidden.shape[0]} on {hidden.device}, "
            f"got {exclude.dtype} {list(exclude.shape)} on {exclude.device}"
        )


def _score_chunks(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Scores [q, I] of successive slices of the queries; ValueError at the first query with a NaN score."""
    size = max(1, SCORES_PER_CHUNK // weight.shape[0])
    for begin in range(0, hidden.shape[0], size):
        queries = slice(begin, begin + size)
        scores = torch.nn.functional.linear(hidden[queries], weight, bias)
        nan = scores.amax(dim=1).isnan()  # amax hands NaN on
        if nan.any():
            raise ValueError(
                f"query {begin + int(nan.int().argmax())} has a NaN score: "
                "look for NaN or infinity in hidden, weight and bias"
            )
        yield queries, scores


@torch.no_grad()
def target_rank(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Count the items that outscore each query's target.

    Args:
        hidden: queries, float32 or float64 [Q, H].
        weight: output table [I, H], I >= 1, dtype and device of `hidden`.
        bias: output bias [I], or None.
        targets: index of each query's true item, int64 [Q], 0 <= target < I.

    Returns:
        (greater, equal), int64 [Q] each: how many *other* items score strictly higher than the target, and exactly as
        high. Rank, with ties counted not at all, whole or half: 1 + greater, + equal, + equal / 2.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, a target outside the catalogue, a NaN score.
    """
    check_table(hidden, weight, bias)
    check_targets(hidden, targets)
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


@torch.no_grad()
def top_k(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, k: int, exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k best items of each query, best first; equal scores are ordered by item index.

    Args:
        hidden: queries, float32 or float64 [Q, H].
        weight: output table [I, H], I >= 1, dtype and device of `hidden`.
        bias: output bias [I], or None.
        k: how many items, 1 <= k <= I.
        exclude: items that a query must not be given, int64 [Q, E] padded with -1, or None.

    Returns:
        (scores, items), [Q, k] in the dtype of `hidden` and int64. Where fewer than k items are left, because of
        `exclude` or because their score is -inf (which excludes an item too), the row ends in item -1, score -inf.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, k or an excluded item out of range, a NaN score.
    """
    check_table(hidden, weight, bias)
    check_top_k(hidden, weight, k, exclude)
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


def _lowest_of_equals(scores: Tensor, kth: Tensor, k: int) -> Tensor:
    """Items [q, k] of all scores above the k-th best, kth [q, 1], and of those equal to it the ones of lowest index."""
    above, level = scores > kth, scores == kth
    free = k - above.sum(dim=1, keepdim=True)
    return (above | (level & (level.cumsum(dim=1, dtype=torch.int32) <= free))).nonzero()[:, 1].view(-1, k)
