"""build_alias_table and negative_sampling: the distribution of the table, and the items drawn from it.

All implementations must build the same table and draw the same items. An alias table has a column for each item: a draw
takes a random column, and returns its item or the item's alias. The mass of an item is its probability in units of
1 / (n_items * COLUMN_MASS). The support of an item is its number of occurrences.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import (
    assert_equal_bits,
    compile_backend,
    implementations,
    max_examples,
    native_and_emulated,
    operators_of,
    threads,
    why_not_emulated,
)
from scipy.stats import chisquare
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from virtual_memory import first_and_last_blocks

from gru4rec_fast import _backend
from gru4rec_fast.ops import AliasTable, build_alias_table, negative_sampling
from gru4rec_fast.ops.negative_sampling import COLUMN_MASS, alias_masses
from gru4rec_fast.ops.philox import philox4x32

needs_native = pytest.mark.skipif(
    _backend.resolve("auto", "negative_sampling", "cpu") != "native", reason="negative_sampling is not built natively"
)
impls = implementations("negative_sampling")  # reference, native, emulated
kernels = native_and_emulated("negative_sampling")  # native, emulated
alphas = pytest.mark.parametrize("alpha", [0.0, 0.5, 0.75, 1.0])
supports = st.lists(st.integers(0, 10**6), min_size=1, max_size=60).filter(any)  # at least one item occurs


def zipf_support(n_items: int) -> Tensor:
    """Return the support of items as in click logs: a few items have most of the events."""
    return (1e5 / torch.arange(1, n_items + 1)).long() + 1


def probabilities(support: Tensor, alpha: float) -> np.ndarray:
    """Return support^alpha, divided by the sum."""
    weight = support.numpy().astype(np.float64) ** alpha
    return weight / weight.sum()


def mass_of(table: AliasTable) -> Tensor:
    """Return the mass of each item."""
    return table.threshold.clone().scatter_add_(0, table.alias, COLUMN_MASS - table.threshold)


def assert_equal_tables(table: AliasTable, expected: AliasTable) -> None:
    for field in dataclasses.fields(AliasTable):
        a, b = getattr(table, field.name), getattr(expected, field.name)
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, field.name


# build_alias_table


@impls
@alphas
@pytest.mark.parametrize("n_items", [1, 2, 1000, 43_000])
def test_table_has_the_requested_distribution(impl: str, alpha: float, n_items: int) -> None:
    support = zipf_support(n_items)
    table = build_alias_table(support, alpha, impl=impl)
    p = probabilities(support, alpha)
    np.testing.assert_allclose(mass_of(table).numpy() / (n_items * 2.0**31), p, rtol=0, atol=1e-8)
    np.testing.assert_allclose(table.log_prob.numpy(), np.log(p), rtol=1e-6)
    assert table.threshold.min() >= 0 and table.threshold.max() <= COLUMN_MASS


@impls
@settings(max_examples=max_examples(60), deadline=None)
@given(support=supports, alpha=st.floats(0, 3))
def test_table_has_exactly_the_masses_that_alias_masses_returns(impl: str, support: list[int], alpha: float) -> None:
    tensor = torch.tensor(support)
    mass, _ = alias_masses(tensor, alpha)
    assert int(mass.sum()) == len(support) * COLUMN_MASS
    assert torch.equal(mass > 0, (tensor > 0) | (alpha == 0))
    assert torch.equal(mass_of(build_alias_table(tensor, alpha, impl=impl)), mass)


@needs_native
@settings(max_examples=max_examples(60), deadline=None)
@given(support=supports, alpha=st.floats(0, 3), dtype=st.sampled_from([torch.int32, torch.int64]))
def test_native_table_equals_reference(support: list[int], alpha: float, dtype: torch.dtype) -> None:
    tensor = torch.tensor(support, dtype=dtype)
    native_table = build_alias_table(tensor, alpha, impl="native")
    assert_equal_tables(native_table, build_alias_table(tensor, alpha, impl="reference"))


def test_mass_of_a_rare_item_is_at_least_one_unit() -> None:
    mass, log_prob = alias_masses(torch.tensor([10**9, 1, 0]), 4.0)
    assert mass.tolist() == [3 * COLUMN_MASS - 1, 1, 0]
    assert log_prob[1].item() == pytest.approx(-36 * math.log(10))
    assert log_prob[2] == -math.inf
    mass, log_prob = alias_masses(torch.tensor([10**9, 1]), 100.0)  # no overflow, though (10**9)**100 would
    assert mass.tolist() == [2 * COLUMN_MASS - 1, 1]
    assert log_prob.tolist() == pytest.approx([0.0, -900 * math.log(10)])


@impls
def test_items_without_occurrences_are_drawn_only_if_alpha_is_zero(impl: str) -> None:
    support = torch.tensor([0, 5, 0, 3, 0])
    drawn, log_prob = negative_sampling(build_alias_table(support, 0.5, impl=impl), 5000, seed=1, step=0, impl=impl)
    assert drawn.unique().tolist() == [1, 3]
    assert log_prob.isfinite().all()
    uniform = build_alias_table(support, 0.0, impl=impl)
    assert uniform.threshold.tolist() == [COLUMN_MASS] * 5


# negative_sampling


@impls
@settings(max_examples=max_examples(25), deadline=None)
@given(support=supports, seed=st.integers(0, 2**63 - 1), step=st.integers(0, 2**32 - 2))
def test_draws_are_the_documented_function_of_philox(impl: str, support: list[int], seed: int, step: int) -> None:
    table = build_alias_table(torch.tensor(support), 0.5, impl=impl)
    items, log_prob = negative_sampling(table, 3, seed=seed, step=step, steps=2, impl=impl)
    zero = torch.tensor(0)
    for t in range(2):
        for draw in range(3):
            counter = (zero, torch.tensor(step + t), torch.tensor(draw), zero)
            w0, w1, w2, _ = (int(word) for word in philox4x32(counter, seed))  # random 32-bit numbers
            column = (w0 * 2**32 + w1) * len(support) >> 64
            below_threshold = w2 // 2 < int(table.threshold[column])
            assert items[t, draw] == (column if below_threshold else table.alias[column])
            assert log_prob[t, draw] == table.log_prob[items[t, draw]]


@kernels
@settings(max_examples=max_examples(40), deadline=None)
@given(
    n_items=st.integers(1, 3000),
    n=st.integers(0, 400),
    steps=st.integers(0, 4),
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 2**32 - 4),
)
def test_draws_of_kernels_equal_reference(impl: str, n_items: int, n: int, steps: int, seed: int, step: int) -> None:
    table = build_alias_table(zipf_support(n_items), 0.75)
    drawn = negative_sampling(table, n, seed=seed, step=step, steps=steps, impl=impl)
    expected = negative_sampling(table, n, seed=seed, step=step, steps=steps, impl="reference")
    for a, b, dtype in zip(drawn, expected, (torch.int64, torch.float32), strict=True):
        assert a.shape == (steps, n) and a.dtype == b.dtype == dtype
        assert torch.equal(a, b)


@pytest.mark.skipif(bool(why_not_emulated("negative_sampling")), reason="negative_sampling is not emulated here")
def test_index_arithmetic_beyond_two_to_the_31() -> None:
    """There are more than 2**31 draws; only the first and the last block of 256 threads are computed."""
    n, table = 2**30 + 300, build_alias_table(zipf_support(1000), 0.75, impl="reference")
    with first_and_last_blocks():
        items, log_prob = negative_sampling(table, n, seed=3, step=7, steps=2, impl="emulated")
    n_last_block = items.numel() % 256 or 256
    assert items.numel() > 2**31 + n_last_block
    for t, draws in ((0, torch.arange(256)), (1, torch.arange(n - n_last_block, n))):
        counter = (torch.tensor(0), torch.tensor(7 + t), draws, torch.tensor(0))
        w0, w1, w2, _ = philox4x32(counter, 3)
        column = (w0 * table.n_items + (w1 * table.n_items >> 32)) >> 32
        expected = torch.where(w2 // 2 < table.threshold[column], column, table.alias[column])
        assert torch.equal(items[t, draws], expected)
        assert torch.equal(log_prob[t, draws], table.log_prob[expected])


@impls
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_frequencies_pass_a_chi_square_test(impl: str, alpha: float) -> None:
    """The p-value is above 1e-3 at a fixed seed. For a distribution that is wrong by 2 %, it is below 1e-15."""
    support = zipf_support(500)
    table = build_alias_table(support, alpha, impl=impl)
    items, _ = negative_sampling(table, 20_000, seed=11, step=0, steps=50, impl=impl)
    observed = np.bincount(items.numpy().ravel(), minlength=500)
    expected = probabilities(support, alpha) * items.numel()
    assert expected.min() > 5  # a chi-square test requires this
    assert chisquare(observed, expected).pvalue > 1e-3
    wrong = expected * np.where(np.arange(500) % 2, 1.02, 0.98)
    assert chisquare(observed, wrong * (expected.sum() / wrong.sum())).pvalue < 1e-15


@impls
def test_more_draws_than_items_and_a_single_item(impl: str) -> None:
    table = build_alias_table(torch.tensor([4, 1, 1]), 1.0, impl=impl)
    items, _ = negative_sampling(table, 100, seed=0, step=0, impl=impl)
    assert items.shape == (1, 100) and set(items.unique().tolist()) == {0, 1, 2}
    items, log_prob = negative_sampling(build_alias_table(torch.tensor([7]), 0.5), 9, seed=0, step=0, impl=impl)
    assert items.tolist() == [[0] * 9] and log_prob.tolist() == [[0.0] * 9]


@impls
def test_a_draw_does_not_depend_on_the_number_of_draws(impl: str) -> None:
    table = build_alias_table(zipf_support(800), 0.5)

    def draw(n: int, **changed: int) -> Tensor:
        return negative_sampling(table, n, **{"seed": 5, "step": 30, "steps": 4, **changed}, impl=impl)[0]

    all_draws = draw(300)
    assert torch.equal(all_draws[:, :70], draw(70))
    assert torch.equal(all_draws, torch.cat([draw(300, step=30 + t, steps=1) for t in range(4)]))
    for changed in ({"seed": 6}, {"step": 31}, {"seed": 5 + 2**32}):
        assert not torch.equal(all_draws, draw(300, **changed))


@impls
def test_same_negatives_for_one_and_two_threads(impl: str) -> None:
    support = torch.randint(0, 10**6, (200_000,), generator=torch.Generator().manual_seed(0))

    def table_and_draws() -> tuple[AliasTable, tuple[Tensor, Tensor]]:
        table = build_alias_table(support, 0.75, impl=impl)
        return table, negative_sampling(table, 30_000, seed=3, step=0, steps=3, impl=impl)

    with threads(1):
        expected_table, expected_draws = table_and_draws()
    with threads(2):
        table, draws = table_and_draws()
    assert_equal_tables(table, expected_table)
    assert_equal_bits(draws, expected_draws)


@impls
def test_strided_table_gives_the_same_draws(impl: str) -> None:
    table = build_alias_table(zipf_support(50), 0.5)
    strided = AliasTable(*(torch.stack([t, t], 1)[:, 0] for t in (table.threshold, table.alias, table.log_prob)), 0.5)
    (items, _), (expected, _) = (negative_sampling(each, 64, seed=1, step=2, impl=impl) for each in (strided, table))
    assert torch.equal(items, expected)


# Errors


@impls
@pytest.mark.parametrize(
    ("support", "alpha", "message"),
    [
        (torch.tensor([], dtype=torch.int64), 0.5, "support of 0 items"),
        (torch.tensor([[1, 2]]), 0.5, "support must be a one-dimensional integer tensor"),
        (torch.tensor([1.0, 2.0]), 0.5, "support must be a one-dimensional integer tensor"),
        (torch.tensor([3, -2]), 0.5, r"support\[1\]=-2"),
        (torch.tensor([0, 0]), 0.5, "support is 0 for every item"),
        (torch.tensor([1, 2]), -0.5, "alpha=-0.5"),
        (torch.tensor([1, 2]), math.nan, "alpha=nan"),
        (torch.tensor([1, 2]), math.inf, "alpha=inf"),
    ],
)
def test_error_names_the_argument_of_build_alias_table(impl: str, support: Tensor, alpha: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_alias_table(support, alpha, impl=impl)


@impls
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n": -1}, "n=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"step": 2**32}, "step="),
        ({"steps": -1}, "steps=-1"),
        ({"n": 2**32, "steps": 2**32}, r"steps \* n: the product of .* must be less than 2\*\*63"),
    ],
)
def test_error_names_the_argument_of_negative_sampling(impl: str, changed: dict[str, Any], message: str) -> None:
    table = build_alias_table(torch.tensor([1, 2, 3]), 0.5)
    with pytest.raises(ValueError, match=message):
        negative_sampling(table, **{"n": 4, "seed": 0, "step": 0, **changed}, impl=impl)


@impls
def test_no_draws_take_no_time(impl: str) -> None:
    table = build_alias_table(torch.tensor([1, 2, 3]), 0.5)
    for n, steps in ((0, 2**32), (2**32, 0)):
        items, log_prob = negative_sampling(table, n, seed=0, step=0, steps=steps, impl=impl)
        assert items.shape == log_prob.shape == (steps, n)


@impls
def test_error_names_a_tensor_of_the_table_that_does_not_fit(impl: str) -> None:
    table = build_alias_table(torch.tensor([1, 2, 3]), 0.5)
    for changed in ({"alias": table.alias[:2]}, {"log_prob": table.log_prob.double()}):
        with pytest.raises(ValueError, match=f"table.{next(iter(changed))} must be"):
            negative_sampling(dataclasses.replace(table, **changed), 4, seed=0, step=0, impl=impl)


@needs_native
@pytest.mark.parametrize(
    ("mass", "message"),  # n masses must be at least 0 and have the sum n * 2**31
    [([2**31 - 1], "is less by"), ([2**31 + 1], r"mass\[0\]"), ([2**32 + 1, -1], r"mass\[0\]"), ([], "0 items")],
)
def test_wrong_masses_are_errors_of_the_operator(mass: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torch.ops.gru4rec_fast.build_alias_table(torch.tensor(mass, dtype=torch.int64))


@kernels
def test_wrong_aliases_are_errors_of_the_operator(impl: str) -> None:
    draw = operators_of(impl, "negative_sampling").negative_sampling
    threshold, log_prob = torch.zeros(3, dtype=torch.int64), torch.zeros(3)
    for alias in (torch.tensor([0, 3, 1]), torch.tensor([-1, 0, 1])):
        with pytest.raises((IndexError, ValueError), match="alias: holds numbers outside"):
            draw(threshold, alias, log_prob, 100, 0, 0, None, 1)


# torch.library.opcheck and torch.compile


@needs_native
def test_opcheck_of_build_alias_table() -> None:
    masses, _ = alias_masses(zipf_support(40), 0.5)
    torch.library.opcheck(torch.ops.gru4rec_fast.build_alias_table, (masses,))


@kernels
def test_opcheck_of_negative_sampling(impl: str) -> None:
    table = build_alias_table(zipf_support(40), 0.5)
    torch.library.opcheck(
        operators_of(impl, "negative_sampling").negative_sampling,
        (table.threshold, table.alias, table.log_prob, 16, 1, 2, None, 3),  # n, seed, step, counter, steps
    )


@needs_native
def test_compiled_function_is_not_recompiled_for_each_step() -> None:
    counter = CompileCounter()
    table = build_alias_table(zipf_support(40), 0.5)

    def draw(table: AliasTable, step: int) -> tuple[Tensor, Tensor]:
        return negative_sampling(table, 16, seed=4, step=step)

    compiled = torch.compile(draw, fullgraph=True, backend=counter)
    for step in range(5, 12):
        assert torch.equal(compiled(table, step)[0], draw(table, step)[0])
    assert counter.frame_count <= 2  # one compilation for the first step, one for all others


@impls
def test_compiles_to_one_graph(impl: str) -> None:
    table = build_alias_table(zipf_support(40), 0.5)
    compiled = torch.compile(negative_sampling, fullgraph=True, backend=compile_backend(impl == "native"))
    drawn = compiled(table, 16, seed=1, step=2, steps=3, impl=impl)
    expected = negative_sampling(table, 16, seed=1, step=2, steps=3, impl=impl)
    assert torch.equal(drawn[0], expected[0]) and torch.equal(drawn[1], expected[1])


@impls
def test_a_tensor_as_step_equals_the_integer(impl: str) -> None:
    table = build_alias_table(zipf_support(40), 0.5)
    drawn = negative_sampling(table, 50, seed=2, step=torch.tensor(7), steps=2, impl=impl)
    expected = negative_sampling(table, 50, seed=2, step=7, steps=2, impl=impl)
    assert all(torch.equal(*pair) for pair in zip(drawn, expected, strict=True))
    with pytest.raises(ValueError, match="step"):
        negative_sampling(table, 50, seed=2, step=torch.tensor(-1), impl=impl)
