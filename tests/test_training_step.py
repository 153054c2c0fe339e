"""Operators of a captured training step, one that runs as a CUDA graph (`gru4rec_fast.ops.training_step`).

The emulated CUDA kernels are compared with the reference, and the reference with formulas in the tests.

    step_gather   gathers the rows of the tables for the inputs, targets and negatives of a block (some time steps)
    step_store_losses_  stores the losses of a block, and stops all further updates if a loss is not finite
    step_apply_   updates weights with dense gradients, and copies outputs into the hidden states
    step_rows_    updates the rows of a table and of its bias that have a gradient
"""

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
HYPERPARAMETERS = torch.tensor([0.1, 0.3, 1e-6], dtype=torch.float64)  # learning rate, momentum, epsilon
SAMPLE_ALPHA = 0.25
ENABLED, DISABLED = torch.tensor(True), torch.tensor(False)  # if disabled, step_apply_ and step_rows_ do nothing
needs_emulation = pytest.mark.skipif(
    bool(why_not_emulated("training_step")), reason=why_not_emulated("training_step") or "-"
)
# There are no CPU kernels: the CPU has a fused training step instead (csrc/training_step/fused_training_step.cpp).
impls = pytest.mark.parametrize("impl", ["reference", pytest.param("emulated", marks=needs_emulation)])


