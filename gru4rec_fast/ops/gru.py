"""GRU over T steps with resets inside the sequence. Specification: `gru4rec_fast.reference.gru`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast._backend import resolve
from gru4rec_fast.ops._registry import on_load, operators, register_composite
from gru4rec_fast.reference.gru import FORMS, gru_backward, gru_forward
from gru4rec_fast.reference.gru import gru as reference_gru


def gru(
    gate_inputs: Tensor,
    state: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None = None,
    reset: Tensor | None = None,
    output_mask: Tensor | None = None,
    form: str = "reset_after",
    *,
    impl: str = "auto",
) -> Tensor:
    """Outputs of a GRU over T steps whose lanes may be reset at any step.

    Args:
        gate_inputs: [T, B, 3H] floating: W_i x + b_i, gates in the order r, z, n (torch.nn.GRUCell's).
        state: [B, H], the state before the first step.
        weight_hh: [3H, H].
        bias_hh: [3H]; form "reset_after" only.
        reset: bool [T, B]; True zeroes the lane's state before that step, and no gradient crosses it.
        output_mask: [T, B, H], multiplied into each step's new state, which is carried on (dropout as GRU4Rec publishes
            it).
        form: "reset_after" (torch.nn.GRUCell; two biases) or "reset_before" (Cho et al. 2014; one bias per gate).
        impl: "auto", "native", "reference" or "emulated".

    Returns:
        [T, B, H]; the last step's output is the next state.

    Raises:
        ValueError: a shape, dtype or form that does not fit, named.
    """
    _check(gate_inputs, state, weight_hh, bias_hh, reset, output_mask, form)
    chosen = resolve(impl, "gru", gate_inputs.device.type)
    if chosen != "reference":
        return operators(chosen).gru(gate_inputs, state, weight_hh, bias_hh, reset, output_mask, form)[0]
    return reference_gru(gate_inputs, state, weight_hh, bias_hh, reset, output_mask, form)


def _check(
    gate_inputs: Tensor,
    state: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    reset: Tensor | None,
    output_mask: Tensor | None,
    form: str,
) -> None:
    if form not in FORMS:
        raise ValueError(f"form={form!r}: choose one of {FORMS}")
    if gate_inputs.dim() != 3 or state.dim() != 2:
        raise ValueError(
            f"gate_inputs must be [T, B, 3H] and state [B, H], not {[*gate_inputs.shape]} and {[*state.shape]}"
        )
    steps, lanes, _ = gate_inputs.shape
    hidden = state.shape[1]
    shapes = {
        "gate_inputs": (gate_inputs, (steps, lanes, 3 * hidden)),
        "state": (state, (lanes, hidden)),
        "weight_hh": (weight_hh, (3 * hidden, hidden)),
        "bias_hh": (bias_hh, (3 * hidden,)),
        "reset": (reset, (steps, lanes)),
        "output_mask": (output_mask, (steps, lanes, hidden)),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {[*shape]} beside state {[*state.shape]}, not {[*tensor.shape]}")
        if tensor is not None and name != "reset" and tensor.dtype != state.dtype:
            raise ValueError(f"{name} is {tensor.dtype} but state is {state.dtype}: use one dtype")
    if reset is not None and reset.dtype != torch.bool:
        raise ValueError(f"reset must be bool, not {reset.dtype}")
    if form == "reset_before" and bias_hh is not None:
        raise ValueError("bias_hh: the reset_before form has one bias per gate, added to gate_inputs by the caller")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, state, weight_hh, bias_hh, reset, output_mask, form = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros in the shape of `saved`
    ctx.save_for_backward(*output, state, weight_hh, bias_hh, reset, output_mask)
    ctx.form = form


def _backward(library: str, ctx: Any, grad_output: Tensor | None, grad_saved: None) -> tuple[Tensor | None, ...]:
    if grad_output is None:
        return (None,) * 7
    output, saved, state, weight_hh, bias_hh, reset, output_mask = ctx.saved_tensors
    grads = getattr(torch.ops, library).gru_backward(
        grad_output, output, saved, state, weight_hh, bias_hh, reset, output_mask, ctx.form, ctx.needs_input_grad[1]
    )
    return (
        grads[0],
        grads[1] if ctx.needs_input_grad[1] else None,
        grads[2],
        grads[3] if bias_hh is not None else None,
        None,
        None,
        None,
    )


def _fake(gate_inputs: Tensor, state: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    steps, lanes, _gates = gate_inputs.shape
    hidden = state.shape[1]
    return gate_inputs.new_empty(steps, lanes, hidden), gate_inputs.new_empty(steps, lanes, 4 * hidden)


def _fake_backward(
    grad_output: Tensor,
    output: Tensor,
    saved: Tensor,
    state: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    reset: Tensor | None,
    output_mask: Tensor | None,
    form: str,
    state_grad: bool = True,
) -> tuple[Tensor, ...]:
    steps, lanes, hidden = output.shape
    return (
        output.new_empty(steps, lanes, 3 * hidden),
        state.new_empty((lanes, hidden) if state_grad else (0,)),
        weight_hh.new_empty(3 * hidden, hidden),
        weight_hh.new_empty(3 * hidden),
    )


@on_load
def _register(library: str) -> None:
    register_composite(library, "gru", gru_forward)
    register_composite(library, "gru_backward", gru_backward)
    torch.library.register_fake(f"{library}::gru", _fake)
    torch.library.register_fake(f"{library}::gru_backward", _fake_backward)
    torch.library.register_autograd(f"{library}::gru", partial(_backward, library), setup_context=_setup_context)
