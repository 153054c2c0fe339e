"""A GRU4Rec training step in plain PyTorch: GRUCell, matmul, autograd, dense gradients.

Tests allow the package at most twice the float32 error of this step. The step supports every embedding mode, momentum,
logQ and dropout (masks are arguments). All lanes must be live.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def gru_cell(weights: Weights, layer: int, x: Tensor, h: Tensor) -> Tensor:
    """Return the new hidden state of one layer. A layer with `bias_hh` is a reset-after layer, as in torch.

    Without `weight_ih` (one-hot inputs), `x` is already the input of the three gates.
    """
    w = {name.split(".")[-1]: value for name, value in weights.items() if name.startswith(f"layers.{layer}.")}
    if "bias_hh" in w:
        return torch.gru_cell(x, h, w["weight_ih"], w["weight_hh"], w["bias_ih"], w["bias_hh"])
    gates = x + w["bias_ih"] if "weight_ih" not in w else F.linear(x, w["weight_ih"], w["bias_ih"])
    (gate_r, gate_z, gate_n), (w_r, w_z, w_n) = gates.chunk(3, 1), w["weight_hh"].chunk(3)
    r, z = torch.sigmoid(gate_r + h @ w_r.T), torch.sigmoid(gate_z + h @ w_z.T)
    return (1 - z) * torch.tanh(gate_n + (r * h) @ w_n.T) + z * h


def loss_of_scores(y: Tensor, loss: str, elu_param: float, bpreg: float) -> Tensor:
    """Return the sum of the losses of all rows of scores. The target of row i is column i."""
    m = y.shape[0]
    if loss == "cross-entropy":
        return F.cross_entropy(y, torch.arange(m), reduction="sum")
    assert loss == "bpr-max"
    y = F.elu(y, elu_param) if elu_param else y
    target = y.diagonal().unsqueeze(1)
    is_target = torch.eye(m, y.shape[1], dtype=torch.bool)
    s = torch.softmax(y.masked_fill(is_target, -torch.inf), 1)
    losses = -torch.log((s * torch.sigmoid(target - y)).sum(1) + 1e-24) + bpreg * (s * y * y).sum(1)
    return losses.sum()


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
    """Make one training step. Return the loss before the update and the new hidden state of each layer.

    Updates `weights`, `accumulators` and `velocities` in place. `masks` holds the dropout mask of the embedding, then
    the mask of each layer's output; None means no dropout.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
    input_table = "embedding.weight" if "embedding.weight" in leaves else "output.weight"
    x = F.embedding(inputs, leaves[input_table])
    x = x if masks[0] is None else x * masks[0]
    new_hidden = []
    for layer, h in enumerate(hidden):
        x = gru_cell(leaves, layer, x, h * ~reset.unsqueeze(1))
        x = x if masks[1 + layer] is None else x * masks[1 + layer]
        new_hidden.append(x)
    columns = torch.cat([targets, negatives])
    y = x @ F.embedding(columns, leaves["output.weight"]).T + leaves["output.bias"][columns]
    mean_loss = loss_of_scores(y if log_q is None else y - log_q, loss, elu_param, bpreg) / batch_size
    grads = torch.autograd.grad(mean_loss, list(leaves.values()))
    for (name, weight), grad in zip(weights.items(), grads, strict=True):
        # Tables are updated only in the rows that this step reads, other weights completely.
        read_rows = {"output.weight": columns, "output.bias": columns}.get(name)
        if name == input_table:
            read_rows = inputs if read_rows is None else torch.cat([inputs, read_rows])
        rows = slice(None) if read_rows is None else torch.unique(read_rows)
        accumulators[name][rows] += grad[rows] ** 2
        update = -learning_rate * grad[rows] / torch.sqrt(accumulators[name][rows] + 1e-6)
        velocities[name][rows] = momentum * velocities[name][rows] + update
        weight[rows] += velocities[name][rows]
    return mean_loss.detach(), [h.detach() for h in new_hidden]
