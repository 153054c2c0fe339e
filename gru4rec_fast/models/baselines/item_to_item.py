"""Models that score items by the items of a session or user: AssociationRules, SequentialRules, ItemKNN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gru4rec_fast.data import InteractionGraph, SessionStore
from gru4rec_fast.models.baselines.base import Baseline
from gru4rec_fast.models.baselines.parameters import (
    AssociationRulesParameters,
    ItemKNNParameters,
    SequentialRulesParameters,
)
from gru4rec_fast.models.baselines.sparse import first_of_each_row, indicator_matrix, scipy_sparse
from gru4rec_fast.models.parameter_fields import document_parameters

_ITEMS_PER_PRODUCT = 1024  # items that are compared with all others at a time, so that memory is for the kept ones


class ItemToItem(Baseline):
    """Base class of the models with a matrix of scores [n_items, n_items], from item (row) to item (column).

    The score of an item is the sum of the entries of its column in the rows of the last `n_last` events of a session,
    each item once; or of all items of a user.
    """

    _rows_are_items = True
    n_last: int
    n_neighbors: int | None

    def _score(self, items: np.ndarray, offsets: np.ndarray) -> Any:
        return indicator_matrix(items, offsets, len(self._item_scores)) @ self._matrix

    def _n_last(self) -> int | None:
        return self.n_last

    def _set_matrix(self, vectors: Any, score: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> None:
        """Set the matrix to the scores of all pairs of different items whose vectors have a positive product.

        Args:
            vectors: CSR array of float64 [n_items, F], without negative values.
            score: returns the scores of P pairs, float64 [P]; 0 leaves a pair out. Its arguments are the products of
                their vectors, float64 [P], the first items and the second items, int [P] each.
        """
        blocks, transposed = [], vectors.T.tocsr()
        for start in range(0, vectors.shape[0], _ITEMS_PER_PRODUCT):
            products = (vectors[start : start + _ITEMS_PER_PRODUCT] @ transposed).tocoo()
            scores = score(products.data, products.row + start, products.col)
            kept = (products.row + start != products.col) & (scores > 0)
            entries = scores[kept], (products.row[kept], products.col[kept])
            blocks.append(self._pruned(scipy_sparse().csr_array(entries, shape=products.shape)))
        self._matrix = scipy_sparse().vstack(blocks, format="csr")

    def _pruned(self, rows: Any) -> Any:
        """Return some rows of the matrix with the `n_neighbors` largest entries of each."""
        return rows if self.n_neighbors is None else first_of_each_row(rows, self.n_neighbors, largest=True)


class CoOccurrences(ItemToItem):
    """Base class of the models of how many sessions (or users) two items have in common."""

    def _count(self, data: SessionStore | InteractionGraph) -> None:
        if isinstance(data, SessionStore):
            histories = indicator_matrix(data.items, data.offsets, data.n_items)
        else:
            users, items = data.interactions()
            histories = scipy_sparse().csr_array(
                (np.ones(len(users)), (users, items)), shape=(data.n_users, data.n_items)
            )
        by_item = histories.T.tocsr()
        n = np.diff(by_item.indptr).astype(np.float64)  # number of sessions with each item
        n_all = histories.shape[0]
        self._set_matrix(by_item, lambda common, row, column: self._scores_of_pairs(common, n[row], n[column], n_all))

    def _scores_of_pairs(self, common: np.ndarray, first: np.ndarray, second: np.ndarray, n: int) -> np.ndarray:
        """Return the scores of P pairs of items, float64 [P]; 0 leaves a pair out.

        common: number of sessions that have both items. first, second: number that have the one item, and the other. n:
            number of all sessions.
        """
        raise NotImplementedError


@document_parameters
class AssociationRules(CoOccurrences, AssociationRulesParameters):
    """Ranks items by association rules of two items: from the last item of a session to another item in the same one.

    Let c be the number of sessions (or users) that have both items, a and b the number that have the one and the other,
    n the number of all: support is c / n, confidence c / a, lift c n / (a b). With one last item, support and
    confidence give the same order (Agrawal et al., SIGMOD 1993; Ludewig & Jannach, UMUAI 2018, equation 1).

    The parameters below are keyword arguments and attributes. See `Baseline` for the methods and further attributes.

    Raises:
        TypeError: an unknown parameter or a value of the wrong type. ValueError: a value out of range.
    """

    file_format = "gru4rec_fast.AssociationRules/1"

    def _scores_of_pairs(self, common: np.ndarray, first: np.ndarray, second: np.ndarray, n: int) -> np.ndarray:
        divisor = {"support": n, "confidence": first, "lift": first * second / n}[self.measure]
        return np.where(common >= self.min_count, common / divisor, 0.0)


@document_parameters
class ItemKNN(CoOccurrences, ItemKNNParameters):
    """Ranks items by their similarity to the last item of a session, or to the items of a user.

    The similarity is the cosine of the sets of sessions (or users), c / sqrt((a + s) (b + s)), where c is the number
    that have both items, a and b the number that have the one and the other, and s the shrinkage (Hidasi et al., ICLR
    2016, baseline item-KNN).

    The parameters below are keyword arguments and attributes. See `Baseline` for the methods and further attributes.

    Raises:
        TypeError: an unknown parameter or a value of the wrong type. ValueError: a value out of range.
    """

    file_format = "gru4rec_fast.ItemKNN/1"

    def _scores_of_pairs(self, common: np.ndarray, first: np.ndarray, second: np.ndarray, n: int) -> np.ndarray:
        return common / np.sqrt((first + self.shrinkage) * (second + self.shrinkage))


@document_parameters
class SequentialRules(ItemToItem, SequentialRulesParameters):
    """Ranks items by how often, and how soon, they follow the last item of a session.

    An item that comes d events after another adds 1 / d to the score of the pair, for d up to `steps`. The scores from
    an item are divided by their sum (Ludewig & Jannach, UMUAI 2018, equation 3, which divides by a count; with one last
    item the order is the same). An item may follow itself.

    The parameters below are keyword arguments and attributes. See `Baseline` for the methods and further attributes.

    Raises:
        TypeError: an unknown parameter or a value of the wrong type. ValueError: a value out of range.
    """

    file_format = "gru4rec_fast.SequentialRules/1"
    _needs_sessions = "interactions have no order; use AssociationRules"

    def _count(self, data: SessionStore | InteractionGraph) -> None:
        assert isinstance(data, SessionStore)
        csr_array, shape = scipy_sparse().csr_array, (data.n_items, data.n_items)
        session = np.repeat(np.arange(data.n_sessions), np.diff(data.offsets))
        total = csr_array(shape)
        for distance in range(1, min(self.steps, data.n_events - 1) + 1):
            first = np.flatnonzero(session[:-distance] == session[distance:])
            if not len(first):
                break
            pairs = data.items[first], data.items[first + distance]
            total = total + csr_array((np.full(len(first), 1 / distance), pairs), shape=shape)
        sums = np.add.reduceat(np.append(total.data, 0.0), total.indptr[:-1])
        total.data /= np.repeat(sums, np.diff(total.indptr))
        self._matrix = self._pruned(total)
