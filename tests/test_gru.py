"""The operator gru: compared with torch.nn.GRUCell and its formulas; resets, gradients, torch.compile.

A lane is one of the sequences that are processed in parallel. A reset starts a new sequence in a lane.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cuda_emulator
import pytest
import torch
from native import (
    LEVELS,
    assert_as_close,
    assert_equal_bits,
    compile_backend,
    native_and_emulated,
    operators_of,
    run_at_level,
    threads,
    why_not_emulated,
)
from virtual_memory import first_and_last_blocks, partial_torch_products

from gru4rec_fast import _backend, ops
from gru4rec_fast.ops.gru import FORMS, gru_backward_reference, gru_reference

STEPS, LANES, HIDDEN = 5, 4, 6
kernels = native_and_emulated("gru")  # native, emulated
needs_emulation = pytest.mark.skipif(bool(why_not_emulated("gru")), reason=why_not_emulated("gru") or "-")


def make_small_args(form: str, *, reset: bool = True, mask: bool = True, dtype: torch.dtype = torch.float64) -> tuple:
    """Return random arguments of ops.gru for STEPS, LANES and HIDDEN. Weights and states require gradients."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    resets = torch.rand(STEPS, LANES, generator=generator) < 0.3
    masks = (torch.rand(STEPS, LANES, HIDDEN, generator=generator) < 0.7).to(dtype) / 0.7
    return (
        normal(STEPS, LANES, 3 * HIDDEN),
        normal(LANES, HIDDEN),
        normal(3 * HIDDEN, HIDDEN),
        normal(3 * HIDDEN) if form == "reset_after" else None,
        resets if reset else None,
        masks if mask else None,
        form,
    )


def test_reset_after_equals_torch_grucell(impl: str) -> None:
    cell = torch.nn.GRUCell(3, HIDDEN, dtype=torch.float64)
    x = torch.randn(STEPS, LANES, 3, dtype=torch.float64)
    state = torch.randn(LANES, HIDDEN, dtype=torch.float64)
    gate_inputs = torch.nn.functional.linear(x, cell.weight_ih, cell.bias_ih)
    output = ops.gru(gate_inputs, state, cell.weight_hh, cell.bias_hh, impl=impl)
    for t in range(STEPS):
        state = cell(x[t], state)
        torch.testing.assert_close(output[t], state, rtol=1e-12, atol=1e-12)


def test_reset_before_follows_its_formula(impl: str) -> None:
    gate_inputs, state, weight, _, _, _, form = make_small_args("reset_before", reset=False, mask=False)
    w_r, w_z, w_n = weight.chunk(3)
    output = ops.gru(gate_inputs, state, weight, form=form, impl=impl)
    for t in range(STEPS):
        a_r, a_z, a_n = gate_inputs[t].chunk(3, dim=1)
        r, z = torch.sigmoid(a_r + state @ w_r.T), torch.sigmoid(a_z + state @ w_z.T)
        state = (1 - z) * torch.tanh(a_n + (r * state) @ w_n.T) + z * state
        torch.testing.assert_close(output[t], state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_reset_starts_from_zeros_and_stops_the_gradient(form: str, impl: str) -> None:
    gate_inputs, state, weight, bias, _, _, _ = make_small_args(form)
    reset = torch.zeros(STEPS, LANES, dtype=torch.bool)
    reset[2, 1] = True
    output = ops.gru(gate_inputs, state, weight, bias, reset, form=form, impl=impl)
    from_zeros = ops.gru(gate_inputs[2:, 1:2], state.new_zeros(1, HIDDEN), weight, bias, form=form, impl=impl)
    torch.testing.assert_close(output[2:, 1:2], from_zeros, rtol=1e-12, atol=1e-12)
    (grad,) = torch.autograd.grad(output[2:, 1].sum(), gate_inputs)
    assert torch.count_nonzero(grad[:2]) == 0
    assert torch.count_nonzero(grad[2:, 1]) > 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("reset", "mask"), [(True, True), (False, False)])
