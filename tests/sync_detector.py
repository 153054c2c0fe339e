"""Detect, on the CPU, operators that would cause a GPU synchronization."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_SYNCHRONIZING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# These create a tensor from a Python number. torch.where does so on the CPU, and then waits for the copy to the GPU.
# Some formulas of autograd do so on the GPU, without a copy.
_FROM_NUMBER = {torch.ops.aten.scalar_tensor.default, torch.ops.aten.lift_fresh.default}


class SyncDetector(TorchDispatchMode):
    """Records in `seen` the operators whose result shape, or whose value, the CPU would have to wait for.

    With `copies`, also operators that create a tensor from a Python number; use it for code without autograd. Copies
    between devices cannot be detected on the CPU; tests/test_cuda.py does.
    """

    def __init__(self, *, copies: bool = False) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._copies = copies

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (self._copies and func in _FROM_NUMBER) or _SYNCHRONIZING & set(func.tags):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))
