"""Adapters to other libraries, one module for each: `gru4rec_official`, `optuna`."""
