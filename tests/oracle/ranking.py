"""Ranks of targets among all items, and ranking metrics."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .network import Weights, run_forward, zero_state
from .sessions import Step

# How much each other item with the score of the target adds to the rank.
TIES = {"standard": 0.0, "conservative": 1.0, "median": 0.5}


def ranks(scores: np.ndarray, targets: np.ndarray, ties: str = "standard") -> np.ndarray:
    """Return the ranks of the targets, float64 [Q]: 1 + higher scores + TIES[ties] * other equal scores."""
    if np.isnan(scores).any():
        raise ValueError("a NaN score has no rank")
    target_scores = np.take_along_axis(scores, targets[:, None], axis=1)
    n_higher = (scores > target_scores).sum(axis=1)
    n_equal = (scores == target_scores).sum(axis=1) - 1  # without the target
    return 1.0 + n_higher + TIES[ties] * n_equal


def metrics(rank: np.ndarray, k: int) -> dict[str, float]:
    """Return the metrics at cutoff k, as means over the targets.

    A target is the only relevant item, so MAP equals MRR and the hit rate equals recall.
    """
    hit = rank <= k
    return {
        f"recall@{k}": float(hit.mean()),
        f"mrr@{k}": float((hit / rank).mean()),
        f"ndcg@{k}": float((hit / np.log2(rank + 1)).mean()),
        f"map@{k}": float((hit / rank).mean()),
        f"precision@{k}": float((hit / k).mean()),
        f"hitrate@{k}": float(hit.mean()),
    }


def ranks_of_sessions(weights: Weights, sessions: Sequence[Sequence[int]], ties: str = "standard") -> np.ndarray:
    """Return the rank of the next item for every event except the last of each session."""
    all_ranks = []
    for session in sessions:
        state = zero_state(weights, 1)
        for current, following in pairwise(session):
            step = Step(np.array([current]), np.array([following]), np.array([False]))
            state = run_forward(weights, [step], state).states[-1]
            scores = state[-1] @ weights["output.weight"].T + weights["output.bias"]
            all_ranks.append(ranks(scores, step.targets, ties))
    return np.concatenate(all_ranks)
