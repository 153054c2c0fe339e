"""The GRU4Rec network: input embedding, GRU layers, output table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gru4rec_fast._untrusted import whole_numbers
from gru4rec_fast.nn.embedding_rows import gather_rows
from gru4rec_fast.nn.growable_embedding import GrowableEmbedding, Init, Optimizers, append_to_parameters
from gru4rec_fast.nn.sequence_layout import State
from gru4rec_fast.nn.session_gru import SessionGRU, glorot_, mask_of_lanes
from gru4rec_fast.nn.step_counter import StepCounter
from gru4rec_fast.ops._checks import check_choice, check_probability
from gru4rec_fast.ops.gru import FORMS
from gru4rec_fast.ops.philox import STREAM_EMBEDDING_DROPOUT

EMBEDDINGS = ("constrained", "separate", "none")


class OutputTable(GrowableEmbedding):
    """Output table: item j has the score `hidden @ weight[j] + bias[j]`; weight [n_items, width], bias [n_items].

    The weights are drawn uniformly from +-sqrt(6 / (n_items + width)), with `generator` or torch's CPU generator; the
    biases are zero. By default, `append_rows` draws new rows in the same way. sparse: whether the gradient of the
    weight as input embedding is sparse (COO); SampledLoss has its own argument `sparse`.
    """

    def __init__(
        self, n_items: int, width: int, *, sparse: bool = False, generator: torch.Generator | None = None
    ) -> None:
        weight = torch.empty(n_items, width)
        glorot_(weight, n_items, width, generator)
        super().__init__(n_items, width, sparse=sparse, _weight=weight)
        self.bias = nn.Parameter(torch.zeros(n_items))

    def initial_rows(self, n: int) -> Tensor:
        """Return n rows with initial weights, drawn from torch's CPU generator."""
        return _glorot_rows(self, n, self.embedding_dim, None)

    def additions(self, n: int, init: Init = None) -> list[tuple[nn.Parameter, Tensor]]:
        return [*super().additions(n, init), (self.bias, self.bias.data.new_zeros(max(n, 0)))]


