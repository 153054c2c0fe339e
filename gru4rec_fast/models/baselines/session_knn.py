"""SessionKNN: the next items of the sessions that are most similar to a session."""

from __future__ import annotations

from typing import Any

import numpy as np

from gru4rec_fast.data import InteractionGraph, SessionStore
from gru4rec_fast.models.baselines.base import Baseline
from gru4rec_fast.models.baselines.parameters import SessionKNNParameters
from gru4rec_fast.models.baselines.sparse import first_of_each_row, indicator_matrix, scipy_sparse
from gru4rec_fast.models.parameter_fields import document_parameters


@document_parameters
class SessionKNN(Baseline, SessionKNNParameters):
    """Ranks items by the most similar sessions of the training log (V-SkNN; Ludewig & Jannach, UMUAI 2018).

    Candidates for neighbors are the `n_recent` sessions with the latest last event that share an item with the session.
    The similarity of a candidate is the sum of the weights of the shared items. The weight of an item is the position
    of its last occurrence, from 1, divided by the length of the session. The `n_neighbors` most similar candidates are
    the neighbors; of equal ones, the most recent. The score of an item is the sum of the similarities of the neighbors
    that have it.

    The parameters below are keyword arguments and attributes. See `Baseline` for the methods and further attributes.

    Raises:
        TypeError: an unknown parameter or a value of the wrong type. ValueError: a value out of range.
    """

    file_format = "gru4rec_fast.SessionKNN/1"
    _entries_are_ones = True
    _needs_sessions = "it compares the events of sessions by position and time; use ItemKNN"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._recent_sessions: Any = None  # CSR array [n_items, n_sessions], see `_prepare`

    def _count(self, data: SessionStore | InteractionGraph) -> None:
        assert isinstance(data, SessionStore)
        # The matrix has a row for each session, the most recent first; of sessions that end together, the last one.
        recent_first = np.lexsort((np.arange(data.n_sessions), data.end_times))[::-1]
        self._matrix = indicator_matrix(data.items, data.offsets, data.n_items)[recent_first]
        self._prepare()
        self._matrix = self._matrix[np.unique(self._recent_sessions.indices)]

    def _prepare(self) -> None:
        """Find the `n_recent` most recent sessions of each item.

        A session that is among the most recent ones which share any item with a session is also among the most recent
        ones of each item that it shares. So the other sessions of an item are not needed.
        """
        self._recent_sessions = first_of_each_row(self._matrix.T.tocsr(), self.n_recent)

    def _score(self, items: np.ndarray, offsets: np.ndarray) -> Any:
        n_items, lengths = len(self._item_scores), np.diff(offsets)
        row = np.repeat(np.arange(len(lengths)), lengths)
        position = np.arange(len(items)) - offsets[row] + 1
        # Of each item of a history, the last occurrence: the first one in reverse order.
        keys, reverse_index = np.unique((row * n_items + items)[::-1], return_index=True)
        # Similarities of whole numbers are exact; the division by the length, which changes no order, is the last step.
        weights = position[::-1][reverse_index].astype(np.float64)
        rows, columns = np.divmod(keys, n_items)
        queries = scipy_sparse().csr_array((weights, (rows, columns)), shape=(len(lengths), n_items))
        similarities = first_of_each_row(queries @ self._recent_sessions, self.n_recent)
        neighbors = first_of_each_row(similarities, self.n_neighbors, largest=True)
        scores = (neighbors @ self._matrix).tocsr()
        scores.data /= np.repeat(lengths, np.diff(scores.indptr))
        return scores
