"""Pure PyTorch: what every operator computes; the specification, the fallback and the oracle at once."""

from gru4rec_fast.reference.dropout import dropout_mask
from gru4rec_fast.reference.negative_sampling import (
    AliasTable,
    build_alias_table,
    negative_sampling,
)
from gru4rec_fast.reference.session_batch import (
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
