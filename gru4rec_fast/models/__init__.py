"""Estimators: fit, evaluate, recommend, save, load."""

from gru4rec_fast.models.graph import NGCF, GraphRecommender, LightGCN
from gru4rec_fast.models.graph_parameters import GraphParameters, LightGCNParameters, NGCFParameters
from gru4rec_fast.models.gru4rec import GRU4Rec
from gru4rec_fast.models.parameter_text import parse_parameter_string, read_parameter_file
from gru4rec_fast.models.parameters import GRU4RecParameters, parameter_names
from gru4rec_fast.models.recommending import Recommendations, SessionRecommender, recommend

__all__ = [
    "NGCF",
    "GRU4Rec",
    "GRU4RecParameters",
    "GraphParameters",
    "GraphRecommender",
    "LightGCN",
    "LightGCNParameters",
    "NGCFParameters",
    "Recommendations",
    "SessionRecommender",
    "parameter_names",
    "parse_parameter_string",
    "read_parameter_file",
    "recommend",
]
