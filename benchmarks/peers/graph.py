"""The public NGCF-PyTorch and LightGCN-PyTorch, called from checkouts: `ngcf_step` and `lightgcn_step`.

Their models and losses run as they are, on the graph they are given; their data loaders, which read fixed folders, are
not used. A step is theirs: forward over the whole graph, loss, backward, Adam.
"""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gru4rec_fast.data import InteractionGraph
from peers.official import CPU, quiet

Step = Callable[[Tensor, Tensor, Tensor], float]  # trains on a batch of triples and returns its loss


def adjacency(graph: InteractionGraph) -> sp.csr_array:
    """A, users before items, as a scipy matrix."""
    size = (graph.n_nodes, graph.n_nodes)
    return sp.csr_array((np.ones(len(graph.neighbors), np.float32), graph.neighbors, graph.offsets), shape=size)


def ngcf_step(path: str | Path, graph: InteractionGraph, batch_size: int, device: torch.device = CPU) -> Step:
    """NGCF-3 as in its README: P = Q = (D + I)^-1 (A + I), dropouts 0.1, reg 1e-5, Adam at 1e-4.

    Raises:
        FileNotFoundError: the path holds no NGCF/NGCF.py.
    """
    code = _module("ngcf", Path(path) / "NGCF", "NGCF")
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
    """LightGCN-3 as by default there: reg 1e-4, Adam at 1e-3. `batch_size` is that of the triples it is given.

    Raises:
        FileNotFoundError: the path holds no code/model.py.
    """
    code = _module("lightgcn", Path(path) / "code", "model")
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


def _module(peer: str, folder: Path, name: str) -> ModuleType:
    """A module of a checkout; what it imports from beside itself comes from there too.

    LightGCN's modules read sys.argv, make a folder for its checkpoints and import a data loader: they get an empty
    command line, no folder, and an empty stand-in.
    """
    if not (folder / f"{name}.py").exists():
        raise FileNotFoundError(f"--peer {peer}={folder.parent}: there is no {folder.name}/{name}.py in that checkout")
    stand_in: dict[str, Any] = {"dataloader": ModuleType("dataloader")} if peer == "lightgcn" else {}
    if stand_in:
        stand_in["dataloader"].BasicDataset = object  # type: ignore[attr-defined]
    with (
        mock.patch.object(sys, "path", [str(folder), *sys.path]),
        mock.patch.object(sys, "argv", [name]),
        mock.patch.dict(sys.modules, stand_in),
        mock.patch("os.makedirs"),
    ):
        return importlib.import_module(name)
