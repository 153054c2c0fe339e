"""Baselines: models without training by gradients, with the interface of the estimators."""
