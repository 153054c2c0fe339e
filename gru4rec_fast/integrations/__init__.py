"""Adapters to the APIs of other implementations of these models, one module for each: `gru4rec_official`."""
