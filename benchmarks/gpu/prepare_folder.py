"""Makes the FOLDER that run_all.sh and long.sh take: prepared data, and the code of the peers, small enough to carry.

    python benchmarks/gpu/prepare_folder.py FOLDER [--data ../shared/data] [official=PATH] [ngcf=PATH] [lightgcn=PATH]

PATH is a checkout: github.com/hidasib/GRU4Rec_PyTorch_Official, huangtinglin/NGCF-PyTorch, gusye1234/LightGCN-PyTorch.
Of each only Python files and its license are taken, into FOLDER/peers/NAME; FOLDER/data/NAME/train and test are stores
and graphs, which the package opens memory-mapped, without polars. FOLDER belongs outside of the project, or where git
ignores it; nothing of it is ever committed.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

from gru4rec_fast.data import InteractionGraph, SessionStore

LOGS, GRAPHS = ("rsc15_100k", "diginetica"), ("gowalla",)
PEERS = {"official": "gru4rec_pytorch.py", "ngcf": "NGCF/NGCF.py", "lightgcn": "code/model.py"}
CARRIED = 64 * 2**20  # what a lent machine takes at once


def prepare_data(source: Path, folder: Path) -> Iterator[str]:
    """Write what there is of the logs and graphs; says what came of each."""
    for name in LOGS:
        vocabulary = None
        for part in ("train", "test"):
            path, out = source / name / f"{part}.tsv.gz", folder / "data" / name / part
            if not path.exists():
                yield f"left out: data/{name}/{part}, since {path} is not there"
                break
            vocabulary = SessionStore.from_events(path, vocabulary=vocabulary, out=out).vocabulary
            yield f"data/{name}/{part}: {size_of(out):.1f} MiB"
    for name in GRAPHS:
        graph = None
        for part in ("train", "test"):
            path, out = source / name / f"{part}.txt.gz", folder / "data" / name / part
            if not path.exists():
                yield f"left out: data/{name}/{part}, since {path} is not there"
                break
            read = InteractionGraph.from_text(path, like=graph)
            read.save(out)
            graph = graph or read
            yield f"data/{name}/{part}: {size_of(out):.1f} MiB"


def prepare_peers(paths: dict[str, Path], folder: Path) -> Iterator[str]:
    """Copy the code of the checkouts.

    Raises:
        FileNotFoundError: a path is no checkout of that peer.
    """
    for name, module in PEERS.items():
        if name not in paths:
            yield f"left out: peers/{name}, since no {name}=PATH was given"
            continue
        source, out = paths[name], folder / "peers" / name
        if not (source / module).exists():
            raise FileNotFoundError(f"{name}={source}: there is no {module}; give a checkout's folder")
        shutil.rmtree(out, ignore_errors=True)
        for path in [*source.rglob("*.py"), *source.glob("LICENSE*")]:
            (out / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / path.relative_to(source))
        yield f"peers/{name}: {size_of(out):.1f} MiB"


def size_of(folder: Path) -> float:
    """MiB of the files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("peers", nargs="*", metavar="NAME=PATH")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    asked = parser.parse_intermixed_args()
    given = dict(peer.partition("=")[::2] for peer in asked.peers)
    if unknown := [name for name, path in given.items() if name not in PEERS or not path]:
        parser.error(f"{unknown[0]}: give {' or '.join(f'{name}=PATH' for name in PEERS)}")
    for line in prepare_data(asked.data, asked.folder):
        print(line, flush=True)
    for line in prepare_peers({name: Path(path) for name, path in given.items()}, asked.folder):
        print(line, flush=True)
    total = size_of(asked.folder)
    print(f"{asked.folder}: {total:.1f} MiB" + ("" if total < CARRIED / 2**20 else ", too much to be carried at once"))


if __name__ == "__main__":
    main()
