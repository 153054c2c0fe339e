"""The emulated CUDA kernels of sampled_loss on tensors of more than 2**31 elements.

`hidden` has M * H elements and `rows` has (M + N) * H: M targets and N sampled negatives of H units. These products,
and M + N itself, may exceed 2**31. With in_batch=False, a kernel reads the target rows and writes their gradients, so
its indices exceed 2**31, too. The operator processes the rows of scores in chunks of bounded size.

The matrix products around the kernels would need memory for all elements. So the tests call the kernels directly, and
run only the first and the last thread block of each grid, which use few pages of memory. Here, all M rows of scores are
in one chunk, so the indices of scores exceed 2**31, too. A chunk of 128 rows of 2**24 columns also has such indices.
"""

from __future__ import annotations

import cuda_emulator
import pytest
import torch
from native import assert_equal_bits, why_not_emulated
from torch import Tensor
from virtual_memory import first_and_last_blocks, skipping_without_address_space

pytestmark = pytest.mark.skipif(bool(why_not_emulated("sampled_loss")), reason=why_not_emulated("sampled_loss") or "-")

N, H = 5, 8
STRIDE = 8  # elements from one row of scores to the next, at least N


def addresses(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Return the address of each tensor's first element, which the emulator passes to the kernels."""
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


def results_of_first_and_last_row(m: int, dtype: torch.dtype) -> list[Tensor]:
    """Run the kernel that computes losses from scores, and return the results of rows 0 and m - 1 of m rows.

    The results are the gradients of the scores, hidden states and target rows, the losses, and the gradients of the
    targets' biases. No other row is written or read, so the other rows take no memory.
    """
    operands = {name: torch.empty(rows, H, dtype=dtype) for name, rows in (("hidden", m), ("rows", m + N))}
    scores = torch.empty(m, STRIDE)
    grads = scores if dtype == torch.float32 else torch.empty(m, STRIDE, dtype=dtype)
    results = {name: torch.empty(rows, H) for name, rows in (("grad_hidden", m), ("grad_rows", m + N))}
    results |= {"losses": torch.empty(m), "grad_bias": torch.empty(m + N)}
    first_and_last, g = [0, m - 1], torch.Generator().manual_seed(0)
    for tensor in (*operands.values(), scores):
        tensor[first_and_last] = torch.randn(2, tensor.shape[1], generator=g).to(dtype).to(tensor.dtype)
    tensors = {**operands, "scores": scores, "grads": grads, **results}
    with first_and_last_blocks():
        cuda_emulator.load().make_losses(m, N, H, STRIDE, dtype == torch.bfloat16, addresses(tensors))
    return [grads[first_and_last, :N], *(result[first_and_last] for result in results.values())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_losses_from_more_than_two_to_the_31_scores(dtype: torch.dtype) -> None:
    m = 2**28 + 3
    assert m * H > 2**31 and m * STRIDE > 2**31
    expected = results_of_first_and_last_row(2, dtype)
    assert all(bool(t.isfinite().all()) and torch.count_nonzero(t) == t.numel() for t in expected)
    with skipping_without_address_space():
        assert_equal_bits(results_of_first_and_last_row(m, dtype), expected)


def test_score_offsets_of_more_than_two_to_the_31_columns() -> None:
    columns = 2**31 + 70
    with first_and_last_blocks():
        bias, offsets = torch.empty(columns), torch.empty(columns)
        bias[:64], bias[-70:] = 1.5, -2.5
        cuda_emulator.load().make_score_offsets(4, columns - 4, addresses({"bias": bias, "offsets": offsets}))
    assert bool((offsets[:64] == 1.5).all())
    assert bool((offsets[-6:] == -2.5).all())  # the columns of the last block, which is smaller than 64
