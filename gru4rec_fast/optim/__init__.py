"""Optimizers: ordinary torch.optim.Optimizer subclasses."""

from gru4rec_fast.optim.sparse_adagrad import SparseAdagrad

__all__ = ["SparseAdagrad"]
