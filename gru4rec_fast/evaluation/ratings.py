"""Metrics of predicted ratings."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def rating_metrics(predictions: ArrayLike, ratings: ArrayLike, *, threshold: float | None = None) -> dict[str, float]:
    """Return MAE, MSE and RMSE of predicted ratings and, with a threshold, accuracy and F1.

    For accuracy and F1, a rating or prediction is positive if it is at least `threshold`. F1 is 0 if no rating and no
    prediction is positive.

    Args:
        predictions: numbers [n].
        ratings: the true ratings, numbers [n].
        threshold: the smallest positive rating, e.g. 4 of 5 stars, or 0.5 for ratings of 0 and 1.

    Returns:
        {"mae": ..., "mse": ..., "rmse": ...} and, with a threshold, "accuracy" and "f1".

    Raises:
        ValueError: shapes differ, there is no rating, or a number is NaN or infinite.
    """
    predicted, true = (np.asarray(values, np.float64) for values in (predictions, ratings))
    if predicted.shape != true.shape or true.ndim != 1 or not len(true):
        raise ValueError(
            f"predictions has shape {predicted.shape}, ratings {true.shape}: give two arrays [n], with n at least 1"
        )
    if not (np.isfinite(predicted).all() and np.isfinite(true).all()):
        raise ValueError("predictions and ratings must be finite numbers: leave out pairs without a rating")
    errors = predicted - true
    mse = float((errors**2).mean())
    metrics = {"mae": float(np.abs(errors).mean()), "mse": mse, "rmse": mse**0.5}
    if threshold is not None:
        positive, is_positive = predicted >= threshold, true >= threshold
        n_positive = int(positive.sum() + is_positive.sum())
        metrics["accuracy"] = float((positive == is_positive).mean())
        metrics["f1"] = 2 * int((positive & is_positive).sum()) / max(n_positive, 1)
    return metrics
