"""A GRU4Rec training step in plain PyTorch: GRUCell, matmul, autograd, dense gradients.

The fp32 error of this step is the bound for the errors of the package. It supports every embedding mode, momentum, logQ
and dropout (masks are arguments); all lanes are live.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def gru_cell(weights: Weights, layer: int, x: Tensor, h: Tensor) -> Tensor:
    w = {name.split(".")[-1]: value for name, value in weights.items() if name.startswith(f"layers.{layer}.")}
    if "bias_hh" in w:
        return torch.gru_cell(x, h, w["weight_ih"], w["weight_hh"], w["bias_ih"], w["bias_hh"])
    gates = x + w["bias_ih"] if "weight_ih" not in w else F.linear(x, w["weight_ih"], w["bias_ih"])
    (g_r, g_z, g_n), (w_r, w_z, w_n) = gates.chunk(3, 1), w["weight_hh"].chunk(3)
    r, z = torch.sigmoid(g_r + h @ w_r.T), torch.sigmoid(g_z + h @ w_z.T)
    return (1 - z) * torch.tanh(g_n + (r * h) @ w_n.T) + z * h


def loss_of_scores(y: Tensor, loss: str, elu_param: float, bpreg: float) -> Tensor:
    """Return the loss summed over rows; the targets are on the diagonal."""
    m = y.shape[0]
    if loss == "cross-entropy":
        return F.cross_entropy(y, torch.arange(m), reduction="sum")
    assert loss == "bpr-max"
    y = F.elu(y, elu_param) if elu_param else y
    target = y.diagonal().unsqueeze(1)
    others = ~torch.eye(m, y.shape[1], dtype=torch.bool)
    s = torch.softmax(y.masked_fill(~others, -torch.inf), 1)
    rows = -torch.log((s * torch.sigmoid(target - y)).sum(1) + 1e-24) + bpreg * (s * y * y).sum(1)
    return rows.sum()


def plain_step(
    weights: Weights,
    accumulators: Weights,
    velocities: Weights,
    hidden: list[Tensor],
    inputs: Tensor,
    targets: Tensor,
    reset: Tensor,
    negatives: Tensor,
    masks: list[Tensor | None],
    *,
    loss: str,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    log_q: Tensor | None = None,
    elu_param: float = 0.5,
    bpreg: float = 1.0,
) -> tuple[Tensor, list[Tensor]]:
    """Make one step, updating weights and moments in place; return its loss and the new hidden states."""
    leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
    table = "embedding.weight" if "embedding.weight" in leaves else "output.weight"
    x = F.embedding(inputs, leaves[table])
    x = x if masks[0] is None else x * masks[0]
    after = []
    for layer, h in enumerate(hidden):
        x = gru_cell(leaves, layer, x, h * ~reset.unsqueeze(1))
        x = x if masks[1 + layer] is None else x * masks[1 + layer]
        after.append(x)
    columns = torch.cat([targets, negatives])
    y = x @ F.embedding(columns, leaves["output.weight"]).T + leaves["output.bias"][columns]
    value = loss_of_scores(y if log_q is None else y - log_q, loss, elu_param, bpreg) / batch_size
    grads = torch.autograd.grad(value, list(leaves.values()))
    for (name, weight), grad in zip(weights.items(), grads, strict=True):
        touched = {"output.weight": columns, "output.bias": columns}.get(name)
        if name == table:
            touched = inputs if touched is None else torch.cat([inputs, touched])
        rows = slice(None) if touched is None else torch.unique(touched)
        accumulators[name][rows] += grad[rows] ** 2
        step = -learning_rate * grad[rows] / torch.sqrt(accumulators[name][rows] + 1e-6)
        velocities[name][rows] = momentum * velocities[name][rows] + step
        weight[rows] += velocities[name][rows]
    return value.detach(), [h.detach() for h in after]