def test_gradcheck(form: str, reset: bool, mask: bool, impl: str) -> None:
    *tensors, form = make_small_args(form, reset=reset, mask=mask)
    assert torch.autograd.gradcheck(lambda *t: ops.gru(*t, form, impl=impl), tensors, fast_mode=impl == "emulated")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("reset", "mask"), [(True, True), (True, False), (False, True), (False, False)])
def test_backward_formulas_equal_autograd(form: str, reset: bool, mask: bool) -> None:
    args = make_small_args(form, reset=reset, mask=mask)
    expected = ops.gru(*args, impl="reference")
    grad = torch.randn_like(expected)
    with torch.no_grad():
        output, saved = gru_reference(*args)
        grads = gru_backward_reference(grad, output, saved, *args[1:])
    torch.testing.assert_close(output, expected, rtol=1e-13, atol=1e-13)
    inputs = [t for t in args[:4] if t is not None]
    for ours, autograd in zip(grads, torch.autograd.grad(expected, inputs, grad), strict=False):
        torch.testing.assert_close(ours, autograd, rtol=1e-11, atol=1e-12)


# With 80 hidden units, the emulated kernels launch each step separately.
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("steps", "hidden"), [(1, 5), (3, 5), (2, 80)])
def test_gradients_are_the_same_if_the_state_requires_none(form: str, steps: int, hidden: int, impl: str) -> None:
    """If the state does not require a gradient, the other gradients are the same up to rounding."""
    args = make_args(form, steps, 3, hidden, torch.float64)
    _, grad_gate_inputs, _, *grad_weights = output_and_gradients(args, impl)
    args[1] = args[1].detach()
    output = ops.gru(*args, impl=impl)
    inputs = [t for t in (args[0], *args[2:4]) if t is not None]
    # Not compared bit by bit, because the memory is aligned differently.
    grads = [*torch.autograd.grad((output * distinct_weights(output)).sum(), inputs)]
    torch.testing.assert_close(grads, [grad_gate_inputs, *grad_weights], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("steps", "lanes", "hidden"), [(0, 4, 6), (3, 0, 6), (3, 4, 0)])
def test_empty_tensors_give_zero_gradients(form: str, steps: int, lanes: int, hidden: int, impl: str) -> None:
    args = make_args(form, steps, lanes, hidden, torch.float64)
    assert ops.gru(*args, impl=impl).shape == (steps, lanes, hidden)
    grads = output_and_gradients(args, impl)[1:] if steps else []
    assert all(torch.count_nonzero(grad) == 0 for grad in grads)


@pytest.mark.parametrize("shape", [(2**40, 0, 6), (2**40, 4, 0)])
def test_empty_tensors_of_many_steps_take_no_time(shape: tuple[int, int, int], impl: str) -> None:
    steps, lanes, hidden = shape
    tensors = [(steps, lanes, 3 * hidden), (lanes, hidden), (3 * hidden, hidden), (3 * hidden,)]
    args = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in tensors]
    output = ops.gru(*args, impl=impl)
    assert output.shape == shape
    for grad, arg in zip(torch.autograd.grad(output.sum(), args), args, strict=True):
        assert grad.shape == arg.shape and torch.count_nonzero(grad[:1]) == 0


def test_output_mask_that_requires_a_gradient_is_an_error(impl: str) -> None:
    *args, form = make_small_args("reset_after")
    args[5] = args[5].requires_grad_()
    with pytest.raises(ValueError, match="output_mask requires a gradient"):
        ops.gru(*args, form, impl=impl)
    with torch.no_grad():
        assert ops.gru(*args, form, impl=impl).isfinite().all()
    if impl != "reference":
        with pytest.raises(RuntimeError, match="gru: not differentiable in output_mask"):
            operators_of(impl, "gru").gru(*args, form)[0].sum().backward()