def run(name: str, impl: str, *arguments: Any, device: str | torch.device = CPU) -> Any:
    """Run the operator `name` on a device. Tensors, and tensors in lists, are copied to the device if needed."""

    def to_device(argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return argument.to(device)
        return [*map(to_device, argument)] if isinstance(argument, list) else argument

    return step_operator(name, impl, torch.device(device))(*map(to_device, arguments))


def results_of_all_operators(device: str, impl: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the results of all four operators for small inputs on a device. tests/test_cuda.py calls this function."""
    results: list[Tensor] = []
    for widths in ((3, 5), (12, 20)):
        results += run_gather(impl, widths, dtype=dtype, mask=True, logq=1.0, device=device)[0]
        row_arguments = [tensor.to(device) for tensor in row_update_arguments(widths[0], dtype).values()]
        run("step_rows_", impl, *row_arguments, ENABLED, HYPERPARAMETERS, device=device)
        results += row_arguments[:6]  # the tensors that step_rows_ updates
    shapes: list[tuple[int, ...]] = [(3, 5), (1,), (64,)]
    lists = [[tensor.to(device) for tensor in tensors] for tensors in dense_update_arguments(shapes, dtype)]
    run("step_apply_", impl, *lists, ENABLED, HYPERPARAMETERS, device=device)
    results += [tensor for tensors in lists for tensor in tensors]
    stopped, enabled = (torch.tensor(False, device=device) for _ in range(2))
    losses, step_losses = torch.rand(3, generator=seeded(), dtype=dtype), torch.empty(3, dtype=dtype, device=device)
    active = torch.tensor(True).expand(3)
    run("step_store_losses_", impl, losses, active, stopped, step_losses, enabled, device=device)
    return (*results, stopped.to(dtype), enabled.to(dtype), step_losses)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run_gather(
    impl: str, widths: tuple[int, int], *, steps: int = 2, lanes: int = 5, n: int = 7, **options: Any
) -> Any:
    """Run step_gather; return its results, and the tensors of its arguments.

    widths: columns of the input and of the output table. lanes: sessions in parallel. n: negatives per step. Padding
    (-1) is in the last lane of the first step and in the whole last step.
    """
    g, dtype = seeded(), options.get("dtype", torch.float64)
    embedding, weight = (torch.randn(11, width, generator=g, dtype=dtype) for width in widths)
    bias, log_support = (torch.rand(11, generator=g, dtype=dtype) for _ in range(2))
    inputs = torch.randint(11, (steps, lanes), generator=g)
    items = torch.randint(11, (steps, lanes + n), generator=g)
    inputs[0, -1] = items[0, lanes - 1] = -1
    inputs[-1], items[-1] = -1, -1
    mask = torch.rand(steps, lanes, widths[0], generator=g, dtype=dtype) if options.get("mask") else None
    log_support = log_support if options.get("logq") else None
    tensors = (embedding, inputs, mask, weight, bias, log_support, items)
    settings = (lanes, options.get("logq", 0.0), SAMPLE_ALPHA, options.get("bf16", False))
    return run("step_gather", impl, *tensors, *settings, device=options.get("device", CPU)), tensors


@impls
@pytest.mark.parametrize("widths", [(1, 3), (8, 4), (100, 100), (0, 5)])
def test_gather_returns_the_indexed_rows(widths: tuple[int, int], impl: str) -> None:
    logq, lanes = 0.5, 5
    (x, rows, biases, log_q), tensors = run_gather(impl, widths, lanes=lanes, mask=True, logq=logq)
    embedding, inputs, mask, weight, bias, log_support, items = tensors
    for t in range(2):
        for i, item in enumerate(inputs[t].tolist()):
            assert torch.equal(x[t, i], embedding[item] * mask[t, i] if item >= 0 else torch.zeros_like(x[t, i]))
        for i, item in enumerate(items[t].tolist()):
            factor = (logq if i < lanes else logq * SAMPLE_ALPHA) * (item >= 0)
            assert torch.equal(rows[t, i], weight[item] * (item >= 0))
            assert biases[t, i] == bias[item] * (item >= 0)
            assert log_q[t, i].item() == pytest.approx(factor * log_support[item].item(), rel=1e-15)


@needs_emulation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"n": 0}, {"mask": True, "logq": 1.0}, {"lanes": 1, "steps": 3}])
def test_emulated_gather_equals_reference(options: dict[str, Any], dtype: torch.dtype) -> None:
    for widths in ((3, 3), (12, 20)):
        ours, theirs = (run_gather(impl, widths, dtype=dtype, **options)[0] for impl in ("emulated", "reference"))
        assert_equal_bits(ours[:3], theirs[:3])
        torch.testing.assert_close(ours[3], theirs[3], rtol=1e-6 if dtype == torch.float32 else 1e-15, atol=0)


@impls
@pytest.mark.parametrize("width", [3, 12])
def test_gather_rounds_rows_to_bfloat16(width: int, impl: str) -> None:
    (_, rows, *_), tensors = run_gather(impl, (width, width), dtype=torch.float32, bf16=True)
    weight, items = tensors[3], tensors[6]
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows[0, 0], weight[items[0, 0]].bfloat16()) and not rows[-1].any()


@needs_emulation
def test_emulated_gather_of_an_index_out_of_range_is_an_error() -> None:
    table = torch.randn(4, 4)
    with pytest.raises(ValueError, match="index"):
        run("step_gather", "emulated", *gather_arguments_without_items(table, torch.tensor([[4]]), table, table[0]))


def gather_arguments_without_items(embedding: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor) -> tuple[Any, ...]:
    """Return arguments of step_gather with which it reads only the input table."""
    mask, log_support, items = None, None, torch.empty(1, 0, dtype=torch.int64)
    lanes, logq, sample_alpha, bf16 = 0, 0.0, 0.0, False
    return embedding, inputs, mask, weight, bias, log_support, items, lanes, logq, sample_alpha, bf16


@impls
@pytest.mark.parametrize("steps", [1, 3, 70])
def test_losses_are_stored_and_a_loss_that_is_not_finite_stops_updates(steps: int, impl: str) -> None:
    losses, active = torch.rand(steps, dtype=torch.float64), torch.ones(steps, dtype=torch.bool)
    stopped, enabled = torch.tensor(False), torch.tensor(False)
    step_losses = torch.empty(steps, dtype=torch.float64)
    run("step_store_losses_", impl, losses, active, stopped, step_losses, enabled)
    assert torch.equal(step_losses, losses) and enabled and not stopped

    for bad in (torch.nan, torch.inf, -torch.inf):
        stopped.fill_(False)
        losses[-1], active[-1] = bad, False  # the loss of a step that is not active is ignored
        run("step_store_losses_", impl, losses, active, stopped, step_losses, enabled)
        assert step_losses[-1] == 0 and bool(enabled) == (steps > 1) and not stopped
        active[-1] = True
        run("step_store_losses_", impl, losses, active, stopped, step_losses, enabled)
        assert stopped and not enabled and not step_losses[-1].isfinite()

    run("step_store_losses_", impl, torch.ones_like(losses), active, stopped, step_losses, enabled)
    assert stopped and not enabled, "finite losses must not reset `stopped`"


def dense_update_arguments(
    shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], ...]:
    """Return lists with one tensor for each shape, as arguments of step_apply_.

    The lists are weights, accumulators, velocities, gradients, hidden states and outputs.
    """
    g = seeded()
    return tuple([torch.rand(shape, generator=g, dtype=dtype) for shape in shapes] for _ in range(6))


@impls
@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize(
    "shapes", [[(3, 5), (1,), (0,), (64,)], [(2, 3)] * 20], ids=["few", "more than fit one launch"]
)
def test_apply_updates_weights_as_sparse_adagrad(shapes: list[tuple[int, ...]], momentum: bool, impl: str) -> None:
    weights, accumulators, velocities, grads, states, outputs = dense_update_arguments(shapes)
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    optimizer = SparseAdagrad(parameters, 0.1, 0.3 if momentum else 0.0, impl="reference")
    for i, parameter in enumerate(parameters):
        parameter.grad = grads[i].clone()
        optimizer.state[parameter] = {"accumulator": accumulators[i].clone()}
        optimizer.state[parameter] |= {"velocity": velocities[i].clone()} if momentum else {}
    hyperparameters = HYPERPARAMETERS if momentum else HYPERPARAMETERS * torch.tensor([1.0, 0.0, 1.0])
    arguments = (weights, accumulators, velocities if momentum else [], grads, states, outputs)
    copies = [tensor.clone() for tensors in arguments for tensor in tensors]
    run("step_apply_", impl, *arguments, DISABLED, hyperparameters)
    assert_equal_bits([tensor for tensors in arguments for tensor in tensors], copies)
    run("step_apply_", impl, *arguments, ENABLED, hyperparameters)
    optimizer.step()
    torch.testing.assert_close(weights, [p.detach() for p in parameters], rtol=1e-14, atol=1e-15)
    expected = [optimizer.state[parameter]["accumulator"] for parameter in parameters]
    torch.testing.assert_close(accumulators, expected, rtol=1e-14, atol=1e-15)
    assert_equal_bits(states, outputs)


def row_update_arguments(
    width: int, dtype: torch.dtype = torch.float64, n_inputs: int = 6, n_items: int = 40
) -> dict[str, Any]:
    """Return the arguments of step_rows_: a table with a bias, and gradients of its rows.

    Each input has a gradient of its row. Each item (target or negative) has gradients of its row and of its bias. Some
    rows have several gradients, some are only rows of inputs, and some indices are padding (-1).
    """
    g = seeded()
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


@impls
@pytest.mark.parametrize("has_bias", [True, False])
def test_rows_with_a_gradient_follow_the_formulas_and_others_are_unchanged(has_bias: bool, impl: str) -> None:
    arguments = row_update_arguments(6)
    if not has_bias:
        arguments |= dict.fromkeys(["bias_weight", "bias_accumulator", "bias_velocity", "grad_bias"])
    copies = {name: None if tensor is None else tensor.clone() for name, tensor in arguments.items()}
    run("step_rows_", impl, *arguments.values(), DISABLED, HYPERPARAMETERS)
    unchanged = [tensor for tensor in arguments.values() if tensor is not None]
    assert_equal_bits(unchanged, [tensor for tensor in copies.values() if tensor is not None])

    run("step_rows_", impl, *arguments.values(), ENABLED, HYPERPARAMETERS)
    index = torch.empty_like(arguments["rows"]).scatter_(0, arguments["positions"], arguments["rows"])
    grads = torch.cat([arguments["grad_inputs"], arguments["grad_items"]])
    grad_bias = None if not has_bias else torch.cat([torch.zeros(6, dtype=torch.float64), arguments["grad_bias"]])
    for row in range(30):
        check_row(arguments, copies, "", row, grads, index == row)
        if grad_bias is not None:  # the first 6 gradients are those of inputs, which have no bias
            check_row(arguments, copies, "bias_", row, grad_bias, (index == row) & (torch.arange(len(index)) >= 6))


def check_row(updated: dict, original: dict, prefix: str, row: int, grads: Tensor, is_of_row: Tensor) -> None:
    """Assert that a row follows the Adagrad formulas of `ops/sparse_update.py`.

    prefix: "" for the table, "bias_" for the bias. is_of_row: bool, selects the gradients of this row in `grads`.
    """
    lr, momentum, eps = HYPERPARAMETERS.tolist()
    weight, accumulator, velocity = (original[prefix + name][row] for name in ("weight", "accumulator", "velocity"))
    if is_of_row.any():
        grad = grads[is_of_row].sum(0)
        accumulator = accumulator + grad**2
        velocity = momentum * velocity - lr * grad / (accumulator + eps).sqrt()
        weight = weight + velocity
    ours = [updated[prefix + name][row] for name in ("weight", "accumulator", "velocity")]
    torch.testing.assert_close(ours, [weight, accumulator, velocity], rtol=1e-13, atol=1e-14)


@needs_emulation
@pytest.mark.parametrize("width", [1, 3, 4, 100])
def test_emulated_row_update_does_not_depend_on_the_order_of_threads(width: int) -> None:
    results = []
    for seed in (1, 2):
        cuda_emulator.load().set_seed(seed)
        arguments = row_update_arguments(width, torch.float32)
        run("step_rows_", "emulated", *arguments.values(), ENABLED, HYPERPARAMETERS)
        results.append([*arguments.values()])
    assert_equal_bits(*results)
    reference = row_update_arguments(width, torch.float32)
    run("step_rows_", "reference", *reference.values(), ENABLED, HYPERPARAMETERS)
    torch.testing.assert_close(results[0], [*reference.values()], rtol=1e-5, atol=1e-6)


@needs_emulation
@pytest.mark.parametrize(("n_inputs", "n_items"), [(0, 9), (9, 0), (0, 0), (1, 0)])
def test_emulated_row_update_with_only_inputs_or_only_items_equals_reference(n_inputs: int, n_items: int) -> None:
    ours, theirs = (row_update_arguments(5, n_inputs=n_inputs, n_items=n_items) for _ in range(2))
    run("step_rows_", "emulated", *ours.values(), ENABLED, HYPERPARAMETERS)
    run("step_rows_", "reference", *theirs.values(), ENABLED, HYPERPARAMETERS)
    torch.testing.assert_close([*ours.values()], [*theirs.values()], rtol=1e-13, atol=1e-14)


@needs_emulation
def test_emulated_tables_of_more_than_two_to_the_31_elements() -> None:
    """There are more than 2**31 weights and gradients.

    Only the first and the last thread block of each emulated grid run, and only the last row has a gradient, so little
    memory is used. The last thread block processes the last 300 columns of the last row, and other elements.
    """
    width, n = 2**22, 2**9 + 2
    index = torch.full((n,), -1)
    index[-1] = n - 1
    rows, positions = index.sort(stable=True)
    hyperparameters = torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64)
    with first_and_last_blocks():
        table, accumulator, grad = (torch.empty(n, width) for _ in range(3))
        grad[-1, -300:], table[-1, -300:], accumulator[-1, -300:] = 3.0, 1.0, 16.0
        no_velocity_or_bias = [None] * 4
        gradients = (rows, positions, grad[:0], grad, None)
        run("step_rows_", "emulated", table, accumulator, *no_velocity_or_bias, *gradients, ENABLED, hyperparameters)
        arguments = gather_arguments_without_items(table, index.view(1, -1), table[:1, :4], torch.zeros(1))
        x = run("step_gather", "emulated", *arguments)[0]
    assert table.numel() > 2**31
    assert bool((table[-1, -300:] == 1 - 0.5 * 3 / 5).all() and (accumulator[-1, -300:] == 25).all())
    assert torch.equal(x[0, -1, -300:], table[-1, -300:])


# (operator, wrong argument, error message)
WRONG_ARGUMENTS: list[tuple[str, dict[str, Any], str]] = [
    ("step_rows_", {"rows": torch.zeros(3, dtype=torch.int64)}, "rows must be int64"),
    ("step_rows_", {"grad_bias": None}, "go together"),
    ("step_rows_", {"weight": torch.rand(6, 30, dtype=torch.float64).T}, "weight must be contiguous"),
    ("step_rows_", {"weight": torch.rand(30, 6).half()}, "float32 and float64"),
]


@needs_emulation
@pytest.mark.parametrize(("name", "change", "message"), WRONG_ARGUMENTS)
def test_emulated_error_names_the_argument(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(name, "emulated", *(row_update_arguments(6) | change).values(), ENABLED, HYPERPARAMETERS)


@implementations("session_batch")  # with any operator of the native library, to skip "native" where there is none
def test_native_step_operator_on_the_cpu_is_an_error(impl: str) -> None:
    """impl="native" raises an error and does not run the reference in place of a kernel."""
    if impl == "native":
        with pytest.raises(RuntimeError, match="step_rows_ has no native kernel on cpu"):
            step_operator("step_rows_", impl, CPU)
    else:
        assert callable(step_operator("step_rows_", impl, CPU))
