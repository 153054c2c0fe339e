"""ExactNetwork: a recurrent network whose weights are small integers, so that its arithmetic has no rounding errors."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ExactNetwork(nn.Module):
    """A network with h' = E[item] - h and scores E h' + bias, all small integers stored as float64.

    It implements the protocol `NextItemNetwork`. Scores have few distinct values, so there are many ties, and ranks can
    be compared without tolerance. In training mode, noise is added to the hidden state, as dropout would.
    """

    def __init__(self, n_items: int, width: int = 3, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randint(-2, 3, (n_items, width), generator=generator).double())
        self.bias = nn.Parameter(torch.randint(-2, 3, (n_items,), generator=generator).double())
        self.n_calls = self.n_inputs = 0  # calls of the network, and inputs of all calls, padding included

    @property
    def output_weight(self) -> Tensor:
        return self.table

    @property
    def output_bias(self) -> Tensor:
        return self.bias

    def initial_state(self, lanes: int) -> list[Tensor]:
        return [self.table.new_zeros(lanes, self.table.shape[1])]

    def forward(self, inputs: Tensor, state: list[Tensor], reset: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        hidden, outputs = state[0], []
        self.n_calls, self.n_inputs = self.n_calls + 1, self.n_inputs + inputs.numel()
        for t, items in enumerate(inputs):
            if reset is not None:
                hidden = torch.where(reset[t, :, None], 0.0, hidden)
            hidden = self.table[items] - hidden  # padding (-1) reads the last row; its results are ignored
            if self.training:
                hidden = hidden + torch.rand_like(hidden)
            outputs.append(hidden)
        return torch.stack(outputs), [hidden]

    def hidden_after(self, session: list[int]) -> Tensor:
        """Return the hidden state after the events of one session, [H]."""
        hidden = torch.zeros_like(self.table[0])
        for item in session:
            hidden = self.table[item] - hidden
        return hidden.detach()

    def scores_after(self, session: list[int]) -> Tensor:
        """Return the scores after the events of one session, [n_items]."""
        return (self.table.detach() * self.hidden_after(session)).sum(dim=1) + self.bias.detach()
