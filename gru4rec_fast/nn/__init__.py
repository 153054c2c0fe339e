"""Modules: networks, layers and losses for use in any PyTorch training loop."""

from gru4rec_fast.nn.embedding_rows import gather_rows
from gru4rec_fast.nn.graph_networks import GraphNetwork, LightGCNNetwork, NGCFNetwork
from gru4rec_fast.nn.graph_propagation import GraphIndices, LaplacianPropagation, NGCFLayer
from gru4rec_fast.nn.growable_embedding import GrowableEmbedding
from gru4rec_fast.nn.rating_network import RatingNetwork
from gru4rec_fast.nn.sampled_loss import SampledLoss
from gru4rec_fast.nn.session_gru import SessionGRU
from gru4rec_fast.nn.session_network import OutputTable, SessionNetwork

__all__ = [
    "GraphIndices",
    "GraphNetwork",
    "GrowableEmbedding",
    "LaplacianPropagation",
    "LightGCNNetwork",
    "NGCFLayer",
    "NGCFNetwork",
    "OutputTable",
    "RatingNetwork",
    "SampledLoss",
    "SessionGRU",
    "SessionNetwork",
    "gather_rows",
]
