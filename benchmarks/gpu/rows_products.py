"""Build the GPU benchmarks that are bound by matrix products: the GRU, the sampled loss and ranking.

A row compares several implementations, called sides, at one workload. A lane is one of the sessions that the GRU
processes in parallel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu.device import Device
from gpu.prepared_folder import PreparedFolder
from gpu.rows import Builder, Row
from gpu.workloads import OURS, WORKLOADS, RowName
from gru4rec_fast import ops


def gru_row(device: Device, steps: int, lanes: int, hidden: int) -> Row:
    """Build the row of the GRU: forward, and gradients of x, weights and biases.

    On average a tenth of the lanes is reset at each step. The baseline, nn.GRU, has the same weights and no resets.
    """
    steps, lanes, hidden = device.size(steps, 3), device.size(lanes, 4), device.size(hidden, 6)
    layer = torch.nn.GRU(hidden, hidden, device=device.torch_device)
    weight_ih, weight_hh, bias_ih, bias_hh = layer.parameters()
    x, grad = torch.randn(2, steps, lanes, hidden, device=device.torch_device)
    x.requires_grad_()
    state = torch.zeros(lanes, hidden, device=device.torch_device)
    reset = torch.rand(steps, lanes, device=device.torch_device) < 0.1
    inputs = (x, weight_ih, weight_hh, bias_ih, bias_hh)

    def ours() -> object:
        output = ops.gru(F.linear(x, weight_ih, bias_ih), state, weight_hh, bias_hh, reset, impl=device.impl)
        return torch.autograd.grad(output, inputs, grad)

    def theirs() -> object:
        return torch.autograd.grad(layer(x)[0], inputs, grad)

    n_units = steps * lanes * hidden
    return Row(
        {OURS: device.side(ours), WORKLOADS["gru"].baseline: device.side(theirs)},
        # Floats read or written per hidden unit: 13 in the forward and 16 in the backward pass of the gates, 8 for x
        # and its products. In addition, each step reads the recurrent weights twice.
        n_bytes=4 * (n_units * (13 + 16 + 2 * 4) + steps * 2 * weight_hh.numel()),
        # 3: forward and two gradients of each product; 2: products of x and of the hidden state.
        flops=3 * 2 * (2 * steps * lanes * 3 * hidden * hidden),
    )


def plain_loss(hidden: Tensor, rows: Tensor) -> Tensor:
    """Return the mean cross-entropy of the targets. Each hidden state scores its own target and all negatives.

    rows: the item embeddings of the targets, followed by those of the negatives. Scores are converted to float32.
    """
    m = len(hidden)
    scores = torch.cat([(hidden * rows[:m]).sum(1, keepdim=True), hidden @ rows[m:].T], dim=1).float()
    return F.cross_entropy(scores, torch.zeros(m, dtype=torch.int64, device=hidden.device))


def plain_in_batch_loss(hidden: Tensor, rows: Tensor) -> Tensor:
    """Return the mean cross-entropy of the targets. Each hidden state scores all targets and all negatives.

    rows: see `plain_loss`.
    """
    return F.cross_entropy((hidden @ rows.T).float(), torch.arange(len(hidden), device=hidden.device))


def loss_row(device: Device, precision: str, m: int, n: int, width: int, *, in_batch: bool = False) -> Row:
    """Build the row of the sampled loss: its value, and the gradients of the hidden states and the item embeddings.

    m: number of targets. n: number of sampled negatives. in_batch: targets of other hidden states are also negatives.
    """
    m, n, width = device.size(m, 12), device.size(n, 32), device.size(width, 8)
    columns = m + n if in_batch else n
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    hidden = torch.randn(m, width, device=device.torch_device).to(dtype).requires_grad_()
    rows = (torch.randn(m + n, width, device=device.torch_device) / width**0.5).to(dtype).requires_grad_()
    compiled = torch.compile(plain_in_batch_loss if in_batch else plain_loss)

    def ours() -> object:
        loss = ops.sampled_loss(hidden, rows, in_batch=in_batch, impl=device.impl)
        return torch.autograd.grad(loss, (hidden, rows))

    def theirs() -> object:
        return torch.autograd.grad(compiled(hidden, rows), (hidden, rows))

    # Scores and their gradient (float32) are read or written 5 times, hidden states 6 times, item embeddings 3 times.
    input_bytes = hidden.element_size() * (6 * m * width + 3 * (m + n) * width)
    return Row(
        {OURS: device.side(ours), "torch.compile": device.side(theirs)},
        n_bytes=4 * 5 * m * columns + input_bytes,
        flops=3 * 2 * m * columns * width,
    )


def _queries_and_items(device: Device) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states (the queries), item weights, and the target item of each query."""
    queries, items, width = device.size(512, 8), device.size(1_000_000, 500), device.size(256, 16)
    hidden, weight = (
        torch.randn(queries, width, device=device.torch_device),
        torch.randn(items, width, device=device.torch_device),
    )
    return hidden, weight, torch.randint(items, (queries,), device=device.torch_device)


def ranking_row(name: RowName, device: Device, folder: PreparedFolder) -> Row:
    """Build the row of target_rank, which counts the items with a higher score than the target of each query."""
    hidden, weight, targets = _queries_and_items(device)

    @torch.no_grad()
    def compare_scores() -> Tensor:
        scores = hidden @ weight.T
        return (scores > scores.gather(1, targets[:, None])).sum(1)

    ours = device.side(lambda: ops.target_rank(hidden, weight, None, targets, impl=device.impl))
    return Row(
        {OURS: ours, "matmul + compare": device.side(compare_scores)},
        n_bytes=weight.nbytes,
        flops=2 * len(hidden) * weight.numel(),
    )


def top_k_row(name: RowName, device: Device, folder: PreparedFolder) -> Row:
    """Build the row of top_k, which returns the 20 best items of each query."""
    hidden, weight, _ = _queries_and_items(device)
    return Row(
        {
            OURS: device.side(lambda: ops.top_k(hidden, weight, None, 20, impl=device.impl)),
            "matmul + topk": device.side(lambda: (hidden @ weight.T).topk(20)),
        },
        n_bytes=weight.nbytes,
        flops=2 * len(hidden) * weight.numel(),
    )


def small_gru_row(name: RowName, device: Device, folder: PreparedFolder) -> Row:
    """Build the row of the GRU with hidden size 100 and the T steps and B lanes of the case."""
    steps, lanes = (int(text.partition("=")[2]) for text in name.case.split())
    return gru_row(device, steps, lanes, hidden=100)


BUILDERS: dict[str, Builder] = {
    "gru": lambda name, device, folder: gru_row(device, steps=50, lanes=512, hidden=512),
    "small-gru": small_gru_row,
    "loss": lambda name, device, folder: loss_row(device, name.precision, m=6400, n=8192, width=512),
    "small-loss": lambda name, device, folder: loss_row(device, name.precision, m=32, n=2048, width=100, in_batch=True),
    "ranking": ranking_row,
    "top-k": top_k_row,
}
