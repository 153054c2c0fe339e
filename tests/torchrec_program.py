"""The program that tests/integrations/test_torchrec.py runs in two processes. Rank 0 prints a JSON object of results.

    torchrun --nproc-per-node 2 tests/torchrec_program.py FOLDER

It writes a checkpoint to the folder. Each result of "trainings" compares a training with a `ShardedTable` with that of
one process, whose table is an nn.Embedding.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from markov import markov_store
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.nn.parallel import DistributedDataParallel
from torchrec.optim import RowWiseAdagrad

from gru4rec_fast import SessionParallelLoader, ops
from gru4rec_fast.distributed import Ranks
from gru4rec_fast.integrations.torchrec import ShardedTable
from gru4rec_fast.nn import SampledLoss, SessionGRU, gather_rows
from gru4rec_fast.optim import SparseAdagrad

N_ITEMS, H, B, N = 501, 12, 8, 16  # an odd number of items, so that the parts differ
STORE = markov_store(n_sessions=100, n_items=N_ITEMS)
# fbgemm's optimizer and its eps; the optimizer of the nn.Embedding and its eps.
OPTIMIZERS: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "SGD": ({"optimizer": "exact_sgd"}, torch.optim.SGD, {}),
    "Adagrad": ({"eps": 1e-4}, torch.optim.Adagrad, {"eps": 1e-4}),
    "row-wise Adagrad": ({"optimizer": "exact_row_wise_adagrad", "eps": 1e-4}, RowWiseAdagrad, {"eps": 1e-4}),
    "SparseAdagrad, eps near 0": ({"eps": 1e-10}, SparseAdagrad, {"eps": 1e-20}),
}
LR = 0.1


class Both:
    """Two optimizers that take their steps together."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


def train(
    lookup: Callable[[Tensor], tuple[Tensor, Tensor]],
    gru: nn.Module,
    optimizer: torch.optim.Optimizer | Both,
    lanes: tuple[int, int],
    n_ranks: int,
) -> Tensor:
    """Train on these lanes until no session is left; return the losses, of these lanes only."""
    alias_table = ops.build_alias_table(torch.from_numpy(STORE.support), alpha=0.5)
    criterion, own = SampledLoss(batch_size=B), slice(*lanes)
    losses, state = [], None
    for step, block in enumerate(SessionParallelLoader(STORE, B)):
        negatives, _ = ops.negative_sampling(alias_table, N, seed=0, step=step)
        rows, index = lookup(torch.cat([block.inputs, block.targets, negatives], dim=1))
        inputs, targets, negatives = index.split([B, B, N], dim=1)
        hidden, state = gru(gather_rows(rows[:, :H], inputs[:, own]), state, block.reset[:, own])
        loss = criterion(hidden, rows[:, :H], rows[:, H], targets, negatives, lanes=lanes)
        optimizer.zero_grad()
        (n_ranks * loss).backward()
        optimizer.step()
        state = state.detach()
        losses.append(loss.detach())
    return torch.stack(losses)


def whole_table(table: ShardedTable, ranks: Ranks) -> Tensor:
    """Return the rows of all ranks, and check that each part is where its `first` says."""
    parts = ranks.gather((table.first, table.weight.clone()))
    assert [first for first, _ in parts] == [0, len(parts[0][1])]
    return torch.cat([rows for _, rows in parts])


def local_bytes(table: ShardedTable) -> list[int]:
    """Return the bytes that this rank allocates for weights and for the state of the optimizer."""
    states = table.collection.fused_optimizer.state_dict()["state"].values()
    sharded = [value for state in states for value in state.values()]
    return [
        table.weight.untyped_storage().nbytes(),
        sum(shard.tensor.untyped_storage().nbytes() for value in sharded for shard in value.local_shards()),
    ]


def compare(ranks: Ranks, name: str) -> dict[str, Any]:
    """Train by all ranks and by this process alone, from the same weights; return the largest differences."""
    fused, optimizer_type, options = OPTIMIZERS[name]
    table = ShardedTable(N_ITEMS, H + 1, lr=LR, **fused)
    table.weight[:, H:] = 0
    embedding = nn.Embedding.from_pretrained(
        whole_table(table, ranks), freeze=False, sparse=optimizer_type is SparseAdagrad
    )

    gru = DistributedDataParallel(SessionGRU(H, H, seed=0))
    losses = train(table, gru, torch.optim.Adagrad(gru.parameters(), LR), ranks.part(B), ranks.size)
    own = losses.clone()
    ranks.sum_(losses)

    alone = SessionGRU(H, H, seed=0)
    both = Both(torch.optim.Adagrad(alone.parameters(), LR), optimizer_type(embedding.parameters(), lr=LR, **options))

    def replicated(items: Tensor) -> tuple[Tensor, Tensor]:
        distinct, index = items.clamp(min=0).unique(return_inverse=True)
        return embedding(distinct), index.masked_fill(items < 0, -1)

    expected = train(replicated, alone, both, (0, B), 1)
    trained = whole_table(table, ranks)
    return {
        "updates": len(losses),
        "share": (own / losses)[[0, -1]].tolist(),
        "loss": (losses - expected).abs().max().item(),
        "table": (trained - embedding.weight).abs().max().item(),
        "bytes": ranks.gather(local_bytes(table)),
        "replicated": embedding.weight.nbytes,
    }


def is_restored(ranks: Ranks, folder: str) -> bool:
    """Save a table and its optimizer by torch.distributed.checkpoint; return whether a loaded one trains on alike."""

    def update(table: ShardedTable) -> None:
        table(torch.arange(5 + ranks.rank))[0].square().sum().backward()

    def state_of(table: ShardedTable) -> dict[str, Any]:
        return {"table": table.collection.state_dict(), "optimizer": table.collection.fused_optimizer.state_dict()}

    table, loaded = ShardedTable(11, 6, seed=1), ShardedTable(11, 6, seed=2)
    update(table)
    checkpoint.save(state_of(table), checkpoint_id=folder)
    checkpoint.load(state_of(loaded), checkpoint_id=folder)
    for each in (table, loaded):
        update(each)
    return all(ranks.gather(torch.equal(table.weight, loaded.weight)))


def main() -> None:
    torch.set_num_threads(1)
    with Ranks() as ranks:
        results: dict[str, Any] = {"trainings": {name: compare(ranks, name) for name in OPTIMIZERS}}
        results["restored"] = is_restored(ranks, sys.argv[1])
        if ranks.is_first:
            print(json.dumps(results))


if __name__ == "__main__":
    main()
