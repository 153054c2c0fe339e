"""What a GPU's training step does between its products: emulated kernels against the reference, that by hand."""

from __future__ import annotations

from typing import Any

import cuda_emulator
import pytest
import torch
from native import assert_equal_bits, implementations, why_not_emulated
from torch import Tensor
from virtual_memory import first_and_last_blocks

from gru4rec_fast.ops.training_step import step_operator
from gru4rec_fast.optim import SparseAdagrad

CPU = torch.device("cpu")
NUMBERS = torch.tensor([0.1, 0.3, 1e-6], dtype=torch.float64)  # learning rate, momentum, epsilon
YES, NO = torch.tensor(True), torch.tensor(False)
needs_emulation = pytest.mark.skipif(
    bool(why_not_emulated("training_step")), reason=why_not_emulated("training_step") or "-"
)
# There is none for the CPU: its step is csrc/training_step/fused_training_step.cpp.
both = pytest.mark.parametrize("impl", ["reference", pytest.param("emulated", marks=needs_emulation)])


def run(name: str, impl: str, *arguments: Any, device: str | torch.device = CPU) -> Any:
    """Run an operator on a device; copy the tensors, and lists of tensors, that are on another device."""

    def there(argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return argument.to(device)
        return [*map(there, argument)] if isinstance(argument, list) else argument

    return step_operator(name, impl, torch.device(device))(*map(there, arguments))


def everything(device: str, impl: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the results of all operators for small problems on a device, for tests/test_cuda.py."""
    found: list[Tensor] = []
    for widths in ((3, 5), (12, 20)):
        found += gathered(impl, widths, dtype=dtype, mask=True, logq=1.0, device=device)[0]
        rows = [tensor.to(device) for tensor in touched(widths[0], dtype).values()]
        run("step_rows_", impl, *rows, YES, NUMBERS, device=device)
        found += rows[:6]
    lists = [[tensor.to(device) for tensor in tensors] for tensors in dense([(3, 5), (1,), (64,)], dtype)]
    run("step_apply_", impl, *lists, YES, NUMBERS, device=device)
    found += [tensor for tensors in lists for tensor in tensors]
    flags = [flag.clone().to(device) for flag in (NO, NO)]
    kept = torch.empty(3, dtype=dtype, device=device)
    run("step_settle_", impl, torch.rand(3, generator=draws(), dtype=dtype), YES.expand(3), flags[0], kept, flags[1],
        device=device)  # fmt: skip
    return (*found, *(flag.to(dtype) for flag in flags), kept)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gathered(impl: str, widths: tuple[int, int], *, steps: int = 2, lanes: int = 5, n: int = 7, **options: Any) -> Any:
    """Return what step_gather returns, and its arguments; one lane is padding, and one step is masked."""
    g, dtype = draws(), options.get("dtype", torch.float64)
    embedding, weight = (torch.randn(11, width, generator=g, dtype=dtype) for width in widths)
    bias, support = (torch.rand(11, generator=g, dtype=dtype) for _ in range(2))
    inputs = torch.randint(11, (steps, lanes), generator=g)
    items = torch.randint(11, (steps, lanes + n), generator=g)
    inputs[0, -1] = items[0, lanes - 1] = -1
    inputs[-1], items[-1] = -1, -1
    mask = torch.rand(steps, lanes, widths[0], generator=g, dtype=dtype) if options.get("mask") else None
    support = support if options.get("logq") else None
    given = (embedding, inputs, mask, weight, bias, support, items)
    numbers = (lanes, options.get("logq", 0.0), 0.25, options.get("bf16", False))
    return run("step_gather", impl, *given, *numbers, device=options.get("device", CPU)), given


@both
@pytest.mark.parametrize("widths", [(1, 3), (8, 4), (100, 100), (0, 5)])
def test_gathered_rows_are_those_of_the_tables(widths: tuple[int, int], impl: str) -> None:
    (x, rows, biases, log_q), given = gathered(impl, widths, mask=True, logq=0.5)
    embedding, inputs, mask, weight, bias, support, items = given
    for t in range(2):
        for i, item in enumerate(inputs[t].tolist()):
            assert torch.equal(x[t, i], embedding[item] * mask[t, i] if item >= 0 else torch.zeros_like(x[t, i]))
        for i, item in enumerate(items[t].tolist()):
            strength = (0.5 if i < 5 else 0.5 * 0.25) * (item >= 0)
            assert torch.equal(rows[t, i], weight[item] * (item >= 0))
            assert biases[t, i] == bias[item] * (item >= 0)
            assert log_q[t, i].item() == pytest.approx(strength * support[item].item(), rel=1e-15)


@needs_emulation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"n": 0}, {"mask": True, "logq": 1.0}, {"lanes": 1, "steps": 3}])
def test_gathered_bits_are_the_references(options: dict[str, Any], dtype: torch.dtype) -> None:
    for widths in ((3, 3), (12, 20)):
        ours, theirs = (gathered(impl, widths, dtype=dtype, **options)[0] for impl in ("emulated", "reference"))
        assert_equal_bits(ours[:3], theirs[:3])
        torch.testing.assert_close(ours[3], theirs[3], rtol=1e-6 if dtype == torch.float32 else 1e-15, atol=0)


@both
@pytest.mark.parametrize("width", [3, 12])
def test_rows_are_rounded_to_bfloat16(width: int, impl: str) -> None:
    (_, rows, *_), given = gathered(impl, (width, width), dtype=torch.float32, bf16=True)
    weight, items = given[3], given[6]
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows[0, 0], weight[items[0, 0]].bfloat16()) and not rows[-1].any()


@needs_emulation
def test_a_row_that_the_table_does_not_have_is_an_error() -> None:
    table, none = torch.randn(4, 4), torch.empty(1, 0, dtype=torch.int64)
    with pytest.raises(ValueError, match="index"):
        run(
            "step_gather", "emulated", table, torch.tensor([[4]]), None, table, table[0], None, none, 0, 0.0, 0.0, False
        )


@both
@pytest.mark.parametrize("steps", [1, 3, 70])
def test_losses_are_kept_and_a_bad_one_stops(steps: int, impl: str) -> None:
    losses, active = torch.rand(steps, dtype=torch.float64), torch.ones(steps, dtype=torch.bool)
    stopped, step_losses, enabled = NO.clone(), torch.empty(steps, dtype=torch.float64), NO.clone()
    run("step_settle_", impl, losses, active, stopped, step_losses, enabled)
    assert torch.equal(step_losses, losses) and enabled and not stopped

    for bad in (torch.nan, torch.inf, -torch.inf):
        stopped.fill_(False)
        losses[-1], active[-1] = bad, False  # of a step that is not active
        run("step_settle_", impl, losses, active, stopped, step_losses, enabled)
        assert step_losses[-1] == 0 and bool(enabled) == (steps > 1) and not stopped
        active[-1] = True
        run("step_settle_", impl, losses, active, stopped, step_losses, enabled)
        assert stopped and not enabled and not step_losses[-1].isfinite()

    run("step_settle_", impl, torch.ones_like(losses), active, stopped, step_losses, enabled)
    assert stopped and not enabled, "once stopped, nothing is updated"


def dense(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], ...]:
    """Return weights, accumulators, velocities, gradients, states and outputs."""
    g = draws()
    return tuple([torch.rand(shape, generator=g, dtype=dtype) for shape in shapes] for _ in range(6))


@both
@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("shapes", [[(3, 5), (1,), (0,), (64,)], [(2, 3)] * 20], ids=["few", "more than a launch has"])
def test_whole_weights_move_as_by_the_optimizer(shapes: list[tuple[int, ...]], momentum: bool, impl: str) -> None:
    weights, accumulators, velocities, grads, states, outputs = dense(shapes)
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    optimizer = SparseAdagrad(parameters, 0.1, 0.3 if momentum else 0.0, impl="reference")
    for i, parameter in enumerate(parameters):
        parameter.grad = grads[i].clone()
        optimizer.state[parameter] = {"accumulator": accumulators[i].clone()}
        optimizer.state[parameter] |= {"velocity": velocities[i].clone()} if momentum else {}
    numbers = NUMBERS if momentum else NUMBERS * torch.tensor([1.0, 0.0, 1.0])
    arguments = (weights, accumulators, velocities if momentum else [], grads, states, outputs)
    before = [tensor.clone() for tensors in arguments for tensor in tensors]
    run("step_apply_", impl, *arguments, NO, numbers)
    assert_equal_bits([tensor for tensors in arguments for tensor in tensors], before)
    run("step_apply_", impl, *arguments, YES, numbers)
    optimizer.step()
    torch.testing.assert_close(weights, [p.detach() for p in parameters], rtol=1e-14, atol=1e-15)
    kept = [optimizer.state[parameter]["accumulator"] for parameter in parameters]
    torch.testing.assert_close(accumulators, kept, rtol=1e-14, atol=1e-15)
    assert_equal_bits(states, outputs)


def touched(width: int, dtype: torch.dtype = torch.float64, n_inputs: int = 6, n_items: int = 40) -> dict[str, Any]:
    """Return a table with a bias, and gradients of rows: repeated rows, rows that are only inputs, and padding (-1)."""
    g = draws()
    tables = {name: torch.rand(30, width, generator=g, dtype=dtype) for name in ("weight", "accumulator", "velocity")}
    biases = {f"bias_{name}": torch.rand(30, generator=g, dtype=dtype) for name in tables}
    index = torch.cat([torch.randint(20, 30, (n_inputs,), generator=g), torch.randint(-1, 24, (n_items,), generator=g)])
    rows, positions = index.sort(stable=True)
    return {
        **tables, **biases, "rows": rows, "positions": positions,
        "grad_inputs": torch.randn(n_inputs, width, generator=g, dtype=dtype),
        "grad_items": torch.randn(n_items, width, generator=g, dtype=dtype),
        "grad_bias": torch.randn(n_items, generator=g, dtype=dtype),
    }  # fmt: skip


@both
@pytest.mark.parametrize("has_bias", [True, False])
def test_each_touched_row_moves_once_and_no_other(has_bias: bool, impl: str) -> None:
    given = touched(6)
    if not has_bias:
        given |= dict.fromkeys(["bias_weight", "bias_accumulator", "bias_velocity", "grad_bias"])
    before = {name: None if tensor is None else tensor.clone() for name, tensor in given.items()}
    run("step_rows_", impl, *given.values(), NO, NUMBERS)
    kept = [tensor for tensor in given.values() if tensor is not None]
    assert_equal_bits(kept, [tensor for tensor in before.values() if tensor is not None])

    run("step_rows_", impl, *given.values(), YES, NUMBERS)
    index = torch.empty_like(given["rows"]).scatter_(0, given["positions"], given["rows"])
    grads = torch.cat([given["grad_inputs"], given["grad_items"]])
    of_bias = None if not has_bias else torch.cat([torch.zeros(6, dtype=torch.float64), given["grad_bias"]])
    for row in range(30):
        check_row(given, before, "", row, grads, index == row)
        if of_bias is not None:  # an input that is no item leaves its bias alone
            check_row(given, before, "bias_", row, of_bias, (index == row) & (torch.arange(len(index)) >= 6))


def check_row(after: dict, before: dict, prefix: str, row: int, grads: Tensor, chosen: Tensor) -> None:
    """The result follows the formulas of `ops/sparse_update.py`."""
    lr, momentum, eps = NUMBERS.tolist()
    weight, accumulator, velocity = (before[prefix + name][row] for name in ("weight", "accumulator", "velocity"))
    if chosen.any():
        grad = grads[chosen].sum(0)
        accumulator = accumulator + grad**2
        velocity = momentum * velocity - lr * grad / (accumulator + eps).sqrt()
        weight = weight + velocity
    ours = [after[prefix + name][row] for name in ("weight", "accumulator", "velocity")]
    torch.testing.assert_close(ours, [weight, accumulator, velocity], rtol=1e-13, atol=1e-14)


@needs_emulation
@pytest.mark.parametrize("width", [1, 3, 4, 100])
def test_rows_do_not_depend_on_the_order_of_threads(width: int) -> None:
    results = []
    for seed in (1, 2):
        cuda_emulator.load().set_seed(seed)
        given = touched(width, torch.float32)
        run("step_rows_", "emulated", *given.values(), YES, NUMBERS)
        results.append([*given.values()])
    assert_equal_bits(*results)
    reference = touched(width, torch.float32)
    run("step_rows_", "reference", *reference.values(), YES, NUMBERS)
    torch.testing.assert_close(results[0], [*reference.values()], rtol=1e-5, atol=1e-6)


@needs_emulation
@pytest.mark.parametrize(("n_inputs", "n_items"), [(0, 9), (9, 0), (0, 0), (1, 0)])
def test_rows_of_one_kind_or_none(n_inputs: int, n_items: int) -> None:
    ours, theirs = (touched(5, n_inputs=n_inputs, n_items=n_items) for _ in range(2))
    run("step_rows_", "emulated", *ours.values(), YES, NUMBERS)
    run("step_rows_", "reference", *theirs.values(), YES, NUMBERS)
    torch.testing.assert_close([*ours.values()], [*theirs.values()], rtol=1e-13, atol=1e-14)


@needs_emulation
def test_beyond_two_to_the_31st() -> None:
    """More than 2**32 weights and gradients, of which only the updated ones use memory."""
    width, n = 2**22, 2**9 + 2
    index, no_items = torch.full((n,), -1), torch.empty(1, 0, dtype=torch.int64)
    index[-1] = n - 1
    rows, positions = index.sort(stable=True)
    numbers = torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64)
    with first_and_last_blocks():
        table, accumulator, grad = (torch.empty(n, width) for _ in range(3))
        grad[-1, -300:], table[-1, -300:], accumulator[-1, -300:] = 3.0, 1.0, 16.0
        none = [None, None, None, None]
        run("step_rows_", "emulated", table, accumulator, *none, rows, positions, grad[:0], grad, None, YES, numbers)
        x = run(
            "step_gather", "emulated", table, index.view(1, -1), None, table[:1, :4], torch.zeros(1), None, no_items, 0,
            0.0, 0.0, False,
        )[0]  # fmt: skip
    assert table.numel() > 2**31
    assert bool((table[-1, -300:] == 1 - 0.5 * 3 / 5).all() and (accumulator[-1, -300:] == 25).all())
    assert torch.equal(x[0, -1, -300:], table[-1, -300:])  # columns of the last block, four a thread


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("step_rows_", {"rows": torch.zeros(3, dtype=torch.int64)}, "rows must be int64"),
    ("step_rows_", {"grad_bias": None}, "go together"),
    ("step_rows_", {"weight": torch.rand(6, 30, dtype=torch.float64).T}, "weight must be contiguous"),
    ("step_rows_", {"weight": torch.rand(30, 6).half()}, "float32 and float64"),
]


@needs_emulation
@pytest.mark.parametrize(("name", "change", "message"), BAD)
def test_bad_arguments_are_named(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(name, "emulated", *(touched(6) | change).values(), YES, NUMBERS)


@implementations("session_batch")
def test_no_other_implementation_is_taken_for_it(impl: str) -> None:
    """impl="native" on the CPU raises an error and does not run the reference."""
    if impl == "native":
        with pytest.raises(RuntimeError, match="step_rows_ has no native kernel on cpu"):
            step_operator("step_rows_", impl, CPU)
    else:
        assert callable(step_operator("step_rows_", impl, CPU))
