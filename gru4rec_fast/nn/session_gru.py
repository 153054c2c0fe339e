"""A stack of GRU layers over session-parallel blocks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gru4rec_fast import ops
from gru4rec_fast.ops.philox import STREAM_HIDDEN_DROPOUT

State = list[Tensor]


def glorot_(weight: Tensor, fan_in: int, fan_out: int, generator: torch.Generator) -> None:
    """Fill in place from uniform(+-sqrt(6 / (fan_in + fan_out)))."""
    bound = math.sqrt(6 / (fan_in + fan_out))
    with torch.no_grad():
        weight.copy_(torch.empty(weight.shape, dtype=weight.dtype).uniform_(-bound, bound, generator=generator))


class SessionGRULayer(nn.Module):
    """One GRU layer with resets inside the sequence.

    Parameters: weight_ih [3H, I] (absent where `input_size` is None: the input then is the gate inputs themselves, rows
    of a one-hot table), weight_hh [3H, H], bias_ih [3H] and, in the reset_after form, bias_hh [3H]; gate order r, z, n.
    """

    def __init__(
        self, input_size: int | None, hidden_size: int, form: str, impl: str, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.form = form
        self.impl = impl
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
        """Outputs [T, B, H] from x [T, B, I] (or gate inputs [T, B, 3H]) and state [B, H]."""
        gate_inputs = x + self.bias_ih if self.weight_ih is None else F.linear(x, self.weight_ih, self.bias_ih)
        gate_inputs = gate_inputs.to(state.dtype)  # autocast multiplies in less; the recurrence keeps the state's dtype
        return ops.gru(gate_inputs, state, self.weight_hh, self.bias_hh, reset, output_mask, self.form, impl=self.impl)


class SessionGRU(nn.Module):
    """GRU layers of any sizes, each followed by dropout; the dropped-out state is what is carried on, as GRU4Rec
    publishes it.

    Args:
        input_size: width of the input, or None where the first layer is fed its gate inputs (one-hot mode).
        layers: hidden sizes, first layer first.
        form: "reset_after" or "reset_before"; the first layer of one-hot mode is always reset_before.
        dropout: probability to drop a unit of a layer's output, in training.
        seed: of the initial weights and of the dropout masks.
        impl: "auto", "native" or "reference".
    """

    def __init__(
        self,
        input_size: int | None,
        layers: list[int],
        *,
        form: str = "reset_after",
        dropout: float = 0.0,
        seed: int = 0,
        impl: str = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.seed = seed
        self.impl = impl
        generator = generator or torch.Generator().manual_seed(seed)
        inputs = [input_size, *layers[:-1]]
        forms = [form if size is not None else "reset_before" for size in inputs]
        self.sizes = list(layers)
        self.layers = nn.ModuleList(
            SessionGRULayer(i, h, f, impl, generator) for i, h, f in zip(inputs, layers, forms, strict=True)
        )

    def initial_state(self, lanes: int) -> State:
        """Zero states, [lanes, H] for each layer."""
        like = next(self.parameters())
        return [like.new_zeros(lanes, size) for size in self.sizes]

    def forward(self, x: Tensor, state: State, reset: Tensor | None = None, *, step: int = 0) -> tuple[Tensor, State]:
        """Outputs [T, B, H] of the last layer and the state after the last step.

        Args:
            x: [T, B, I] (one-hot mode: [T, B, 3H] gate inputs without bias).
            state: one [B, H] for each layer.
            reset: bool [T, B].
            step: number of the first step in the whole training; with the seed it fixes the dropout masks.
        """
        after = []
        for number, (layer, before) in enumerate(zip(self.layers, state, strict=True)):
            mask = self._dropout_mask(x, number, step) if self.training and self.dropout else None
            x = layer(x, before, reset, mask)
            after.append(x[-1])
        return x, after

    def _dropout_mask(self, x: Tensor, number: int, step: int) -> Tensor:
        return ops.dropout_mask(
            x.shape[0],
            x.shape[1],
            self.sizes[number],
            self.dropout,
            seed=self.seed,
            stream=STREAM_HIDDEN_DROPOUT + number,
            step=step,
            dtype=x.dtype,
            device=x.device,
            impl=self.impl,
        )
