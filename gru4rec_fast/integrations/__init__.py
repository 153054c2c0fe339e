"""Adapters to other code: one module each, imported by its own name."""
