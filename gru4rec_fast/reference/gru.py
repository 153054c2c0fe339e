"""GRU over T steps with a reset mask inside the sequence: specification, fallback and oracle.

Gate order everywhere is r, z, n, as in torch.nn.GRUCell. With s = the state entering a step (zero where `reset`):

reset_after (Hidasi & Czapp 2023; torch.nn.GRUCell, two biases):
    r = sigmoid(a_r + W_hr s + b_hr),  z = sigmoid(a_z + W_hz s + b_hz),  n = tanh(a_n + r * (W_hn s + b_hn))
reset_before (Cho et al. 2014; Hidasi et al. 2016; one bias per gate, inside the gate inputs):
    r = sigmoid(a_r + W_hr s),  z = sigmoid(a_z + W_hz s),  n = tanh(a_n + W_hn (r * s))
both:
    h = ((1 - z) * n + z * s) * output_mask;  h is the step's output and the next step's state.

a = gate inputs, W_i x + b_i for all steps at once, which is the caller's matrix product (or, for one-hot inputs, table
rows).
"""

from __future__ import annotations

import torch
from torch import Tensor

FORMS = ("reset_after", "reset_before")


def gru(
    gate_inputs: Tensor,
    state: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None = None,
    reset: Tensor | None = None,
    output_mask: Tensor | None = None,
    form: str = "reset_after",
) -> Tensor:
    """Outputs [T, B, H] of T steps, differentiable by autograd; arguments as `gru4rec_fast.ops.gru`."""
    outputs = []
    for t in range(gate_inputs.shape[0]):
        state = _entering(state, reset, t)
        state = _step(gate_inputs[t], state, weight_hh, bias_hh, form)[0]
        if output_mask is not None:
            state = state * output_mask[t]
        outputs.append(state)
    return torch.stack(outputs) if outputs else gate_inputs.new_empty(0, *state.shape)


def gru_forward(
    gate_inputs: Tensor,
    state: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    reset: Tensor | None,
    output_mask: Tensor | None,
    form: str,
) -> tuple[Tensor, Tensor]:
    """The same outputs, and what the backward pass needs: [T, B, 4H] holding r, z, n and q.

    q is W_hn s + b_hn (reset_after) or r * s (reset_before).
    """
    steps, lanes, _ = gate_inputs.shape
    hidden = state.shape[1]
    output = gate_inputs.new_empty(steps, lanes, hidden)
    saved = gate_inputs.new_empty(steps, lanes, 4 * hidden)
    for t in range(steps):
        state, *gates = _step(gate_inputs[t], _entering(state, reset, t), weight_hh, bias_hh, form)
        if output_mask is not None:
            state = state * output_mask[t]
        output[t] = state
        saved[t] = torch.cat(gates, dim=1)
    return output, saved


def gru_backward(
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
    """Gradients of gate_inputs [T, B, 3H], state [B, H], weight_hh [3H, H] and bias_hh [3H] (zeros without a bias).

    The state's is empty, [0], without `state_grad`: where gradients end at a block's edge, nobody wants it.
    """
    hidden = state.shape[1]
    grad_gate_inputs = saved.new_empty(*saved.shape[:2], 3 * hidden)
    grad_weight = torch.zeros_like(weight_hh)
    grad_bias = weight_hh.new_zeros(3 * hidden)
    carried = torch.zeros_like(state)
    for t in reversed(range(saved.shape[0])):
        entering = _entering(state if t == 0 else output[t - 1], reset, t)
        r, z, n, q = saved[t].chunk(4, dim=1)
        grad_h = grad_output[t] + carried
        if output_mask is not None:
            grad_h = grad_h * output_mask[t]
        a_n = grad_h * (1 - z) * (1 - n * n)
        a_z = grad_h * (entering - n) * z * (1 - z)
        carried = grad_h * z
        if form == "reset_after":
            a_r = a_n * q * r * (1 - r)
            recurrent = torch.cat([a_r, a_z, a_n * r], dim=1)
            carried = carried + recurrent @ weight_hh
            grad_weight += recurrent.T @ entering
            if bias_hh is not None:
                grad_bias += recurrent.sum(0)
        else:
            grad_q = a_n @ weight_hh[2 * hidden :]
            a_r = grad_q * entering * r * (1 - r)
            recurrent = torch.cat([a_r, a_z], dim=1)
            carried = carried + grad_q * r + recurrent @ weight_hh[: 2 * hidden]
            grad_weight[: 2 * hidden] += recurrent.T @ entering
            grad_weight[2 * hidden :] += a_n.T @ q
        grad_gate_inputs[t] = torch.cat([a_r, a_z, a_n], dim=1)
        carried = _entering(carried, reset, t)
    return grad_gate_inputs, carried if state_grad else carried.new_empty(0), grad_weight, grad_bias


def _entering(state: Tensor, reset: Tensor | None, t: int) -> Tensor:
    """The state a step starts from (and, in backward, the gradient that leaves it): zero in lanes that were reset."""
    return state if reset is None else state.masked_fill(reset[t].unsqueeze(1), 0)


def _step(a: Tensor, state: Tensor, weight_hh: Tensor, bias_hh: Tensor | None, form: str) -> tuple[Tensor, ...]:
    """One step from gate inputs a [B, 3H]: the new state, r, z, n and q."""
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
