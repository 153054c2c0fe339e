"""The version of the package; the build reads it from this file without importing the package."""

__version__ = "0.2.0"