@pytest.mark.parametrize("form", FORMS)
def test_second_derivative_is_right_or_an_error(form: str, impl: str) -> None:
    """It must not be silently wrong where another term of the loss keeps the graph alive."""
    args = make_small_args(form)
    loss = ops.gru(*args, impl=impl).square().sum()
    if impl != "reference":
        with pytest.raises(RuntimeError, match=r'gru: its gradient is not differentiable .* impl="reference"'):
            torch.autograd.grad(loss, args[2], create_graph=True)
        loss.backward()  # the graph is still valid
        return
    (grad,) = torch.autograd.grad(loss, args[2], create_graph=True)
    (loss + grad.square().sum()).backward()
    assert torch.isfinite(args[2].grad).all()


def make_args(form: str, steps: int, lanes: int, hidden: int, dtype: torch.dtype, *, with_masks: bool = True) -> list:
    """Return random arguments of ops.gru. With `with_masks`, they include resets, an output mask and a bias.

    The first lane is reset at step 0. Only the form reset_after has a bias.
    """
    generator = torch.Generator().manual_seed(steps + 10 * lanes + 100 * hidden)
    shapes = [(steps, lanes, 3 * hidden), (lanes, hidden), (3 * hidden, hidden), (3 * hidden,)]
    gate_inputs, state, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    weight /= max(hidden, 1) ** 0.5
    reset = torch.rand(steps, lanes, generator=generator) < 0.3
    reset[:1, :1] = True
    mask = (torch.rand(steps, lanes, hidden, generator=generator) < 0.7) / 0.7
    tensors = [gate_inputs, state, weight, bias if with_masks and form == "reset_after" else None]
    tensors = [None if t is None else t.to(dtype).requires_grad_() for t in tensors]
    return [*tensors, reset if with_masks else None, mask.to(dtype) if with_masks else None, form]


def output_and_gradients(args: list, impl: str) -> list[torch.Tensor]:
    """Return the output, and the gradients of the sum of the output times `distinct_weights`."""
    output = ops.gru(*args, impl=impl)
    inputs = [t for t in args[:4] if t is not None]
    grads = torch.autograd.grad((output * distinct_weights(output)).sum(), inputs, allow_unused=True)
    return [output, *(torch.zeros_like(t) if grad is None else grad for t, grad in zip(inputs, grads, strict=True))]


def distinct_weights(output: torch.Tensor) -> torch.Tensor:
    """Return different weights in [-1, 1] for the elements of an output, so that no two gradients are equal."""
    return torch.linspace(-1, 1, output.numel(), dtype=torch.float64).to(output).view(output.shape)


def as_dtype(args: list, dtype: torch.dtype) -> list:
    """Return a copy of the arguments of ops.gru with all floating-point tensors in `dtype`."""
    floating = [isinstance(t, torch.Tensor) and t.is_floating_point() for t in args]
    return [
        t.detach().to(dtype).requires_grad_(t.requires_grad) if f else t for t, f in zip(args, floating, strict=True)
    ]


@kernels
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("steps", "lanes", "hidden"),
    [(1, 1, 1), (4, 5, 1), (1, 32, 100), (3, 1, 17), (2, 33, 33), (3, 7, 255), (5, 50, 64), (7, 300, 5), (3, 1025, 4)],
)
def test_kernels_are_as_close_as_the_reference(
    impl: str, form: str, with_masks: bool, dtype: torch.dtype, steps: int, lanes: int, hidden: int
) -> None:
    args = make_args(form, steps, lanes, hidden, dtype, with_masks=with_masks)
    results = [output_and_gradients(args, name) for name in (impl, "reference")]
    results.append(output_and_gradients(as_dtype(args, torch.float64), "reference"))
    assert_as_close(*(values[:3] for values in results))  # the output, the gradients of gate inputs and state
    # For CUDA, torch's product sums the gradient of a weight over all steps at once; the reference sums step by step.
    # The error of a sum grows with the square root of its length.
    factor = 2 * steps**0.5 if impl == "emulated" else 2
    assert_as_close(*(values[3:] for values in results), factor=factor)


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_gates_are_accurate_and_saturate(impl: str, dtype: torch.dtype) -> None:
    """With zero weights, the gates are sigmoid(x) and tanh(x), within 3 ulp for small, large and infinite x."""
    special = torch.tensor([0.0, 1e-30, -1e-12, 1e-6, -1e-3, 80.0, -80.0, 1e4, -1e4, torch.inf, -torch.inf])
    x = torch.cat([special.to(dtype), torch.linspace(-20, 20, 10_001, dtype=dtype)])
    gate_inputs, lanes = x.view(1, -1, 1).expand(-1, -1, 3), len(x)
    zeros = torch.zeros(lanes, 1, dtype=dtype), torch.zeros(3, 1, dtype=dtype)
    gru = operators_of(impl, "gru").gru
    _, (saved,) = gru(gate_inputs, *zeros, None, None, None, "reset_after")  # no bias, reset or mask; one step
    # `saved` has the gates r, z and n. With zero weights, all of them are functions of x alone.
    for gate, function in ((0, torch.sigmoid), (1, torch.sigmoid), (2, torch.tanh)):
        expected = function(x.double())
        normal = expected.abs() > torch.finfo(dtype).tiny * 8
        ulp = torch.finfo(dtype).eps * expected.abs()
        assert ((saved[:, gate].double() - expected).abs() <= 3 * ulp)[normal].all()
        assert (saved[:, gate][~normal].abs() <= torch.finfo(dtype).tiny * 8).all()
    nan = torch.full((1, 1, 3), torch.nan, dtype=dtype)
    state, weight_hh = zeros[0][:1], zeros[1]
    output, _ = gru(nan, state, weight_hh, None, None, None, "reset_after")
    assert output.isnan().all()


