"""Pure PyTorch: what every operator computes; the specification, the fallback and the oracle at once."""

from gru4rec_fast.reference.bpr_triples import bpr_triples
from gru4rec_fast.reference.dropout import dropout_mask
from gru4rec_fast.reference.gru import gru
from gru4rec_fast.reference.laplacian import laplacian
from gru4rec_fast.reference.negative_sampling import (
    AliasTable,
    build_alias_table,
    negative_sampling,
)
from gru4rec_fast.reference.ngcf_layer import ngcf_layer
from gru4rec_fast.reference.ranking import target_rank, top_k
from gru4rec_fast.reference.sampled_loss import sampled_loss
from gru4rec_fast.reference.session_batch import (
    session_batch,
    session_batch_state,
)
from gru4rec_fast.reference.sparse_update import (
    sparse_adagrad,
    sparse_adam,
    sparse_rmsprop,
    sparse_sgd,
)

__all__ = [
    "AliasTable",
    "bpr_triples",
    "build_alias_table",
    "dropout_mask",
    "gru",
    "laplacian",
    "negative_sampling",
    "ngcf_layer",
    "sampled_loss",
    "session_batch",
    "session_batch_state",
    "sparse_adagrad",
    "sparse_adam",
    "sparse_rmsprop",
    "sparse_sgd",
    "target_rank",
    "top_k",
]
