"""sparse_adagrad_ and sparse_adam_ compared with plain Python: repeated, padded and untouched rows, threads, errors.

A rule is the name of one of these operators.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native import LEVELS, assert_equal_bits, compile_backend, max_examples, run_at_level, threads, why_not_emulated
from torch import Tensor
from virtual_memory import first_and_last_blocks

from gru4rec_fast import ops
from gru4rec_fast.optim import SparseAdagrad, SparseAdam

OPTIONS: dict[str, dict[str, Any]] = {
    "sparse_adagrad_": {"lr": 0.1, "momentum": 0.3, "eps": 1e-6},
    "sparse_adam_": {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "step": 3},
}
RULES = list(OPTIONS)


def update(rule: str, tensors: list[Tensor], index: Tensor, grad: Tensor, **options: Any) -> None:
    """Call the operator `rule`; `tensors` are the table and its two state tensors, which are updated in place."""
    getattr(ops, rule)(*tensors, index, grad, **(OPTIONS[rule] | options))


def random_table_and_state(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Return a table and two state tensors with random positive numbers, as they might be after some steps."""
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=g, dtype=dtype) for _ in range(3)]


def plain_python_update(rule: str, tensors: list[Tensor], index: Tensor, grad: Tensor) -> None:
    """Update row by row in plain Python. `tensors` are as in `update`; first and second are the state tensors."""
    o = OPTIONS[rule]
    table, first, second = tensors
    for row in set(index.tolist()):
        g = grad[index == row].sum(0)
        if rule == "sparse_adagrad_":
            first[row] += g**2
            second[row] = o["momentum"] * second[row] - o["lr"] * g / (first[row] + o["eps"]).sqrt()
            table[row] += second[row]
        else:
            first[row] = o["beta1"] * first[row] + (1 - o["beta1"]) * g
            second[row] = o["beta2"] * second[row] + (1 - o["beta2"]) * g**2
            corrected_lr = o["lr"] * (1 - o["beta2"] ** o["step"]) ** 0.5 / (1 - o["beta1"] ** o["step"])
            table[row] -= corrected_lr * first[row] / (second[row].sqrt() + o["eps"])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(7, 3), (7,), (7, 1), (7, 17), (7, 33), (7, 2, 50), (7, 5000)], ids=str)
