"""Rank of a target item in the whole catalogue, and the k items with the highest scores.

The score of item j for query q (a hidden state) is `hidden[q] @ weight[j] + bias[j]`. A NaN score raises an error. The
reference computes at most `SCORES_PER_CHUNK` scores at a time, so it never stores the scores of all queries and items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.ops._checks import check_tensor
from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load, register

SCORES_PER_CHUNK = 2**22  # 16 MiB in float32
_NO_ITEMS = "weight has no rows: the catalogue is empty"


class NanScoreError(ValueError):
    """Raised where a query has a NaN score, for which no rank is defined."""


@torch.no_grad()
def target_rank(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Count for each query the items that score higher than the target, and the other items that score the same.

    The score of item j is `hidden[q] @ weight[j] + bias[j]`. Not differentiable.

    Args:
        hidden: queries, float32 or float64 [Q, H].
        weight: output table [I, H], I >= 1, with the dtype and device of `hidden`.
        bias: output bias [I], or None.
        targets: int64 [Q], the target item of each query, 0 <= target < I.
        impl: "auto", "native" or "reference". Native: every score is one chain of multiply-adds in the order of the
            hidden units. So equal rows of the table tie exactly, and a score depends neither on the other queries and
            items nor on the number of threads. The Q x I scores are never stored.

    Returns:
        (greater, equal), int64 [Q] each: the number of other items that score higher than the target, and the number
        that score the same. The rank of the target is 1 + greater (standard), 1 + greater + equal (conservative) or
        1 + greater + equal / 2 (median).

    Raises:
        ValueError: a shape, dtype or device does not fit, or a target is not in the catalogue.
        NanScoreError: a score is NaN; a subclass of ValueError.
    """
    _check_table(hidden, weight, bias)
    check_tensor("targets", targets, torch.int64, (hidden.shape[0],), hidden.device)
    count = implementation("target_rank", impl, hidden.device, target_rank_reference)
    return _run(count, targets, 0, hidden, weight, bias, targets)


