"""Row update and SparseAdagrad: against the dense rule, duplicates, untouched rows, momentum."""

from __future__ import annotations

import pytest
import torch
from native import LEVELS, assert_equal_bits, run_at_level, threads

from gru4rec_fast import ops
from gru4rec_fast.nn import gather_live_rows, gather_rows
from gru4rec_fast.optim import SparseAdagrad

RULE = {"lr": 0.1, "momentum": 0.3, "eps": 1e-6}


def by_hand(table, accumulator, velocity, index, grad, *, lr, momentum, eps):
    """Row by row, in plain Python."""
    for row in set(index.tolist()):
        g = grad[index == row].sum(0)
        accumulator[row] += g**2
        velocity[row] = momentum * velocity[row] - lr * g / (accumulator[row] + eps).sqrt()
        table[row] += velocity[row]


@pytest.mark.parametrize("shape", [(7, 3), (7,), (7, 1), (7, 17), (7, 33), (7, 2, 50), (7, 5000)], ids=str)
def test_rows_follow_the_rule(shape: tuple[int, ...], impl: str) -> None:
    g = torch.Generator().manual_seed(0)
    ours = [torch.rand(shape, generator=g, dtype=torch.float64) for _ in range(3)]
    theirs = [t.clone() for t in ours]
    for _ in range(4):
        index = torch.randint(0, 6, (9,), generator=g)
        grad = torch.randn(9, *shape[1:], generator=g, dtype=torch.float64)
        grad[index == 2] = 0  # touched with a zero gradient: its momentum step all the same
        ops.sparse_adagrad(*ours, index, grad, **RULE, impl=impl)
        by_hand(*theirs, index, grad, **RULE)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_untouched_rows_keep_every_bit(impl: str) -> None:
    table, accumulator, velocity = torch.rand(5, 2), torch.rand(5, 2), torch.rand(5, 2)
    before = [t.clone() for t in (table, accumulator, velocity)]
    ops.sparse_adagrad(table, accumulator, velocity, torch.tensor([1, 1]), torch.rand(2, 2), **RULE, impl=impl)
    for now, then in zip((table, accumulator, velocity), before, strict=True):
        assert torch.equal(now[[0, 2, 3, 4]], then[[0, 2, 3, 4]])
        assert not torch.equal(now[1], then[1])


def test_nothing_touched_changes_nothing(impl: str) -> None:
    table, accumulator = torch.rand(5, 2), torch.rand(5, 2)
    before = table.clone()
    ops.sparse_adagrad(
        table, accumulator, None, torch.empty(0, dtype=torch.int64), torch.empty(0, 2), lr=0.1, impl=impl
    )
    assert torch.equal(table, before)


