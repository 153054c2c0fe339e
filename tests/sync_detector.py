"""What would make a program on a GPU wait for it, seen on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ASKED_FOR = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# A tensor made of a number: on the host by torch.where, which then waits for its copy; on the device by some of
# autograd's formulas.
_MADE = {torch.ops.aten.scalar_tensor.default, torch.ops.aten.lift_fresh.default}


class Waits(TorchDispatchMode):
    """Notes the operators after which the host waits: their shape, or a number, is asked for.

    copies: also those that make a tensor of a number; for work without autograd. A copy of a tensor from one device to
    another looks, on the CPU, like any other: tests/test_cuda.py sees that.
    """

    def __init__(self, *, copies: bool = False) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._copies = copies

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (self._copies and func in _MADE) or _ASKED_FOR & set(func.tags):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))
