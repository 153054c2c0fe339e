"""Measure one row of the table of GPU results and write it to a JSON file.

    PYTHONPATH=.:benchmarks python -m gpu.measure_row "dropout mask, 1 x 32 x 100" --out row.json [--folder FOLDER]

A row compares this package with other implementations ("sides") at one workload. ROW is a name of workloads.row_names.
FOLDER is written by prepare_folder.py. `--without SIDE` leaves an implementation out. `--device cpu --tiny` tests this
program on a CPU; in addition, `--impl emulated` runs emulated CUDA kernels. The exit status is 1 if an implementation
failed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from gpu import rows_graph, rows_products, rows_sessions
from gpu.device import Device
from gpu.prepared_folder import PreparedFolder
from gpu.results import MissingInput, wait_for_device, write_json
from gpu.rows import Builder, measure
from gpu.workloads import row_names

BUILDERS: dict[str, Builder] = rows_sessions.BUILDERS | rows_products.BUILDERS | rows_graph.BUILDERS


def main() -> int:
    names = {str(name): name for name in row_names()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=names, metavar="ROW")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--folder", type=Path, help="written by prepare_folder.py; has data/ and peers/")
    parser.add_argument("--without", action="append", default=[], metavar="SIDE", help="an implementation to leave out")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--impl", default="native", help="implementation of this package's operators")
    parser.add_argument("--tiny", action="store_true", help="use small sizes")
    arguments = parser.parse_args()
    name, device = names[arguments.row], Device(torch.device(arguments.device), arguments.impl, arguments.tiny)
    wait_for_device()
    try:
        row = measure(
            name,
            BUILDERS[name.workload],
            device,
            PreparedFolder(arguments.folder),
            arguments.without,
            save=lambda row: write_json(arguments.out, {"rows": [row]}),
        )
    except MissingInput as missing:
        print(f"left out: {missing}")
        write_json(arguments.out, {"left_out": [f"{name}: {missing}"]})
        return 0
    write_json(arguments.out, {"rows": [row]})
    for side, seconds in row["seconds"].items():
        print(f"{side}: {seconds['median'] * 1e6:.1f} us", flush=True)
    for line in row["notes"]:
        print(line)
    for side, error in row["failed"].items():
        print(f"{side} failed: {error}")
    return bool(row["failed"])


if __name__ == "__main__":
    raise SystemExit(main())
