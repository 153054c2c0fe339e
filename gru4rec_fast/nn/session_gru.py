"""A stack of GRU layers for session-parallel mini-batches.

A lane is one of the B sessions that are processed in parallel; `reset` marks the steps at which a lane starts a new
session.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gru4rec_fast import ops
from gru4rec_fast.nn.step_counter import StepCounter
from gru4rec_fast.ops.philox import STREAM_HIDDEN_DROPOUT

State = list[Tensor]  # hidden states [B, H] of the layers, first layer first


def glorot_(weight: Tensor, fan_in: int, fan_out: int, generator: torch.Generator) -> None:
    """Fill a tensor in place from the uniform distribution on +-sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010)."""
    bound = math.sqrt(6 / (fan_in + fan_out))
    with torch.no_grad():
        weight.copy_(torch.empty(weight.shape, dtype=weight.dtype).uniform_(-bound, bound, generator=generator))


class SessionGRULayer(nn.Module):
    """GRU layer with a reset mask inside the sequence.

    `form` says what the reset gate multiplies: with "reset_after" the product of weight_hh and the hidden state (as
    torch.nn.GRU does), with "reset_before" the hidden state itself.

    Parameters: weight_ih [3H, I], weight_hh [3H, H], bias_ih [3H] and, with "reset_after", bias_hh [3H]. I is
    `input_size`, H is `hidden_size`; the gate order is r, z, n. If `input_size` is None (one-hot inputs), weight_ih is
    None, and the caller of `forward` passes the gate inputs without bias, which are rows of a table.
    """

    def __init__(
        self, input_size: int | None, hidden_size: int, form: str, impl: str, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.hidden_size, self.form, self.impl = hidden_size, form, impl
        gates = 3 * hidden_size
        if input_size is None:
            self.register_parameter("weight_ih", None)
        else:
            self.weight_ih = nn.Parameter(torch.empty(gates, input_size))
            glorot_(self.weight_ih, input_size, hidden_size, generator)
        self.weight_hh = nn.Parameter(torch.empty(gates, hidden_size))
        glorot_(self.weight_hh, hidden_size, hidden_size, generator)
        self.bias_ih = nn.Parameter(torch.zeros(gates))
        if form == "reset_after":
            self.bias_hh = nn.Parameter(torch.zeros(gates))
        else:
            self.register_parameter("bias_hh", None)

    def forward(
        self, x: Tensor, state: Tensor, reset: Tensor | None = None, output_mask: Tensor | None = None
    ) -> Tensor:
        """Return outputs [T, B, H] from x [T, B, I] (or gate inputs [T, B, 3H]) and the hidden state [B, H].

        reset, output_mask: see `gru4rec_fast.ops.gru`.
        """
        gate_inputs = x + self.bias_ih if self.weight_ih is None else F.linear(x, self.weight_ih, self.bias_ih)
        gate_inputs = gate_inputs.to(state.dtype)  # under autocast, the product above has a lower precision
        return ops.gru(gate_inputs, state, self.weight_hh, self.bias_hh, reset, output_mask, self.form, impl=self.impl)


class SessionGRU(StepCounter):
    """Stack of GRU layers, each followed by dropout. As in GRU4Rec, the next step also receives the dropped-out state.

    Args:
        input_size: width of the input; None if the inputs are the gate inputs of the first layer (one-hot inputs).
        layers: hidden sizes, first layer first.
        form: "reset_after" or "reset_before" (formulas: `gru4rec_fast.ops.gru`); the first layer for one-hot inputs
            always uses "reset_before".
        dropout: probability in [0, 1) of dropping a unit of the output of a layer, in training.
        seed: seed of the dropout masks and, unless `generator` is given, of the initial weights; None draws one from
            torch's CPU generator.
        generator: generator of the initial weights.
        impl: "auto", "native" or "reference".
    """

    def __init__(
        self,
        input_size: int | None,
        layers: list[int],
        *,
        form: str = "reset_after",
        dropout: float = 0.0,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__(seed)
        self.dropout = dropout
        self.impl = impl
        generator = generator or torch.Generator().manual_seed(self.seed)
        widths = [input_size, *layers[:-1]]
        forms = [form if width is not None else "reset_before" for width in widths]
        self.sizes = list(layers)
        self.layers = nn.ModuleList(
            SessionGRULayer(width, size, layer_form, impl, generator)
            for width, size, layer_form in zip(widths, layers, forms, strict=True)
        )

    def initial_state(self, lanes: int) -> State:
        """Return hidden states of zeros, [lanes, H] for each layer."""
        parameter = next(self.parameters())  # for its dtype and device
        return [parameter.new_zeros(lanes, size) for size in self.sizes]

    def forward(
        self, x: Tensor, state: State, reset: Tensor | None = None, *, step: int | Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Return the outputs [T, B, H] of the last layer, and the hidden states after the last step.

        Args:
            x: [T, B, I], or the gate inputs [T, B, 3H] without bias for one-hot inputs.
            state: hidden states before the first step, one [B, H] for each layer.
            reset: bool [T, B]; True sets the state of a lane to zero before that step.
            step: number of the first step since the training began; with the seed it determines the dropout masks. An
                integer or a 0-dim int64 tensor; None counts by itself, see `StepCounter`.
        """
        step = self.first_step(step, x.shape[0], has_dropout=self.dropout > 0)
        new_state = []
        for index, (layer, layer_state) in enumerate(zip(self.layers, state, strict=True)):
            mask = self._dropout_mask(x, index, step) if self.training and self.dropout else None
            x = layer(x, layer_state, reset, mask)
            new_state.append(x[-1])
        return x, new_state

    def _dropout_mask(self, x: Tensor, layer: int, step: int | Tensor) -> Tensor:
        return ops.dropout_mask(
            x.shape[0],
            x.shape[1],
            self.sizes[layer],
            self.dropout,
            seed=self.seed,
            stream=STREAM_HIDDEN_DROPOUT + layer,
            step=step,
            dtype=x.dtype,
            device=x.device,
            impl=self.impl,
        )
