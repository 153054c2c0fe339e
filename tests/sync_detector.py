"""Detect, on the CPU, operators that would cause a GPU synchronization."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_SYNCHRONIZING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# Operators that create a tensor from a Python number. Within torch.where, the CPU creates the tensor and waits for the
# copy to the GPU. Within some backward formulas of torch, the GPU creates the tensor, without a copy.
_FROM_NUMBER = {torch.ops.aten.scalar_tensor.default, torch.ops.aten.lift_fresh.default}


class SyncDetector(TorchDispatchMode):
    """Records in `seen` the names of operators for which the CPU would wait to know a value or a shape.

    `copies` also records operators that create a tensor from a Python number. Use it for code without autograd only.
    Other copies between devices cannot be detected on the CPU; tests/test_cuda.py detects them on a GPU.
    """

    def __init__(self, *, copies: bool = False) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._copies = copies

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (self._copies and func in _FROM_NUMBER) or _SYNCHRONIZING & set(func.tags):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))
