"""Write model files with the structure of those of the official GRU4Rec code, by stand-ins for its classes.

The classes have the names, attributes and parameters that `torch.save` of an official model writes. The forward pass
is an independent computation of the scores: torch.nn.GRUCell, and for one-hot inputs the formulas of
shared/semantics.md and shared/golden/README.md.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

PARAMETERS = {
    "loss": "cross-entropy",
    "elu_param": 0.5,
    "bpreg": 1.0,
    "logq": 1.0,
    "batch_size": 16,
    "dropout_p_embed": 0.1,
    "dropout_p_hidden": 0.2,
    "learning_rate": 0.05,
    "momentum": 0.3,
    "sample_alpha": 0.5,
    "n_sample": 32,
    "n_epochs": 2,
}


class GRUEmbedding(nn.Module):
    """First GRU layer for one-hot inputs: gate order n, r, z of inputs, and r, z of the hidden state."""

    def __init__(self, n_items: int, size: int) -> None:
        super().__init__()
        self.Wx0 = nn.Embedding(n_items, 3 * size, sparse=True)
        self.Wrz0 = nn.Parameter(torch.empty(size, 2 * size))
        self.Wh0 = nn.Parameter(torch.empty(size, size))
        self.Bh0 = nn.Parameter(torch.empty(3 * size))

    def forward(self, items: Tensor, h: Tensor) -> Tensor:
        x_n, x_r, x_z = (self.Wx0.weight[items] + self.Bh0).chunk(3, 1)
        h_r, h_z = (h @ self.Wrz0).chunk(2, 1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        return (1 - z) * h + z * torch.tanh(x_n + (r * h) @ self.Wh0)


class GRU4RecModel(nn.Module):
    """Network with random weights; `mode` is "constrained", "separate" (of width 6) or "none" (one-hot inputs)."""

    def __init__(self, n_items: int, layers: Sequence[int], mode: str) -> None:
        super().__init__()
        self.layers, self.mode = list(layers), mode
        if mode == "separate":
            self.E = nn.Embedding(n_items, 6, sparse=True)
        elif mode == "none":
            self.GE = GRUEmbedding(n_items, layers[0])
        self.DE = nn.Dropout(0.1)
        widths = [{"constrained": layers[-1], "separate": 6}.get(mode, 0), *layers]
        self.first = int(mode == "none")  # number of the first layer in G
        self.G = nn.ModuleList(nn.GRUCell(widths[i], widths[i + 1]) for i in range(self.first, len(layers)))
        self.D = nn.ModuleList(nn.Dropout(0.2) for _ in self.G)
        self.Wy = nn.Embedding(n_items, layers[-1], sparse=True)
        self.By = nn.Embedding(n_items, 1, sparse=True)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)

    def forward(self, items: Tensor, H: list[Tensor]) -> Tensor:
        """Return the scores [B, n_items] after one more event in each session; update H in place."""
        if self.mode == "none":
            x = H[0] = self.GE(items, H[0])
        else:
            x = (self.Wy if self.mode == "constrained" else self.E)(items)
        for i, cell in enumerate(self.G, self.first):
            x = H[i] = cell(x, H[i])
        return x @ self.Wy.weight.T + self.By.weight.T


class SampleCache:
    """Has the negatives that are drawn in advance. The importer does not read them."""


class SessionDataIterator:
    """Has the training data: `itemidmap` (Series of indices by item id) and `data_items` (index of each event)."""


class GRU4Rec:
    """Has the parameters, `model` and `data_iterator`."""

    def xe_loss_with_softmax(self) -> None:
        """Do nothing: an official model has its loss function, a bound method, as an attribute."""


_MODULE = types.ModuleType("gru4rec_pytorch")
for _class in (GRUEmbedding, GRU4RecModel, SampleCache, SessionDataIterator, GRU4Rec):
    _class.__module__ = _MODULE.__name__
    setattr(_MODULE, _class.__name__, _class)


def write_model_file(
    path: Path, model: GRU4RecModel, ids: Any, events: Sequence[int], **attributes: Any
) -> GRU4RecModel:
    """Write a model file, and return the network.

    Args:
        ids: item ids, in the order of the rows of the network's tables.
        events: index of the item of each training event.
        attributes: attributes of the model that replace or extend the usual ones.
    """
    estimator, iterator, cache = GRU4Rec(), SessionDataIterator(), SampleCache()
    cache.neg_samples = torch.zeros(10, 32, dtype=torch.int64)
    iterator.n_items, iterator.sample_cache = len(ids), cache
    iterator.itemidmap = pd.Series(np.arange(len(ids), dtype="int32"), index=ids, name="ItemIdx")
    iterator.data_items = np.array(events, dtype="int32")
    vars(estimator).update(
        PARAMETERS,
        layers=model.layers,
        embedding=6 if model.mode == "separate" else 0,
        constrained_embedding=model.mode == "constrained",
        device=torch.device("cpu"),
        loss_function=estimator.xe_loss_with_softmax,
        error_during_train=False,
        data_iterator=iterator,
        P0=torch.ones(len(ids)),
        model=model,
    )
    vars(estimator).update(attributes)
    with mock.patch.dict(sys.modules, {_MODULE.__name__: _MODULE}):
        torch.save(estimator, path)
    return model
