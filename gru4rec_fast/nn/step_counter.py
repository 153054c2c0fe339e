"""The base class of all modules with dropout: the seed of the masks, and a count of the steps so far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gru4rec_fast.ops._seed import Seeded

# Number of calls whose step is remembered for activation checkpointing.
_MAX_REMEMBERED = 1024


class StepCounter(Seeded, nn.Module):
    """Base class of modules that number their training steps, because dropout masks depend on seed and step.

    A call without `step` in training mode takes the next number. A network passes its number on to its layers, so only
    the outermost module counts. Calls with `step`, in eval mode, or without dropout do not count.

    Activation checkpointing (torch.utils.checkpoint) repeats a call within the backward pass, and the repetition must
    draw the same mask. Checkpointing restores the state of torch's CPU generator before it repeats a call. So each call
    draws a random key from that generator, and the steps of the last calls are stored by key.

    Args:
        seed: seed of the dropout masks; None draws one from torch's CPU generator.

    Buffers: step int64 [], the number of the next step; dropout_seed int64 [], the seed, so that a state dict contains
    it. Both are None in a module that a network has made, and then the network has them. A state dict saved by a
    version without this count can be loaded, too; the count then starts at 0.
    """

    step: Tensor | None
    dropout_seed: Tensor | None

    def __init__(self, seed: int | None) -> None:
        super().__init__()
        self.set_seed(seed)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("dropout_seed", torch.tensor(self.seed, dtype=torch.int64))
        self._steps_by_key: dict[int, Tensor] = {}

    def count_for_layers(self) -> None:
        """Remove the counters of all submodules, which get their step from this module. Call it once they exist."""
        for module in self.modules():
            if isinstance(module, StepCounter) and module is not self:
                module.step = module.dropout_seed = None

    def first_step(self, step: int | Tensor | None, steps: int, *, has_dropout: bool) -> int | Tensor:
        """Return the number of the first of the `steps` steps of a call; count them if `step` is None.

        Raises:
            ValueError: the module is part of a network, so `step` must be given. RuntimeError: activation checkpointing
                repeats a call that is unknown.
        """
        if step is not None:
            return step
        if not self.training or not has_dropout:
            return 0
        if self.step is None:
            raise ValueError(
                f"this {type(self).__name__} is a layer of a network, which counts the steps: call the network, or "
                "pass step="
            )
        if torch.compiler.is_compiling():
            return self._count(self.step, steps)
        key = int(torch.randint(1 << 62, (), device="cpu"))
        if torch._C._current_graph_task_id() != -1:  # within a backward pass
            if key not in self._steps_by_key:
                raise RuntimeError(
                    f"activation checkpointing repeats a call of {type(self).__name__} that is unknown, so its dropout "
                    f"mask cannot be drawn again: keep preserve_rng_state=True, run at most {_MAX_REMEMBERED} calls "
                    "before their backward pass, or pass step="
                )
            return self._steps_by_key[key]
        if len(self._steps_by_key) == _MAX_REMEMBERED:
            del self._steps_by_key[next(iter(self._steps_by_key))]
        first = self._steps_by_key[key] = self._count(self.step, steps)
        return first

    @staticmethod
    def _count(counter: Tensor, steps: int) -> Tensor:
        first = counter.clone()  # a copy, because the backward pass reads it
        counter.add_(steps)
        return first

    def restore_seed(self, saved: int | None) -> None:
        super().restore_seed(saved)
        for module in self.modules():
            if isinstance(module, StepCounter):
                module.seed = self.seed
        if self.dropout_seed is not None:
            self.dropout_seed.fill_(self.seed)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.step is not None and self.dropout_seed is not None:
            state_dict.setdefault(prefix + "step", torch.zeros_like(self.step))
            saved = state_dict.get(prefix + "dropout_seed")
            self.restore_seed(None if saved is None else int(saved))
            state_dict[prefix + "dropout_seed"] = self.dropout_seed.clone()
        super()._load_from_state_dict(state_dict, prefix, *args)
