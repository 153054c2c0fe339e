"""Run training steps and epochs of the public NGCF-PyTorch and LightGCN-PyTorch, imported from checkouts.

`ngcf_step` and `lightgcn_step` run the unchanged models and losses of these checkouts on an `InteractionGraph`. The
data loaders of the checkouts are not used, because they read fixed folders. A step does the same as a step of the
public training loop: forward pass over the whole graph, loss, backward pass, Adam.

`lightgcn_epochs` runs the public LightGCN as it is: data loader, sampler, training and test.
"""

from __future__ import annotations

import importlib
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gru4rec_fast.data import InteractionGraph
from peers.official import CPU, quiet

Step = Callable[[Tensor, Tensor, Tensor], float]  # step(users, positives, negatives) trains and returns the loss


def adjacency(graph: InteractionGraph) -> sp.csr_array:
    """Return the adjacency matrix A as a scipy matrix; the nodes are the users, followed by the items."""
    size = (graph.n_nodes, graph.n_nodes)
    return sp.csr_array((np.ones(len(graph.neighbors), np.float32), graph.neighbors, graph.offsets), shape=size)


def ngcf_step(path: str | Path, graph: InteractionGraph, batch_size: int, device: torch.device = CPU) -> Step:
    """Return the training step of the public NGCF with 3 layers and the options of the public README.

    The options are the matrix (D + I)^-1 (A + I), dropout rates 0.1, L2 penalty 1e-5, and Adam with learning rate 1e-4.

    Raises:
        FileNotFoundError: the checkout has no NGCF/NGCF.py.
    """
    code = _import_module("ngcf", Path(path) / "NGCF", "NGCF")
    with_self = adjacency(graph) + sp.eye_array(graph.n_nodes, dtype=np.float32)
    norm = sp.diags_array(1 / with_self.sum(1)).dot(with_self)
    settings = Namespace(
        device=device,
        embed_size=64,
        batch_size=batch_size,
        node_dropout=[0.1],
        message_dropout=[0.1, 0.1, 0.1],
        layer_size="[64,64,64]",
        regs="[1e-5]",
    )
    model = code.NGCF(graph.n_users, graph.n_items, norm, settings).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step(users: Tensor, positives: Tensor, negatives: Tensor) -> float:
        embeddings = model(users, positives, negatives, drop_flag=True)
        loss, _, _ = model.create_bpr_loss(*embeddings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def lightgcn_step(path: str | Path, graph: InteractionGraph, batch_size: int, device: torch.device = CPU) -> Step:
    """Return the training step of the public LightGCN with 3 layers and the public defaults.

    The defaults are L2 penalty 1e-4 and Adam with learning rate 1e-3.

    batch_size: not used; the argument exists so that `ngcf_step` and this function have the same arguments.

    Raises:
        FileNotFoundError: the checkout has no code/model.py.
    """
    dataloader = ModuleType("dataloader")  # the public one imports pandas
    dataloader.BasicDataset = object  # type: ignore[attr-defined]
    code = _import_module("lightgcn", Path(path) / "code", "model", replaced_modules={"dataloader": dataloader})
    degrees = np.diff(graph.offsets)
    scale = sp.diags_array(np.divide(1, np.sqrt(degrees), where=degrees > 0, out=np.zeros(len(degrees))))
    entries = (scale @ adjacency(graph) @ scale).tocoo()
    indices = torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64))
    values = torch.from_numpy(entries.data.astype(np.float32))
    matrix = torch.sparse_coo_tensor(indices, values, entries.shape).coalesce().to(device)
    dataset = SimpleNamespace(n_users=graph.n_users, m_items=graph.n_items, getSparseGraph=lambda: matrix)
    config = {"latent_dim_rec": 64, "lightGCN_n_layers": 3, "keep_prob": 0.6, "A_split": False, "dropout": 0}
    with quiet():
        model = code.LightGCN({**config, "pretrain": 0}, dataset).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(users: Tensor, positives: Tensor, negatives: Tensor) -> float:
        loss, penalty = model.bpr_loss(users, positives, negatives)
        loss = loss + 1e-4 * penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def lightgcn_epochs(
    path: str | Path, data: str | Path, n: int, seed: int
) -> Iterator[tuple[dict[str, float], tuple[Tensor, Tensor]]]:
    """Run n epochs of the public LightGCN's own program, and test after each of them.

    Data loader, sampler (that in Python), training and test are those of the checkout, with its default options.

    Args:
        path: a checkout of LightGCN-PyTorch.
        data: a folder with train.txt and test.txt. The data loader writes its adjacency matrix there.
        n: number of epochs.
        seed: seed of torch and NumPy.

    Yields:
        After each epoch: a record of the mean loss, as printed by the public code with three digits, "public recall@20"
        and "public ndcg@20" of its test, and the seconds of the epoch without the test; and the embeddings of users and
        items.

    Raises:
        FileNotFoundError: the checkout has no code/Procedure.py.
    """
    arguments = [f"--seed={seed}", "--tensorboard=0", "--testbatch=1000"]
    procedure = _import_module("lightgcn", Path(path) / "code", "Procedure", arguments)
    world, utils, dataloader, models = procedure.world, procedure.utils, procedure.dataloader, procedure.model
    utils.set_seed(seed)
    with quiet():
        dataset = dataloader.Loader(path=str(data))
        model = models.LightGCN(world.config, dataset).to(world.device)
    bpr = utils.BPRLoss(model, world.config)
    for epoch in range(n):
        started = time.perf_counter()
        printed = procedure.BPR_train_original(dataset, model, bpr, epoch)
        record = {"epoch": epoch + 1, "loss": float(printed.split("-")[0].removeprefix("loss"))}
        seconds = time.perf_counter() - started
        with quiet():
            metrics = procedure.Test(dataset, model, epoch)
        record |= {f"public {name}@20": float(metrics[name][0]) for name in ("recall", "ndcg")} | {"seconds": seconds}
        with torch.no_grad():
            embeddings = model.computer()
        yield record, embeddings


def _import_module(
    peer: str,
    folder: Path,
    name: str,
    arguments: Sequence[str] = (),
    replaced_modules: Mapping[str, ModuleType] | None = None,
) -> ModuleType:
    """Import a module from a folder of a checkout. The modules that it imports are searched in that folder first.

    When they are imported, LightGCN's modules parse sys.argv and create a folder for checkpoints. Therefore, during the
    import, sys.argv has the given arguments only, and os.makedirs does nothing.

    replaced_modules: modules by name that are used in place of those of the checkout.
    """
    if not (folder / f"{name}.py").exists():
        raise FileNotFoundError(f"{peer}={folder.parent}: no {folder.name}/{name}.py in it; give a checkout")
    with (
        mock.patch.object(sys, "path", [str(folder), *sys.path]),
        mock.patch.object(sys, "argv", [name, *arguments]),
        mock.patch.dict(sys.modules, replaced_modules or {}),
        mock.patch("os.makedirs"),
    ):
        return importlib.import_module(name)
