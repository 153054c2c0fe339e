"""GPU rows that are bound by matrix products: the GRU, the sampled loss, ranking; each in several precisions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu.clock import PRECISIONS, Place
from gpu.goals import TARGETS
from gpu.rows import OURS, Plan, Row
from gru4rec_fast import ops


def plans(place: Place) -> Iterator[Plan]:
    """Each row with TF32 on both sides and with it off on both; the loss in bfloat16 too."""
    for precision in PRECISIONS:
        yield Plan("loss", partial(loss, place, precision, 6400, 8192, 512), precision=precision)
    for precision in ("fp32", "tf32"):
        yield Plan("gru", partial(gru, place, 50, 512, 512), precision=precision)
    for precision in ("fp32", "tf32"):
        yield Plan("ranking", partial(ranking, place), precision=precision)
    yield Plan("top-k", partial(top_k, place), precision="fp32")
    for steps, lanes in ((1, 32), (50, 128)):
        yield Plan("small-gru", partial(gru, place, steps, lanes, 100), f"T={steps} B={lanes}", "fp32")
    yield Plan("small-loss", partial(loss, place, "fp32", 32, 2048, 100, in_batch=True), precision="fp32")


def gru(place: Place, steps: int, lanes: int, hidden: int) -> Row:
    """From the inputs x to every gradient, a lane in ten reset at each step; nn.GRU has the same weights, no resets."""
    steps, lanes, hidden = place.size(steps, 3), place.size(lanes, 4), place.size(hidden, 6)
    layer = torch.nn.GRU(hidden, hidden, device=place.device)
    weight_ih, weight_hh, bias_ih, bias_hh = layer.parameters()
    x, grad = torch.randn(2, steps, lanes, hidden, device=place.device)
    x.requires_grad_()
    state = torch.zeros(lanes, hidden, device=place.device)
    reset = torch.rand(steps, lanes, device=place.device) < 0.1
    inputs = (x, weight_ih, weight_hh, bias_ih, bias_hh)

    def ours() -> object:
        output = ops.gru(F.linear(x, weight_ih, bias_ih), state, weight_hh, bias_hh, reset, impl=place.impl)
        return torch.autograd.grad(output, inputs, grad)

    def theirs() -> object:
        return torch.autograd.grad(layer(x)[0], inputs, grad)

    units = steps * lanes * hidden
    return Row(
        {OURS: place.side(ours), TARGETS["gru"].against: place.side(theirs)},
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


def loss(place: Place, precision: str, m: int, n: int, width: int, *, in_batch: bool = False) -> Row:
    """The loss and the gradients of hidden states and rows."""
    m, n, width = place.size(m, 12), place.size(n, 32), place.size(width, 8)
    columns = m + n if in_batch else n
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    hidden = torch.randn(m, width, device=place.device).to(dtype).requires_grad_()
    rows = (torch.randn(m + n, width, device=place.device) / width**0.5).to(dtype).requires_grad_()
    compiled = torch.compile(plain_in_batch_loss if in_batch else plain_loss)

    def ours() -> object:
        value = ops.sampled_loss(hidden, rows, in_batch=in_batch, impl=place.impl)
        return torch.autograd.grad(value, (hidden, rows))

    def theirs() -> object:
        return torch.autograd.grad(compiled(hidden, rows), (hidden, rows))

    # Scores are float32: written, read, and their gradient read by two products; states and rows read and written.
    own = hidden.element_size() * (6 * m * width + 3 * (m + n) * width)
    return Row(
        {OURS: place.side(ours), "torch.compile": place.side(theirs)},
        n_bytes=4 * 5 * m * columns + own,
        flops=3 * 2 * m * columns * width,
    )


def _catalogue(place: Place) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, items, and each query's target."""
    queries, items, width = place.size(512, 8), place.size(1_000_000, 500), place.size(256, 16)
    hidden, weight = torch.randn(queries, width, device=place.device), torch.randn(items, width, device=place.device)
    return hidden, weight, torch.randint(items, (queries,), device=place.device)


def ranking(place: Place) -> Row:
    """How many items score above a query's target."""
    hidden, weight, targets = _catalogue(place)

    @torch.no_grad()
    def compared() -> Tensor:
        scores = hidden @ weight.T
        return (scores > scores.gather(1, targets[:, None])).sum(1)

    ours = place.side(lambda: ops.target_rank(hidden, weight, None, targets, impl=place.impl))
    return Row(
        {OURS: ours, "matmul + compare": place.side(compared)},
        n_bytes=weight.nbytes,
        flops=2 * len(hidden) * weight.numel(),
    )


def top_k(place: Place) -> Row:
    """A query's best 20."""
    hidden, weight, _ = _catalogue(place)
    return Row(
        {
            OURS: place.side(lambda: ops.top_k(hidden, weight, None, 20, impl=place.impl)),
            "matmul + topk": place.side(lambda: (hidden @ weight.T).topk(20)),
        },
        n_bytes=weight.nbytes,
        flops=2 * len(hidden) * weight.numel(),
    )