@pytest.mark.parametrize("n_rows", [3, 2048, 2049, 5_000_000])
def test_many_duplicates_are_summed_in_order(n_rows: int, impl: str) -> None:
    """Integer gradients, whose sums are exact, against index_add_; rows of one to three digits of the sort."""
    g = torch.Generator().manual_seed(n_rows)
    index = torch.cat([torch.randint(0, n_rows, (500,), generator=g), torch.tensor([n_rows - 1, 0, n_rows - 1])])
    index = index[torch.randint(0, len(index), (3000,), generator=g)]
    grad = torch.randint(-4, 5, (3000, 2), generator=g).float()
    accumulator, table = torch.zeros(n_rows, 2), torch.zeros(n_rows, 2)
    ops.sparse_adagrad(table, accumulator, None, index, grad, lr=1.0, eps=0.25, impl=impl)
    total = torch.zeros(n_rows, 2).index_add_(0, index, grad)
    assert torch.equal(accumulator, total.square())
    torch.testing.assert_close(table, -total / (total.square() + 0.25).sqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("width", [1, 16, 100, 9000])
def test_bits_do_not_depend_on_threads_or_memory_layout(width: int, dtype: torch.dtype, native_library: None) -> None:
    g = torch.Generator().manual_seed(width)
    start = [torch.rand(40, width, generator=g, dtype=dtype) for _ in range(3)]
    index, grad = torch.randint(0, 40, (300,), generator=g), torch.randn(300, width, generator=g, dtype=dtype)
    results = []
    for n, layout in ((1, torch.Tensor.clone), (2, torch.Tensor.clone), (2, lambda t: torch.stack([t, t], -1)[..., 0])):
        tensors = [layout(t) for t in start]
        with threads(n):
            ops.sparse_adagrad(*tensors, layout(index), layout(grad), **RULE, impl="native")
        results.append(tensors)
    assert not results[2][0].is_contiguous()
    assert_equal_bits(results[1], results[0])
    assert_equal_bits(results[2], results[0])


@pytest.mark.parametrize("bad", [-1, 5])
def test_an_index_out_of_range_is_named_before_anything_is_written(bad: int, impl: str) -> None:
    tensors = [torch.rand(5, 2) for _ in range(3)]
    before = [t.clone() for t in tensors]
    message = rf"index\[2\] = {bad}, the table has 5 rows" if impl == "native" else "index"
    with pytest.raises(ValueError if impl == "native" else RuntimeError, match=message):
        ops.sparse_adagrad(*tensors, torch.tensor([1, 2, bad]), torch.rand(3, 2), **RULE, impl=impl)
    assert_equal_bits(tensors, before)


@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set(level: str, native_library: None) -> None:
    run_at_level(level, __file__, "bits_do_not or (native and (follow_the_rule or duplicates or alike))")


@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_optimizer_treats_sparse_and_dense_gradients_alike(momentum: float, impl: str) -> None:
    weight = torch.randn(6, 3, dtype=torch.float64)
    index = torch.tensor([0, 1, 2, 3, 4, 5, 1, 1, 0])
    target = torch.randn(9, 3, dtype=torch.float64)
    parameters = [torch.nn.Parameter(weight.clone()) for _ in range(2)]
    optimizers = [SparseAdagrad([p], lr=0.1, momentum=momentum, impl=impl) for p in parameters]
    for _ in range(5):
        for parameter, optimizer, gather in zip(parameters, optimizers, (gather_rows, torch.index_select), strict=True):
            rows = gather(parameter, index) if gather is gather_rows else gather(parameter, 0, index)
            optimizer.zero_grad()
            (rows - target).square().sum().backward()
            optimizer.step()
    assert parameters[0].grad.is_sparse
    assert not parameters[1].grad.is_sparse
    torch.testing.assert_close(parameters[0], parameters[1], rtol=1e-12, atol=1e-12)


def test_momentum_set_later_counts_from_then() -> None:
    parameters = [torch.nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    late, plain = (SparseAdagrad([p], lr=0.1) for p in parameters)
    for step in range(3):
        if step == 1:
            late.param_groups[0]["momentum"] = 0.5
        for parameter, optimizer in zip(parameters, (late, plain), strict=True):
            optimizer.zero_grad()
            gather_rows(parameter, torch.tensor([1])).sum().backward()
            optimizer.step()
        assert torch.equal(*parameters) == (step < 2)  # the first step with momentum has no velocity to add


def test_optimizer_state_round_trips() -> None:
    parameter = torch.nn.Parameter(torch.randn(4, 2))
    optimizer = SparseAdagrad([parameter], lr=0.1, momentum=0.5)
    gather_rows(parameter, torch.tensor([1, 3])).sum().backward()
    optimizer.step()
    other = SparseAdagrad([parameter], lr=0.7)
    other.load_state_dict(optimizer.state_dict())
    for name, tensor in optimizer.state[parameter].items():
        assert torch.equal(other.state[parameter][name], tensor)
    assert other.param_groups[0]["lr"] == 0.1


def test_gather_live_rows_reads_zeros_and_touches_nothing_for_dead_lanes() -> None:
    table = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[3, -1], [0, 3]])
    rows = gather_live_rows(table, index)
    assert torch.equal(rows[0, 1], torch.zeros(2, dtype=torch.float64))
    assert torch.equal(rows[1, 0], table[0])
    rows.sum().backward()
    assert sorted(table.grad._indices()[0].tolist()) == [0, 3, 3]


def test_operator_passes_opcheck_and_compiles(native_library: None) -> None:
    index, grad = torch.tensor([1, 1, 4]), torch.rand(3, 2)
    args = (torch.rand(5, 2), torch.rand(5, 2), torch.rand(5, 2), index, grad, 0.1, 0.3, 1e-6)
    torch.library.opcheck(torch.ops.gru4rec_fast.sparse_adagrad, args)
    compiled = torch.compile(ops.sparse_adagrad, fullgraph=True)
    ours, theirs = [t.clone() for t in args[:3]], [t.clone() for t in args[:3]]
    compiled(*ours, index, grad, **RULE)
    ops.sparse_adagrad(*theirs, index, grad, **RULE, impl="reference")
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: SparseAdagrad([p], lr=0), "lr=0"),
        (lambda p: SparseAdagrad([p], momentum=1.0), "momentum=1.0"),
        (lambda p: SparseAdagrad([p], eps=-1.0), "eps=-1.0"),
        (lambda p: ops.sparse_adagrad(p, p, None, torch.tensor([0.0]), p[:1], lr=1), "index must be int64"),
        (
            lambda p: ops.sparse_adagrad(p, p[:1], None, torch.tensor([0]), p[:1], lr=1),
            "accumulator must be like table",
        ),
        (lambda p: ops.sparse_adagrad(p, p, None, torch.tensor([0]), p[:1], lr=1, momentum=0.5), "needs a velocity"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3, 2))
