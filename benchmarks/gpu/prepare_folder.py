"""Write the folder that call.py needs on the GPU machine: prepared data, and public implementations ("peers").

    python benchmarks/gpu/prepare_folder.py FOLDER [--data ../shared/data] [official=PATH] [ngcf=PATH] [lightgcn=PATH]
    PYTHONPATH=benchmarks python benchmarks/gpu/prepare_folder.py FOLDER --rehearsal

PATH is a checkout of a peer: github.com/hidasib/GRU4Rec_PyTorch_Official, huangtinglin/NGCF-PyTorch or
gusye1234/LightGCN-PyTorch. The peer's Python files and license are copied to FOLDER/peers/NAME.
FOLDER/data/NAME/train and FOLDER/data/NAME/test are session stores or graphs, which the package opens without polars.
Choose a FOLDER that git ignores, so that it is not committed. build_library.sh adds the native library.

`--rehearsal` writes a folder for rehearsals without a GPU (`call.py --rehearsal`): small synthetic data, no peers, and
scripts that replace the programs that need a GPU.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gru4rec_fast.data import InteractionGraph, SessionStore

LOGS, GRAPHS = ("rsc15_100k", "diginetica"), ("gowalla",)
# For each peer, a file by which its checkout is recognized.
PEERS = {"official": "gru4rec_pytorch.py", "ngcf": "NGCF/NGCF.py", "lightgcn": "code/model.py"}
MAX_MIB = 64  # size limit for uploads to the GPU machine


def prepare_data(source: Path, folder: Path) -> Iterator[str]:
    """Convert the logs and graphs of `source` whose files exist; yield a message about each file."""
    for name in LOGS:
        vocabulary = None
        for part in ("train", "test"):
            path, out = source / name / f"{part}.tsv.gz", folder / "data" / name / part
            if not path.exists():
                yield f"left out: data/{name}/{part}, since {path} does not exist"
                break
            vocabulary = SessionStore.from_events(path, vocabulary=vocabulary, out=out).vocabulary
            yield f"data/{name}/{part}: {size_mib(out):.1f} MiB"
    for name in GRAPHS:
        graph = None
        for part in ("train", "test"):
            path, out = source / name / f"{part}.txt.gz", folder / "data" / name / part
            if not path.exists():
                yield f"left out: data/{name}/{part}, since {path} does not exist"
                break
            part_graph = InteractionGraph.from_text(path, like=graph)
            part_graph.save(out)
            graph = graph or part_graph
            yield f"data/{name}/{part}: {size_mib(out):.1f} MiB"


def prepare_peers(paths: dict[str, Path], folder: Path) -> Iterator[str]:
    """Copy the Python files and the license of each peer's checkout; yield a message about each peer.

    Raises:
        FileNotFoundError: a path is not a checkout of the peer it is given for.
    """
    for name, module in PEERS.items():
        if name not in paths:
            yield f"left out: peers/{name}, since no {name}=PATH was given"
            continue
        source, out = paths[name], folder / "peers" / name
        if not (source / module).exists():
            raise FileNotFoundError(f"{name}={source}: there is no {module}; give the folder of a checkout")
        shutil.rmtree(out, ignore_errors=True)
        for path in [*source.rglob("*.py"), *source.glob("LICENSE*")]:
            (out / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / path.relative_to(source))
        yield f"peers/{name}: {size_mib(out):.1f} MiB"


# Scripts that replace programs that need a GPU. `latencies` and `ncu` write constant numbers in the format of these
# programs; `ncu` and `compute-sanitizer` run the command that they are given.
REPLACEMENT_SCRIPTS = {
    "latencies": """#!/bin/sh
echo '{"graph node": 1500.0}'
""",
    "bin/compute-sanitizer": """#!/bin/sh
shift 8  # the options of compute-sanitizer (stages.sanitizers), before the command
exec "$@"
""",
    "bin/ncu": """#!/usr/bin/env python3
import csv, subprocess, sys
options = dict(zip(sys.argv, sys.argv[1:]))
command = sys.argv[sys.argv.index("--log-file") + 2:]
code = subprocess.run(command).returncode
metrics = options["--metrics"].split(",")
with open(options["--log-file"], "w") as file:
    print("==PROF== Connected", file=file)
    rows = [["ID", "Kernel Name", *metrics], ["", "", *["ns"] * len(metrics)], ["1", "k", *["8"] * len(metrics)]]
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
sys.exit(code)
""",
}


def prepare_rehearsal(folder: Path) -> None:
    """Write synthetic data and REPLACEMENT_SCRIPTS, for a rehearsal without a GPU."""
    from synthetic import synthetic_store

    for name in LOGS:
        synthetic_store(folder / "data" / name / "train", 6000, 400)
    # The square of a uniform number: nodes with a low index have more edges.
    draws = (np.random.default_rng(0).random((900, 2)) ** 2 * (50, 70)).astype(np.int64)
    for part, interactions in (("train", draws[:700]), ("test", draws[700:])):
        graph = InteractionGraph.from_arrays(*interactions.T, n_users=50, n_items=70)
        graph.save(folder / "data" / "gowalla" / part)
    for name, text in REPLACEMENT_SCRIPTS.items():
        program = folder / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)


def size_mib(folder: Path) -> float:
    """Return the total size of a folder's files in MiB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("peers", nargs="*", metavar="NAME=PATH")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--rehearsal", action="store_true", help="write a folder for a rehearsal without a GPU")
    arguments = parser.parse_intermixed_args()
    if arguments.rehearsal:
        prepare_rehearsal(arguments.folder)
        return
    paths = dict(peer.partition("=")[::2] for peer in arguments.peers)
    if unknown := [name for name, path in paths.items() if name not in PEERS or not path]:
        parser.error(f"{unknown[0]}: give {' or '.join(f'{name}=PATH' for name in PEERS)}")
    for line in prepare_data(arguments.data, arguments.folder):
        print(line, flush=True)
    for line in prepare_peers({name: Path(path) for name, path in paths.items()}, arguments.folder):
        print(line, flush=True)
    total = size_mib(arguments.folder)
    print(f"{arguments.folder}: {total:.1f} MiB")
    if total >= MAX_MIB:
        print(f"warning: the folder exceeds {MAX_MIB} MiB, the limit of an upload")


if __name__ == "__main__":
    main()
