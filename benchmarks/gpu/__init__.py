"""Measure this package on a GPU; README.md explains how to run the benchmarks."""
