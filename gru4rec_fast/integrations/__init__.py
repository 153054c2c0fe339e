"""Adapters to other libraries, one module for each; docs/index.md lists their pages. The package imports none of them."""
