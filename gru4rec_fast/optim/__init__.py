"""Optimizers: ordinary torch.optim.Optimizer subclasses."""

from gru4rec_fast.optim.sparse_adagrad import SparseAdagrad
from gru4rec_fast.optim.sparse_adam import SparseAdam
from gru4rec_fast.optim.sparse_rmsprop import SparseRMSprop
from gru4rec_fast.optim.sparse_sgd import SparseSGD

__all__ = ["SparseAdagrad", "SparseAdam", "SparseRMSprop", "SparseSGD"]
