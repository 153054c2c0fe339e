"""Adapters to other libraries, one module for each, listed in docs/index.md. The package imports none of them."""
