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
    """Return a CSR array without all but n entries of each row: those of the first columns, or the largest ones.

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
