"""Public operators: fused kernels behind plain functions on plain tensors, with `impl=` on each."""

from gru4rec_fast.ops.dropout import dropout_mask
from gru4rec_fast.ops.negative_sampling import (
    AliasTable,
    build_alias_table,
    negative_sampling,
)
from gru4rec_fast.ops.session_batch import (
    session_batch,
    session_batch_state,
)

__all__ = [
    "AliasTable",
    "build_alias_table",
    "dropout_mask",
    "negative_sampling",
    "session_batch",
    "session_batch_state",
]
