"""Evaluation of session and graph models: metrics, reports, and baselines."""

from gru4rec_fast.evaluation.baselines import popularity_metrics, random_metrics
from gru4rec_fast.evaluation.graphs import GRAPH_METRICS, evaluate_graph
from gru4rec_fast.evaluation.metrics import METRICS, RankMetrics, Ties, metrics_from_ranks, ranks_from_counts
from gru4rec_fast.evaluation.network import NextItemNetwork, evaluating
from gru4rec_fast.evaluation.report import Report
from gru4rec_fast.evaluation.sessions import evaluate_sessions

__all__ = [
    "GRAPH_METRICS",
    "METRICS",
    "NextItemNetwork",
    "RankMetrics",
    "Report",
    "Ties",
    "evaluate_graph",
    "evaluate_sessions",
    "evaluating",
    "metrics_from_ranks",
    "popularity_metrics",
    "random_metrics",
    "ranks_from_counts",
]
