"""The CUDA kernels of sampled_loss on tensors of more than 2**31 numbers, under emulation.

A chunk of scores is bounded, so what passes 2**31 is M * H and (M + N) * H: hidden and rows, where the padded form
reads its own targets and writes their gradients, and M + N itself. The products around the kernels would touch all of
that memory; the kernels alone, in two blocks of their grids, touch a few pages. The chunk here is all M rows, so that
its scores pass 2**31 too, as those of 128 rows of 2**24 columns would.
"""

from __future__ import annotations

import cuda_emulator
import pytest
import torch
from native import assert_equal_bits, why_not_emulated
from torch import Tensor
from virtual_memory import first_and_last_blocks, skipping_without_address_space

pytestmark = pytest.mark.skipif(bool(why_not_emulated("sampled_loss")), reason=why_not_emulated("sampled_loss") or "-")

N, H, STRIDE = 5, 8, 8


def addresses(tensors: dict[str, Tensor]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


def end_rows(m: int, dtype: torch.dtype) -> list[Tensor]:
    """What the row kernel makes of rows 0 and m - 1: their losses, gradients of scores, and all of their own target.

    No other row is written or read, and so none takes memory.
    """
    operands = {name: torch.empty(rows, H, dtype=dtype) for name, rows in (("hidden", m), ("rows", m + N))}
    scores = torch.empty(m, STRIDE)
    grads = scores if dtype == torch.float32 else torch.empty(m, STRIDE, dtype=dtype)
    results = {name: torch.empty(rows, H) for name, rows in (("grad_hidden", m), ("grad_rows", m + N))}
    results |= {"losses": torch.empty(m), "grad_bias": torch.empty(m + N)}
    ends, g = [0, m - 1], torch.Generator().manual_seed(0)
    for tensor in (*operands.values(), scores):
        tensor[ends] = torch.randn(2, tensor.shape[1], generator=g).to(dtype).to(tensor.dtype)
    tensors = {**operands, "scores": scores, "grads": grads, **results}
    with first_and_last_blocks():
        cuda_emulator.load().make_losses(m, N, H, STRIDE, dtype == torch.bfloat16, addresses(tensors))
    return [grads[ends, :N], *(result[ends] for result in results.values())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_rows_beyond_two_to_the_31_numbers(dtype: torch.dtype) -> None:
    m = 2**28 + 3
    assert m * H > 2**31 and m * STRIDE > 2**31
    few = end_rows(2, dtype)
    assert all(bool(t.isfinite().all()) and torch.count_nonzero(t) == t.numel() for t in few)
    with skipping_without_address_space():
        assert_equal_bits(end_rows(m, dtype), few)


def test_columns_beyond_two_to_the_31() -> None:
    columns = 2**31 + 70
    with first_and_last_blocks():
        bias, offsets = torch.empty(columns), torch.empty(columns)
        bias[:64], bias[-70:] = 1.5, -2.5
        cuda_emulator.load().make_score_offsets(4, columns - 4, addresses({"bias": bias, "offsets": offsets}))
    assert bool((offsets[:64] == 1.5).all())
    assert bool((offsets[-6:] == -2.5).all())  # what the last of blocks of 64 has left