@pytest.mark.parametrize("form", FORMS)
def test_bits_do_not_depend_on_threads_or_memory_layout(form: str, native_library: None) -> None:
    for steps, lanes, hidden in ((2, 3, 5), (2, 70, 300), (7, 300, 5)):
        args = make_args(form, steps, lanes, hidden, torch.float32)
        with threads(1):
            expected = output_and_gradients(args, "native")
        with threads(2):
            assert_equal_bits(output_and_gradients(args, "native"), expected)
        assert_equal_bits(output_and_gradients(make_strided(args), "native"), expected)


def make_strided(args: list) -> list:
    """Return a copy of the arguments whose tensors are not contiguous."""
    copies = [
        torch.stack([t, t], -1)[..., 0].detach().requires_grad_(t.requires_grad) if isinstance(t, torch.Tensor) else t
        for t in args
    ]
    assert not copies[2].is_contiguous()
    return copies


@needs_emulation
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("hidden", [5, 90])  # 5: one launch for all steps; 90: at least one launch for each step
def test_emulated_bits_do_not_depend_on_the_order_of_threads(form: str, hidden: int) -> None:
    args = make_args(form, steps=3, lanes=7, hidden=hidden, dtype=torch.float32)
    emulation = cuda_emulator.load()
    emulation.set_seed(1)
    expected = output_and_gradients(args, "emulated")
    assert emulation.launches() == (2 if hidden == 5 else count_launches(form, steps=3))
    for seed in (2, 3):
        emulation.set_seed(seed)
        assert_equal_bits(output_and_gradients(make_strided(args), "emulated"), expected)


def count_launches(form: str, steps: int) -> int:
    """Return the number of launches of forward and backward together, if each step is launched separately.

    A step of the reset_before form takes two launches, because its second matrix product needs all reset gates.
    """
    return 2 * steps * (1 if form == "reset_after" else 2)


