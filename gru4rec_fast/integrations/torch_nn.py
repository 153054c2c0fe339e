"""`GRU`, a replacement of torch.nn.GRU with resets, and `from_gru`, which puts it into a model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from gru4rec_fast.nn.sequence_layout import SequenceLayout
from gru4rec_fast.nn.session_gru import gru_layer


class GRU(nn.RNNBase):
    """Apply torch.nn.GRU by the operator `gru`: the same arguments, parameters and state dict, and resets.

    Initial weights, results and dropout (between layers, from torch's generator) are those of torch.nn.GRU; in a
    PackedSequence, other units are dropped. A state dict of one can be loaded into the other. `GRU` is no subclass of
    torch.nn.GRU, because torch.compile does not trace these. Compared with `SessionGRU`, names of parameters and
    dropout are torch's, and all layers have one size.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, device, dtype: see torch.nn.GRU.
        bidirectional: must be False.
        impl: "auto", "native" or "reference".

    Raises:
        ValueError: bidirectional is True, or another argument is out of range.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        impl: str = "auto",
    ) -> None:
        if bidirectional:
            raise ValueError("bidirectional=True is not supported: use torch.nn.GRU")
        sizes = input_size, hidden_size, num_layers
        super().__init__("GRU", *sizes, bias, batch_first, dropout, device=device, dtype=dtype)
        self.impl = impl

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Return (output, h_n) as torch.nn.GRU does.

        reset: bool [T, B], [B, T] if batch_first; True sets the state of a sequence to zero before that step. For
            single sequences and PackedSequences, and for the other arguments, see `SessionGRU.forward`.
        """
        weight = next(self.parameters())
        sizes = [self.hidden_size] * self.num_layers
        layout = SequenceLayout(self.input_size, sizes, True, self.batch_first, weight.dtype, weight.device)
        x, states, reset = layout.arguments(input, hx, reset)
        new_states = []
        for index, (state, (weight_ih, weight_hh, *biases)) in enumerate(zip(states, self.all_weights, strict=True)):
            if index > 0 and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            bias_ih, bias_hh = biases or (None, None)
            x = gru_layer(x, state, weight_ih, weight_hh, bias_ih, bias_hh, reset, impl=self.impl)
            new_states.append(layout.states_after(input, x, state))
        output, h_n = layout.results(input, x, new_states)
        assert isinstance(h_n, Tensor)
        return output, h_n


def from_gru(module: nn.Module, *, impl: str = "auto") -> nn.Module:
    """Turn each torch.nn.GRU in a module into a `GRU`, in place; return the module.

    Parameters, hooks and optimizers of the module stay as they are. Subclasses of torch.nn.GRU are not changed.

    Raises:
        ValueError: there is no torch.nn.GRU, or one is bidirectional; nothing is changed then.
    """
    grus = {name: gru for name, gru in module.named_modules() if type(gru) is nn.GRU}
    if not grus:
        raise ValueError(f"there is no torch.nn.GRU in this {type(module).__name__}")
    for name, gru in grus.items():
        if gru.bidirectional:
            raise ValueError(f"the torch.nn.GRU {name!r} is bidirectional, which is not supported")
    for gru in grus.values():
        gru.__class__ = GRU  # type: ignore[assignment]  # as torch.nn.utils.parametrize does
        gru.impl = impl
    return module
