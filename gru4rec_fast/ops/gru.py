"""GRU over T steps with a reset mask inside the sequence.

A lane is one of the B sessions that are processed in parallel; `reset` marks the steps at which a lane starts a new
session. The order of the gates is r, z, n, as in torch.nn.GRUCell. Let s be the hidden state before a step (zero where
`reset` is True):

reset_after (Hidasi & Czapp 2023; torch.nn.GRUCell, two biases):
    r = sigmoid(a_r + W_hr s + b_hr),  z = sigmoid(a_z + W_hz s + b_hz),  n = tanh(a_n + r * (W_hn s + b_hn))
reset_before (Cho et al. 2014; Hidasi et al. 2016; one bias per gate, inside the gate inputs):
    r = sigmoid(a_r + W_hr s),  z = sigmoid(a_z + W_hz s),  n = tanh(a_n + W_hn (r * s))
both forms:
    h = ((1 - z) * n + z * s) * output_mask;  h is the output of the step and the state before the next step.

a_r, a_z and a_n are the gate inputs W_i x + b_i. The caller computes them for all steps in one matrix product, or, for
one-hot inputs, gathers them from a table.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.ops._checks import check_choice, check_constant, check_tensor
from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load, register, register_gradient

FORMS = ("reset_after", "reset_before")


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
    """Return the outputs of a GRU over T steps, with a mask that resets lanes to a zero state.

    Differentiable in gate_inputs, state, weight_hh and bias_hh. The native kernels have no second derivative: backward
    with create_graph=True raises RuntimeError.

    Args:
        gate_inputs: floating [T, B, 3H]: W_i x + b_i, gates in the order r, z, n.
        state: [B, H], the hidden state before the first step.
        weight_hh: [3H, H].
        bias_hh: [3H]; only for form "reset_after".
        reset: bool [T, B]; True sets the lane's state to zero before that step, and stops the gradient there.
        output_mask: [T, B, H], dropout mask. The new state of each step is multiplied by the mask before it is returned
            and before the next step reads it, as in the published GRU4Rec code. Not differentiable in it.
        form: "reset_after" (torch.nn.GRUCell; two biases) or "reset_before" (Cho et al. 2014; one bias per gate).
        impl: "auto", "native" or "reference".

    Returns:
        [T, B, H]; the output of the last step is the state after it.

    Raises:
        ValueError: the form is unknown, a shape, dtype or device does not fit, or output_mask requires a gradient.
    """
    check_choice("form", form, FORMS)
    if gate_inputs.dim() != 3 or state.dim() != 2:
        raise ValueError(
            f"gate_inputs must be [T, B, 3H] and state [B, H], not {[*gate_inputs.shape]} and {[*state.shape]}"
        )
    steps, lanes, _ = gate_inputs.shape
    hidden = state.shape[1]
    dtype, device = state.dtype, state.device
    check_tensor("gate_inputs", gate_inputs, dtype, (steps, lanes, 3 * hidden), device)
    check_tensor("state", state, dtype, (lanes, hidden), device)
    check_tensor("weight_hh", weight_hh, dtype, (3 * hidden, hidden), device)
    check_tensor("bias_hh", bias_hh, dtype, (3 * hidden,), device)
    check_tensor("reset", reset, torch.bool, (steps, lanes), device)
    check_tensor("output_mask", output_mask, dtype, (steps, lanes, hidden), device)
    check_constant(output_mask=output_mask)
    if form == "reset_before" and bias_hh is not None:
        raise ValueError("bias_hh: must be None for form='reset_before'; add the only bias of each gate to gate_inputs")
    run = implementation("gru", impl, gate_inputs.device, partial(gru_reference, save=False))
    return run(gate_inputs, state, weight_hh, bias_hh, reset, output_mask, form)[0]


def gru_reference(
    gate_inputs: Tensor,
    state: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    reset: Tensor | None,
    output_mask: Tensor | None,
    form: str,
    *,
    save: bool = True,
) -> tuple[Tensor, ...]:
    """Return the outputs [T, B, H], differentiable by autograd, and the tensor that `gru_backward_reference` needs.

    The second tensor is [T, B, 4H]: r, z, n and q, where q is W_hn s + b_hn (reset_after) or r * s (reset_before). With
    save=False, return (outputs,).
    """
    lanes, hidden = state.shape
    outputs, saved = [], []
    steps = gate_inputs.shape[0]
    for t in range(steps if state.numel() else min(steps, 1)):  # all steps of empty states are the same
        state, *gates = _step(gate_inputs[t], _zero_where_reset(state, reset, t), weight_hh, bias_hh, form)
        if output_mask is not None:
            state = state * output_mask[t]
        outputs.append(state)
        if save:
            saved.append(torch.cat(gates, dim=1))
    output = torch.stack(outputs).expand(steps, -1, -1) if outputs else gate_inputs.new_empty(0, lanes, hidden)
    if not save:
        return (output,)
    return output, torch.stack(saved).expand(steps, -1, -1) if saved else gate_inputs.new_empty(0, lanes, 4 * hidden)


def gru_backward_reference(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of gate_inputs, state, weight_hh and bias_hh ([3H], zeros without a bias).

    With state_grad=False the gradient of the state is an empty tensor, because truncated backpropagation does not need
    this gradient.
    """
    hidden = state.shape[1]
    grad_gate_inputs = saved.new_empty(*saved.shape[:2], 3 * hidden)
    grad_weight = torch.zeros_like(weight_hh)
    grad_bias = weight_hh.new_zeros(3 * hidden)
    grad_state = torch.zeros_like(state)
    for t in reversed(range(saved.shape[0] if state.numel() else 0)):
        previous_state = _zero_where_reset(state if t == 0 else output[t - 1], reset, t)
        r, z, n, q = saved[t].chunk(4, dim=1)
        grad_h = grad_output[t] + grad_state
        if output_mask is not None:
            grad_h = grad_h * output_mask[t]
        grad_a_n = grad_h * (1 - z) * (1 - n * n)
        grad_a_z = grad_h * (previous_state - n) * z * (1 - z)
        grad_state = grad_h * z
        if form == "reset_after":
            grad_a_r = grad_a_n * q * r * (1 - r)
            grad_recurrent = torch.cat([grad_a_r, grad_a_z, grad_a_n * r], dim=1)
            grad_state = grad_state + grad_recurrent @ weight_hh
            grad_weight += grad_recurrent.T @ previous_state
            if bias_hh is not None:
                grad_bias += grad_recurrent.sum(0)
        else:
            grad_q = grad_a_n @ weight_hh[2 * hidden :]
            grad_a_r = grad_q * previous_state * r * (1 - r)
            grad_recurrent = torch.cat([grad_a_r, grad_a_z], dim=1)
            grad_state = grad_state + grad_q * r + grad_recurrent @ weight_hh[: 2 * hidden]
            grad_weight[: 2 * hidden] += grad_recurrent.T @ previous_state
            grad_weight[2 * hidden :] += grad_a_n.T @ q
        grad_gate_inputs[t] = torch.cat([grad_a_r, grad_a_z, grad_a_n], dim=1)
        grad_state = _zero_where_reset(grad_state, reset, t)
    return grad_gate_inputs, grad_state if state_grad else grad_state.new_empty(0), grad_weight, grad_bias


