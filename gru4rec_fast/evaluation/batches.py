"""Batch rows (sessions, or users' seen items) by length, so that the cost does not depend on the longest row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gru4rec_fast import ops
from gru4rec_fast.evaluation.network import NextItemNetwork

# Maximum number of elements of a padded tensor of more than one row, padding included; 8 MiB in int64.
_PADDED_ELEMENTS = 1 << 20


def batches_by_length(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the row indices of each batch, int64 [at most batch_size]. Batches take the rows by decreasing length.

    Args:
        lengths: int64 [n], the number of elements of each row; rows without elements are left out.
        batch_size: maximum number of rows of a batch.

    Raises:
        ValueError: batch_size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths > 0)]
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def top_k_excluding(
    queries: Tensor, weight: Tensor, bias: Tensor | None, k: int, excluded: Sequence[np.ndarray] | None, *, impl: str
) -> tuple[Tensor, Tensor]:
    """Return scores and items [Q, k] like `ops.top_k`, for excluded items in lists of different lengths.

    `ops.top_k` takes the lists as rows that are padded to the longest one. If that needs much padding, several calls
    each take rows of similar length. So time and memory depend on the number of excluded items, not on the longest row.

    Args:
        queries, weight, bias, k, impl: see `ops.top_k`.
        excluded: for each query, the indices of the items to leave out, or None.
    """
    lengths = np.array([len(row) for row in excluded or []], np.int64)
    if excluded is None or not lengths.any():
        return ops.top_k(queries, weight, bias, k, None, impl=impl)
    if len(lengths) == 1 or len(lengths) * lengths.max() <= _PADDED_ELEMENTS:
        return ops.top_k(queries, weight, bias, k, _pad_rows(excluded).to(queries.device), impl=impl)
    scores = queries.new_empty(len(queries), k)
    items = torch.empty_like(scores, dtype=torch.int64)
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        n = max(_PADDED_ELEMENTS // max(int(lengths[order[0]]), 1), 1)
        rows, order = order[:n], order[n:]
        index = torch.from_numpy(rows).to(queries.device)
        padded = _pad_rows([excluded[row] for row in rows]).to(queries.device)
        scores[index], items[index] = ops.top_k(queries[index], weight, bias, k, padded, impl=impl)
    return scores, items


def _pad_rows(rows: Sequence[np.ndarray]) -> Tensor:
    """Return rows of different lengths as one int64 tensor [n, longest], padded with -1."""
    padded = np.full((len(rows), max(map(len, rows))), -1, np.int64)
    for padded_row, row in zip(padded, rows, strict=True):
        padded_row[: len(row)] = row
    return torch.from_numpy(padded)


def run_sessions(
    network: NextItemNetwork, items: np.ndarray, starts: np.ndarray, lengths: np.ndarray, outputs_per_call: int
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Run sessions through a network in parallel; yield the hidden states [T, B, H] and the events [T, B] of each call.

    Session b has the events from starts[b] to starts[b] + lengths[b]. The sessions that have ended are left out of the
    next call. In a call at least half of the sessions have an event at every step, so at most half of its work is
    padding.

    Args:
        network: in eval mode; see `evaluating`.
        items: integers [n_events], the item of each event.
        starts: int64 [B], the first event of each session.
        lengths: int64 [B], the number of events of each session, in decreasing order, at least 1.
        outputs_per_call: maximum number of hidden states of a call of more than one step.

    Yields:
        hidden: hidden states after the events [T, n, H], of the first n sessions.
        events: int64 [T, n], the events; -1 where a session has ended.

    Raises:
        ValueError: an item is out of range.
    """
    n_items, device = len(network.output_weight), network.output_weight.device
    state, step, n = network.initial_state(len(starts)), 0, len(starts)
    while n:
        n_steps = min(max(outputs_per_call // n, 1), int(lengths[n // 2]) - step)
        steps = np.arange(step, step + n_steps)[:, None]
        events = np.where(steps < lengths[:n], starts[:n] + steps, -1)
        inputs = np.where(events >= 0, items[events], -1).astype(np.int64, copy=False)
        if ((inputs < 0) != (events < 0)).any() or inputs.max() >= n_items:
            raise ValueError(
                f"the sessions have item indices from {inputs[events >= 0].min()} to {inputs.max()}, but the network "
                f"has {n_items} items: the store is damaged or was prepared with another vocabulary; prepare it again"
            )
        hidden, state = network(torch.from_numpy(inputs).to(device), [layer[:n] for layer in state])
        yield hidden, events
        step += n_steps
        n = int(np.searchsorted(-lengths, -step))  # sessions of more than `step` events
