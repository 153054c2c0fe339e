"""Operators of a captured training step, one that runs as a CUDA graph (`gru4rec_fast.ops.training_step`).

The emulated CUDA kernels are compared with the reference, and the reference with formulas in the tests or with torch.
docs/ops/training_step.md lists the operators.
"""

from __future__ import annotations

from typing import Any

import cuda_emulator
import pytest
import torch
from native import assert_equal_bits, implementations, why_not_emulated
from torch import Tensor
from virtual_memory import first_and_last_blocks

from gru4rec_fast import ops
from gru4rec_fast.ops.training_step import scored_states, step_operator
from gru4rec_fast.optim import SparseAdagrad

CPU = torch.device("cpu")
HYPERPARAMETERS = torch.tensor([0.1, 0.3, 1e-6], dtype=torch.float64)  # learning rate, momentum, epsilon
SAMPLE_ALPHA = 0.25
ENABLED, DISABLED = torch.tensor(True), torch.tensor(False)  # if disabled, no operator updates weights
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
    """Return the results of all operators for small inputs on a device. tests/test_cuda.py calls this function."""
    results: list[Tensor] = []
    for lanes, inputs, hidden in ((3, 5, 7), (33, 12, 20)):
        gru_arguments = one_step_arguments(lanes, inputs, hidden, dtype)
        results += run("step_gru", impl, *gru_arguments.values(), hidden + 4, False, device=device)
        gradient_arguments = gru_gradient_arguments(gru_arguments, results[-2])
        results += run("step_gru_backward", impl, *gradient_arguments, device=device)
        results += run(
            "step_loss", impl, *loss_arguments(lanes, 9, hidden, dtype), "top1-max", *LOSS_OPTIONS, device=device
        )
    for widths in ((3, 5), (12, 20)):
        results += run_gather(impl, widths, dtype=dtype, mask=True, logq=1.0, device=device)[0]
        row_arguments = [tensor.to(device) for tensor in row_update_arguments(widths[0], dtype).values()]
        run("step_rows_", impl, *row_arguments, ENABLED, HYPERPARAMETERS, device=device)
        results += row_arguments[:6]  # the tensors that step_rows_ updates
    shapes: list[tuple[int, ...]] = [(3, 5), (1,), (64,)]
    lists = [[tensor.to(device) for tensor in tensors] for tensors in dense_update_arguments(shapes, dtype)]
    run("step_apply_", impl, *lists, ENABLED, HYPERPARAMETERS, device=device)
    results += [tensor for tensors in lists for tensor in tensors]
    lists = [[tensor.to(device) for tensor in tensors] for tensors in product_arguments(5, [(3, 40)], dtype)]
    run("step_products_", impl, *lists, ENABLED, HYPERPARAMETERS, device=device)
    results += [tensor for tensors in lists for tensor in tensors]
    stopped, enabled = (torch.tensor(False, device=device) for _ in range(2))
    losses, step_losses = torch.rand(3, 1, generator=seeded(), dtype=dtype), torch.empty(3, dtype=dtype, device=device)
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
    (x, rows, offsets), tensors = run_gather(impl, widths, lanes=lanes, mask=True, logq=logq)
    embedding, inputs, mask, weight, bias, log_support, items = tensors
    for t in range(2):
        for i, item in enumerate(inputs[t].tolist()):
            assert torch.equal(x[t, i], embedding[item] * mask[t, i] if item >= 0 else torch.zeros_like(x[t, i]))
        for i, item in enumerate(items[t].tolist()):
            factor = logq if i < lanes else logq * SAMPLE_ALPHA
            expected = bias[item].item() - factor * log_support[item].item() if item >= 0 else -torch.inf
            assert torch.equal(rows[t, i], weight[item] * (item >= 0))
            assert offsets[t, i].item() == pytest.approx(expected, rel=1e-14, abs=1e-15)


@needs_emulation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"n": 0}, {"mask": True, "logq": 1.0}, {"lanes": 1, "steps": 3}])
def test_emulated_gather_equals_reference(options: dict[str, Any], dtype: torch.dtype) -> None:
    for widths in ((3, 3), (12, 20)):
        ours, theirs = (run_gather(impl, widths, dtype=dtype, **options)[0] for impl in ("emulated", "reference"))
        assert_equal_bits(ours[:2], theirs[:2])
        tolerance = 1e-6 if dtype == torch.float32 else 1e-15
        torch.testing.assert_close(ours[2], theirs[2], rtol=tolerance, atol=tolerance)


