"""A stack of GRU layers with the arguments of torch.nn.GRU, and resets for session-parallel mini-batches.

A lane is one of the B sessions that are processed in parallel; `reset` marks the steps at which a lane starts a new
session.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from gru4rec_fast import ops
from gru4rec_fast.nn.sequence_layout import SequenceLayout, State
from gru4rec_fast.nn.step_counter import StepCounter
from gru4rec_fast.ops._checks import check_choice, check_probability
from gru4rec_fast.ops.gru import FORMS
from gru4rec_fast.ops.philox import STREAM_HIDDEN_DROPOUT


def glorot_(weight: Tensor, fan_in: int, fan_out: int, generator: torch.Generator | None) -> None:
    """Fill a tensor in place from the uniform distribution on +-sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010).

    The generator is on the CPU; None: torch's.
    """
    bound = math.sqrt(6 / (fan_in + fan_out))
    with torch.no_grad():
        values = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
        weight.copy_(values.uniform_(-bound, bound, generator=generator))


def recurrence_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a layer with parameters of `dtype` computes its steps: float32 for 16-bit dtypes."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def gru_layer(
    x: Tensor,
    state: Tensor,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    reset: Tensor | None = None,
    output_mask: Tensor | None = None,
    form: str = "reset_after",
    impl: str = "auto",
) -> Tensor:
    """Return the outputs [T, B, H] of a GRU layer from x [T, B, I] and the hidden state [B, H].

    The products with `weight_ih` have the dtype of x, or that of autocast. The steps are computed in
    `recurrence_dtype`, and the result has the dtype of the state.

    weight_ih: [3H, I]; None if x has the gate inputs without bias, [T, B, 3H]. Others: see `gru4rec_fast.ops.gru`.
    """
    gate_inputs = x if weight_ih is None else F.linear(x, weight_ih, bias_ih)
    if weight_ih is None and bias_ih is not None:
        gate_inputs = x + bias_ih
    dtype = recurrence_dtype(state.dtype)
    output = ops.gru(
        gate_inputs.to(dtype),
        state.to(dtype),
        weight_hh.to(dtype),
        None if bias_hh is None else bias_hh.to(dtype),
        reset,
        output_mask,
        form,
        impl=impl,
    )
    return output.to(state.dtype)


class SessionGRULayer(nn.Module):
    """GRU layer with a reset mask inside the sequence.

    `form` says what the reset gate multiplies: with "reset_after" the product of weight_hh and the hidden state (as
    torch.nn.GRU does), with "reset_before" the hidden state itself.

    Parameters: weight_ih [3H, I], weight_hh [3H, H], bias_ih [3H] and, with "reset_after", bias_hh [3H]; no biases if
    `bias` is False. I is `input_size`, H is `hidden_size`; the gate order is r, z, n. If `input_size` is None (one-hot
    inputs), weight_ih is None, and the caller of `forward` passes the gate inputs without bias, which are rows of a
    table.
    """

    weight_ih: nn.Parameter | None
    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None

    def __init__(
        self, input_size: int | None, hidden_size: int, bias: bool, form: str, impl: str, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.hidden_size, self.form, self.impl = hidden_size, form, impl
        gates = 3 * hidden_size
        self.register_parameter("weight_ih", None)
        if input_size is not None:
            self.weight_ih = nn.Parameter(torch.empty(gates, input_size))
            glorot_(self.weight_ih, input_size, hidden_size, generator)
        self.weight_hh = nn.Parameter(torch.empty(gates, hidden_size))
        glorot_(self.weight_hh, hidden_size, hidden_size, generator)
        has_bias_hh = bias and form == "reset_after"
        self.register_parameter("bias_ih", nn.Parameter(torch.zeros(gates)) if bias else None)
        self.register_parameter("bias_hh", nn.Parameter(torch.zeros(gates)) if has_bias_hh else None)

    def forward(
        self, x: Tensor, state: Tensor, reset: Tensor | None = None, output_mask: Tensor | None = None
    ) -> Tensor:
        """Return outputs [T, B, H] from x [T, B, I] (or gate inputs [T, B, 3H]) and the hidden state [B, H].

        reset, output_mask: see `gru4rec_fast.ops.gru`.
        """
        weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        return gru_layer(x, state, *weights, reset, output_mask, self.form, self.impl)


class SessionGRU(StepCounter):
    """Apply a stack of GRU layers to sequences: torch.nn.GRU with resets inside the sequences and GRU4Rec's dropout.

    Without dropout, with `form="reset_after"` and equal weights, outputs and gradients are those of torch.nn.GRU.
    Dropout differs: in training, torch.nn.GRU drops units of what one layer passes to the next. Here units of the
    output of every layer are dropped, the last one included, and the next step also receives the dropped-out state.

    In bfloat16 and float16 the steps of a call are computed in float32. torch.compile(fullgraph=True) compiles the
    module, except for a PackedSequence.

    Args:
        input_size: I, width of the input. SessionNetwork passes None for one-hot inputs: the input is then the gate
            inputs of the first layer without bias, [..., 3H], and this layer uses the form "reset_before".
        hidden_size: H, or a sequence with H of each layer, first layer first.
        num_layers: number of layers; with a sequence of hidden sizes, 1 (the default) or its length.
        bias: whether the gates have biases.
        batch_first: whether a batched input is [B, T, I] instead of [T, B, I], the output [B, T, H] and `reset` [B, T].
        dropout: probability in [0, 1) of dropping a unit of the output of a layer, in training.
        form: "reset_after" (torch.nn.GRU) or "reset_before" (Cho et al. 2014); formulas: `gru4rec_fast.ops.gru`.
        seed: seed of the dropout masks and, unless `generator` is given, of the initial weights; None draws one from
            torch's CPU generator. Weights are uniform in +-sqrt(6 / (fan_in + fan_out)), biases zero.
        device, dtype: device and dtype of the parameters.
        generator: generator of the initial weights, for SessionNetwork.
        impl: "auto", "native" or "reference".

    Parameters: layers.<l>.weight_ih [3H, I], .weight_hh [3H, H], .bias_ih [3H] and, with "reset_after", .bias_hh [3H];
    I of a layer is H of the previous one. The gate order is r, z, n, as in torch.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        input_size: int | None,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        *,
        form: str = "reset_after",
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__(seed)
        _check_sizes(input_size, hidden_size, num_layers)
        check_probability("dropout", dropout)
        check_choice("form", form, FORMS)
        self.sizes = [*hidden_size] if isinstance(hidden_size, Sequence) else [hidden_size] * num_layers
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, len(self.sizes)
        self.bias, self.batch_first, self.dropout, self.form, self.impl = bias, batch_first, dropout, form, impl
        generator = generator or torch.Generator("cpu").manual_seed(self.seed)
        widths = [input_size, *self.sizes[:-1]]
        forms = [form if width is not None else "reset_before" for width in widths]
        self.layers = nn.ModuleList(
            SessionGRULayer(width, size, bias, layer_form, impl, generator)
            for width, size, layer_form in zip(widths, self.sizes, forms, strict=True)
        )
        self.to(device=device, dtype=dtype)

    @classmethod
    def from_torch(cls, gru: nn.GRU, *, seed: int | None = None, impl: str = "auto") -> SessionGRU:
        """Return a SessionGRU with copies of the weights of a torch.nn.GRU, and with its device, dtype and mode.

        Raises:
            ValueError: `gru` is no torch.nn.GRU, is bidirectional, or has dropout, which differs here (see the class).
        """
        if not isinstance(gru, nn.RNNBase) or gru.mode != "GRU" or gru.bidirectional:
            kind = "a bidirectional" if getattr(gru, "bidirectional", False) else f"an instance of {type(gru).__name__}"
            raise ValueError(f"gru must be a torch.nn.GRU of one direction, not {kind}")
        if gru.dropout:
            raise ValueError(
                f"the torch.nn.GRU has dropout={gru.dropout} between its layers, but SessionGRU drops the output of "
                "every layer: set gru.dropout = 0.0 first, or use gru4rec_fast.integrations.torch_nn.from_gru"
            )
        weight = next(gru.parameters())
        converted = cls(
            gru.input_size,
            gru.hidden_size,
            gru.num_layers,
            gru.bias,
            gru.batch_first,
            seed=seed,
            device=weight.device,
            dtype=weight.dtype,
            impl=impl,
        )
        with torch.no_grad():
            for parameter, source in converted._paired_parameters(gru):
                parameter.copy_(source).requires_grad_(source.requires_grad)
        return converted.train(gru.training)

    def to_torch(self) -> nn.GRU:
        """Return a torch.nn.GRU with copies of the weights, and with the device, dtype and mode of this module.

        Raises:
            ValueError: torch.nn.GRU has no equivalent: form="reset_before", one-hot inputs, different hidden sizes, or
                dropout (see the class).
        """
        if self.input_size is None or self.form != "reset_after" or len({*self.sizes}) > 1:
            raise ValueError(
                "to_torch needs an input_size, form='reset_after' and equal hidden sizes, not "
                f"input_size={self.input_size}, form={self.form!r}, hidden_size={self.hidden_size}"
            )
        if self.dropout:
            raise ValueError(
                f"SessionGRU has dropout={self.dropout} of the output of every layer, but torch.nn.GRU drops between "
                "its layers only: set the dropout to 0.0 first"
            )
        weight = next(self.parameters())
        converted = nn.GRU(
            self.input_size,
            self.sizes[0],
            self.num_layers,
            self.bias,
            self.batch_first,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            for source, parameter in self._paired_parameters(converted):
                parameter.copy_(source).requires_grad_(source.requires_grad)
        return converted.train(self.training)

    def _paired_parameters(self, gru: nn.RNNBase) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each parameter with that of a torch.nn.GRU of the same sizes."""
        for index, layer in enumerate(self.layers):
            for name, parameter in layer.named_parameters():
                yield parameter, getattr(gru, f"{name}_l{index}")

    def initial_state(self, lanes: int) -> Tensor | State:
        """Return hidden states of zeros: [num_layers, lanes, H], or a list with [lanes, H] of each layer."""
        layout = self._layout()
        states = [torch.zeros(lanes, size, dtype=layout.dtype, device=layout.device) for size in self.sizes]
        return torch.stack(states) if layout.is_stacked else states

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | State | None = None,
        reset: Tensor | None = None,
        *,
        step: int | Tensor | None = None,
        lanes: tuple[int, int] | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor | State]:
        """Return the outputs of the last layer, and the hidden states of all layers after the last step.

        Args:
            input: [T, B, I], [B, T, I] if `batch_first`, [T, I] for a single sequence, or a PackedSequence.
            hx: hidden states before the first step, [num_layers, B, H] (a single sequence: [num_layers, H]); with a
                sequence of hidden sizes, a list with [B, H] of each layer. None: zeros. They are not detached.
            reset: bool [T, B], [B, T] if `batch_first`, [T] for a single sequence; True sets the state of the sequence
                to zero before that step. For a PackedSequence [T, B]: T is the greatest length, and the order of the
                sequences is that of `hx`, as in torch.
            step: number of the first step since the training began; with the seed it determines the dropout masks. An
                integer or a 0-dim int64 tensor. None: the module counts its steps, see `StepCounter`.
            lanes: (first, n): the B sequences are numbers first to first + B of n sequences, and get the dropout masks
                of these numbers. None: they are all sequences.

        Returns:
            (output, h_n): the outputs in the layout of the input, with H of the last layer, and hidden states as `hx`.
            Both have the dtype of the parameters.

        Raises:
            ValueError: a shape, dtype or device does not fit.
        """
        layout = self._layout()
        x, states, reset = layout.arguments(input, hx, reset)
        step = self.first_step(step, x.shape[0], has_dropout=self.dropout > 0)
        new_states = []
        for index, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            mask = self._dropout_mask(x, index, step, lanes) if self.training and self.dropout else None
            x = layer(x, state, reset, mask)
            new_states.append(layout.states_after(input, x, state))
        return layout.results(input, x, new_states)

    def _layout(self) -> SequenceLayout:
        weight: Any = self.layers[0].weight_hh  # faster than next(self.parameters())
        width = 3 * self.sizes[0] if self.input_size is None else self.input_size
        is_stacked = not isinstance(self.hidden_size, Sequence)
        return SequenceLayout(width, self.sizes, is_stacked, self.batch_first, weight.dtype, weight.device)

    def _dropout_mask(self, x: Tensor, layer: int, step: int | Tensor, lanes: tuple[int, int] | None) -> Tensor:
        return mask_of_lanes(
            lanes,
            x.shape,
            self.sizes[layer],
            self.dropout,
            seed=self.seed,
            stream=STREAM_HIDDEN_DROPOUT + layer,
            step=step,
            dtype=recurrence_dtype(next(self.parameters()).dtype),
            device=x.device,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, bias={self.bias}, " + (
            f"batch_first={self.batch_first}, dropout={self.dropout}, form={self.form!r}"
        )


def mask_of_lanes(lanes: tuple[int, int] | None, shape: torch.Size, units: int, p: float, **options: Any) -> Tensor:
    """Return the dropout mask [T, B, units] of inputs of this shape, [T, B, ...].

    lanes: (first, n): the inputs are lanes first to first + B of n; None: all lanes. `options` are the keyword
        arguments of `ops.dropout_mask`.
    """
    first, n_lanes = lanes or (0, shape[1])
    mask = ops.dropout_mask(shape[0], n_lanes, units, p, **options)
    return mask if lanes is None else mask[:, first : first + shape[1]].contiguous()


def _check_sizes(input_size: int | None, hidden_size: int | Sequence[int], num_layers: int) -> None:
    if input_size is not None and input_size < 1:
        raise ValueError(f"input_size={input_size}: must be at least 1")
    sizes = hidden_size if isinstance(hidden_size, Sequence) else [hidden_size]
    if not sizes or any(size < 1 for size in sizes):
        raise ValueError(f"hidden_size={hidden_size}: give a size of at least 1, or one for each layer")
    if num_layers < 1 or (isinstance(hidden_size, Sequence) and num_layers not in (1, len(sizes))):
        raise ValueError(
            f"num_layers={num_layers} with hidden_size={hidden_size}: num_layers must be at least 1; omit it if "
            "hidden_size has a size for each layer"
        )
