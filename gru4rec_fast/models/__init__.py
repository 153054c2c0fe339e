"""Estimators (fit, evaluate, recommend, save, load) and their hyper-parameters.

Each name is imported when it is first used, so that the parameter classes can be used without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gru4rec_fast.models.baselines.base import Baseline
    from gru4rec_fast.models.baselines.content import ContentSimilarity
    from gru4rec_fast.models.baselines.item_to_item import AssociationRules, ItemKNN, SequentialRules
    from gru4rec_fast.models.baselines.popularity import HighestRated, MostPopular
    from gru4rec_fast.models.baselines.session_knn import SessionKNN
    from gru4rec_fast.models.builders import build_session_network, build_session_runner
    from gru4rec_fast.models.cache import ByteLimitedCache, CacheStatistics, size_in_bytes
    from gru4rec_fast.models.candidates import CandidatePool
    from gru4rec_fast.models.graph_models import NGCF, GraphRecommender, LightGCN
    from gru4rec_fast.models.gru4rec import GRU4Rec
    from gru4rec_fast.models.memory_estimate import MemoryEstimate, estimate_memory
    from gru4rec_fast.models.parameter_text import parse_parameter_string, read_parameter_file
    from gru4rec_fast.models.parameters import (
        GraphParameters,
        GRU4RecParameters,
        LightGCNParameters,
        NGCFParameters,
        RatingScorerParameters,
    )
    from gru4rec_fast.models.rating_scorer import RatingScorer
    from gru4rec_fast.models.recommendations import Recommendations, recommend
    from gru4rec_fast.models.session_recommender import SessionRecommender

_MODULES = {
    "baselines.base": ("Baseline",),
    "baselines.content": ("ContentSimilarity",),
    "baselines.item_to_item": ("AssociationRules", "ItemKNN", "SequentialRules"),
    "baselines.popularity": ("HighestRated", "MostPopular"),
    "baselines.session_knn": ("SessionKNN",),
    "builders": ("build_session_network", "build_session_runner"),
    "cache": ("ByteLimitedCache", "CacheStatistics", "size_in_bytes"),
    "candidates": ("CandidatePool",),
    "graph_models": ("NGCF", "GraphRecommender", "LightGCN"),
    "gru4rec": ("GRU4Rec",),
    "memory_estimate": ("MemoryEstimate", "estimate_memory"),
    "parameter_text": ("parse_parameter_string", "read_parameter_file"),
    "parameters": (
        "GRU4RecParameters",
        "GraphParameters",
        "LightGCNParameters",
        "NGCFParameters",
        "RatingScorerParameters",
    ),
    "rating_scorer": ("RatingScorer",),
    "recommendations": ("Recommendations", "recommend"),
    "session_recommender": ("SessionRecommender",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "NGCF",
    "AssociationRules",
    "Baseline",
    "ByteLimitedCache",
    "CacheStatistics",
    "CandidatePool",
    "ContentSimilarity",
    "GRU4Rec",
    "GRU4RecParameters",
    "GraphParameters",
    "GraphRecommender",
    "HighestRated",
    "ItemKNN",
    "LightGCN",
    "LightGCNParameters",
    "MemoryEstimate",
    "MostPopular",
    "NGCFParameters",
    "RatingScorer",
    "RatingScorerParameters",
    "Recommendations",
    "SequentialRules",
    "SessionKNN",
    "SessionRecommender",
    "build_session_network",
    "build_session_runner",
    "estimate_memory",
    "parse_parameter_string",
    "read_parameter_file",
    "recommend",
    "size_in_bytes",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
