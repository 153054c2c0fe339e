"""The protocol of a network for `evaluate_sessions` and for the functions that recommend."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


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
    if training:
        network.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            network.train()


def evaluation_view(module: nn.Module, impl: str) -> Any:
    """Return a copy of one of this package's modules in eval mode, with the same parameters and buffers.

    Neither the mode nor `impl` of the module itself changes, so a training of the module in another thread goes on.

    impl: "auto", "native" or "reference", for all operators of the copy.
    """
    view = copy.copy(module)
    children = {name: child and evaluation_view(child, impl) for name, child in module._modules.items()}
    # If the module has its own `forward` or `_compiled_call_impl`, they call the module itself, so the copy drops them.
    vars(view).pop("forward", None)
    vars(view).update(training=False, _modules=children, _compiled_call_impl=None)
    if "impl" in vars(view):
        vars(view)["impl"] = impl
    return view
