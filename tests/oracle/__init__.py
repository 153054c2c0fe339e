"""GRU4Rec in float64 NumPy: a second implementation, written only from shared/semantics.md, as a reference for tests.

This folder imports nothing from `gru4rec_fast`. Weights are a dictionary of arrays. Their names and shapes define the
model, including the form of the GRU and the embedding mode. The gate order is r, z, n. The new state is
h' = (1 - z) * n + z * h. With I inputs and H units in a layer, and embeddings of E columns:

    layers.{l}.weight_ih [3H, I]     input weights; absent at layer 0 in one-hot mode
    layers.{l}.weight_hh [3H, H]     recurrent weights
    layers.{l}.bias_ih   [3H]        input bias
    layers.{l}.bias_hh   [3H]        recurrent bias; present in reset-after layers, absent in reset-before layers
    output.weight [n_items, H], output.bias [n_items]
    embedding.weight                 separate mode: [n_items, E]; one-hot mode: [n_items, 3H];
                                     constrained mode: absent, because output.weight is the embedding
"""

from .examples import random_weights
from .losses import LOSSES, SampledScores, sampled_loss
from .network import Block, Dropout, embedding_mode, input_width, layer_sizes, run_backward, run_forward, zero_state
from .philox import bernoulli_keep, draw_negatives, philox4x32, table_distribution, wanted_distribution
from .ranking import metrics, ranks, ranks_of_sessions
from .sessions import Step, session_steps, split
from .training import Adagrad, Options, Trainer, block_gradients

__all__ = [
    "LOSSES",
    "Adagrad",
    "Block",
    "Dropout",
    "Options",
    "SampledScores",
    "Step",
    "Trainer",
    "bernoulli_keep",
    "block_gradients",
    "draw_negatives",
    "embedding_mode",
    "input_width",
    "layer_sizes",
    "metrics",
    "philox4x32",
    "random_weights",
    "ranks",
    "ranks_of_sessions",
    "run_backward",
    "run_forward",
    "sampled_loss",
    "session_steps",
    "split",
    "table_distribution",
    "wanted_distribution",
    "zero_state",
]
