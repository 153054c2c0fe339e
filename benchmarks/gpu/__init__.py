"""The GPU rows of the performance table; `run_all.sh` measures them in one call, by `python -m gpu.NAME`."""
