"""dropout_mask: elements are the documented function of Philox, and all implementations return the same bits.

Philox is a random-number generator without a state. Element [t, lane, unit] of a mask depends only on the seed and on
the counter (stream, step + t, lane, unit). A lane is one of the sessions that are processed in parallel.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import compile_backend, implementations, max_examples, native_and_emulated, operators_of, threads
from torch._dynamo.testing import CompileCounter

from gru4rec_fast import _backend
from gru4rec_fast.ops import dropout_mask
from gru4rec_fast.ops.philox import philox4x32

needs_native = pytest.mark.skipif(
    _backend.resolve("auto", "dropout_mask", "cpu") != "native", reason="dropout_mask is not built natively"
)
impls = implementations("dropout_mask", "dropout")  # reference, native, emulated
kernels = native_and_emulated("dropout_mask", "dropout")  # native, emulated
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@impls
@settings(max_examples=max_examples(30), deadline=None)
@given(
    p=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**63 - 1),
    stream=st.integers(0, 2**32 - 1),
    step=st.integers(0, 2**32 - 2),
)
def test_elements_are_the_documented_function_of_philox(impl: str, p: float, seed: int, stream: int, step: int) -> None:
    mask = dropout_mask(2, 3, 4, p, seed=seed, stream=stream, step=step, dtype=torch.float64, impl=impl)
    for t in range(2):
        for lane in range(3):
            for unit in range(4):
                c0, c1, c2, c3 = (torch.tensor(number) for number in (stream, step + t, lane, unit))
                word = int(philox4x32((c0, c1, c2, c3), seed)[0])  # the first of four random 32-bit numbers
                expected = 1 / (1 - p) if word >= math.floor(p * 2**32) else 0.0
                assert mask[t, lane, unit] == expected


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (1, 1, 1), (3, 5, 7), (2, 64, 100), (1, 3, 1000)])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_kernels_equal_reference(impl: str, shape: tuple[int, int, int], dtype: torch.dtype, p: float) -> None:
    options: dict[str, Any] = {"seed": 2**40 + 5, "stream": 1, "step": 17, "dtype": dtype}
    mask = dropout_mask(*shape, p, **options, impl=impl)
    expected = dropout_mask(*shape, p, **options, impl="reference")
    assert mask.dtype == dtype and mask.shape == shape
    assert torch.equal(mask, expected)


@impls
@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_fraction_of_dropped_units_is_p(impl: str, p: float) -> None:
    mask = dropout_mask(10, 100, 1000, p, seed=3, stream=2, step=0, impl=impl)
    n = mask.numel()
    dropped = int((mask == 0).sum())
    assert abs(dropped - n * p) < 4 * math.sqrt(n * p * (1 - p))  # 4 standard deviations, at a fixed seed
    assert torch.equal(mask.unique(), torch.tensor([0.0, 1 / (1 - p)]))


@impls
def test_p_zero_drops_nothing(impl: str) -> None:
    assert torch.equal(dropout_mask(2, 3, 5, 0.0, seed=1, stream=1, step=0, impl=impl), torch.ones(2, 3, 5))


@impls
def test_an_element_does_not_depend_on_the_shape(impl: str) -> None:
    def mask(steps: int, lanes: int, units: int, **changed: int) -> torch.Tensor:
        return dropout_mask(steps, lanes, units, 0.5, **{"seed": 9, "stream": 2, "step": 40, **changed}, impl=impl)

    full_mask = mask(6, 8, 50)
    assert torch.equal(full_mask[:, :5, :20], mask(6, 5, 20))
    assert torch.equal(full_mask, torch.cat([mask(1, 8, 50, step=40 + t) for t in range(6)]))
    for changed in ({"seed": 10}, {"stream": 3}, {"step": 41}, {"seed": 9 + 2**32}):  # a seed has 64 bits
        assert not torch.equal(full_mask, mask(6, 8, 50, **changed))


@impls
def test_same_mask_for_one_and_two_threads(impl: str) -> None:
    def mask() -> torch.Tensor:
        return dropout_mask(4, 100, 300, 0.5, seed=1, stream=1, step=0, impl=impl)

    with threads(1):
        expected = mask()
    with threads(2):
        assert torch.equal(mask(), expected)


@impls
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"p": 1.0}, "p=1.0"),
        ({"p": -0.1}, "p=-0.1"),
        ({"p": math.nan}, "p=nan"),
        ({"steps": -1}, "steps=-1"),
        ({"lanes": -1}, "lanes=-1"),
        ({"units": 2**32}, f"units={2**32}"),
        ({"stream": -1}, "stream=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"step": 2**32}, f"step={2**32}"),
        ({"dtype": torch.int64}, "dtype=torch.int64"),
        ({"dtype": torch.float8_e5m2}, "dtype=torch.float8_e5m2"),
        ({"steps": 2**31, "lanes": 2**31, "units": 2}, r"steps \* lanes \* units: the product .* less than 2\*\*63"),
        ({"p": 0.99999, "dtype": torch.float16}, "p=0.99999: .* torch.float16"),  # 1 / (1 - p) overflows
    ],
)
def test_error_names_the_argument(impl: str, changed: dict[str, Any], message: str) -> None:
    arguments = {"steps": 1, "lanes": 2, "units": 3, "p": 0.5, "seed": 0, "stream": 0, "step": 0, **changed}
    with pytest.raises(ValueError, match=message):
        dropout_mask(**arguments, impl=impl)


@impls
def test_empty_masks_take_no_time(impl: str) -> None:
    big = 2**31
    for shape in ((big, big, 0), (big, 0, big), (0, big, big)):
        assert dropout_mask(*shape, 0.5, seed=0, stream=0, step=0, impl=impl).shape == shape


@kernels
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": -1}, "steps=-1"),
        ({"lanes": -1}, "lanes=-1"),
        ({"p": 1.0}, "p=1"),
        ({"seed": -1}, "seed=-1"),
        ({"step": 2**32}, "step="),
        ({"steps": 2**31, "lanes": 2**31, "units": 2}, "less than 2"),
    ],
)
def test_operator_error_names_the_argument(impl: str, changed: dict[str, Any], message: str) -> None:
    arguments = {"steps": 1, "lanes": 2, "units": 3, "p": 0.5, "seed": 0, "stream": 0, "step": 0} | changed
    operator = operators_of(impl, "dropout_mask").dropout_mask
    with pytest.raises(ValueError, match=message):
        operator(*arguments.values(), None, dtype=torch.float32, device=torch.device("cpu"))


@kernels
def test_opcheck(impl: str) -> None:
    torch.library.opcheck(
        operators_of(impl, "dropout_mask").dropout_mask,
        (2, 3, 4, 0.5, 1, 2, 3, torch.tensor(4)),  # steps, lanes, units, p, seed, stream, step, counter
        {"dtype": torch.bfloat16, "device": torch.device("cpu")},
    )


@needs_native
def test_compiled_function_is_not_recompiled_for_each_step() -> None:
    counter = CompileCounter()

    def train_step(x: torch.Tensor, step: int) -> torch.Tensor:
        return x * dropout_mask(1, 4, 8, 0.5, seed=2, stream=1, step=step)

    compiled = torch.compile(train_step, fullgraph=True, backend=counter)
    x = torch.randn(1, 4, 8)
    for step in range(5, 12):
        assert torch.equal(compiled(x, step), train_step(x, step))
    assert counter.frame_count <= 2  # one compilation for the first step, one for all others


@impls
def test_compiles_to_one_graph(impl: str) -> None:
    def masked(x: torch.Tensor) -> torch.Tensor:
        return x * dropout_mask(2, 4, 8, 0.25, seed=2, stream=1, step=7, impl=impl)

    x = torch.randn(2, 4, 8)
    compiled = torch.compile(masked, fullgraph=True, backend=compile_backend(impl == "native"))
    assert torch.equal(compiled(x), masked(x))


@impls
def test_a_tensor_as_step_equals_the_integer(impl: str) -> None:
    def mask(step: Any) -> torch.Tensor:
        return dropout_mask(2, 3, 50, 0.5, seed=2, stream=1, step=step, impl=impl)

    for step in (0, 7, 2**32 - 2):
        assert torch.equal(mask(torch.tensor(step)), mask(step))


@impls
@pytest.mark.parametrize("step", [-1, 2**32 - 1, 2**62, -(2**62)])
def test_a_tensor_out_of_range_as_step_is_an_error(impl: str, step: int) -> None:
    with pytest.raises(ValueError, match="step"):
        dropout_mask(2, 3, 50, 0.5, seed=2, stream=1, step=torch.tensor(step), impl=impl)


@impls
@pytest.mark.parametrize("step", [torch.tensor([1]), torch.tensor(1.0), torch.tensor(1, dtype=torch.int32)])
def test_a_step_that_is_not_a_single_int64_is_an_error(impl: str, step: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"step must be int64 \[\] on cpu"):
        dropout_mask(2, 3, 50, 0.5, seed=2, stream=1, step=step, impl=impl)
