"""Layouts of the tensors of a GRU call, as torch.nn.GRU accepts and returns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from gru4rec_fast.ops._checks import check_tensor

State = list[Tensor]  # hidden states [B, H] of the layers, first layer first
_AUTOCAST_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass
class SequenceLayout:
    """Converts the arguments of a GRU call to time-major tensors, and its results to the layout of the input.

    T is the number of steps, B the number of sequences. The time-major tensors are the input [T, B, I], the reset mask
    [T, B] and a hidden state [B, H] of each layer. The caller's input is [T, B, I], with `batch_first` [B, T, I],
    without a batch [T, I], or a PackedSequence, whose sequences are padded and processed in its order (by decreasing
    length).

    Attributes:
        input_size: I.
        hidden_sizes: H of each layer.
        is_stacked: whether the caller's hidden states are one tensor [num_layers, B, H] instead of a list.
        batch_first: whether a batched input is [B, T, I], and a reset mask [B, T]. As in torch, it has no effect on
            hidden states and PackedSequences.
        dtype, device: those of the parameters, which all tensors must have; autocast allows other dtypes.
    """

    input_size: int
    hidden_sizes: Sequence[int]
    is_stacked: bool
    batch_first: bool
    dtype: torch.dtype
    device: torch.device

    def arguments(
        self, input: Tensor | PackedSequence, hx: Tensor | State | None, reset: Tensor | None
    ) -> tuple[Tensor, State, Tensor | None]:
        """Return the time-major input, hidden states and reset mask. Without `hx` the states are zeros.

        Raises:
            ValueError: a shape, dtype or device does not fit.
        """
        if isinstance(input, PackedSequence):
            check_tensor("input.data", input.data, self._dtypes(), ("N", self.input_size), self.device)
            x, _ = pad_packed_sequence(PackedSequence(input.data, input.batch_sizes))  # in the order of the packed data
            batch_shape, order = x.shape[:2], input.sorted_indices
        else:
            if input.dim() not in (2, 3):
                raise ValueError(f"input must be [T, B, I], [T, I] or a PackedSequence, not {[*input.shape]}")
            check_tensor("input", input, self._dtypes(), (*self._batch_dims(input), self.input_size), self.device)
            x, batch_shape, order = self._to_time_major(input, input), input.shape[:-1], None
        state_dims = [] if len(batch_shape) == 1 else [x.shape[1]]  # of the caller's hidden states, before H
        try:
            self._check_hx(hx, state_dims)
            check_tensor("reset", reset, torch.bool, batch_shape, self.device)
        except ValueError as error:
            raise ValueError(f"{error}; {self._description(input, x)}") from None
        if hx is None:
            states = [torch.zeros(x.shape[1], size, dtype=self.dtype, device=self.device) for size in self.hidden_sizes]
        else:
            states = [(state if state_dims else state.unsqueeze(0)).to(self.dtype) for state in hx]
        if reset is not None:
            reset = self._to_time_major(reset, input)
        if order is not None:
            states = [state.index_select(0, order) for state in states]
            reset = None if reset is None else reset.index_select(1, order)
        return x, states, reset

    def states_after(self, input: Tensor | PackedSequence, output: Tensor, state: Tensor) -> Tensor:
        """Return a layer's hidden states [B, H] after the last step of each sequence.

        output: time-major outputs of the layer. state: its hidden states before the first step, for T = 0.
        """
        if isinstance(input, PackedSequence):
            lengths = _lengths(input).to(self.device)
            return output[lengths - 1, torch.arange(len(lengths), device=self.device)]
        return output[-1] if output.shape[0] else state

    def results(
        self, input: Tensor | PackedSequence, output: Tensor, states: State
    ) -> tuple[Tensor | PackedSequence, Tensor | State]:
        """Convert the time-major outputs of the last layer, and the hidden states, to the caller's layout."""
        returned: Tensor | PackedSequence
        if isinstance(input, PackedSequence):
            packed = pack_padded_sequence(output, _lengths(input))
            returned = PackedSequence(packed.data, *input[1:])
            if input.unsorted_indices is not None:
                states = [state.index_select(0, input.unsorted_indices) for state in states]
        elif input.dim() == 2:
            returned, states = output.squeeze(1), [state.squeeze(0) for state in states]
        else:
            returned = output.transpose(0, 1) if self.batch_first else output
        return returned, torch.stack(states) if self.is_stacked else states

    def _batch_dims(self, input: Tensor) -> tuple[str, ...]:
        """Return the names of the dimensions of an input before the last one."""
        if input.dim() == 2:
            return ("T",)
        return ("B", "T") if self.batch_first else ("T", "B")

    def _to_time_major(self, tensor: Tensor, input: Tensor | PackedSequence) -> Tensor:
        """Return `tensor`, the input or the reset mask of a call, with the dimensions [T, B, ...]."""
        if isinstance(input, PackedSequence):
            return tensor
        if input.dim() == 2:
            return tensor.unsqueeze(1)
        return tensor.transpose(0, 1) if self.batch_first else tensor

    def _check_hx(self, hx: Tensor | State | None, state_dims: list[int]) -> None:
        """Raise ValueError unless the hidden states fit. state_dims: [B], or [] without a batch."""
        sizes = self.hidden_sizes
        if isinstance(hx, Tensor) and self.is_stacked:
            check_tensor("hx", hx, self._dtypes(), (len(sizes), *state_dims, sizes[0]), self.device)
        elif hx is not None:
            if self.is_stacked or isinstance(hx, Tensor) or len(hx) != len(sizes):
                needed = "a tensor [num_layers, B, H]" if self.is_stacked else f"a list of {len(sizes)} hidden states"
                given = f"a list of {len(hx)}" if isinstance(hx, list) else f"a {type(hx).__name__}"
                raise ValueError(f"hx must be {needed}, not {given}")
            for layer, (state, size) in enumerate(zip(hx, sizes, strict=True)):
                check_tensor(f"hx[{layer}]", state, self._dtypes(), (*state_dims, size), self.device)

    def _dtypes(self) -> Sequence[torch.dtype]:
        """Return the dtypes that inputs and hidden states may have."""
        is_autocast = torch.is_autocast_enabled(self.device.type)
        return (self.dtype, *_AUTOCAST_DTYPES) if is_autocast else (self.dtype,)

    def _description(self, input: Tensor | PackedSequence, x: Tensor) -> str:
        """Return how the input of a call was understood, for errors."""
        if isinstance(input, PackedSequence):
            return f"the PackedSequence has {x.shape[1]} sequences of at most {x.shape[0]} steps"
        dims = ", ".join(self._batch_dims(input))
        return f"with batch_first={self.batch_first}, input {[*input.shape]} is [{dims}, I]"


def _lengths(packed: PackedSequence) -> Tensor:
    """Return the lengths of the sequences, in the order of the packed data, int64 [B] on the CPU."""
    sequences = torch.arange(int(packed.batch_sizes[0]))
    return (packed.batch_sizes.unsqueeze(1) > sequences).sum(0)
