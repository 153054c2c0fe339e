"""Matrix products of csrc/matrix/product.h, called by a private operator: shapes, layouts, precision, threads.

The product of a [m, k] and b [k, n] is [m, n]. With precision "bf16", float32 operands are rounded to bfloat16 before
they are multiplied. With `by_blocks`, the rows of the product are computed block by block.
"""

from __future__ import annotations

import os

import pytest
import torch
from native import LEVELS, assert_equal_bits, run_at_level, threads
from torch import Tensor

pytestmark = pytest.mark.usefixtures("native_library")

SIZES = [1, 3, 8, 17, 33, 48, 100, 131]  # values of m and n
DEPTHS = [0, 1, 2, 31, 100, 257, 600]  # values of k
if os.environ.get("GRU4REC_FAST_SANITIZE"):  # a sanitizer makes the products 50 times slower
    SIZES, DEPTHS = SIZES[::3], DEPTHS[::2]


def product(
    a: Tensor, b: Tensor, add_to: Tensor | None = None, precision: str = "full", by_blocks: bool = False
) -> Tensor:
    """Return a @ b + add_to; None adds nothing."""
    return torch.ops.gru4rec_fast_private.product(a, b, add_to, precision, by_blocks)


def operands(m: int, n: int, k: int, layout: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return random a [m, k] and b [k, n], with strides larger than the sizes.

    The letters of `layout` are for a and b: "n" has contiguous rows, "t" (transposed) contiguous columns.
    """
    g = torch.Generator().manual_seed(m * 10**6 + n * 10**3 + k)

    def random_matrix(rows: int, columns: int, transposed: bool) -> Tensor:
        if transposed:
            return random_matrix(columns, rows, transposed=False).T
        return torch.randn(rows, columns + 3, generator=g, dtype=dtype)[:, :columns]

    return random_matrix(m, k, layout[0] == "t"), random_matrix(k, n, layout[1] == "t")


def rounded(a: Tensor) -> Tensor:
    """Return what precision "bf16" multiplies: `a`, rounded to bfloat16 if it is float32."""
    return a.bfloat16().to(a.dtype) if a.dtype == torch.float32 else a


def assert_is_product(ours: Tensor, a: Tensor, b: Tensor, add_to: Tensor | float = 0) -> None:
    """Assert that `ours` is a @ b + add_to, up to the rounding errors of k + 2 multiply-adds in any order.

    The error bound is (k + 2) eps |a| |b| (Higham 2002, section 3.1).
    """
    k, eps = a.shape[1], torch.finfo(ours.dtype).eps
    addend = add_to.double() if isinstance(add_to, Tensor) else add_to
    magnitude = a.double().abs() @ b.double().abs() + abs(addend)
    error = (ours.double() - (a.double() @ b.double() + addend)).abs()
    floor = torch.finfo(ours.dtype).tiny * (k + 2)  # denormal sums may be flushed to zero
    assert (error <= (k + 2) * eps * magnitude + floor).all(), error.max()


@pytest.mark.parametrize("precision", ["full", "bf16"])
@pytest.mark.parametrize("layout", ["nn", "tn", "nt", "tt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_every_shape_and_layout_is_within_the_error_bound(dtype: torch.dtype, layout: str, precision: str) -> None:
    for m in SIZES:
        for n in SIZES:
            for k in DEPTHS:
                a, b = operands(m, n, k, layout, dtype)
                factors = (rounded(a), rounded(b)) if precision == "bf16" else (a, b)
                assert_is_product(product(a, b, None, precision), *factors)
                assert_is_product(product(a, b, None, precision, by_blocks=True), *factors)
                ones = torch.ones(m, n, dtype=dtype)
                assert_is_product(product(a, b, ones, precision), *factors, ones)


@pytest.mark.parametrize("precision", ["full", "bf16"])
@pytest.mark.parametrize("layout", ["nn", "tn", "nt", "tt"])
@pytest.mark.parametrize(
    "shape", [(48, 1500, 100), (1500, 100, 48), (48, 100, 1500), (300, 100, 33), (1, 4000, 700)], ids=str
)
def test_bits_do_not_depend_on_threads(shape: tuple[int, int, int], layout: str, precision: str) -> None:
    a, b = operands(*shape, layout)
    results = []
    for n_threads in (1, 2, 3):
        with threads(n_threads):
            results.append([product(a, b, None, precision), product(a, b, None, precision, by_blocks=True)])
    assert_equal_bits(results[1], results[0])
    assert_equal_bits(results[2], results[0])


def test_integers_are_exact_in_bf16() -> None:
    """Products are exact if bf16 represents all inputs and float all sums."""
    g = torch.Generator().manual_seed(0)
    for m, n, k in [(5, 40, 31), (40, 5, 300), (20, 50, 64)]:
        a, b = (torch.randint(-8, 9, shape, generator=g).float() for shape in ((m, k), (k, n)))
        for left in (a, a.T.contiguous().T):
            for right in (b, b.T.contiguous().T):
                assert torch.equal(product(left, right, None, "bf16"), a @ b)


def test_rounding_to_bf16() -> None:
    """Numbers are rounded to nearest, ties to even, as torch does. Denormals become zeros; infinities and NaN stay."""
    tiny = torch.finfo(torch.float32).tiny  # the smallest normal number
    # Ties and their neighbors, and the ends of the range: 3.4e38 becomes infinite.
    special = torch.tensor([0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 - 2**-9, 1 + 2**-8 + 2**-20, 3.4e38, tiny, -tiny])
    values = torch.cat([special, torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 100])
    one = torch.ones(1, 1)
    assert torch.equal(product(values[:, None], one, None, "bf16"), values.bfloat16().float()[:, None])
    assert torch.equal(product(one, values[None], None, "bf16"), values.bfloat16().float()[None])
    not_normal = torch.tensor([[tiny / 2], [-tiny / 4], [float("inf")], [-float("inf")], [float("nan")]])
    result = product(not_normal, one, None, "bf16")
    assert result[:4, 0].tolist() == [0, 0, float("inf"), -float("inf")] and result[4].isnan()


def test_elements_beyond_the_operands_are_not_read() -> None:
    """The operands are parts of larger matrices, whose other elements are NaN."""
    for m, n, k in [(5, 7, 3), (13, 35, 33), (50, 20, 101), (17, 40, 259), (1, 40, 33)]:
        a, b = (torch.full((size[0] + 40, size[1] + 40), float("nan")) for size in ((m, k), (k, n)))
        a[:m, :k], b[:k, :n] = 1, 1
        for left in (a[:m, :k], a.T.contiguous().T[:m, :k]):
            for right in (b[:k, :n], b.T.contiguous().T[:k, :n]):
                for precision in ("full", "bf16"):
                    for by_blocks in (False, True):
                        result = product(left, right, None, precision, by_blocks)
                        assert torch.equal(result, torch.full((m, n), float(k)))


def test_product_by_blocks_has_the_same_bits() -> None:
    """Only AVX-512 is tested: with other instruction sets, torch's BLAS may compute the product."""
    from gru4rec_fast import build_info

    if build_info()["simd"] != "avx512":
        pytest.skip("torch's BLAS may sum blocks in another order")
    for m, n, k in [(1500, 100, 48), (30, 400, 64), (97, 33, 300)]:
        for layout in ("nn", "tn", "nt", "tt"):
            for precision in ("full", "bf16"):
                a, b = operands(m, n, k, layout)
                assert torch.equal(product(a, b, None, precision, by_blocks=True), product(a, b, None, precision))


def test_unknown_precision_is_an_error() -> None:
    with pytest.raises(ValueError, match="precision=fp8: choose full or bf16"):
        product(torch.ones(1, 1), torch.ones(1, 1), None, "fp8")


@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set(level: str) -> None:
    run_at_level(level, __file__, "every_shape or do_not_depend or integers or rounding or not_read")
