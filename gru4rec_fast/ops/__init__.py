"""Operators: functions on tensors. `impl` chooses between native kernels and a pure-PyTorch reference."""

from gru4rec_fast.ops.bpr_triples import bpr_triples
from gru4rec_fast.ops.dropout import dropout_mask
from gru4rec_fast.ops.gru import gru
from gru4rec_fast.ops.laplacian_propagation import laplacian_propagation
from gru4rec_fast.ops.negative_sampling import (
    AliasTable,
    build_alias_table,
    negative_sampling,
)
from gru4rec_fast.ops.ngcf_layer import ngcf_layer
from gru4rec_fast.ops.ranking import target_rank, top_k
from gru4rec_fast.ops.sampled_loss import sampled_loss
from gru4rec_fast.ops.session_batch import (
    session_batch,
    session_batch_state,
)
from gru4rec_fast.ops.sparse_update import (
    sparse_adagrad_,
    sparse_adam_,
)

__all__ = [
    "AliasTable",
    "bpr_triples",
    "build_alias_table",
    "dropout_mask",
    "gru",
    "laplacian_propagation",
    "negative_sampling",
    "ngcf_layer",
    "sampled_loss",
    "session_batch",
    "session_batch_state",
    "sparse_adagrad_",
    "sparse_adam_",
    "target_rank",
    "top_k",
]
