"""Optimizers: ordinary torch.optim.Optimizer subclasses."""

from gru4rec_fast.optim.sparse_adagrad import SparseAdagrad
from gru4rec_fast.optim.sparse_adam import SparseAdam

__all__ = ["SparseAdagrad", "SparseAdam"]