class SessionNetwork(StepCounter):
    """GRU4Rec network (Hidasi et al. 2016, 2018; Hidasi & Czapp 2023).

    Args:
        n_items: number of items in the catalogue.
        layers: hidden sizes of the GRU layers, first layer first.
        embedding: "constrained": the output table is also the input embedding. "separate": the input embedding is
            another table, of width `embedding_dim`. "none": inputs are one-hot; a table has the 3 * layers[0] gate
            inputs of each item, and the first layer uses the form "reset_before".
        embedding_dim: width of the separate embedding.
        gru_form: "reset_after" or "reset_before" (`gru4rec_fast.ops.gru`).
        dropout_p_embed: probability of dropping a unit of the input embedding, in training; no effect with "none".
        dropout_p_hidden: probability of dropping a unit of the output of each GRU layer, in training.
        sparse: whether the gradients of the tables are sparse (COO), with only the rows of the mini-batch; give
            SampledLoss the same value. Dense gradients suit every optimizer of torch; they take memory and time in
            proportion to the catalogue.
        seed: seed of the dropout masks and of the initial weights, which are uniform in +-sqrt(6 / (fan_in + fan_out));
            biases are zero. None draws a seed from torch's CPU generator.
        dtype, device: dtype and device of the parameters.
        impl: "auto", "native" or "reference", for all operators.

    Parameters: output.weight [n_items, H], output.bias [n_items], embedding.weight (separate: [n_items, embedding_dim];
    none: [n_items, 3 * layers[0]], gate order r, z, n), gru.layers.<l>.{weight_ih, weight_hh, bias_ih, bias_hh}.
    H is layers[-1].

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        n_items: int,
        layers: list[int],
        *,
        embedding: str = "constrained",
        embedding_dim: int = 0,
        gru_form: str = "reset_after",
        dropout_p_embed: float = 0.0,
        dropout_p_hidden: float = 0.0,
        sparse: bool = False,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__(seed)
        _check_arguments(n_items, layers, embedding, embedding_dim, gru_form, dropout_p_embed, dropout_p_hidden)
        self.embedding_mode = embedding
        self.dropout_p_embed = dropout_p_embed
        self.impl = impl
        generator = torch.Generator().manual_seed(self.seed)
        width = {"constrained": layers[-1], "separate": embedding_dim, "none": None}[embedding]
        self.gru = SessionGRU(
            width, layers, dropout=dropout_p_hidden, form=gru_form, seed=self.seed, generator=generator, impl=impl
        )
        self.output = OutputTable(n_items, layers[-1], sparse=sparse, generator=generator)
        if embedding == "separate":
            self.embedding = _make_embedding(n_items, embedding_dim, embedding_dim, sparse, generator)
        elif embedding == "none":
            self.embedding = _make_embedding(n_items, 3 * layers[0], layers[0], sparse, generator)
        self.count_for_layers()
        self.to(device=device, dtype=dtype)

    @property
    def n_items(self) -> int:
        """Number of items in the catalogue."""
        return self.output.weight.shape[0]

    @property
    def input_table(self) -> GrowableEmbedding:
        """The table of the input items: the output table if the embedding is constrained, else `embedding`."""
        return self.output if self.embedding_mode == "constrained" else self.embedding

    @property
    def output_weight(self) -> Tensor:
        """The output table, [n_items, H]."""
        return self.output.weight

    @property
    def output_bias(self) -> Tensor:
        """The output bias, [n_items]."""
        return self.output.bias

    def extend_items(self, n: int, *, optimizer: Optimizers = None) -> None:
        """Append n items to the catalogue: rows of the tables, and biases of zero.

        The rows have initial weights, uniform as those of a new network of the final size. They depend on the seed and
        on the number of items before the call. The scores of the other items do not change.

        Args:
            n: at least 0.
            optimizer: the optimizer of the network, or several, whose state grows along.

        Raises:
            ValueError, TypeError: see `GrowableEmbedding.append_rows`; nothing has changed then.
        """
        (n,) = whole_numbers(0, n=n)
        generator = torch.Generator().manual_seed((self.seed + self.n_items) % (1 << 63))
        tables = [self.output] if self.embedding_mode == "constrained" else [self.output, self.embedding]
        additions = []
        for table in tables:
            fan_out = self.gru.sizes[0] if self.embedding_mode == "none" and table is not self.output else None
            rows = _glorot_rows(table, n, fan_out or table.embedding_dim, generator)
            additions += table.additions(n, rows)
        append_to_parameters(additions, optimizer)
        for table in tables:
            table.num_embeddings = len(table.weight)

    def initial_state(self, lanes: int) -> State:
        """Return hidden states of zeros, [lanes, H] for each layer."""
        return list(self.gru.initial_state(lanes))

    def forward(
        self,
        inputs: Tensor,
        state: State | None = None,
        reset: Tensor | None = None,
        *,
        step: int | Tensor | None = None,
        lanes: tuple[int, int] | None = None,
    ) -> tuple[Tensor, State]:
        """Return the hidden states [T, B, H] of the last layer, and the state of all layers after the last step.

        A lane is one of the B sessions that are processed in parallel.

        Args:
            inputs: int64 [T, B], items; -1 for padding, where the hidden states are meaningless.
            state: one [B, H] for each layer, from the previous call; None: zeros, as `initial_state`. `forward` does
                not detach it.
            reset: bool [T, B]; True sets the state of a lane to zero before that step.
            step: number of the first step since the training began; with the seed it determines the dropout masks. An
                integer or a 0-dim int64 tensor. None: the network counts its steps, see `StepCounter`.
            lanes: (first, n): the inputs are lanes first to first + B of n lanes, and get the dropout masks of these
                lanes; other processes compute the other lanes. None: the inputs are all lanes.
        """
        x = gather_rows(self.input_table.weight, inputs, sparse=self.input_table.sparse)
        embedding_dropout = self.dropout_p_embed if self.embedding_mode != "none" else 0.0
        step = self.first_step(step, x.shape[0], has_dropout=embedding_dropout > 0 or self.gru.dropout > 0)
        if self.training and embedding_dropout:
            x = x * mask_of_lanes(
                lanes,
                x.shape,
                x.shape[2],
                embedding_dropout,
                seed=self.seed,
                stream=STREAM_EMBEDDING_DROPOUT,
                step=step,
                dtype=x.dtype,
                device=x.device,
                impl=self.impl,
            )
        state = self.initial_state(inputs.shape[1]) if state is None else state
        return self.gru(x, state, reset, step=step, lanes=lanes)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        sizes = {
            f"{name}.weight": len(state_dict.get(f"{prefix}{name}.weight", table.weight))
            for name, table in self.named_children()
            if isinstance(table, GrowableEmbedding)
        }
        if len({*sizes.values()}) > 1:
            error_msgs = args[-1]
            error_msgs.append(f"the tables have different numbers of items: {sizes}")


def _make_embedding(
    n_items: int, width: int, fan_out: int, sparse: bool, generator: torch.Generator
) -> GrowableEmbedding:
    weight = torch.empty(n_items, width)
    glorot_(weight, n_items, fan_out, generator)
    return GrowableEmbedding(n_items, width, sparse=sparse, _weight=weight)


def _glorot_rows(table: GrowableEmbedding, n: int, fan_out: int, generator: torch.Generator | None) -> Tensor:
    """Return initial weights of n rows to append to a table, as in a new table with all these rows."""
    rows = table.weight.data.new_empty(n, table.embedding_dim)
    glorot_(rows, len(table.weight) + n, fan_out, generator)
    return rows


def _check_arguments(
    n_items: int,
    layers: list[int],
    embedding: str,
    embedding_dim: int,
    gru_form: str,
    dropout_p_embed: float,
    dropout_p_hidden: float,
) -> None:
    if n_items < 1:
        raise ValueError(f"n_items={n_items}: must be at least 1")
    if not layers or any(size < 1 for size in layers):
        raise ValueError(f"layers={layers}: give at least one hidden size, all at least 1")
    check_choice("embedding", embedding, EMBEDDINGS)
    check_choice("gru_form", gru_form, FORMS)
    if embedding == "separate" and embedding_dim < 1:
        raise ValueError(f"embedding_dim={embedding_dim}: must be at least 1 for a separate embedding")
    check_probability("dropout_p_embed", dropout_p_embed)
    check_probability("dropout_p_hidden", dropout_p_hidden)