@kernels
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("hidden", [5, 90])
def test_reset_lanes_do_not_read_the_previous_state(impl: str, form: str, hidden: int) -> None:
    """Where a lane is reset, an infinite state before the reset does not affect the output."""
    gate_inputs, state, weight, bias, _, mask, _ = make_args(form, steps=3, lanes=6, hidden=hidden, dtype=torch.float64)
    with torch.no_grad():
        state[2] = torch.inf
        gate_inputs[0, 4] = torch.inf  # the output of this step is not used, because lane 4 is reset at step 1
    reset = torch.zeros(3, 6, dtype=torch.bool)
    reset[:, 2] = reset[1, 4] = True
    args = [gate_inputs, state, weight, bias, reset, mask, form]
    finite = [t.detach().nan_to_num(0, 0, 0).requires_grad_() if i < 2 else t for i, t in enumerate(args)]
    ours, theirs = ops.gru(*args, impl=impl), ops.gru(*finite, impl="reference")
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(ours[0, 2], theirs[0, 2], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("hidden", [5, 90])
def test_a_state_before_a_reset_does_not_affect_the_gradients(form: str, hidden: int, value: float, impl: str) -> None:
    """Neither if it is infinite or NaN: the gradients are those of a lane that starts with zeros."""
    gate_inputs, state, weight, bias, _, mask, _ = make_args(form, 3, 6, hidden, torch.float64)
    reset = torch.zeros(3, 6, dtype=torch.bool)
    reset[0, 2] = True
    differentiable = [t for t in (weight, bias, gate_inputs, state) if t is not None]
    results = []
    for replacement in (value, 0.0):
        with torch.no_grad():
            state[2] = replacement
        output = ops.gru(gate_inputs, state, weight, bias, reset, mask, form, impl=impl)
        results.append(torch.autograd.grad(output.square().sum(), differentiable))
    assert_equal_bits(*results)
    assert torch.count_nonzero(results[0][-1][2]) == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("hidden", [5, 90])
def test_a_nan_gradient_does_not_pass_a_reset(form: str, hidden: int, impl: str) -> None:
    gate_inputs, state, weight, bias, _, mask, _ = make_args(form, 3, 6, hidden, torch.float64)
    reset = torch.zeros(3, 6, dtype=torch.bool)
    reset[1, 4] = True
    output = ops.gru(gate_inputs, state, weight, bias, reset, mask, form, impl=impl)
    grad_output = torch.ones_like(output)
    grad_output[2, 4] = torch.nan
    grad_inputs, grad_state = torch.autograd.grad(output, [gate_inputs, state], grad_output)
    assert grad_inputs[0].isfinite().all() and grad_state.isfinite().all()
    assert grad_inputs[1, 4].isnan().any()


@needs_emulation
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("hidden", [1, 64])  # 1: one launch for all steps; 64: at least one launch for each step
def test_emulated_index_arithmetic_beyond_two_to_the_31(form: str, hidden: int) -> None:
    """Forward and backward with more than 2**31 gate inputs; only the first and the last lanes are checked."""
    steps = 2
    lanes = 2**31 // (steps * 3 * hidden) // 4 * 4 + 6
    # A block computes four lanes: these are the lanes of the first block and of the last block, which is not full.
    computed_lanes = torch.tensor([0, 1, 2, 3, lanes - 2, lanes - 1])

    def spread(small: torch.Tensor | None) -> torch.Tensor | None:
        """Return a tensor with `lanes` lanes that has the lanes of `small` at the indices `computed_lanes`."""
        if small is None:
            return None
        dim = 1 if small.dtype == torch.bool else small.dim() - 2  # the lanes: reset [T, B], others [..., B, width]
        shape = (*small.shape[:dim], lanes, *small.shape[dim + 1 :])
        return torch.empty(shape, dtype=small.dtype).index_copy_(dim, computed_lanes, small)

    def run_gru(library: Any, grad: torch.Tensor, args: list) -> list[torch.Tensor]:
        """Return the output, the saved gates, and the gradients of gate inputs, state, weight and bias."""
        output, saved = library.gru(*args)
        return [output, saved, *library.gru_backward(grad, output, saved, *args[1:])]

    small = [t.detach() if isinstance(t, torch.Tensor) else t for t in make_args(form, steps, 6, hidden, torch.float32)]
    grad = torch.randn(steps, 6, hidden, generator=torch.Generator().manual_seed(0))
    emulation = cuda_emulator.load()
    emulation.set_seed(0)
    computed_rows = torch.cat([computed_lanes, lanes + computed_lanes])  # of the two steps, [steps * lanes, ...]
    with first_and_last_blocks(), partial_torch_products({lanes: computed_lanes, steps * lanes: computed_rows}):
        gate_inputs, state, weight, bias, reset, mask, _ = small
        large = [spread(gate_inputs), spread(state), weight, bias, spread(reset), spread(mask), form]
        ours = run_gru(operators_of("emulated", "gru"), spread(grad), large)
    assert emulation.launches() == (2 if hidden == 1 else count_launches(form, steps))
    assert ours[1].numel() > ours[2].numel() > 2**31
    # Output, saved gates and the gradients of gate inputs and state have a dimension of lanes.
    ours[:4] = [t.index_select(-2, computed_lanes) for t in ours[:4]]
    reference = SimpleNamespace(gru=gru_reference, gru_backward=gru_backward_reference)
    exact = [t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in small]
    assert_as_close(ours, run_gru(reference, grad, small), run_gru(reference, grad.double(), exact))


@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set(level: str, native_library: None) -> None:
    run_at_level(
        level, __file__, "native and (are_as_close or gates_are or empty_tensors) or (bits_do_not and memory_layout)"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "lstm"}, "form='lstm'"),
        ({"weight_hh": torch.zeros(3, 3)}, "weight_hh must be"),
        ({"reset": torch.zeros(STEPS, LANES)}, "reset must be bool"),
        ({"bias_hh": torch.zeros(3 * HIDDEN)}, "bias_hh must be float64"),
        ({"gate_inputs": torch.zeros(3, 3)}, "gate_inputs must be"),
    ],
)
def test_error_names_the_argument(change: dict, message: str) -> None:
    names = ("gate_inputs", "state", "weight_hh", "bias_hh", "reset", "output_mask", "form")
    with pytest.raises(ValueError, match=message):
        ops.gru(**(dict(zip(names, make_small_args("reset_after"), strict=True)) | change))


