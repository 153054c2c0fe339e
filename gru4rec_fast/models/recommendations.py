"""Recommend the next items of sessions, by the top-k search that all models use."""

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

# Steps of a session per call of the network, so that the memory use does not grow with the longest session.
_STEPS_PER_CALL = 64


class Recommendations(NamedTuple):
    """The best items of n sessions or users, best first.

    items: item ids [n, k], int64 or strings as in the vocabulary.
    scores: [n, k], float32 or float64 as in the network.
    counts: int64 [n], number of valid items in each row. The rest of the row is -1 (or "" for strings) with score -inf.
    """

    items: np.ndarray
    scores: np.ndarray
    counts: np.ndarray


class QueryBatch(NamedTuple):
    """Queries of a top-k search.

    queries: [n, H], a hidden state or embedding for each row of the result.
    excluded: indices of the items to leave out, one array per query; None: no items are left out.
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
        exclude_seen: leave out the items that the session already has.
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
    order = np.argsort(lengths, kind="stable")  # sessions of similar length in a batch need little padding

    def make_batch(rows: np.ndarray) -> QueryBatch:
        chosen = [items[offsets[row] : offsets[row + 1]] for row in rows]
        return QueryBatch(_last_hidden(network, chosen), chosen if exclude_seen else None)

    rows = order[lengths[order] > 0]
    weight, bias = network.output_weight, network.output_bias
    return search_top_k(
        make_batch, rows, len(order), k, weight, bias, encoder, exclude=exclude, batch_size=batch_size, impl=impl
    )


def search_top_k(
    make_batch: Callable[[np.ndarray], QueryBatch],
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
    """Return the k items with the highest scores for each query.

    Args:
        make_batch: returns the queries for some rows of the result.
        rows: int64, the rows of the result that have a query, in the order of the search. Other rows have count 0.
        n_rows: number of rows of the result.
        k: number of items per row.
        weight, bias: item j has the score `query @ weight[j] + bias[j]`; [n_items, H] and [n_items] or None.
        encoder: the item encoder, for `exclude` and for the ids in the result.
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
    excluded_in_all_rows = torch.from_numpy(encoder.encode_excluded(exclude))
    items = np.full((n_rows, k), -1, np.int64)
    scores = np.full((n_rows, k), -np.inf, np.float64 if weight.dtype == torch.float64 else np.float32)
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        batch = make_batch(chosen)
        excluded = excluded_in_all_rows.expand(len(chosen), -1)
        if batch.excluded is not None:
            excluded = torch.cat([pad(batch.excluded), excluded], dim=1)
        exclude_argument = excluded.to(weight.device) if excluded.shape[1] else None
        queries = batch.queries.to(weight.dtype)
        best_scores, best_items = ops.top_k(queries, weight, bias, k, exclude_argument, impl=impl)
        scores[chosen], items[chosen] = best_scores.cpu().numpy(), best_items.cpu().numpy()
    return Recommendations(encoder.decode(items), scores, (items >= 0).sum(axis=1))


def item_encoder(network: NextItemNetwork, vocabulary: Vocabulary, unknown: Unknown) -> IdEncoder:
    """Return an encoder of item ids; ValueError if network and vocabulary have different numbers of items."""
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
            # Sessions that end in this call.
            ended = ((last_step >= start) & (last_step < start + len(hidden))).nonzero()[:, 0]
            last_hidden[ended] = hidden[last_step[ended] - start, ended].to(last_hidden.dtype)
    return last_hidden
