"""Record Recall@20 and NDCG@20 on Gowalla after each epoch of NGCF or LightGCN with 3 layers.

    python benchmarks/graph_curves.py ngcf package --epochs 10 --out build/benchmarks/ngcf.json
    python benchmarks/graph_curves.py ngcf naive --epochs 10 --batch-size 8192 --learning-rate 1e-3
    python benchmarks/graph_curves.py lightgcn public=PATH --epochs 5 --seed 2020

"package" trains the estimators of this package, "naive" trains the plain PyTorch models of naive_graph.py. Both
trainings start from the same weights, use the same triples (user, item, negative item) and are evaluated by
`evaluate_graph`. Only the dropout masks differ. The default hyper-parameters are the published ones. "naive" stores the
transposed matrix, since an epoch would otherwise take three times as long. "public" runs the program of
LightGCN-PyTorch, a checkout at PATH, with its own data loader, sampler and test, and evaluates its embeddings by
`evaluate_graph`, too. The script needs ../shared/data/gowalla; "public" also needs pandas, scikit-learn and tqdm.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from naive_graph import NaiveLightGCN, NaiveNGCF
from peers.graph import lightgcn_epochs

from gru4rec_fast import NGCF, LightGCN
from gru4rec_fast.data import InteractionGraph, TripleSampler
from gru4rec_fast.evaluation import evaluate_graph

GOWALLA = Path(__file__).parents[2] / "shared" / "data" / "gowalla"
Record = dict[str, float]  # an epoch's number, loss, recall@20, ndcg@20 and seconds


def package_epochs(model: NGCF | LightGCN, graph: InteractionGraph, test: InteractionGraph, n: int) -> Iterator[Record]:
    """Yield a record for each of n epochs of the package's training. Each epoch is a call of `fit` that resumes."""
    with tempfile.TemporaryDirectory() as folder:
        for epoch in range(1, n + 1):
            model.set_params(n_epochs=epoch)
            model.fit(graph, validation=test, out=folder, resume=epoch > 1, progress=False)
            record = model.history[-1]
            yield {"epoch": epoch, "loss": record["loss"], **record["validation"], "seconds": record["seconds"]}


def naive_epochs(model: NGCF | LightGCN, graph: InteractionGraph, test: InteractionGraph, n: int) -> Iterator[Record]:
    """Yield a record for each of n epochs in plain PyTorch, from the same weights and triples as `package_epochs`."""
    weights = {name: value.detach() for name, value in model.build_network(graph).state_dict().items()}
    network: NaiveNGCF | NaiveLightGCN = (
        NaiveNGCF(graph, weights, adjacency=model.adjacency, transpose=True)
        if isinstance(model, NGCF)
        else NaiveLightGCN(graph, weights, transpose=True)
    )
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=model.learning_rate)
    sampler = TripleSampler(graph, model.batch_size, seed=model.seed)
    for epoch in range(n):
        started, total = time.perf_counter(), 0.0
        network.train()
        for _, triples in sampler.epoch(epoch):
            loss = network.loss(*triples, model.reg_weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        seconds = time.perf_counter() - started
        with torch.no_grad():
            report = evaluate_graph(network.eval()(), graph, test)
        metrics = {name: report.metrics[name] for name in ("recall@20", "ndcg@20")}
        yield {"epoch": epoch + 1, "loss": total / sampler.n_batches, **metrics, "seconds": seconds}


def public_epochs(path: str, seed: int, graph: InteractionGraph, test: InteractionGraph, n: int) -> Iterator[Record]:
    """Yield a record for each of n epochs of the public LightGCN, from the checkout at `path`.

    Metrics of the public test are those with "public" in their names; the others are those of `evaluate_graph`.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in ("train.txt", "test.txt"):
            with gzip.open(GOWALLA / f"{name}.gz") as source, (Path(folder) / name).open("wb") as target:
                shutil.copyfileobj(source, target)
        for record, (users, items) in lightgcn_epochs(path, folder, n, seed):
            # Row i of the public embeddings has the user or item with id i. The graph sorts its ids.
            rows = [torch.from_numpy(ids.ids.astype("int64")) for ids in (graph.users, graph.items)]
            report = evaluate_graph(torch.cat([users[rows[0]], items[rows[1]]]), graph, test)
            yield record | {name: report.metrics[name] for name in ("recall@20", "ndcg@20")}


def main() -> None:
    """Train, print a line per epoch, and write the records to the file given by --out, if any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["ngcf", "lightgcn"])
    parser.add_argument("side", help="the implementation to train: package, naive or public=PATH")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--adjacency", default=None, help="for ngcf: paper (default) or norm")
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--learning-rate", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="JSON file, written after each epoch")
    arguments = parser.parse_args()
    side, _, path = arguments.side.partition("=")
    if side not in ("package", "naive", "public") or (side == "public") != bool(path):
        parser.error(f"side {arguments.side!r}: choose package, naive or public=PATH")
    if side == "public" and arguments.model == "ngcf":
        parser.error("public: lightgcn only")
    graph = InteractionGraph.from_text(GOWALLA / "train.txt.gz")
    test = InteractionGraph.from_text(GOWALLA / "test.txt.gz", like=graph)
    names = ("adjacency", "batch_size", "learning_rate", "seed")
    parameters: dict[str, Any] = {name: vars(arguments)[name] for name in names if vars(arguments)[name] is not None}
    model = (NGCF if arguments.model == "ngcf" else LightGCN)(evaluate_every=1, **parameters)
    content = {"side": side, "torch": torch.__version__, "threads": torch.get_num_threads()}
    content |= {"parameters": model.get_params() | {"n_epochs": arguments.epochs}}
    epochs = {
        "package": lambda: package_epochs(model, graph, test, arguments.epochs),
        "naive": lambda: naive_epochs(model, graph, test, arguments.epochs),
        "public": lambda: public_epochs(path, model.seed, graph, test, arguments.epochs),
    }
    records: list[Record] = []
    for record in epochs[side]():
        records.append(record)
        print(", ".join(f"{name} {value:.4f}" for name, value in record.items()), flush=True)
        if arguments.out is not None:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(
                json.dumps({"model": arguments.model, **content, "epochs": records}, indent=2) + "\n"
            )


if __name__ == "__main__":
    main()
