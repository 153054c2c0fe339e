"""A small model, its batches and a training loop of plain PyTorch, in one process or in two.

Processes that a test spawns import these functions from this module: they cannot import the files of tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad

N_ITEMS, LANES, STEPS = 50, 4, 2
Batch = tuple[Tensor, Tensor, Tensor]  # inputs [T, B], targets [T, B], negatives [T, N]


def draw_batches(n: int, n_items: int = N_ITEMS) -> Iterator[Batch]:
    """Yield batches in which the item after item i is i + 1, with padding in the last lane of every second batch."""
    generator = torch.Generator().manual_seed(0)
    for number in range(n):
        inputs = torch.randint(0, n_items - 1, (STEPS, LANES), generator=generator)
        targets = inputs + 1
        if number % 2:
            inputs[1, -1] = targets[1, -1] = -1
        yield inputs, targets, torch.randint(0, n_items, (STEPS, 16), generator=generator)


class Model(nn.Module):
    """A network with its loss."""

    def __init__(self, sparse: bool = False, n_items: int = N_ITEMS, in_batch: bool = True, **options: Any) -> None:
        super().__init__()
        self.network = SessionNetwork(n_items, [8], sparse=sparse, seed=1, **options)
        self.criterion = SampledLoss(batch_size=LANES, in_batch=in_batch, sparse=sparse)

    def forward(self, inputs: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
        hidden, _ = self.network(inputs)
        return self.criterion(hidden, self.network.output_weight, self.network.output_bias, targets, negatives)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    n: int = 30,
    after_backward: Callable[[], object] | None = None,
    after_step: Callable[[], object] | None = None,
) -> list[float]:
    """Train on n batches; return the losses."""
    losses = []
    for batch in draw_batches(n):
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        if after_backward:
            after_backward()
        optimizer.step()
        if after_step:
            after_step()
        losses.append(loss.item())
    return losses


def train_on_rank(rank: int, folder: Path, sparse: bool) -> None:
    """Train on the lanes of one of two processes, and save the weights."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    model, optimizer = make_ddp_model(sparse)
    model.criterion.batch_size = LANES // 2
    parallel = nn.parallel.DistributedDataParallel(model)
    for batch in draw_batches(6):
        optimizer.zero_grad()
        lanes = slice(rank * LANES // 2, (rank + 1) * LANES // 2)
        inputs, targets, negatives = batch
        parallel(inputs[:, lanes], targets[:, lanes], negatives).backward()
        optimizer.step()
    torch.save(model.state_dict(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def make_ddp_model(sparse: bool) -> tuple[Model, torch.optim.Optimizer]:
    """Return a model whose loss is a sum over the lanes: without in-batch negatives, lanes do not affect each other."""
    model = Model(sparse=sparse, in_batch=False, dtype=torch.float64, embedding="separate", embedding_dim=6)
    if sparse:
        return model, SparseAdagrad(model.parameters(), 0.1, momentum=0.2)
    return model, torch.optim.AdamW(model.parameters(), 0.01)
