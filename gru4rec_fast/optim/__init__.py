"""Optimizers, which are ordinary torch.optim.Optimizer subclasses, and clipping of sparse and dense gradients."""

from gru4rec_fast.optim.clip_grad import clip_grad_norm_
from gru4rec_fast.optim.sparse_adagrad import SparseAdagrad
from gru4rec_fast.optim.sparse_adam import SparseAdam

__all__ = ["SparseAdagrad", "SparseAdam", "clip_grad_norm_"]
