"""SessionParallelLoader in training loops with Accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

try:
    from accelerate import Accelerator
    from accelerate.data_loader import DataLoaderStateMixin
    from accelerate.state import GradientState
except ImportError as error:
    raise ImportError("gru4rec_fast.integrations.accelerate needs accelerate: pip install accelerate") from error

from gru4rec_fast.data import SessionBlock, SessionParallelLoader


def prepare_loader(accelerator: Accelerator, loader: SessionParallelLoader) -> PreparedSessionLoader:
    """Return the loader for a loop with Accelerate; `save_state` and `load_state` then include its position.

    Pass network and optimizer to `Accelerator.prepare`, but the loader to this function: `prepare` would return the
    loader unchanged. Do not put it into a DataLoader: that would load one block ahead, and return to the start of the
    epoch after `load_state`.

    Raises:
        ValueError: the loader's blocks are on another device than `accelerator.device`, or there are several processes.
    """
    if accelerator.num_processes > 1:
        raise ValueError(
            f"{accelerator.num_processes} processes would all train on the same sessions; launch one process"
        )
    if torch.empty(0, device=loader.device).device != torch.empty(0, device=accelerator.device).device:
        raise ValueError(f"the loader has device={loader.device}; make it with device=accelerator.device")
    prepared = PreparedSessionLoader(loader)
    accelerator.register_for_checkpointing(prepared)
    return prepared


class PreparedSessionLoader(DataLoaderStateMixin):
    """Iterates over a SessionParallelLoader, and tells Accelerate at which block an epoch ends.

    So `Accelerator.accumulate` updates the weights also after the last blocks of an epoch. The length is the number of
    blocks in the epoch.

    Attributes:
        loader: the loader.
        hidden: set this to the detached hidden states after each block, one [B, H] per layer; they are saved with the
            position. None at the start of an epoch.
    """

    def __init__(self, loader: SessionParallelLoader) -> None:
        self.loader = loader
        self.hidden: list[Tensor] | None = None
        self.gradient_state = GradientState()

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[SessionBlock]:
        state = self.loader.state_dict()
        if state["lanes"] is None and state["blocks"] == 0:
            self.hidden = None
        self.begin()
        try:
            for block in self.loader:
                # The loader ends the epoch when it yields the last block.
                self.end_of_dataloader = self.loader.state_dict()["epoch"] != state["epoch"]
                yield block
        finally:
            self.end()

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next block, and the hidden states."""
        return {"loader": self.loader.state_dict(), "hidden": self.hidden}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration resume at the position in `state`.

        Raises:
            ValueError: see `SessionParallelLoader.load_state_dict`.
        """
        self.loader.load_state_dict(state["loader"])
        device = self.loader.device
        self.hidden = state["hidden"] and [hidden.to(device) for hidden in state["hidden"]]