def _zero_where_reset(state: Tensor, reset: Tensor | None, t: int) -> Tensor:
    """Return a state [B, H], or its gradient, with zeros in the lanes that are reset before step t."""
    return state if reset is None else state.masked_fill(reset[t].unsqueeze(1), 0)


def _step(a: Tensor, state: Tensor, weight_hh: Tensor, bias_hh: Tensor | None, form: str) -> tuple[Tensor, ...]:
    """Return the new state, r, z, n and q (see `gru_reference`) of one step from the gate inputs a [B, 3H]."""
    hidden = state.shape[1]
    if form == "reset_after":
        recurrent = torch.nn.functional.linear(state, weight_hh, bias_hh)
        r, z = torch.sigmoid(a[:, : 2 * hidden] + recurrent[:, : 2 * hidden]).chunk(2, dim=1)
        q = recurrent[:, 2 * hidden :]
        n = torch.tanh(a[:, 2 * hidden :] + r * q)
    else:
        recurrent = torch.nn.functional.linear(state, weight_hh[: 2 * hidden])
        r, z = torch.sigmoid(a[:, : 2 * hidden] + recurrent).chunk(2, dim=1)
        q = r * state
        n = torch.tanh(a[:, 2 * hidden :] + torch.nn.functional.linear(q, weight_hh[2 * hidden :]))
    return n + z * (state - n), r, z, n, q


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, state, weight_hh, bias_hh, reset, output_mask, form = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else autograd allocates zeros as the gradient of `saved`
    ctx.save_for_backward(*output, state, weight_hh, bias_hh, reset, output_mask)
    ctx.form = form


def _backward(library: str, ctx: Any, grad_output: Tensor | None, grad_saved: None) -> tuple[Tensor | None, ...]:
    if grad_output is None:
        return (None,) * 7  # one for each input of the operator
    output, saved, state, weight_hh, bias_hh, reset, output_mask = ctx.saved_tensors
    grads = getattr(torch.ops, library).gru_backward(
        grad_output, output, saved, state, weight_hh, bias_hh, reset, output_mask, ctx.form, ctx.needs_input_grad[1]
    )
    grad_state = grads[1] if ctx.needs_input_grad[1] else None
    return grads[0], grad_state, grads[2], grads[3] if bias_hh is not None else None, None, None, None


def _fake(gate_inputs: Tensor, state: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    steps, lanes, _gates = gate_inputs.shape
    hidden = state.shape[1]
    return gate_inputs.new_empty(steps, lanes, hidden), gate_inputs.new_empty(steps, lanes, 4 * hidden)


def _fake_backward(grad_output: Tensor, output: Tensor, saved: Tensor, state: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    weight_hh, _bias_hh, _reset, _output_mask, _form, *state_grad = rest  # torch omits state_grad if it is True
    steps, lanes, hidden = output.shape
    return (
        output.new_empty(steps, lanes, 3 * hidden),
        state.new_empty((0,) if state_grad == [False] else (lanes, hidden)),
        weight_hh.new_empty(3 * hidden, hidden),
        weight_hh.new_empty(3 * hidden),
    )


@on_load
def _register(library: str) -> None:
    register(library, "gru", gru_reference, _fake)
    register(library, "gru_backward", gru_backward_reference, _fake_backward)
    register_gradient(library, "gru", partial(_backward, library), _setup_context)
