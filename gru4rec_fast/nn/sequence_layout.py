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


@dataclass(frozen=True)
class SequenceLayout:
    """Converts the arguments of a GRU call to time-major tensors, and its results to the layout of the input.

    T is the number of steps, B of sequences. Time-major are an input [T, B, I], a reset mask [T, B] and a hidden state
    [B, H] of each layer. The caller's input is [T, B, I], with `batch_first` [B, T, I], without a batch [T, I], or a
    PackedSequence, whose sequences are padded and processed in its order (by decreasing length).

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
        batch_dims: tuple[str, ...] = ("T", "B")
        if isinstance(input, PackedSequence):
            self._check("input.data", input.data, ("N", self.input_size), self._floating_dtypes())
            x, _ = pad_packed_sequence(PackedSequence(input.data, input.batch_sizes))  # in the order of the packed data
            read_as = f"the PackedSequence has {x.shape[1]} sequences of at most {x.shape[0]} steps"
            order = input.sorted_indices
        else:
            if input.dim() not in (2, 3):
                raise ValueError(f"input must be [T, B, I], [T, I] or a PackedSequence, not {[*input.shape]}")
            if input.dim() == 2 or self.batch_first:
                batch_dims = ("T",) if input.dim() == 2 else ("B", "T")
            self._check("input", input, (*batch_dims, self.input_size), self._floating_dtypes())
            read_as = f"with batch_first={self.batch_first}, input {[*input.shape]} is [{', '.join(batch_dims)}, I]"
            x, order = self._to_time_major(input, batch_dims), None
        sizes = {"T": x.shape[0], "B": x.shape[1]}
        self._check("reset", reset, [sizes[dim] for dim in batch_dims], torch.bool, read_as)
        states = self._states(hx, [sizes[dim] for dim in batch_dims if dim == "B"], read_as)
        if reset is not None:
            reset = self._to_time_major(reset, batch_dims)
        if order is not None:
            states = [state.index_select(0, order) for state in states]
            reset = None if reset is None else reset.index_select(1, order)
        return x, [state.to(self.dtype) for state in states], reset

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
        """Return time-major outputs of the last layer, and the hidden states, in the caller's layout."""
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

    def _to_time_major(self, tensor: Tensor, batch_dims: Sequence[str]) -> Tensor:
        if len(batch_dims) == 1:
            return tensor.unsqueeze(1)
        return tensor.transpose(0, 1) if batch_dims[0] == "B" else tensor

    def _states(self, hx: Tensor | State | None, batch: list[int], read_as: str) -> State:
        """Return the hidden states [B, H], in the caller's order of sequences. batch: [B], or [] without a batch."""
        if hx is None:
            lanes = batch[0] if batch else 1
            return [torch.zeros(lanes, size, dtype=self.dtype, device=self.device) for size in self.hidden_sizes]
        if self.is_stacked:
            if not isinstance(hx, Tensor):
                raise ValueError(f"hx must be a tensor [num_layers, B, H], not {type(hx).__name__}")
            shape = [len(self.hidden_sizes), *batch, self.hidden_sizes[0]]
            self._check("hx", hx, shape, self._floating_dtypes(), read_as)
        else:
            if isinstance(hx, Tensor) or len(hx) != len(self.hidden_sizes):
                given = "a tensor" if isinstance(hx, Tensor) else f"{len(hx)}"
                raise ValueError(f"hx must be a list of {len(self.hidden_sizes)} hidden states, not {given}")
            for layer, (state, size) in enumerate(zip(hx, self.hidden_sizes, strict=True)):
                self._check(f"hx[{layer}]", state, [*batch, size], self._floating_dtypes(), read_as)
        return [state if batch else state.unsqueeze(0) for state in hx]

    def _floating_dtypes(self) -> Sequence[torch.dtype]:
        if torch.is_autocast_enabled(self.device.type):
            return (self.dtype, *(dtype for dtype in _AUTOCAST_DTYPES if dtype != self.dtype))
        return (self.dtype,)

    def _check(
        self,
        name: str,
        tensor: Tensor | None,
        shape: Sequence[int | str],
        dtypes: torch.dtype | Sequence[torch.dtype],
        read_as: str = "",
    ) -> None:
        """Raise ValueError as `check_tensor` does; the message ends with `read_as`, how the input was understood."""
        try:
            check_tensor(name, tensor, dtypes, shape, self.device)
        except ValueError as error:
            raise ValueError(f"{error}; {read_as}" if read_as else str(error)) from None


def _lengths(packed: PackedSequence) -> Tensor:
    """Return the lengths of the sequences, in the order of the packed data, int64 [B] on the CPU."""
    sequences = torch.arange(int(packed.batch_sizes[0]))
    return (packed.batch_sizes.unsqueeze(1) > sequences).sum(0)
