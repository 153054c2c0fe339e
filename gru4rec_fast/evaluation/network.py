"""The protocol of a network that can be evaluated and can recommend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor


class NextItemNetwork(Protocol):
    """A recurrent network that scores every item of a catalogue, e.g. `gru4rec_fast.nn.SessionNetwork`.

    The score of item j after a step is `hidden @ output_weight[j] + output_bias[j]`.
    """

    training: bool

    @property
    def output_weight(self) -> Tensor:
        """Weights of the scores, [n_items, H]."""

    @property
    def output_bias(self) -> Tensor | None:
        """Biases of the scores, [n_items], or None."""

    def initial_state(self, lanes: int) -> list[Tensor]:
        """Return the hidden state before a session's first event, [lanes, H_l] for each layer."""

    def train(self, mode: bool = True) -> Any:
        """Switch dropout on (True) or off (False)."""

    def __call__(self, inputs: Tensor, state: list[Tensor], reset: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Process items, int64 [T, B]; return hidden [T, B, H] and the hidden state of each layer after the last step.

        T is the number of steps, B the number of lanes (sessions processed in parallel). Items are -1 in lanes without
        a session. `reset`, bool [T, B], zeroes a lane's state before a step. The state's last tensor is hidden[-1].
        """


@contextmanager
def evaluating(network: NextItemNetwork) -> Iterator[None]:
    """Turn dropout and gradients off inside the context; restore the network's mode (train or eval) afterwards."""
    training = network.training
    network.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)
