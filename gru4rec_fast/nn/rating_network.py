"""A multilayer perceptron over concatenated embeddings, which predicts ratings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gru4rec_fast.nn.embedding_rows import gather_rows
from gru4rec_fast.nn.growable_embedding import GrowableEmbedding, Optimizers
from gru4rec_fast.nn.session_gru import glorot_
from gru4rec_fast.nn.step_counter import StepCounter
from gru4rec_fast.ops._checks import check_probability, check_tensor
from gru4rec_fast.ops.dropout import dropout_mask
from gru4rec_fast.ops.philox import STREAM_EMBEDDING_DROPOUT

INITIAL_STD = 0.1


class RatingNetwork(StepCounter):
    """Predicts ratings by a multilayer perceptron (MLP) over concatenated embeddings of users, items and other ids.

        network = RatingNetwork({"user": (1000, 100), "group": (50, 80), "item": (5000, 20)}, [70])
        network(torch.tensor([[7, 2, 301], [7, 2, -1]]))  # user 7, group 2, item 301 or an unknown item

    The hidden layers have ReLU, and the output layer has one unit z. The rating is mean + scale * z.

    An unknown id (index -1) has a row of zeros, and so do rows that are appended: the rating is predicted by the other
    ids. `id_dropout` trains such predictions: it replaces ids by unknown ones, as DropoutNet does (Volkovs, Yu &
    Poutanen, NIPS 2017).

    Args:
        tables: number of rows and width of each table, by name. The order is that of the columns of `index`.
        layer_sizes: widths of the hidden layers, first layer first.
        mean, scale: mean and standard deviation of the training ratings.
        id_dropout: probability of replacing an id by an unknown one, in training.
        sparse: whether the gradients of the tables are sparse (COO), with only the rows of the mini-batch.
        seed: seed of the dropout and of the initial weights: normal with standard deviation 0.1 in the tables, uniform
            in +-sqrt(6 / (fan_in + fan_out)) in the layers, whose biases are zero. None draws a seed from torch's CPU
            generator.
        dtype, device: dtype and device of the parameters.
        impl: "auto", "native" or "reference", for the dropout.

    Parameters: tables.<name>.weight [rows, width], layers.<l>.weight and layers.<l>.bias; the last layer is the output.
    Buffers: rating_mean and rating_scale, float64 [].

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    rating_mean: Tensor
    rating_scale: Tensor

    def __init__(
        self,
        tables: Mapping[str, tuple[int, int]],
        layer_sizes: Sequence[int] = (70,),
        *,
        mean: float = 0.0,
        scale: float = 1.0,
        id_dropout: float = 0.0,
        sparse: bool = False,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__(seed)
        check_probability("id_dropout", id_dropout)
        if not tables:
            raise ValueError("tables={}: give at least one table, by its name")
        self.id_dropout, self.sparse, self.impl = id_dropout, sparse, impl
        self.tables = nn.ModuleDict()
        generator = torch.Generator().manual_seed(self.seed)
        for name, (rows, width) in tables.items():
            weight = torch.empty(rows, width).normal_(std=INITIAL_STD, generator=generator)
            self.tables[name] = GrowableEmbedding(rows, width, sparse=sparse, _weight=weight)
        sizes = [sum(width for _, width in tables.values()), *layer_sizes, 1]
        self.layers = nn.ModuleList()
        for fan_in, fan_out in pairwise(sizes):
            layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out)  # without torch's initial values, which draw numbers
            glorot_(layer.weight.data, fan_in, fan_out, generator)
            nn.init.zeros_(layer.bias)
            self.layers.append(layer)
        self.to(device=device, dtype=dtype)
        self.register_buffer("rating_mean", torch.tensor(mean, dtype=torch.float64, device=device))
        self.register_buffer("rating_scale", torch.tensor(scale, dtype=torch.float64, device=device))

    def forward(self, index: Tensor, *, step: int | Tensor | None = None) -> Tensor:
        """Return the predicted ratings [B], of the dtype of the parameters.

        Args:
            index: row in each table, int64 [B, number of tables]; -1 for an unknown id.
            step: number of the training step for the dropout; None counts.
        """
        units = self._output(index, step)
        return (self.rating_mean + self.rating_scale * units).to(units.dtype)

    def loss(self, index: Tensor, ratings: Tensor, *, step: int | Tensor | None = None) -> Tensor:
        """Return the mean squared error divided by scale^2: about 1 for a model that always predicts the mean rating.

        ratings: [B]; float64 keeps small differences of large ratings. `index` and `step`: see `forward`.
        """
        units = self._output(index, step)
        return nn.functional.mse_loss(units, ((ratings - self.rating_mean) / self.rating_scale).to(units.dtype))

    def append_rows(self, table: str, n: int, *, optimizer: Optimizers = None) -> None:
        """Append n rows of zeros to a table, see `GrowableEmbedding.append_rows`. Other ids have the same predictions.

        Raises KeyError for an unknown name of a table.
        """
        self.tables[table].append_rows(n, nn.init.zeros_, optimizer=optimizer)  # type: ignore[operator]

    def _output(self, index: Tensor, step: int | Tensor | None) -> Tensor:
        """Return the output unit [B]."""
        check_tensor("index", index, torch.int64, ("B", len(self.tables)), self.rating_mean.device)
        has_dropout = self.training and self.id_dropout > 0
        first = self.first_step(step, 1, has_dropout=has_dropout)
        if has_dropout:
            mask = dropout_mask(
                1,
                index.shape[0],
                index.shape[1],
                self.id_dropout,
                seed=self.seed,
                stream=STREAM_EMBEDDING_DROPOUT,
                step=first,
                device=index.device,
                impl=self.impl,
            )
            index = index.masked_fill(mask[0] == 0, -1)
        weights: list[Any] = [table.weight for table in self.tables.values()]
        rows = zip(weights, index.unbind(1), strict=True)
        units = torch.cat([gather_rows(weight, row, sparse=self.sparse) for weight, row in rows], dim=1)
        *hidden, output = self.layers
        for layer in hidden:
            units = torch.relu(layer(units))
        return output(units).squeeze(1)