@kernels
@pytest.mark.parametrize("form", FORMS)
def test_operator_passes_opcheck(impl: str, form: str) -> None:
    args, library = make_small_args(form), operators_of(impl, "gru")
    torch.library.opcheck(library.gru, args)
    with torch.no_grad():
        output, saved = library.gru(*args)
        torch.library.opcheck(library.gru_backward, (torch.ones_like(output), output, saved, *args[1:]))


@pytest.mark.parametrize("form", FORMS)
def test_operator_compiles(form: str, native_library: None) -> None:
    args = make_small_args(form)
    backend = compile_backend(form == "reset_after")
    compiled = torch.compile(lambda *t: torch.ops.gru4rec_fast.gru(*t)[0], fullgraph=True, backend=backend)
    expected = ops.gru(*args, impl="reference")
    torch.testing.assert_close(compiled(*args), expected, rtol=1e-12, atol=1e-12)
    inputs = [t for t in args[:4] if t is not None]
    for ours, theirs in zip(
        torch.autograd.grad(compiled(*args).square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@kernels
def test_operator_error_names_the_argument(impl: str) -> None:
    args = [t.detach() if isinstance(t, torch.Tensor) else t for t in make_small_args(FORMS[0])]
    gate_inputs, state, weight, bias, reset, mask, form = args
    gru = operators_of(impl, "gru").gru
    with pytest.raises(ValueError, match=r"weight_hh (is Float|must be float64)"):
        gru(gate_inputs, state, weight.float(), bias, reset, mask, form)
    with pytest.raises(ValueError, match="output_mask must be"):
        gru(gate_inputs, state, weight, bias, reset, mask[:1], form)
    with pytest.raises(ValueError, match="float32 and float64, not BFloat16"):
        gru(gate_inputs.bfloat16(), state.bfloat16(), weight.bfloat16(), None, None, None, form)


@pytest.mark.parametrize("form", FORMS)
def test_public_function_compiles_to_one_graph(form: str) -> None:
    args = make_small_args(form)
    compiled = torch.compile(ops.gru, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), ops.gru(*args), rtol=1e-12, atol=1e-12)


def test_native_on_a_device_without_kernels_is_an_error() -> None:
    args = [t.to("meta") if isinstance(t, torch.Tensor) else t for t in make_small_args("reset_after")]
    assert _backend.resolve("auto", "gru", "meta") == "reference"
    with pytest.raises(RuntimeError, match="impl='native'"):
        ops.gru(*args, impl="native")
