"""Read ratings or texts of items from a table."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from gru4rec_fast.data import InteractionGraph, SessionStore, Vocabulary
from gru4rec_fast.data.array_folder import counted
from gru4rec_fast.data.part_files import is_prepared


def read_item_values(
    source: Any, role: str, key: str, item_key: str, items: Vocabulary
) -> tuple[np.ndarray, list[Any]]:
    """Return the item indices, int64 [n], and the values [n] of the rows of a table; unknown items are left out.

    Warns if there are unknown items.

    Args:
        source: a file or data frame, as for `SessionStore.from_events`.
        role: "rating" or "text".
        key, item_key: names of the columns.
        items: the item ids of the model.

    Raises:
        ValueError: there is no table, no item is known, or see `TableReader`.
    """
    from gru4rec_fast.data.table_reader import TableReader, numpy_ids  # loads polars
    from gru4rec_fast.data.tables import open_table

    is_data = isinstance(source, SessionStore | InteractionGraph) or hasattr(source, "tocoo") or is_prepared(source)
    if source is None or is_data:
        raise ValueError(
            f"there are no {role}s: give {role}s= (--{role}s), a file or table with columns of items and of {role}s"
        )
    rows = TableReader(open_table(source, {"item": item_key, role: key})).read()
    index = items.index_of_any_kind(numpy_ids(rows["item"]))
    is_known = index >= 0
    if not is_known.any():
        raise ValueError(f"no item of the {role}s is in the training data: are these ids of the same catalogue?")
    if not is_known.all():
        n_unknown = counted(int((~is_known).sum()), f"{role}s of items that are not in the training data")
        warnings.warn(f"ignored: {n_unknown}", stacklevel=3)
    return index[is_known], rows[role].filter(is_known).to_list()
