"""GPU rows that are bound by matrix products: the GRU, the sampled loss, ranking; each in several precisions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu.device import Device
from gpu.folder import Folder
from gpu.rows import Builder, Row
from gpu.targets import OURS, TARGETS, RowName
from gru4rec_fast import ops


def gru(device: Device, steps: int, lanes: int, hidden: int) -> Row:
    """From the inputs x to every gradient, a lane in ten reset at each step; nn.GRU has the same weights, no resets."""
    steps, lanes, hidden = device.size(steps, 3), device.size(lanes, 4), device.size(hidden, 6)
    layer = torch.nn.GRU(hidden, hidden, device=device.torch)
    weight_ih, weight_hh, bias_ih, bias_hh = layer.parameters()
    x, grad = torch.randn(2, steps, lanes, hidden, device=device.torch)
    x.requires_grad_()
    state = torch.zeros(lanes, hidden, device=device.torch)
    reset = torch.rand(steps, lanes, device=device.torch) < 0.1
    inputs = (x, weight_ih, weight_hh, bias_ih, bias_hh)

    def ours() -> object:
        output = ops.gru(F.linear(x, weight_ih, bias_ih), state, weight_hh, bias_hh, reset, impl=device.impl)
        return torch.autograd.grad(output, inputs, grad)

    def theirs() -> object:
        return torch.autograd.grad(layer(x)[0], inputs, grad)

    units = steps * lanes * hidden
    return Row(
        {OURS: device.side(ours), TARGETS["gru"].against: device.side(theirs)},
        # Units of 4 bytes: 13 + 16 of the gates forward and backward, x and its products; the weights at every step.
        n_bytes=4 * (units * (13 + 16 + 2 * 4) + steps * 2 * weight_hh.numel()),
        flops=3 * 2 * (2 * steps * lanes * 3 * hidden * hidden),
    )


def plain_loss(hidden: Tensor, rows: Tensor) -> Tensor:
    """Cross-entropy of a row's own target against the negatives that all rows share; float32 from the scores on."""
    m = len(hidden)
    scores = torch.cat([(hidden * rows[:m]).sum(1, keepdim=True), hidden @ rows[m:].T], dim=1).float()
    return F.cross_entropy(scores, torch.zeros(m, dtype=torch.int64, device=hidden.device))


def plain_in_batch_loss(hidden: Tensor, rows: Tensor) -> Tensor:
    """Cross-entropy of a row's own target against all other rows."""
    return F.cross_entropy((hidden @ rows.T).float(), torch.arange(len(hidden), device=hidden.device))


def loss(device: Device, precision: str, m: int, n: int, width: int, *, in_batch: bool = False) -> Row:
    """The loss and the gradients of hidden states and rows."""
    m, n, width = device.size(m, 12), device.size(n, 32), device.size(width, 8)
    columns = m + n if in_batch else n
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    hidden = torch.randn(m, width, device=device.torch).to(dtype).requires_grad_()
    rows = (torch.randn(m + n, width, device=device.torch) / width**0.5).to(dtype).requires_grad_()
    compiled = torch.compile(plain_in_batch_loss if in_batch else plain_loss)

    def ours() -> object:
        value = ops.sampled_loss(hidden, rows, in_batch=in_batch, impl=device.impl)
        return torch.autograd.grad(value, (hidden, rows))

    def theirs() -> object:
        return torch.autograd.grad(compiled(hidden, rows), (hidden, rows))

    # Scores are float32: written, read, and their gradient read by two products; states and rows read and written.
    own = hidden.element_size() * (6 * m * width + 3 * (m + n) * width)
    return Row(
        {OURS: device.side(ours), "torch.compile": device.side(theirs)},
        n_bytes=4 * 5 * m * columns + own,
        flops=3 * 2 * m * columns * width,
    )


def _catalogue(device: Device) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, items, and each query's target."""
    queries, items, width = device.size(512, 8), device.size(1_000_000, 500), device.size(256, 16)
    hidden, weight = torch.randn(queries, width, device=device.torch), torch.randn(items, width, device=device.torch)
    return hidden, weight, torch.randint(items, (queries,), device=device.torch)


def ranking(name: RowName, device: Device, folder: Folder) -> Row:
    """How many items score above a query's target."""
    hidden, weight, targets = _catalogue(device)

    @torch.no_grad()
    def compared() -> Tensor:
        scores = hidden @ weight.T
        return (scores > scores.gather(1, targets[:, None])).sum(1)

    ours = device.side(lambda: ops.target_rank(hidden, weight, None, targets, impl=device.impl))
    return Row(
        {OURS: ours, "matmul + compare": device.side(compared)},
        n_bytes=weight.nbytes,
        flops=2 * len(hidden) * weight.numel(),
    )


def top_k(name: RowName, device: Device, folder: Folder) -> Row:
    """A query's best 20."""
    hidden, weight, _ = _catalogue(device)
    return Row(
        {
            OURS: device.side(lambda: ops.top_k(hidden, weight, None, 20, impl=device.impl)),
            "matmul + topk": device.side(lambda: (hidden @ weight.T).topk(20)),
        },
        n_bytes=weight.nbytes,
        flops=2 * len(hidden) * weight.numel(),
    )


def gru_of_case(name: RowName, device: Device, folder: Folder) -> Row:
    """The GRU at the case's T and B, H=100."""
    steps, lanes = (int(part.partition("=")[2]) for part in name.case.split())
    return gru(device, steps, lanes, 100)


BUILDERS: dict[str, Builder] = {
    "gru": lambda name, device, folder: gru(device, 50, 512, 512),
    "small-gru": gru_of_case,
    "loss": lambda name, device, folder: loss(device, name.precision, 6400, 8192, 512),
    "small-loss": lambda name, device, folder: loss(device, name.precision, 32, 2048, 100, in_batch=True),
    "ranking": ranking,
    "top-k": top_k,
}
