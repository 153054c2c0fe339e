"""The protocol of a network for `evaluate_sessions` and for the functions that recommend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor


class NextItemNetwork(Protocol):
    """A recurrent network that scores all items of a catalogue, e.g. `gru4rec_fast.nn.SessionNetwork`.

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
        """Return the hidden state of each layer before the first event of a session, [lanes, H_l] for layer l."""

    def train(self, mode: bool = True) -> Any:
        """Switch dropout on (True) or off (False)."""

    def __call__(self, inputs: Tensor, state: list[Tensor], reset: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Process items; return the output of the last layer, [T, B, H], and the new hidden states of all layers.

        T is the number of steps, B the number of lanes (sessions processed in parallel).

        Args:
            inputs: int64 [T, B], item indices; -1 in lanes without a session.
            state: hidden states of the layers before the first step.
            reset: bool [T, B], whether the hidden state of a lane is set to zero before a step; None: never.
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
