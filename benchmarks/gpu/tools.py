"""Says what is missing for benchmarks/gpu/run_all.sh, all of it at once; 1 where something is."""

from __future__ import annotations

import importlib.util
import shutil
import sys

WANTED = {"nvcc": "the CUDA toolkit", "ninja": "python -m pip install ninja"}
SANITIZER = "compute-sanitizer is not on PATH (it is part of the CUDA toolkit): kernels will not be run under it"
MODULES = ("torch", "numpy", "pandas", "scipy", "pytest", "hypothesis", "safetensors")


def main() -> int:
    missing = [f"{tool} is not on PATH ({where})" for tool, where in WANTED.items() if shutil.which(tool) is None]
    missing += [f"module {name} is not installed" for name in MODULES if importlib.util.find_spec(name) is None]
    print(*missing or ["all tools are there"], sep="\n")
    if shutil.which("compute-sanitizer") is None:
        print(SANITIZER)
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
