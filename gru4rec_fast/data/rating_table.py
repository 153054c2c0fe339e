"""A table of ratings with indices in place of ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gru4rec_fast._untrusted import brief
from gru4rec_fast.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class RatingTable:
    """Rows of ids, with or without a rating.

    Attributes:
        vocabularies: the ids of each kind ("user", "group", "item") by index.
        index: int64 [n, number of kinds], the index of each id, in the order of `vocabularies`; -1 for an unknown id.
        ratings: float64 [n]; None if they were not read.
    """

    vocabularies: Mapping[str, Vocabulary]
    index: np.ndarray
    ratings: np.ndarray | None

    @classmethod
    def read(
        cls,
        source: Any,
        keys: Mapping[str, str],
        *,
        rating_key: str | None,
        vocabularies: Mapping[str, Vocabulary] | None = None,
        require_known: bool = False,
    ) -> RatingTable:
        """Read a file or data frame, as `SessionStore.from_events` does.

        Args:
            source: the file or data frame.
            keys: names of the columns of ids, by kind.
            rating_key: name of the column of ratings; None: they are not read.
            vocabularies: ids of an earlier table, whose indices the ids get; None: the sorted ids of this table.
            require_known: raise an error for an id that is not in `vocabularies`.

        Raises:
            ValueError: there are no rows, a column is missing, an id or rating is missing, a rating is not a finite
                number, or an unknown id. TypeError, FileNotFoundError: see `SessionStore.from_events`.
        """
        from gru4rec_fast.data.table_reader import TableReader, numpy_ids  # loads polars
        from gru4rec_fast.data.tables import open_table

        table = open_table(source, {**keys, **({} if rating_key is None else {"rating": rating_key})})
        frame = TableReader(table).read()
        ids = {kind: numpy_ids(frame[kind]) for kind in keys}
        if vocabularies is None:
            vocabularies = {kind: Vocabulary(np.unique(values)) for kind, values in ids.items()}
        columns = [vocabularies[kind].index_of_any_kind(values) for kind, values in ids.items()]
        for (kind, values), index in zip(ids.items(), columns, strict=True):
            if require_known and (index < 0).any():
                row = int((index < 0).argmax())
                raise ValueError(
                    f"{table.name}: column {table.columns[kind]!r}, row {row + 1} (the first is 1): the {kind} "
                    f"{brief(values[row : row + 1].tolist()[0])} is not in the training data; unknown='ignore' "
                    f"predicts by the other ids of the row, and extend_{kind}s appends the {kind} to the model"
                )
        ratings = None if rating_key is None else frame["rating"].to_numpy()
        return cls(vocabularies, np.stack(columns, axis=1), ratings)
