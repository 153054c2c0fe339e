"""Adapters to other libraries, one module for each. None is imported with the package; docs/index.md lists their pages."""
