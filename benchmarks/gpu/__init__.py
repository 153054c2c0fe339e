"""Benchmarks on a GPU, run by `call.py` in two calls; README.md tells how."""
