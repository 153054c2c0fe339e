"""Evaluation of session and graph models: metrics, reports, comparisons, and baselines."""

from gru4rec_fast.evaluation.baselines import popularity_metrics, random_metrics
from gru4rec_fast.evaluation.beyond_accuracy import beyond_accuracy
from gru4rec_fast.evaluation.graphs import GRAPH_METRICS, evaluate_graph
from gru4rec_fast.evaluation.groups import By
from gru4rec_fast.evaluation.metrics import METRICS, RankMetrics, Ties, metrics_from_ranks, ranks_from_counts
from gru4rec_fast.evaluation.negatives import NegativesBy
from gru4rec_fast.evaluation.network import NextItemNetwork, evaluating
from gru4rec_fast.evaluation.ratings import rating_metrics
from gru4rec_fast.evaluation.report import Report
from gru4rec_fast.evaluation.session_rankings import Targets
from gru4rec_fast.evaluation.sessions import evaluate_sessions
from gru4rec_fast.evaluation.significance import bootstrap, compare, write_values

__all__ = [
    "GRAPH_METRICS",
    "METRICS",
    "By",
    "NegativesBy",
    "NextItemNetwork",
    "RankMetrics",
    "Report",
    "Targets",
    "Ties",
    "beyond_accuracy",
    "bootstrap",
    "compare",
    "evaluate_graph",
    "evaluate_sessions",
    "evaluating",
    "metrics_from_ranks",
    "popularity_metrics",
    "random_metrics",
    "ranks_from_counts",
    "rating_metrics",
    "write_values",
]
