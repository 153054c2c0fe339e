"""Evaluation: the next-item protocol, its metrics, and the baselines a model has to beat."""

from gru4rec_fast.evaluation.baselines import popularity_metrics, random_metrics
from gru4rec_fast.evaluation.graph import GRAPH_METRICS, GraphReport, evaluate_graph
from gru4rec_fast.evaluation.metrics import METRICS, RankMetrics, Ties, metrics_from_ranks, ranks_from_counts
from gru4rec_fast.evaluation.network import NextItemNetwork, evaluating
from gru4rec_fast.evaluation.protocol import evaluate_sessions
from gru4rec_fast.evaluation.report import Report

__all__ = [
    "GRAPH_METRICS",
    "METRICS",
    "GraphReport",
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
