"""Problems of more than 2**31 numbers, of which a test touches a few: the pages of all others are never made.

Kernels run the first and the last block of their grids, torch's own operators what they are told to.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import cuda_emulator
import numpy as np
import pytest
import torch
from torch import Tensor


def zeros(*shape: int, dtype: type = np.float32) -> Tensor:
    """Zeros that nobody has written, as torch.zeros does: all that is read of them is one page of the system's."""
    return torch.from_numpy(np.zeros(shape, dtype))


@contextmanager
def skipping_without_address_space() -> Iterator[None]:
    """Linux refuses a piece that is larger than all memory, though it were never touched."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if "llocate" not in str(error):
            raise
        pytest.skip(f"not enough address space: {error}")


@contextmanager
def first_and_last_blocks() -> Iterator[None]:
    """Of every emulated grid run these two."""
    emulation = cuda_emulator.load()
    emulation.set_block_limit(2)
    try:
        with skipping_without_address_space():
            yield
    finally:
        emulation.set_block_limit(0)


@contextmanager
def torch_runs(functions: Mapping[str, Callable[..., object]]) -> Iterator[None]:
    """Instead of torch's own operators of these names on the CPU, where C++ calls them too."""
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that these are there already
            for name, function in functions.items():
                library.impl(name, function, "CPU")
        yield
    finally:
        library._destroy()


@contextmanager
def torch_computes(chosen: Mapping[int, Tensor]) -> Iterator[None]:
    """Products and sums that a C++ operator has from torch take, of a dimension of size n, only places chosen[n]."""

    def of(*sizes: int) -> tuple[Tensor, ...]:
        return torch.meshgrid(*(chosen[n] if n in chosen else torch.arange(n) for n in sizes), indexing="ij")

    def mm(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        (m, k), n = a.shape, b.shape[1]
        out[of(m, n)] = a[of(m, k)] @ b[of(k, n)]
        return out

    def addmm(base: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1, out: Tensor) -> Tensor:
        (m, k), n = a.shape, b.shape[1]
        out[of(m, n)] = beta * base[of(m, n)] + alpha * a[of(m, k)] @ b[of(k, n)]
        return out

    def column_sums(a: Tensor, dim: list[int], *_: object, out: Tensor, **__: object) -> Tensor:
        assert dim == [0] and a.dim() == 2
        return out.copy_(a[of(*a.shape)].sum(0))

    with torch_runs({"mm.out": mm, "addmm.out": addmm, "sum.IntList_out": column_sums}):
        yield
