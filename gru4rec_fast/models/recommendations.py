"""Recommend the next items of sessions, by the top-k search that all models use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gru4rec_fast.data import SessionStore, Vocabulary
from gru4rec_fast.data.vocabulary import as_ids
from gru4rec_fast.evaluation.batches import batches_by_length, run_sessions, top_k_excluding
from gru4rec_fast.evaluation.network import NextItemNetwork, evaluating
from gru4rec_fast.models.id_encoder import IdEncoder, Unknown

if TYPE_CHECKING:
    import pandas as pd

# Maximum number of hidden states per call of the network, so that memory does not grow with the longest session.
_OUTPUTS_PER_CALL = 1 << 14


class Recommendations(NamedTuple):
    """The best items of n sessions or users, best first.

    items: item ids [n, k], int64 or strings as in the vocabulary.
    scores: [n, k], float32 or float64 as in the network.
    counts: int64 [n], number of valid items in each row. The rest of the row is -1 (or "" for strings) with score -inf.
    """

    items: np.ndarray
    scores: np.ndarray
    counts: np.ndarray

    def to_frame(
        self, queries: Iterable[int] | Iterable[str] | None = None, *, query_name: str = "query"
    ) -> pd.DataFrame:
        """Return the recommendations as a pandas table, one row for each valid item, best first within a query.

            model.recommend(users).to_frame(users, query_name="user")  # columns user, rank, item, score

        Args:
            queries: ids of the n sessions or users; None: their numbers, 0 to n - 1.
            query_name: name of the column of queries.

        Returns:
            Columns: the query; rank int64, from 1; item, the id; score.

        Raises:
            ValueError: not one id per session or user, or `query_name` is the name of another column.
            TypeError: ids are neither all integers nor all strings. ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install pandas") from error

        if query_name in ("rank", "item", "score"):
            raise ValueError(f"query_name={query_name!r} is the name of another column; choose another name")
        n, k = self.items.shape
        ids = np.arange(n) if queries is None else as_ids(queries, "queries")
        if len(ids) != n:
            raise ValueError(f"queries has {len(ids)} ids for {n} rows of recommendations; give one for each row")
        row, position = np.nonzero(np.arange(k) < self.counts[:, None])
        columns = {query_name: ids[row], "rank": position + 1, "item": self.items[row, position]}
        # pandas does not know StringDType. From a list of str it chooses its own dtype for strings.
        columns = {name: c if c.dtype == np.int64 else c.tolist() for name, c in columns.items()}
        return pd.DataFrame(columns | {"score": self.scores[row, position]})


class QueryBatch(NamedTuple):
    """Queries of a top-k search.

    queries: [n, H], a hidden state or embedding for each row of the result.
    excluded: indices of the items to leave out, one array per query; None: no items are left out.
    """

    queries: Tensor
    excluded: Sequence[np.ndarray] | None


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

    def make_batch(rows: np.ndarray) -> QueryBatch:
        seen = [items[offsets[row] : offsets[row + 1]] for row in rows] if exclude_seen else None
        return QueryBatch(_last_hidden(network, items, offsets[rows], lengths[rows]), seen)

    batches = batches_by_length(lengths, batch_size)
    weight, bias = network.output_weight, network.output_bias
    return search_top_k(make_batch, batches, len(lengths), k, weight, bias, encoder, exclude=exclude, impl=impl)


def search_top_k(
    make_batch: Callable[[np.ndarray], QueryBatch],
    batches: Iterable[np.ndarray],
    n_rows: int,
    k: int,
    weight: Tensor,
    bias: Tensor | None,
    encoder: IdEncoder,
    *,
    exclude: Any = None,
    impl: str,
) -> Recommendations:
    """Return the k items with the highest scores for each query.

    Args:
        make_batch: returns the queries for some rows of the result.
        batches: the rows of the result that have a query, int64 [n] for each batch. Other rows have count 0.
        n_rows: number of rows of the result.
        k: number of items per row.
        weight, bias: item j has the score `query @ weight[j] + bias[j]`; [n_items, H] and [n_items] or None.
        encoder: the item encoder, for `exclude` and for the ids in the result.
        exclude: item ids to leave out in every row, or None.
        impl: "auto", "native" or "reference".

    Raises:
        ValueError: k out of range, an unknown id in `exclude`, a NaN score.
    """
    if not 1 <= k <= len(weight):
        raise ValueError(f"k={k}: choose 1 to {len(weight)}, the number of items in the vocabulary")
    excluded_in_all_rows = torch.from_numpy(encoder.encode_excluded(exclude)).to(weight.device)
    if len(excluded_in_all_rows):  # a score of -inf leaves an item out
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().clone()
        bias[excluded_in_all_rows] = -torch.inf
    items = np.full((n_rows, k), -1, np.int64)
    scores = np.full((n_rows, k), -np.inf, np.float64 if weight.dtype == torch.float64 else np.float32)
    for rows in batches:
        queries, excluded = make_batch(rows)
        best = top_k_excluding(queries.to(weight.dtype), weight, bias, k, excluded, impl=impl)
        scores[rows], items[rows] = (tensor.cpu().numpy() for tensor in best)
    return Recommendations(encoder.decode(items), scores, (items >= 0).sum(axis=1))


def item_encoder(network: NextItemNetwork, vocabulary: Vocabulary, unknown: Unknown) -> IdEncoder:
    """Return an encoder of item ids; ValueError if network and vocabulary have different numbers of items."""
    if len(network.output_weight) != len(vocabulary):
        raise ValueError(f"the network has {len(network.output_weight)} items, the vocabulary {len(vocabulary)}")
    return IdEncoder(vocabulary, unknown)


def _last_hidden(network: NextItemNetwork, items: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Tensor:
    """Return the hidden states [n, H] after the last event of each session; for the arguments see `run_sessions`."""
    with evaluating(network):
        last_hidden = torch.empty_like(network.initial_state(len(starts))[-1])
        for hidden, events in run_sessions(network, items, starts, lengths, _OUTPUTS_PER_CALL):
            # events [T, n]: index of each event; n sessions are still running. A session's last event is
            # starts + lengths - 1.
            step, lane = np.nonzero(events == (starts + lengths - 1)[: events.shape[1]])
            last_hidden[lane] = hidden[step, lane].to(last_hidden.dtype)
    return last_hidden
