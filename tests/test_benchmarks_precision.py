"""The rounding of benchmarks/precision.py, which stands for the TF32 products of a GPU."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from precision import TF32Products, round_to_tf32


def nearest_tf32(value: float) -> float:
    """Return the nearest number with 11 significant bits, of which one is implicit; ties to even."""
    exponent = max(np.frexp(value)[1], -125)  # below 2^-126, numbers have a fixed distance
    return float(np.float32(np.ldexp(np.rint(np.ldexp(value, 11 - exponent)), exponent - 11)))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_rounds_to_the_nearest_number_of_ten_explicit_bits(value: float) -> None:
    rounded = round_to_tf32(torch.tensor([value]))
    with np.errstate(over="ignore"):  # the largest numbers round to infinity
        assert rounded.item() == nearest_tf32(value)
    assert torch.equal(round_to_tf32(rounded), rounded)


def test_ties_round_to_even_and_special_values_stay() -> None:
    last_bit = 2.0**-10
    values = torch.tensor([1 + last_bit / 2, 1 + 3 * last_bit / 2, -1 - last_bit / 2, -0.0, torch.inf, -torch.inf])
    expected = torch.tensor([1, 1 + 2 * last_bit, -1, -0.0, torch.inf, -torch.inf])
    assert torch.equal(round_to_tf32(values).view(torch.int32), expected.view(torch.int32))
    all_ones = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)  # a NaN
    assert round_to_tf32(all_ones).isnan()


@pytest.mark.parametrize("product", [torch.matmul, torch.bmm, torch.nn.functional.linear])
def test_products_round_their_factors_forward_and_backward(product: object) -> None:
    shape = (2, 6, 6) if product is torch.bmm else (6, 6)
    a, b, grad = (torch.randn(shape) for _ in range(3))
    a.requires_grad_(), b.requires_grad_()
    with TF32Products() as products:
        c = product(a, b)  # type: ignore[operator]
        c.backward(grad)
    x, y, g = (round_to_tf32(t.detach()).double() for t in (a, b, grad))
    y = y.mT if product is torch.nn.functional.linear else y
    expected = [x @ y, g @ y.mT, x.mT @ g]
    if product is torch.nn.functional.linear:
        expected[2] = expected[2].mT
    for result, exact in zip((c, a.grad, b.grad), expected, strict=True):
        torch.testing.assert_close(result, exact.float(), rtol=0, atol=6 * 2**-24 * 40)  # six products below 40
    assert products.n_products == 3
    assert not torch.equal(c, product(a, b))  # type: ignore[operator]


def test_products_of_float64_stay_exact() -> None:
    a, b = torch.randn(5, 5, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64)
    with TF32Products() as products:
        c = a @ b
    assert torch.equal(c, a @ b) and products.n_products == 0
