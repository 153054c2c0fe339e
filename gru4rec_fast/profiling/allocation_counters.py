"""Counters of the memory that torch allocates, frees, and copies between host and device."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gru4rec_fast import _backend


class AllocationCounts(NamedTuple):
    """Bytes that were allocated and freed, and the number of allocations.

    They are counted since the counter was created, by a CudaCounter since its last `start`.
    peak_bytes: largest value of allocated - freed bytes since the previous `read`.
    """

    allocated_bytes: int
    freed_bytes: int
    allocations: int
    peak_bytes: int


class AllocationCounter(Protocol):
    """Protocol of the counters. `stop` is called in the thread that called `start`."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def read(self) -> tuple[int, int, int, int]:
        """Return the fields of `AllocationCounts`."""


@runtime_checkable
class NativeCounter(AllocationCounter, Protocol):
    """Protocol of the CPU's native counter, in which native code records the phases that it begins."""

    def take_phases(self) -> list[tuple[str, float, tuple[int, int, int, int]]]:
        """Return the name, the time, and the counts as of `read`, of the phases begun since the previous call."""


def allocation_counter(device: torch.device) -> AllocationCounter:
    """Return a new counter for a device. Without native kernels, the counter of the CPU is a `TensorCounter`."""
    if device.type == "cuda":
        return CudaCounter(device)
    return _backend.native_module().AllocationCounter() if _backend.load() else TensorCounter()


class CudaCounter:
    """Counts what the caching allocator gives to tensors of one CUDA device, by the statistics that torch keeps."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)
        self._at_start = self._statistics()

    def stop(self) -> None: ...

    def _statistics(self) -> dict[str, int]:
        return torch.cuda.memory_stats(self._device)

    def read(self) -> tuple[int, int, int, int]:
        now, start = self._statistics(), self._at_start
        counts = [
            now[name] - start[name]
            for name in ("allocated_bytes.all.allocated", "allocated_bytes.all.freed", "allocation.all.allocated")
        ]
        peak = now["allocated_bytes.all.peak"] - start["allocated_bytes.all.current"]
        torch.cuda.reset_peak_memory_stats(self._device)
        return counts[0], counts[1], counts[2], peak


class TensorCounter(TorchDispatchMode):
    """Counts the storages of tensors on the CPU that operators return. Memory within an operator is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self._allocated = self._freed = self._allocations = self._peak = 0
        self._counted: dict[int, Any] = {}  # weak references to storages, by their id

    def start(self) -> None:
        self.__enter__()

    def stop(self) -> None:
        self.__exit__(None, None, None)

    def read(self) -> tuple[int, int, int, int]:
        peak, self._peak = self._peak, self._allocated - self._freed
        return self._allocated, self._freed, self._allocations, peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A result in the memory of an argument, such as a view, allocates nothing.
        argument_storages = {tensor.untyped_storage()._cdata for tensor in _cpu_tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _cpu_tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata in argument_storages or id(storage) in self._counted:
                continue
            self._allocated += storage.nbytes()
            self._allocations += 1
            self._peak = max(self._peak, self._allocated - self._freed)
            self._counted[id(storage)] = weakref.finalize(storage, self._free, id(storage), storage.nbytes())
        return result

    def _free(self, key: int, n_bytes: int) -> None:
        del self._counted[key]
        self._freed += n_bytes


def _cpu_tensors(tree: Any) -> list[Tensor]:
    leaves = tree_leaves(tree)
    return [x for x in leaves if isinstance(x, Tensor) and x.device.type == "cpu" and x.layout == torch.strided]


class CopyCounter(TorchDispatchMode):
    """Counts the bytes that operators of torch copy between devices, while its context is entered.

    Copies in a CUDA graph and by libraries that do not use operators of torch are not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bytes: dict[str, int] = {}
        self._copies: dict[str, int] = {}

    def summary(self) -> dict[str, dict[str, int]]:
        """Return `copies` and `bytes` by direction, such as "cpu to cuda"."""
        return {name: {"copies": self._copies[name], "bytes": self._bytes[name]} for name in self._bytes}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket
        if name is torch.ops.aten.copy_:
            self._count(args[1], args[0].device.type)
        elif name is torch.ops.aten._to_copy:
            self._count(args[0], result.device.type)
        elif name is torch.ops.aten._local_scalar_dense:  # Tensor.item()
            self._count(args[0], "cpu")
        return result

    def _count(self, source: Tensor, target: str) -> None:
        if source.device.type == target:
            return
        name = f"{source.device.type} to {target}"
        self._bytes[name] = self._bytes.get(name, 0) + source.numel() * source.element_size()
        self._copies[name] = self._copies.get(name, 0) + 1
