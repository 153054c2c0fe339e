"""Recommend the next items of sessions, by the top-k search that all models use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from gru4rec_fast.data import SessionStore, Vocabulary
from gru4rec_fast.data.vocabulary import as_ids
from gru4rec_fast.evaluation.batches import batches_by_length, run_sessions, top_k_excluding
from gru4rec_fast.evaluation.network import NextItemNetwork, evaluating
from gru4rec_fast.models.candidates import CandidatePool, RowLists, encode_row_lists
from gru4rec_fast.models.id_encoder import IdEncoder, Unknown
from gru4rec_fast.profiling import map_parts

if TYPE_CHECKING:
    import pandas as pd

# One list of item ids, which is for all rows, or one list for each row.
ItemLists: TypeAlias = Iterable[int] | Iterable[str] | Sequence[Iterable[int]] | Sequence[Iterable[str]]
# As `ItemLists`, where a list may be a pool.
Candidates: TypeAlias = ItemLists | CandidatePool | Sequence[CandidatePool]

# Maximum number of hidden states per call of the network, so that memory does not grow with the longest session. The
# results of a larger call would not be in memory that was used before, and page faults would take a tenth of the time.
_OUTPUTS_PER_CALL = 1 << 13


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
    exclude: ItemLists | None = None,
    candidates: Candidates | None = None,
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
        exclude: item ids (a list, set, array ...) that are never recommended; or a sequence with such a list for each
            session.
        candidates: the only item ids that may be recommended, or a CandidatePool; or a sequence with such a list for
            each session. Time and memory depend on the number of candidates, not on the catalogue. Scores and order are
            those of a search in the whole catalogue (to the bit in native kernels). None: all items.
        unknown: "error" raises an error for an id outside the vocabulary, also in `exclude` and `candidates`; "skip"
            ignores that id, and a session without a known item gets a row with count 0.
        batch_size: number of sessions that the network runs in parallel.
        impl: "auto", "native" or "reference", for the top-k search.

    If fewer than k items are left for a session, its row is shorter; see `Recommendations.counts`.

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
    return search_top_k(
        make_batch, batches, len(lengths), k, weight, bias, encoder, exclude=exclude, candidates=candidates, impl=impl
    )


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
    candidates: Any = None,
    impl: str,
) -> Recommendations:
    """Return the k items with the highest scores for each query.

    Args:
        make_batch: returns the queries for some rows of the result.
        batches: the rows of the result that have a query, int64 [n] for each batch. Other rows have count 0.
        n_rows: number of rows of the result.
        k: number of items per row.
        weight, bias: item j has the score `query @ weight[j] + bias[j]`; [n_items, H] and [n_items] or None.
        encoder: the item encoder, for `exclude`, `candidates` and for the ids in the result.
        exclude: item ids to leave out, for all rows or for each row, or None; see `encode_row_lists`.
        candidates: the only items to rank, in the same form; None: all items.
        impl: "auto", "native" or "reference".

    Raises:
        ValueError: k out of range, an unknown id in `exclude` or `candidates`, a NaN score.
    """
    check_k(k, len(weight))
    left_out = None if exclude is None else encode_row_lists(exclude, "exclude", encoder, n_rows)
    chosen = None if candidates is None else encode_row_lists(candidates, "candidates", encoder, n_rows)
    tables = _Tables(weight.detach(), None if bias is None else bias.detach(), chosen, left_out)
    items = np.full((n_rows, k), -1, np.int64)
    scores = np.full((n_rows, k), -np.inf, np.float64 if weight.dtype == torch.float64 else np.float32)

    def search(rows: np.ndarray) -> None:
        queries, excluded = make_batch(rows)
        if left_out is not None and len(left_out.lists) > 1:
            own = [left_out.lists[number] for number in left_out.list_of_row[rows]]
            excluded = own if excluded is None else [*map(np.concatenate, zip(excluded, own, strict=True))]
        for positions, table in tables.split_rows(rows):
            if (n_found := min(k, len(table.weight))) == 0:
                continue
            table_queries, table_excluded = queries, excluded
            if len(positions) < len(rows):
                table_queries = queries[torch.from_numpy(positions).to(queries.device)]
                table_excluded = None if excluded is None else [excluded[i] for i in positions]
            if table_excluded is not None and table.items is not None:
                table_excluded = [_find_positions(table.items, row) for row in table_excluded]
            best = top_k_excluding(
                table_queries.to(weight.dtype), table.weight, table.bias, n_found, table_excluded, impl=impl
            )
            found_scores, found = (tensor.cpu().numpy() for tensor in best)
            if table.items is not None:
                found = np.where(found < 0, -1, table.items[found])
            scores[rows[positions], :n_found], items[rows[positions], :n_found] = found_scores, found

    for batch in batches:
        map_parts("the recommendations", batch, search)
    return Recommendations(encoder.decode(items), scores, (items >= 0).sum(axis=1))


def check_k(k: int, n_items: int) -> None:
    """Raise ValueError unless 1 <= k <= n_items."""
    if not 1 <= k <= n_items:
        raise ValueError(f"k={k}: choose 1 to {n_items}, the number of items in the vocabulary")


class _Table(NamedTuple):
    """Rows of the output table to search in.

    items: the items of the rows, int64 [n], ascending; None: all items.
    weight, bias: [n, H] and [n] or None.
    """

    items: np.ndarray | None
    weight: Tensor
    bias: Tensor | None


class _Tables:
    """The part of the output table that each row of a result is searched in.

    Each list of candidates is searched by itself, with the rows of the result that have it, so memory is limited by the
    longest list. A native kernel computes each score independently of the other rows of the table, so the score has
    the same bits as in a search of the whole table.

    Args:
        weight, bias: the output table, without gradients.
        candidates: the candidates of each row; None: all items.
        exclude: the items to leave out. Only a list for all rows has an effect on the tables.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, candidates: RowLists | None, exclude: RowLists | None):
        self._weight, self._bias, self._candidates = weight, bias, candidates
        self._shared: _Table | None = None
        excluded = exclude.lists[0] if exclude is not None and len(exclude.lists) == 1 else np.empty(0, np.int64)
        if candidates is not None:
            self._lists = candidates.lists
            if len(excluded):
                self._lists = [items[~np.isin(items, excluded)] for items in self._lists]
            if len(self._lists) == 1:
                self._shared = self._make_table(self._lists[0])
            return
        if len(excluded):  # a score of -inf leaves an item out
            bias = weight.new_zeros(len(weight)) if bias is None else bias.clone()
            bias[torch.tensor(excluded, device=weight.device)] = -torch.inf
        self._shared = _Table(None, weight, bias)

    def split_rows(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, _Table]]:
        """Split `rows` by the table to search in. Yield positions in `rows`, int64 [n >= 1], and their table."""
        if self._shared is not None:
            yield np.arange(len(rows)), self._shared
            return
        assert self._candidates is not None
        list_of_row = self._candidates.list_of_row[rows]
        order = np.argsort(list_of_row, kind="stable")
        for positions in np.split(order, np.flatnonzero(np.diff(list_of_row[order])) + 1):
            if len(positions):
                yield positions, self._make_table(self._lists[list_of_row[positions[0]]])

    def _make_table(self, items: np.ndarray) -> _Table:
        """Return the table of a list of candidates."""
        index = torch.tensor(items, device=self._weight.device)
        if 2 * len(items) <= len(self._weight):
            bias = None if self._bias is None else self._bias.index_select(0, index)
            return _Table(items, self._weight.index_select(0, index), bias)
        # To search in the whole table takes less time than to copy most of it. A score of -inf leaves an item out.
        masked = self._weight.new_full((len(self._weight),), -torch.inf)
        masked[index] = 0.0 if self._bias is None else self._bias[index]
        return _Table(None, self._weight, masked)


def _find_positions(items: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the positions in `items` of those `wanted` items that it contains. `items` is ascending and not empty."""
    positions = np.minimum(np.searchsorted(items, wanted), len(items) - 1)
    return positions[items[positions] == wanted]


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