@torch.no_grad()
def top_k(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, k: int, exclude: Tensor | None = None, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return the k items with the highest scores for each query, highest first; equal scores in order of item index.

    Not differentiable.

    Args:
        hidden, weight, bias: queries, output table and output bias, as in `target_rank`.
        k: number of items, 1 <= k <= I.
        exclude: int64 [Q, E], items that are left out for each query, padded with -1; or None.
        impl: "auto", "native" or "reference", as in `target_rank`.

    Returns:
        (scores, items): [Q, k] in the dtype of `hidden`, and int64 [Q, k]. Items whose score is -inf are left out.
        If fewer than k items are left for a query, the rest of its row has item -1 and score -inf.

    Raises:
        ValueError: a shape, dtype or device does not fit, or k or an excluded item is out of range.
        NanScoreError: a score is NaN; a subclass of ValueError.
    """
    _check_table(hidden, weight, bias)
    if not 1 <= k <= weight.shape[0]:
        raise ValueError(f"k={k}: choose 1 to {weight.shape[0]}, the number of items in the catalogue")
    check_tensor("exclude", exclude, torch.int64, (hidden.shape[0], "E"), hidden.device)
    find = implementation("top_k", impl, hidden.device, top_k_reference)
    return _run(find, exclude, -1, hidden, weight, bias, k, exclude)


def _run(
    operator: Callable[..., Any], indices: Tensor | None, min_index: int, hidden: Tensor, weight: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    """Call an operator; replace a ValueError by NanScoreError unless one of the `indices` is out of range.

    The caller has checked all other arguments, so the operator raises ValueError only for an index or a NaN score.
    """
    try:
        return operator(hidden, weight, *others)
    except ValueError as error:
        if indices is not None and ((indices < min_index) | (indices >= len(weight))).any():
            raise
        raise NanScoreError(str(error)) from None


def _check_table(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError unless hidden [Q, H], weight [I >= 1, H] and bias [I] fit each other."""
    check_tensor("hidden", hidden, (torch.float32, torch.float64), ("Q", "H"), hidden.device)
    check_tensor("weight", weight, hidden.dtype, ("I", hidden.shape[1]), hidden.device)
    if weight.shape[0] == 0:
        raise ValueError(_NO_ITEMS)
    check_tensor("bias", bias, hidden.dtype, (weight.shape[0],), hidden.device)


def target_rank_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (greater, equal) of `target_rank`."""
    out_of_range = ((targets < 0) | (targets >= weight.shape[0])).nonzero()
    if len(out_of_range):
        q = int(out_of_range[0])
        raise ValueError(
            f"targets out of range: targets[{q}] = {int(targets[q])}, the catalogue has {len(weight)} items"
        )
    greater, equal = torch.empty_like(targets), torch.empty_like(targets)
    for queries, scores in _score_chunks(hidden, weight, bias):
        target_score = scores.gather(1, targets[queries, None])
        greater[queries] = (scores > target_score).sum(dim=1)
        equal[queries] = (scores == target_score).sum(dim=1) - 1  # without the target itself
    return greater, equal


def top_k_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, k: int, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return scores and items of the k highest scores, highest first, equal scores in order of item index."""
    if exclude is not None and exclude.numel() and not (exclude.min() >= -1 and exclude.max() < weight.shape[0]):
        raise ValueError(f"exclude out of range: items are 0 to {weight.shape[0] - 1}, padding is -1")
    best_scores = hidden.new_empty(hidden.shape[0], k)
    items = torch.empty_like(best_scores, dtype=torch.int64)
    for queries, scores in _score_chunks(hidden, weight, bias):
        if exclude is not None:
            row, column = (exclude[queries] >= 0).nonzero(as_tuple=True)
            scores[row, exclude[queries][row, column]] = -torch.inf
        values, chosen = scores.topk(min(k + 1, scores.shape[1]))
        tied = (values[:, k - 1, None] == values[:, k:]).any(dim=1)  # torch.topk chooses arbitrarily among equal scores
        chosen = chosen[:, :k]
        if tied.any():
            chosen[tied] = _top_k_by_index(scores[tied], values[tied, k - 1, None], k)
        chosen = chosen.sort(dim=1).values
        best_scores[queries], order = scores.gather(1, chosen).sort(dim=1, descending=True, stable=True)
        items[queries] = chosen.gather(1, order)
    return best_scores, items.masked_fill_(best_scores == -torch.inf, -1)


def _score_chunks(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the queries and their scores [q, I]; raise NanScoreError at the first query with a NaN score."""
    if weight.shape[0] == 0:  # a call that torch dispatches to the reference has not been checked
        raise ValueError(_NO_ITEMS)
    size = max(1, SCORES_PER_CHUNK // weight.shape[0])
    for start in range(0, hidden.shape[0], size):
        queries = slice(start, start + size)
        scores = torch.nn.functional.linear(hidden[queries], weight, bias)
        nan = scores.amax(dim=1).isnan()  # amax propagates NaN
        if nan.any():
            raise NanScoreError(
                f"query {start + int(nan.int().argmax())} has a NaN score: "
                "check hidden, weight and bias for NaN or infinity"
            )
        yield queries, scores


def _top_k_by_index(scores: Tensor, kth_score: Tensor, k: int) -> Tensor:
    """Return k items for each query, [q, k]: those above `kth_score` [q, 1], and the first of those that equal it."""
    above, equal = scores > kth_score, scores == kth_score
    n_equal = k - above.sum(dim=1, keepdim=True)
    return (above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= n_equal))).nonzero()[:, 1].view(-1, k)


def _fake_target_rank(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(targets), torch.empty_like(targets)


def _fake_top_k(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, k: int, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    shape = (hidden.shape[0], k)
    return hidden.new_empty(shape), hidden.new_empty(shape, dtype=torch.int64)


@on_load
def _register(library: str) -> None:
    register(library, "target_rank", target_rank_reference, _fake_target_rank)
    register(library, "top_k", top_k_reference, _fake_top_k)