@impls
@pytest.mark.parametrize("width", [3, 12])
def test_gather_rounds_rows_to_bfloat16(width: int, impl: str) -> None:
    (_, rows, _), tensors = run_gather(impl, (width, width), dtype=torch.float32, bf16=True)
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
    losses, active = torch.rand(steps, 40, dtype=torch.float64), torch.ones(steps, dtype=torch.bool)
    stopped, enabled = torch.tensor(False), torch.tensor(False)
    step_losses = torch.empty(steps, dtype=torch.float64)
    run("step_store_losses_", impl, losses, active, stopped, step_losses, enabled)
    torch.testing.assert_close(step_losses, losses.sum(1), rtol=1e-14, atol=0)
    assert enabled and not stopped

    for bad in (torch.nan, torch.inf, -torch.inf):
        stopped.fill_(False)
        losses[-1, 33], active[-1] = bad, False  # the loss of a step that is not active is ignored
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
    arguments = (weights, accumulators, velocities if momentum else [], grads, states, outputs)
    check_dense_update("step_apply_", impl, arguments, grads)


def check_dense_update(name: str, impl: str, arguments: tuple[list[Tensor], ...], grads: list[Tensor]) -> None:
    """Assert that an operator updates weights as SparseAdagrad does, copies the outputs, and can be disabled.

    arguments: weights, accumulators, velocities (none without momentum), lists that define the gradients, hidden states
        and outputs. grads: the gradients.
    """
    weights, accumulators, velocities, *_, states, outputs = arguments
    hyperparameters = HYPERPARAMETERS if velocities else HYPERPARAMETERS * torch.tensor([1.0, 0.0, 1.0])
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    optimizer = SparseAdagrad(parameters, *hyperparameters.tolist()[:2], impl="reference")
    for i, parameter in enumerate(parameters):
        parameter.grad = grads[i].clone()
        optimizer.state[parameter] = {"accumulator": accumulators[i].clone()}
        optimizer.state[parameter] |= {"velocity": velocities[i].clone()} if velocities else {}
    copies = [tensor.clone() for tensors in arguments for tensor in tensors]
    run(name, impl, *arguments, DISABLED, hyperparameters)
    assert_equal_bits([tensor for tensors in arguments for tensor in tensors], copies)
    run(name, impl, *arguments, ENABLED, hyperparameters)
    optimizer.step()
    for ours, theirs in (
        (weights, [parameter.detach() for parameter in parameters]),
        (accumulators, [optimizer.state[parameter]["accumulator"] for parameter in parameters]),
        (velocities, [optimizer.state[parameter]["velocity"] for parameter in parameters] if velocities else []),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)
    assert_equal_bits(states, outputs)


def product_arguments(
    depth: int, shapes: list[tuple[int, int]], dtype: torch.dtype = torch.float64, momentum: bool = True
) -> tuple[list[Tensor], ...]:
    """Return lists as arguments of step_products_, with a matrix, a bias and two hidden states for each shape.

    The lists are weights, accumulators, velocities, left and right factors of the gradients, hidden states, outputs.
    """
    g = seeded()

    def rand(*shapes: tuple[int, ...]) -> list[Tensor]:
        return [torch.rand(shape, generator=g, dtype=dtype) for shape in shapes]

    weights = [shape for rows, columns in shapes for shape in ((rows, columns), (rows,))]
    factors = rand(*[(depth, shape[0]) for shape in weights]), rand(*[(depth, columns) for _, columns in shapes])
    states = [(depth, columns) for _, columns in shapes for _ in range(2)]
    velocities = rand(*weights) if momentum else []
    return rand(*weights), rand(*weights), velocities, *factors, rand(*states), rand(*states)


@impls
@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize(
    ("depth", "shapes"),
    [(1, [(1, 1)]), (70, [(65, 33), (7, 40)]), (5, [(3, 4), (33, 2), (0, 3), (2, 0), (1, 70), (9, 9), (2, 2)] * 2)],
    ids=["small", "two", "more than fit one launch"],
)
def test_products_update_weights_as_sparse_adagrad(
    depth: int, shapes: list[tuple[int, int]], momentum: bool, impl: str
) -> None:
    arguments = product_arguments(depth, shapes, momentum=momentum)
    _, _, _, lefts, rights, *_ = arguments
    grads = [left.sum(0) for left in lefts]  # those of the biases; every second weight is a matrix
    grads[::2] = [left.T @ right for left, right in zip(lefts[::2], rights, strict=True)]
    check_dense_update("step_products_", impl, arguments, grads)


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
        "mask": torch.randn(n_inputs, width, generator=g, dtype=dtype),
        "grad_items": torch.randn(n_items, width + 4, generator=g, dtype=dtype),  # column `width`: of the bias
    }  # fmt: skip