def test_rows_follow_the_rule(shape: tuple[int, ...], rule: str, impl: str) -> None:
    g = torch.Generator().manual_seed(0)
    ours = random_table_and_state(shape)
    theirs = [t.clone() for t in ours]
    for _ in range(4):
        index = torch.randint(0, 6, (9,), generator=g)
        grad = torch.randn(9, *shape[1:], generator=g, dtype=torch.float64)
        grad[index == 2] = 0  # a row with a zero gradient is updated too, by its momentum
        update(rule, ours, index, grad, impl=impl)
        plain_python_update(rule, theirs, index, grad)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=max_examples(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_indices_give_the_result_of_plain_python(rule: str, native_library: None, data: st.DataObject) -> None:
    """The numbers of rows, columns and indices are random, too."""
    n_rows, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 70))
    index = torch.tensor(data.draw(st.lists(st.integers(0, n_rows - 1), max_size=60)), dtype=torch.int64)
    grad = torch.randn(len(index), width, dtype=torch.float64, generator=torch.Generator().manual_seed(width))
    ours = random_table_and_state((n_rows, width))
    theirs = [t.clone() for t in ours]
    update(rule, ours, index, grad, impl="native")
    plain_python_update(rule, theirs, index, grad)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_float32_stays_close_to_float64(rule: str, impl: str) -> None:
    """A kernel that rounds beta to float32 before it computes 1 - beta would have an error of 1e-4 after 50 steps."""
    g = torch.Generator().manual_seed(1)
    single = random_table_and_state((6, 20), torch.float32)
    double = [t.double() for t in single]
    options = {"beta2": 0.999} if rule == "sparse_adam_" else {}
    for _ in range(50):
        index, grad = torch.randint(0, 6, (4,), generator=g), torch.randn(4, 20, generator=g)
        update(rule, single, index, grad, **options, impl=impl)
        update(rule, double, index, grad.double(), **options, impl="reference")
    for a, b in zip(single, double, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("rule", RULES)
def test_other_rows_are_unchanged(rule: str, impl: str) -> None:
    tensors = random_table_and_state((5, 2), torch.float32)
    copies = [t.clone() for t in tensors]
    update(rule, tensors, torch.tensor([1, 1]), torch.rand(2, 2), impl=impl)
    for updated, original in zip(tensors, copies, strict=True):
        assert torch.equal(updated[[0, 2, 3, 4]], original[[0, 2, 3, 4]])
        assert not torch.equal(updated[1], original[1])


@pytest.mark.parametrize("rule", RULES)
def test_empty_index_changes_nothing(rule: str, impl: str) -> None:
    tensors = random_table_and_state((5, 2), torch.float32)
    copies = [t.clone() for t in tensors]
    update(rule, tensors, torch.empty(0, dtype=torch.int64), torch.empty(0, 2), impl=impl)
    assert_equal_bits(tensors, copies)


@pytest.mark.parametrize("n_rows", [3, 2048, 2049, 5_000_000])
def test_many_duplicates_are_summed_in_order(n_rows: int, impl: str) -> None:
    """Sums of integer gradients are exact, so they must equal those of index_add_.

    The native kernel sorts the row indices by a radix sort; for these numbers of rows the sort has 1 to 3 passes.
    """
    g = torch.Generator().manual_seed(n_rows)
    index = torch.cat([torch.randint(0, n_rows, (500,), generator=g), torch.tensor([n_rows - 1, 0, n_rows - 1])])
    index = index[torch.randint(0, len(index), (3000,), generator=g)]
    grad = torch.randint(-4, 5, (3000, 2), generator=g).float()
    accumulator, table = torch.zeros(n_rows, 2), torch.zeros(n_rows, 2)
    ops.sparse_adagrad_(table, accumulator, None, index, grad, lr=1.0, eps=0.25, impl=impl)
    total = torch.zeros(n_rows, 2).index_add_(0, index, grad)
    assert torch.equal(accumulator, total.square())
    torch.testing.assert_close(table, -total / (total.square() + 0.25).sqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("width", [1, 16, 100, 9000])
def test_bits_do_not_depend_on_threads_or_memory_layout(
    width: int, dtype: torch.dtype, rule: str, native_library: None
) -> None:
    g = torch.Generator().manual_seed(width)
    originals = random_table_and_state((40, width), dtype)
    index, grad = torch.randint(0, 40, (300,), generator=g), torch.randn(300, width, generator=g, dtype=dtype)
    results = []

    def strided(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, tensor], -1)[..., 0]

    for n_threads, copy in ((1, torch.Tensor.clone), (2, torch.Tensor.clone), (2, strided)):
        tensors = [copy(t) for t in originals]
        with threads(n_threads):
            update(rule, tensors, copy(index), copy(grad), impl="native")
        results.append(tensors)
    assert not results[2][0].is_contiguous()
    assert_equal_bits(results[1], results[0])
    assert_equal_bits(results[2], results[0])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("wrong_index", [-2, 5])
def test_index_out_of_range_is_an_error_and_changes_nothing(wrong_index: int, rule: str, impl: str) -> None:
    tensors = random_table_and_state((5, 2), torch.float32)
    copies = [t.clone() for t in tensors]
    message = rf"index\[2\] = {wrong_index} is out of range for a table of 5 rows" if impl == "native" else "index"
    with pytest.raises(RuntimeError if impl == "reference" else ValueError, match=message):
        update(rule, tensors, torch.tensor([1, 2, wrong_index]), torch.rand(3, 2), impl=impl)
    assert_equal_bits(tensors, copies)


@pytest.mark.parametrize("rule", RULES)
def test_index_of_minus_one_is_ignored(rule: str, impl: str) -> None:
    """The gradient at an index of -1 (padding) has no effect, even if it is NaN."""
    g = torch.Generator().manual_seed(0)
    index, grad = torch.tensor([-1, 3, -1, 1, 3, -1]), torch.randn(6, 33, generator=g)
    live = index >= 0
    ours, theirs = random_table_and_state((5, 33), torch.float32), random_table_and_state((5, 33), torch.float32)
    grad[~live] = torch.nan
    update(rule, ours, index, grad, impl=impl)
    update(rule, theirs, index[live], grad[live], impl=impl)
    assert_equal_bits(ours, theirs)
    update(rule, ours, torch.full((3,), -1), grad[:3], impl=impl)
    assert_equal_bits(ours, theirs)


needs_emulation = pytest.mark.skipif(bool(why_not_emulated("sparse_update")), reason="no emulated kernels")


@needs_emulation
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("width", [1, 4, 6, 100])
def test_emulated_kernels_are_close_to_the_reference(rule: str, width: int) -> None:
    """A kernel loads four elements at once for some of these widths and addresses, and one at a time for the others."""
    g = torch.Generator().manual_seed(width)
    for offset in (0, 1):
        memory = [torch.rand(50 * width + 1, generator=g) for _ in range(3)]
        ours = [t[offset : offset + 50 * width].view(50, width) for t in memory]
        theirs = [t.clone() for t in ours]
        index, grad = torch.randint(-1, 50, (120,), generator=g), torch.randn(120, width, generator=g)
        update(rule, ours, index, grad, impl="emulated")
        update(rule, theirs, index, grad, impl="reference")
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@needs_emulation
def test_tables_of_more_than_two_to_the_31_elements() -> None:
    """Only the last 300 weights, which the last thread block updates, have a gradient. The others take no memory."""
    width = 2**22
    table, accumulator = (torch.empty(2**9 + 2, width) for _ in range(2))
    index, grad = torch.full((2**9 + 1,), -1), torch.empty(2**9 + 1, width)
    index[-1], grad[-1, -300:], table[-1, -300:], accumulator[-1, -300:] = len(table) - 1, 1.5, 0.0, 0.0
    with first_and_last_blocks():
        ops.sparse_adagrad_(table, accumulator, None, index, grad, lr=0.75, eps=0.0, impl="emulated")
    assert table.numel() > 2**31 and grad.numel() > 2**31
    assert bool((table[-1, -300:] == -0.75).all() and (accumulator[-1, -300:] == 2.25).all())


@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set(level: str, native_library: None) -> None:
    run_at_level(level, __file__, "bits_do_not or (native and (follow_the_rule or duplicates or float32_stays))")


@pytest.mark.parametrize("rule", RULES)
def test_operator_passes_opcheck_and_compiles(rule: str, native_library: None) -> None:
    index, grad = torch.tensor([1, 1, 4]), torch.rand(3, 2)
    tensors = random_table_and_state((5, 2), torch.float32)
    operator = getattr(torch.ops.gru4rec_fast, rule)
    torch.library.opcheck(operator, (*[t.clone() for t in tensors], index, grad), OPTIONS[rule])
    compiled = torch.compile(getattr(ops, rule), fullgraph=True, backend=compile_backend(rule == "sparse_adagrad_"))
    ours, theirs = [t.clone() for t in tensors], [t.clone() for t in tensors]
    compiled(*ours, index, grad, **OPTIONS[rule])
    update(rule, theirs, index, grad, impl="reference")
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_velocity_may_be_none_without_momentum(impl: str) -> None:
    index, grad = torch.tensor([0, 2]), torch.rand(2, 2)
    with_velocity = random_table_and_state((3, 2))
    with_velocity[-1].zero_()
    without_velocity = [t.clone() for t in with_velocity[:-1]]
    update("sparse_adagrad_", with_velocity, index, grad.double(), momentum=0.0, impl=impl)
    update("sparse_adagrad_", [*without_velocity, None], index, grad.double(), momentum=0.0, impl=impl)
    torch.testing.assert_close(without_velocity, with_velocity[:-1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: SparseAdagrad([p], lr=0), "lr=0"),
        (lambda p: SparseAdagrad([p], momentum=1.0), "momentum=1.0"),
        (lambda p: SparseAdagrad([p], eps=-1.0), "eps=-1.0"),
        (lambda p: SparseAdagrad([p], momentum=-0.1), "momentum=-0.1"),
        (lambda p: SparseAdam([p], betas=(0.9, 1.5)), r"betas=\(0.9, 1.5\)"),
        (lambda p: ops.sparse_adagrad_(p, p, None, torch.tensor([0.0]), p[:1], lr=1), "index must be int64"),
        (
            lambda p: ops.sparse_adagrad_(p, p[:1], None, torch.tensor([0]), p[:1], lr=1),
            r"accumulator must be float32 \[3, 2\]",
        ),
        (lambda p: ops.sparse_adagrad_(p, p, None, torch.tensor([0]), p[:1], lr=1, momentum=0.5), "needs a velocity"),
        (lambda p: ops.sparse_adam_(p, p, p.double(), torch.tensor([0]), p[:1], lr=1, step=1), "exp_avg_sq must be"),
        (lambda p: ops.sparse_adam_(p, p, p, torch.tensor([0]), p[:1], lr=1, step=0), "step=0: must be at least 1"),
    ],
)
def test_error_names_the_argument(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3, 2))
