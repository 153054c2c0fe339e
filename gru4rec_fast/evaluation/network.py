"""What evaluation and recommending need of a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor


class NextItemNetwork(Protocol):
    """A recurrent network that scores every item of a catalogue; `gru4rec_fast.nn.SessionNetwork` is one.

    The score of item j after a step is `hidden @ output_weight[j] + output_bias[j]`.
    """

    training: bool

    @property
    def output_weight(self) -> Tensor:
        """[n_items, H]."""

    @property
    def output_bias(self) -> Tensor | None:
        """[n_items], or None."""

    def initial_state(self, lanes: int) -> list[Tensor]:
        """The state before a session's first event, [lanes, H_l] for each layer."""

    def train(self, mode: bool = True) -> Any:
        """Switch dropout on (True) or off (False)."""

    def __call__(self, inputs: Tensor, state: list[Tensor], reset: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Feed items, int64 [T, B] with -1 in dead lanes; return hidden [T, B, H] and the state after the last step.

        `reset`, bool [T, B], zeroes a lane's state before a step. The state's last tensor is hidden[-1].
        """


@contextmanager
def evaluating(network: NextItemNetwork) -> Iterator[None]:
    """Dropout off and no gradients recorded inside the block; the network's mode is put back afterwards."""
    training = network.training
    network.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)
