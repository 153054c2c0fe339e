"""Helpers for tests with tensors of more than 2**31 elements, which need address space but hardly any memory.

The system provides memory only for pages that are accessed. So emulated CUDA kernels run only the first and the last
thread block of each grid, and torch's operators are replaced by functions that compute only a few elements.
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
    """Return zeros that take no memory until they are accessed. np.zeros does not write them; torch.zeros does."""
    return torch.from_numpy(np.zeros(shape, dtype))


@contextmanager
def skipping_without_address_space() -> Iterator[None]:
    """Skip the test if Linux refuses an allocation that is larger than the memory of the machine."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if "allocate" not in str(error).lower():  # torch: "can't allocate memory", NumPy: "Unable to allocate"
            raise
        pytest.skip(f"not enough address space: {error}")


@contextmanager
def first_and_last_blocks() -> Iterator[None]:
    """Run only the first and the last thread block of every emulated grid."""
    emulation = cuda_emulator.load()
    emulation.set_block_limit(2)
    try:
        with skipping_without_address_space():
            yield
    finally:
        emulation.set_block_limit(0)


@contextmanager
def replaced_torch_operators(functions: Mapping[str, Callable[..., object]]) -> Iterator[None]:
    """Replace CPU operators of torch, for calls from Python and C++.

    functions: the replacement of each operator, by a name such as "mm.out".
    """
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the operators exist
            for name, function in functions.items():
                library.impl(name, function, "CPU")
        yield
    finally:
        library._destroy()


@contextmanager
def partial_torch_products(indices_by_size: Mapping[int, Tensor]) -> Iterator[None]:
    """Make torch's matrix products and column sums read and write only some indices of large dimensions.

    In each dimension of size n, these are `indices_by_size[n]`. Dimensions of other sizes are computed completely.
    """

    def index(*sizes: int) -> tuple[Tensor, ...]:
        """Return the index of the elements to compute in a tensor of these sizes."""
        indices = (indices_by_size[n] if n in indices_by_size else torch.arange(n) for n in sizes)
        return torch.meshgrid(*indices, indexing="ij")

    def mm(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        (m, k), n = a.shape, b.shape[1]
        out[index(m, n)] = a[index(m, k)] @ b[index(k, n)]
        return out

    def addmm(base: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1, out: Tensor) -> Tensor:
        (m, k), n = a.shape, b.shape[1]
        out[index(m, n)] = beta * base[index(m, n)] + alpha * a[index(m, k)] @ b[index(k, n)]
        return out

    def column_sums(a: Tensor, dim: list[int], *_: object, out: Tensor, **__: object) -> Tensor:
        assert dim == [0] and a.dim() == 2
        return out.copy_(a[index(*a.shape)].sum(0))

    with replaced_torch_operators({"mm.out": mm, "addmm.out": addmm, "sum.IntList_out": column_sums}):
        yield
