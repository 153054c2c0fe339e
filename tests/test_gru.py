"""The GRU family: against torch.nn.GRUCell, resets, the written-out backward, gradcheck, opcheck, compile."""

from __future__ import annotations

import pytest
import torch

from gru4rec_fast import _backend, ops
from gru4rec_fast.reference.gru import FORMS, gru_backward, gru_forward

STEPS, LANES, HIDDEN = 5, 4, 6


def arguments(form: str, *, reset: bool = True, mask: bool = True, dtype: torch.dtype = torch.float64) -> tuple:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype).requires_grad_()

    resets = torch.rand(STEPS, LANES, generator=g) < 0.3
    masks = (torch.rand(STEPS, LANES, HIDDEN, generator=g) < 0.7).to(dtype) / 0.7
    return (
        normal(STEPS, LANES, 3 * HIDDEN),
        normal(LANES, HIDDEN),
        normal(3 * HIDDEN, HIDDEN),
        normal(3 * HIDDEN) if form == "reset_after" else None,
        resets if reset else None,
        masks if mask else None,
        form,
    )


def test_reset_after_is_torch_grucell() -> None:
    cell = torch.nn.GRUCell(3, HIDDEN, dtype=torch.float64)
    x = torch.randn(STEPS, LANES, 3, dtype=torch.float64)
    state = torch.randn(LANES, HIDDEN, dtype=torch.float64)
    gate_inputs = torch.nn.functional.linear(x, cell.weight_ih, cell.bias_ih)
    output = ops.gru(gate_inputs, state, cell.weight_hh, cell.bias_hh)
    for t in range(STEPS):
        state = cell(x[t], state)
        torch.testing.assert_close(output[t], state, rtol=1e-12, atol=1e-12)


def test_reset_before_follows_its_formula() -> None:
    a, state, weight, _, _, _, form = arguments("reset_before", reset=False, mask=False)
    w_r, w_z, w_n = weight.chunk(3)
    output = ops.gru(a, state, weight, form=form)
    for t in range(STEPS):
        a_r, a_z, a_n = a[t].chunk(3, dim=1)
        r, z = torch.sigmoid(a_r + state @ w_r.T), torch.sigmoid(a_z + state @ w_z.T)
        state = (1 - z) * torch.tanh(a_n + (r * state) @ w_n.T) + z * state
        torch.testing.assert_close(output[t], state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_reset_starts_anew_and_no_gradient_crosses(form: str) -> None:
    a, state, weight, bias, _, _, _ = arguments(form)
    reset = torch.zeros(STEPS, LANES, dtype=torch.bool)
    reset[2, 1] = True
    output = ops.gru(a, state, weight, bias, reset, form=form)
    anew = ops.gru(a[2:, 1:2], torch.zeros(1, HIDDEN, dtype=a.dtype), weight, bias, form=form)
    torch.testing.assert_close(output[2:, 1:2], anew, rtol=1e-12, atol=1e-12)
    (grad,) = torch.autograd.grad(output[2:, 1].sum(), a)
    assert torch.count_nonzero(grad[:2]) == 0
    assert torch.count_nonzero(grad[2:, 1]) > 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("reset", "mask"), [(True, True), (False, False)])
def test_gradcheck(form: str, reset: bool, mask: bool) -> None:
    *tensors, form = arguments(form, reset=reset, mask=mask)
    assert torch.autograd.gradcheck(lambda *t: ops.gru(*t, form), tensors)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("reset", "mask"), [(True, True), (True, False), (False, True), (False, False)])
def test_written_out_backward_is_autograds(form: str, reset: bool, mask: bool) -> None:
    args = arguments(form, reset=reset, mask=mask)
    expected = ops.gru(*args, impl="reference")
    grad = torch.randn_like(expected)
    with torch.no_grad():
        output, saved = gru_forward(*args)
        grads = gru_backward(grad, output, saved, *args[1:])
    torch.testing.assert_close(output, expected, rtol=1e-13, atol=1e-13)
    inputs = [t for t in args[:4] if t is not None]
    for written, auto in zip(grads, torch.autograd.grad(expected, inputs, grad), strict=False):
        torch.testing.assert_close(written, auto, rtol=1e-11, atol=1e-12)


def test_no_steps_give_no_outputs() -> None:
    a, state, weight, bias, *_ = arguments("reset_after")
    assert ops.gru(a[:0], state, weight, bias).shape == (0, LANES, HIDDEN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "lstm"}, "form='lstm'"),
        ({"weight_hh": torch.zeros(3, 3)}, "weight_hh must be"),
        ({"reset": torch.zeros(STEPS, LANES)}, "reset must be bool"),
        ({"bias_hh": torch.zeros(3 * HIDDEN)}, "bias_hh is torch.float32"),
        ({"gate_inputs": torch.zeros(3, 3)}, "gate_inputs must be"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    names = ("gate_inputs", "state", "weight_hh", "bias_hh", "reset", "output_mask", "form")
    with pytest.raises(ValueError, match=message):
        ops.gru(**(dict(zip(names, arguments("reset_after"), strict=True)) | change))


@pytest.mark.parametrize("form", FORMS)
def test_operator_passes_opcheck_and_compiles(form: str, native_library: None) -> None:
    args = arguments(form)
    torch.library.opcheck(torch.ops.gru4rec_fast.gru, args)
    with torch.no_grad():
        output, saved = torch.ops.gru4rec_fast.gru(*args)
        torch.library.opcheck(torch.ops.gru4rec_fast.gru_backward, (torch.ones_like(output), output, saved, *args[1:]))
    compiled = torch.compile(lambda *t: torch.ops.gru4rec_fast.gru(*t)[0], fullgraph=True)
    expected = ops.gru(*args, impl="reference")
    torch.testing.assert_close(compiled(*args), expected, rtol=1e-12, atol=1e-12)
    inputs = [t for t in args[:4] if t is not None]
    for ours, theirs in zip(
        torch.autograd.grad(compiled(*args).square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_public_function_compiles_whole(form: str) -> None:
    args = arguments(form)
    compiled = torch.compile(ops.gru, fullgraph=True)
    torch.testing.assert_close(compiled(*args), ops.gru(*args), rtol=1e-12, atol=1e-12)


def test_native_on_a_device_without_kernel_is_an_error() -> None:
    args = [t.to("meta") if isinstance(t, torch.Tensor) else t for t in arguments("reset_after")]
    assert _backend.resolve("auto", "gru", "meta") == "reference"
    with pytest.raises(RuntimeError, match="impl='native'"):
        ops.gru(*args, impl="native")
