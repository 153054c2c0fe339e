"""GPU benchmarks; README.md explains how to run them."""
