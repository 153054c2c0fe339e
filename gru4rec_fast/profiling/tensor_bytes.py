"""Count the bytes of parameters, buffers, gradients, optimizer state and activations."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class TensorBytes:
    """Counts the bytes of the tensors of some modules and their optimizers; a shared storage counts once."""

    def __init__(self) -> None:
        self._modules: list[nn.Module] = []
        self._optimizers: list[torch.optim.Optimizer] = []
        self._gradients: dict[nn.Parameter, int] = {}  # the largest gradient of each parameter
        self.activations = 0
        """The largest sum of the tensors that one forward pass saved for its backward pass."""

    def track(self, module: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Count also the tensors of this module and optimizer. Raises TypeError for objects of other types."""
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be an nn.Module, not {type(module).__name__}")
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
        if module not in self._modules:
            self._modules.append(module)
        if optimizer is not None and optimizer not in self._optimizers:
            self._optimizers.append(optimizer)

    def note_gradient(self, parameter: nn.Parameter) -> None:
        """Take into account the current gradient of a parameter."""
        if parameter.grad is not None:
            self._gradients[parameter] = max(self._gradients.get(parameter, 0), storage_bytes([parameter.grad]))

    def note_gradients(self) -> None:
        """Take into account the current gradients of all parameters."""
        for module in self._modules:
            for parameter in module.parameters():
                self.note_gradient(parameter)

    def parameter_storages(self) -> set[int]:
        """Return the addresses of the storages of all parameters and buffers."""
        tensors = [t for module in self._modules for t in (*module.parameters(), *module.buffers())]
        return {tensor.untyped_storage().data_ptr() for tensor in tensors}

    def summary(self) -> dict[str, int]:
        """Return bytes by kind: parameters, buffers, gradients, optimizer_state, activations."""
        self.note_gradients()
        return {
            "parameters": storage_bytes(p for module in self._modules for p in module.parameters()),
            "buffers": storage_bytes(b for module in self._modules for b in module.buffers()),
            "gradients": sum(self._gradients.values()),
            "optimizer_state": storage_bytes(
                value
                for optimizer in self._optimizers
                for state in optimizer.state.values()
                for value in state.values()
                if isinstance(value, Tensor)
            ),
            "activations": self.activations,
        }


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages of tensors, each storage once; of a sparse tensor, its indices and values."""
    storages = {}
    for tensor in tensors:
        for part in (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,):
            storage = part.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
