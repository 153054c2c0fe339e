"""Sparse matrices of the baselines: histories as rows, and the largest entries of each row."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np


def scipy_sparse() -> ModuleType:
    """Return scipy.sparse. Raises ImportError, with the command that installs SciPy, if it is not installed."""
    try:
        import scipy.sparse
    except ImportError as error:
        raise ImportError("the baselines need SciPy: pip install 'gru4rec_fast[baselines]'") from error
    module: ModuleType = scipy.sparse
    return module


def check_rows(data: np.ndarray, indices: np.ndarray, offsets: np.ndarray, n_items: int) -> None:
    """Raise ValueError unless the arrays are those of a CSR matrix with `n_items` columns, ascending in each row."""
    if not all(array.ndim == 1 and array.dtype in (np.int32, np.int64) for array in (indices, offsets)):
        raise ValueError("indices and offsets must be integers, of one dimension")
    bounds = offsets.astype(np.int64)
    if not len(bounds) or bounds[0] != 0 or bounds[-1] != len(indices) or len(indices) != len(data):
        raise ValueError("the offsets do not fit the number of entries")
    if (bounds[1:] < bounds[:-1]).any():
        raise ValueError("the offsets decrease")
    if len(indices) and not 0 <= indices.min() <= indices.max() < n_items:
        raise ValueError(f"an index is not one of {n_items} items")
    ascends = np.diff(indices.astype(np.int64)) > 0
    starts = bounds[1:-1]
    ascends[starts[(starts > 0) & (starts < len(indices))] - 1] = True  # a row begins there
    if not ascends.all():
        raise ValueError("the indices of a row do not ascend")


def indicator_matrix(items: np.ndarray, offsets: np.ndarray, n_items: int) -> Any:
    """Return a CSR array of float64 [Q, n_items] with 1 for each item that a history has.

    items: the items of all histories, int64 [n]. offsets: int64 [Q + 1].
    """
    shape = len(offsets) - 1, n_items
    matrix = scipy_sparse().csr_array((np.ones(len(items)), np.array(items), np.array(offsets)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def first_of_each_row(matrix: Any, n: int, *, largest: bool = False) -> Any:
    """Return a CSR array with at most n entries of each row: those of the first columns, or the largest ones.

    Of equal entries, those of the first columns are kept.
    """
    matrix.sum_duplicates()  # sorts the columns of each row
    lengths = np.diff(matrix.indptr)
    if not len(matrix.data) or lengths.max() <= n:
        return matrix
    order = np.arange(len(matrix.data))
    if largest:
        order = np.lexsort((matrix.indices, -matrix.data, np.repeat(np.arange(len(lengths)), lengths)))
    kept = np.sort(order[np.arange(len(order)) - np.repeat(matrix.indptr[:-1], lengths) < n])
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, n))])
    return scipy_sparse().csr_array((matrix.data[kept], matrix.indices[kept], offsets), shape=matrix.shape)
