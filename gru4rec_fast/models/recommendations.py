"""Recommend items: the next items of sessions, and the one top-k search that all models share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gru4rec_fast import ops
from gru4rec_fast.data import SessionStore, Vocabulary
from gru4rec_fast.evaluation.network import NextItemNetwork, evaluating
from gru4rec_fast.models.id_encoder import IdEncoder, Unknown

_STEPS_PER_CALL = 64  # steps of a session per call of the network: memory does not grow with the longest session


class Recommendations(NamedTuple):
    """The best items of n sessions or users, best first.

    items: item ids [n, k], int64 or strings as in the vocabulary.
    scores: [n, k], float32 or float64 as in the network.
    counts: int64 [n], how many items of each row are valid. The rest of the row holds -1 (or "") and scores of -inf.
    """

    items: np.ndarray
    scores: np.ndarray
    counts: np.ndarray


class Batch(NamedTuple):
    """Queries of a top-k search.

    queries: [n, H]; excluded: item indices to leave out, one array per query, or None.
    """

    queries: Tensor
    excluded: Sequence[Sequence[int] | np.ndarray] | None


def recommend(
    network: NextItemNetwork,
    vocabulary: Vocabulary,
    sessions: Iterable[Sequence[int] | Sequence[str]] | SessionStore,
    k: int = 20,
    *,
    exclude_seen: bool = False,
    exclude: Iterable[int] | Iterable[str] | None = None,
    unknown: Unknown = "error",
    batch_size: int = 512,
    impl: str = "auto",
) -> Recommendations:
    """Return the k items most likely to come next in each session.

    Args:
        network: see `NextItemNetwork`; its mode (train or eval) is the same afterwards.
        vocabulary: the ids of the network's items.
        sessions: item ids of each session in time order; or a store of the same vocabulary.
        k: how many items, at most the number of items in the vocabulary.
        exclude_seen: leave out the items that the session already holds.
        exclude: item ids (a list, set, array ...) that are never recommended.
        unknown: "error" raises an error for an id outside the vocabulary; "skip" ignores that id, and a session without
            a known item gets a row with count 0.
        batch_size: number of sessions that the network runs in parallel.
        impl: "auto", "native" or "reference", for the top-k search.

    Raises:
        ValueError: an argument that does not fit; an unknown id or an empty session, with the index of the session,
            unless `unknown` is "skip"; a NaN score.
    """
    encoder = item_encoder(network, vocabulary, unknown)
    items, offsets = encoder.encode_sessions(sessions)
    lengths = np.diff(offsets)
    order = np.argsort(lengths, kind="stable")  # batches of similar lengths need little padding

    def make_batch(rows: np.ndarray) -> Batch:
        chosen = [items[offsets[row] : offsets[row + 1]] for row in rows]
        return Batch(_last_hidden(network, chosen), chosen if exclude_seen else None)

    rows = order[lengths[order] > 0]
    weight, bias = network.output_weight, network.output_bias
    return search_top_k(
        make_batch, rows, len(order), k, weight, bias, encoder, exclude=exclude, batch_size=batch_size, impl=impl
    )


def search_top_k(
    make_batch: Callable[[np.ndarray], Batch],
    rows: np.ndarray,
    n_rows: int,
    k: int,
    weight: Tensor,
    bias: Tensor | None,
    encoder: IdEncoder,
    *,
    exclude: Any = None,
    batch_size: int,
    impl: str,
) -> Recommendations:
    """Return the k items with the highest scores in each row.

    Args:
        make_batch: returns the queries of the given rows.
        rows: int64, the rows that have a query; they are searched in this order. Every other row has count 0.
        n_rows: number of rows of the result.
        k: number of items per row.
        weight, bias: item j has the score `query @ weight[j] + bias[j]`; [n_items, H] and [n_items] or None.
        encoder: of the items.
        exclude: item ids to leave out in every row, or None.
        batch_size: number of rows per search.
        impl: "auto", "native" or "reference".

    Raises:
        ValueError: k or batch_size out of range, an unknown id in `exclude`, a NaN score.
    """
    if not 1 <= k <= len(weight):
        raise ValueError(f"k={k}: choose 1 to {len(weight)}, the number of items in the vocabulary")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    always_excluded = torch.from_numpy(encoder.encode_excluded(exclude))
    items = np.full((n_rows, k), -1, np.int64)
    scores = np.full((n_rows, k), -np.inf, np.float64 if weight.dtype == torch.float64 else np.float32)
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        queries, seen = make_batch(chosen)
        excluded = always_excluded.expand(len(chosen), -1)
        if seen is not None:
            excluded = torch.cat([pad(seen), excluded], dim=1)
        hide = excluded.to(weight.device) if excluded.shape[1] else None
        best_scores, best = ops.top_k(queries.to(weight.dtype), weight, bias, k, hide, impl=impl)
        scores[chosen], items[chosen] = best_scores.cpu().numpy(), best.cpu().numpy()
    return Recommendations(encoder.decode(items), scores, (items >= 0).sum(axis=1))


def item_encoder(network: NextItemNetwork, vocabulary: Vocabulary, unknown: Unknown) -> IdEncoder:
    """Return an encoder of the network's items; ValueError where network and vocabulary differ in size."""
    if len(network.output_weight) != len(vocabulary):
        raise ValueError(f"the network has {len(network.output_weight)} items, the vocabulary {len(vocabulary)}")
    return IdEncoder(vocabulary, unknown)


def pad(rows: Sequence[Sequence[int] | np.ndarray]) -> Tensor:
    """Return rows of different lengths as one int64 tensor [n, longest], padded with -1."""
    padded = np.full((len(rows), max(map(len, rows), default=0)), -1, np.int64)
    for padded_row, row in zip(padded, rows, strict=True):
        padded_row[: len(row)] = row
    return torch.from_numpy(padded)


def _last_hidden(network: NextItemNetwork, sessions: list[np.ndarray]) -> Tensor:
    """Return the hidden states [n, H] after the last event of each session."""
    device = network.output_weight.device
    inputs = pad(sessions).T.to(device)
    last_step = torch.tensor([len(session) - 1 for session in sessions], device=device)
    with evaluating(network):
        state = network.initial_state(len(sessions))
        last_hidden = torch.empty_like(state[-1])
        for start in range(0, len(inputs), _STEPS_PER_CALL):
            hidden, state = network(inputs[start : start + _STEPS_PER_CALL], state)
            ended = ((last_step >= start) & (last_step < start + len(hidden))).nonzero()[:, 0]
            last_hidden[ended] = hidden[last_step[ended] - start, ended].to(last_hidden.dtype)
    return last_hidden
