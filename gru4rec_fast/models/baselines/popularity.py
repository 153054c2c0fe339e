"""Models that score items by counts of their own: MostPopular, HighestRated."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from gru4rec_fast.data import InteractionGraph, SessionStore, Split
from gru4rec_fast.models.baselines.base import Baseline
from gru4rec_fast.models.baselines.item_tables import read_item_values
from gru4rec_fast.models.baselines.parameters import HighestRatedParameters, MostPopularParameters
from gru4rec_fast.models.baselines.sparse import scipy_sparse
from gru4rec_fast.models.parameter_fields import document_parameters


@document_parameters
class MostPopular(Baseline, MostPopularParameters):
    """Ranks items by their support: over all, in the last days of the log, or in the session first.

    The score is the number of events of the item (of its users, if the model is fitted to interactions). With `days`,
    the events of sessions that end within the last days of the log are counted. With `in_session`, items of the session
    come first, by their number of occurrences in it; the support decides between equal numbers.

    The parameters below are keyword arguments and attributes. See `Baseline` for the methods and further attributes.

    Raises:
        TypeError: an unknown parameter or a value of the wrong type. ValueError: a value out of range.
    """

    file_format = "gru4rec_fast.MostPopular/1"

    def _count(self, data: SessionStore | InteractionGraph) -> None:
        assert self.support is not None
        support = self.support
        if isinstance(data, SessionStore):
            if self.days is not None:
                split = Split(days=self.days, time_unit=self.time_unit)
                starts, ends = np.asarray(data.start_times), np.asarray(data.end_times)
                is_recent = split.held_out(starts, ends, np.arange(data.n_sessions))
                of_event = np.repeat(is_recent, np.diff(data.offsets))
                support = np.bincount(data.items[of_event], minlength=data.n_items)
        elif self.days is not None or self.in_session:
            name = "in_session=True" if self.in_session else f"days={self.days:g}"
            raise ValueError(f"{name} needs sessions, not interactions, which have no times: leave it out")
        self._item_scores = support.astype(np.float64)

    def _score(self, items: np.ndarray, offsets: np.ndarray) -> Any:
        n_items = len(self._item_scores)
        if not self.in_session:
            return scipy_sparse().csr_array((len(offsets) - 1, n_items))
        # Whole numbers, so that the sums are exact. One occurrence counts more than any support.
        weights = np.full(len(items), self._item_scores.max() + 1)
        counts = scipy_sparse().csr_array((weights, items, offsets), shape=(len(offsets) - 1, n_items))
        counts.sum_duplicates()
        return counts

    def _n_last(self) -> int | None:
        return None if self.in_session else 1


@document_parameters
class HighestRated(Baseline, HighestRatedParameters):
    """Ranks items by their mean rating, with a prior on the number of ratings.

    Let m be the mean of all ratings, and an item have n ratings with the sum s. Its score is (s + c m) / (n + c) with
    the prior count c: the posterior mean of a normal distribution with the prior mean m. An item without ratings has
    the score m.

    The parameters below are keyword arguments and attributes. See `Baseline` for the methods and further attributes.

    Raises:
        TypeError: an unknown parameter or a value of the wrong type. ValueError: a value out of range.
    """

    file_format = "gru4rec_fast.HighestRated/1"

    def fit(
        self,
        data: Any,
        *,
        ratings: Any = None,
        rating_key: str = "Rating",
        interactions: bool = False,
        **columns: str,
    ) -> Self:
        """Average the ratings of each item; return self.

        Args:
            data, interactions, columns: see `Baseline.fit`. Items of `data` can be recommended.
            ratings: file or table with a column of items (`item_key`) and one of ratings; None: `data` has them.
                Ratings of items that `data` does not have are left out, with a warning.
            rating_key: name of the column of ratings.

        Raises: see `Baseline.fit`.
        """
        table = data if ratings is None else ratings
        item_key = columns.get("item_key", "ItemId")

        def count(model: Self, opened: SessionStore | InteractionGraph) -> None:
            assert model.vocabulary is not None
            index, values = read_item_values(table, "rating", rating_key, item_key, model.vocabulary)
            sums, n = np.bincount(index, values, opened.n_items), np.bincount(index, minlength=opened.n_items)
            with np.errstate(over="ignore", invalid="ignore"):  # infinite scores are an error afterwards
                model._item_scores = (sums + self.prior_count * np.mean(values)) / (n + self.prior_count)

        return self._fit(data, interactions, columns, count)

    def _score(self, items: np.ndarray, offsets: np.ndarray) -> Any:
        return scipy_sparse().csr_array((len(offsets) - 1, len(self._item_scores)))

    def _n_last(self) -> int | None:
        return 1
