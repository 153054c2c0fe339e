"""The version, kept here and nowhere else: setup reads it without importing the package."""

__version__ = "0.1.0"