@impls
@pytest.mark.parametrize("has_bias", [True, False])
def test_rows_with_a_gradient_follow_the_formulas_and_others_are_unchanged(has_bias: bool, impl: str) -> None:
    arguments = row_update_arguments(6)
    if not has_bias:
        arguments |= dict.fromkeys(["bias_weight", "bias_accumulator", "bias_velocity"])
    copies = {name: None if tensor is None else tensor.clone() for name, tensor in arguments.items()}
    run("step_rows_", impl, *arguments.values(), DISABLED, HYPERPARAMETERS)
    unchanged = [tensor for tensor in arguments.values() if tensor is not None]
    assert_equal_bits(unchanged, [tensor for tensor in copies.values() if tensor is not None])

    run("step_rows_", impl, *arguments.values(), ENABLED, HYPERPARAMETERS)
    index = torch.empty_like(arguments["rows"]).scatter_(0, arguments["positions"], arguments["rows"])
    grads = torch.cat([arguments["grad_inputs"] * arguments["mask"], arguments["grad_items"][:, :6]])
    grad_bias = torch.cat([torch.zeros(6, dtype=torch.float64), arguments["grad_items"][:, 6]]) if has_bias else None
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
        gradients = (rows, positions, grad[:0], None, grad)
        run("step_rows_", "emulated", table, accumulator, *no_velocity_or_bias, *gradients, ENABLED, hyperparameters)
        arguments = gather_arguments_without_items(table, index.view(1, -1), table[:1, :4], torch.zeros(1))
        x = run("step_gather", "emulated", *arguments)[0]
    assert table.numel() > 2**31
    assert bool((table[-1, -300:] == 1 - 0.5 * 3 / 5).all() and (accumulator[-1, -300:] == 25).all())
    assert torch.equal(x[0, -1, -300:], table[-1, -300:])


# (operator, wrong argument, error message)
WRONG_ARGUMENTS: list[tuple[str, dict[str, Any], str]] = [
    ("step_rows_", {"rows": torch.zeros(3, dtype=torch.int64)}, "rows must be int64"),
    ("step_rows_", {"bias_accumulator": None}, "go together"),
    ("step_rows_", {"grad_items": torch.rand(40, 6, dtype=torch.float64)}, "grad_items must have a column for each"),
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


def one_step_arguments(lanes: int, inputs: int, hidden: int, dtype: torch.dtype, mask: bool = True) -> dict[str, Any]:
    """Return the tensors of step_gru by the names of its arguments."""
    g = seeded()

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=dtype) / 4

    return {
        "x": randn(lanes, inputs), "weight_ih": randn(3 * hidden, inputs), "bias_ih": randn(3 * hidden),
        "state": randn(lanes, hidden), "weight_hh": randn(3 * hidden, hidden), "bias_hh": randn(3 * hidden),
        "reset": torch.arange(lanes) % 3 == 0, "output_mask": randn(lanes, hidden) if mask else None,
    }  # fmt: skip


def gru_gradient_arguments(arguments: dict[str, Any], saved: Tensor) -> list[Tensor]:
    """Return the arguments of step_gru_backward after step_gru has returned `saved`."""
    state = arguments["state"]
    grad_output = torch.randn(state.shape, generator=seeded(1), dtype=state.dtype)
    return [grad_output, saved, state, arguments["reset"], arguments["output_mask"]]


