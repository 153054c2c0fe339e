"""Adapters to other code: one module for each, for example `gru4rec_fast.integrations.gru4rec_official`."""
