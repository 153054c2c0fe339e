"""Benchmarks on a GPU, run by two calls of `call.py`; README.md explains how."""