@impls
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("lanes", "inputs", "hidden"), [(1, 1, 1), (5, 7, 9), (33, 132, 12), (40, 12, 116)])
@pytest.mark.parametrize("mask", [True, False])
def test_one_step_of_the_gru_equals_torch(
    mask: bool, lanes: int, inputs: int, hidden: int, dtype: torch.dtype, impl: str
) -> None:
    """Compare with nn.GRUCell and autograd. The products have rows of several chunks, and rows that are not aligned."""
    arguments = one_step_arguments(lanes, inputs, hidden, dtype, mask)
    output, saved, scored = run("step_gru", impl, *arguments.values(), hidden + 3 if mask else 0, False)
    grads = run("step_gru_backward", impl, *gru_gradient_arguments(arguments, saved))

    # The gradients of the biases are sums of those of [W_ih x + b_ih] and [W s + b] over the lanes. So there is a cell
    # for each lane, which has biases of its own.
    x, weight_ih, bias_ih, state, weight_hh, bias_hh, reset, output_mask = arguments.values()
    previous = state * ~reset.unsqueeze(1)
    biases = [bias.expand(lanes, -1).clone().requires_grad_() for bias in (bias_ih, bias_hh)]
    cell = torch.nn.GRUCell(inputs, hidden, dtype=dtype)
    expected = torch.cat(
        [
            torch.func.functional_call(
                cell,
                {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": biases[0][i], "bias_hh": biases[1][i]},
                (x[i : i + 1], previous[i : i + 1]),
            )
            for i in range(lanes)
        ]
    ) * (1 if output_mask is None else output_mask)
    expected_grads = torch.autograd.grad(expected, biases, gru_gradient_arguments(arguments, saved)[0])
    tolerance = 2e-5 if dtype == torch.float32 else 1e-13
    expected = expected.detach()
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close([*grads], [*expected_grads, previous], rtol=tolerance, atol=tolerance)
    if mask:
        assert torch.equal(scored[:, :hidden], output) and torch.equal(scored[0, hidden:], scored.new_tensor([1, 0, 0]))
    else:
        assert scored.numel() == 0


@impls
def test_scored_states_have_a_column_of_ones_and_may_be_bfloat16(impl: str) -> None:
    output, _, scored = run("step_gru", impl, *one_step_arguments(3, 5, 8, torch.float32).values(), 16, True)
    assert torch.equal(scored, scored_states(output, 16).bfloat16())
    without_units = run("step_gru", impl, *one_step_arguments(2, 5, 0, torch.float32).values(), 2, False)[2]
    assert torch.equal(without_units, torch.tensor([[1.0, 0.0]] * 2))


LOSS_OPTIONS = (4.0, 0.5, 1.5, 0.1)  # batch_size, elu_param, bpreg, label_smoothing


def loss_arguments(lanes: int, n: int, hidden: int, dtype: torch.dtype, masked: bool = True) -> list[Any]:
    """Return hidden, rows, offsets, live and ids as arguments of step_loss; n is the number of negatives.

    If `masked`, the last lane is dead, the last negative is padding, and ids of negatives equal those of targets.
    """
    g = seeded()
    hidden_states, rows = (torch.randn(size, hidden, generator=g, dtype=dtype) for size in (lanes, lanes + n))
    offsets, live = torch.randn(lanes + n, generator=g, dtype=dtype), torch.ones(lanes, dtype=torch.bool)
    ids = torch.randint(9, (lanes + n,), generator=g)
    if masked:
        live[-1] = False
        for i in (lanes - 1, -1):
            offsets[i], rows[i], ids[i] = -torch.inf, 0, -1
    return [scored_states(hidden_states, hidden + 3), rows, offsets, live, ids if masked else None]


@impls
@pytest.mark.parametrize("loss", ["cross-entropy", "bpr-max", "bpr", "top1", "top1-max"])
@pytest.mark.parametrize(("lanes", "n", "hidden"), [(1, 3, 1), (5, 0, 6), (6, 40, 9)])
@pytest.mark.parametrize("masked", [True, False])
def test_the_loss_of_a_step_equals_autograd(
    masked: bool, lanes: int, n: int, hidden: int, loss: str, impl: str
) -> None:
    """The bias of sampled_loss takes the place of the offsets, so its gradient is column H of the gradient of rows."""
    arguments = loss_arguments(lanes, n, hidden, torch.float64, masked)
    losses, *grads = run("step_loss", impl, *arguments, loss, *LOSS_OPTIONS)
    leaves = [tensor.clone().requires_grad_() for tensor in (arguments[0][:, :hidden], *arguments[1:3])]
    options = dict(zip(("batch_size", "elu_param", "bpreg", "label_smoothing"), LOSS_OPTIONS, strict=True))
    expected = ops.sampled_loss(
        *leaves, loss=loss, live=arguments[3], ids=arguments[4], in_batch=True, impl="reference", **options
    )
    grad_hidden, grad_rows, grad_bias = torch.autograd.grad(expected, leaves)
    tolerance = {"rtol": 1e-11, "atol": 1e-13}
    torch.testing.assert_close(losses.sum(), expected.detach(), **tolerance)
    assert not losses[~arguments[3]].any()
    torch.testing.assert_close(grads[0], grad_hidden, **tolerance)
    torch.testing.assert_close(
        grads[1][:, : hidden + 1], torch.cat([grad_rows, grad_bias.unsqueeze(1)], 1), **tolerance
    )


@needs_emulation
@pytest.mark.parametrize("loss", ["cross-entropy", "bpr-max"])
def test_the_emulated_loss_of_bfloat16_rows_equals_reference(loss: str) -> None:
    hidden, rows, *others = loss_arguments(6, 40, 16, torch.float32)
    arguments = (hidden.bfloat16(), rows.bfloat16(), *others, loss, *LOSS_OPTIONS)
    ours, theirs = (run("step_loss", impl, *arguments) for impl in ("emulated", "reference"))
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)
