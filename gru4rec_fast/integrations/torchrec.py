"""A table of embeddings whose rows are divided among processes by torchrec, for tables beyond the memory of one."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed import ShardingEnv
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise

_NAME = "table"
_OPTIMIZERS = ("exact_adagrad", "exact_row_wise_adagrad", "exact_sgd")  # those of fbgemm that run on the CPU


class ShardedTable(nn.Module):
    """Table [n_items, width] of float32 on the CPU; each process of torch.distributed has some consecutive rows.

    It is a torchrec `EmbeddingCollection` with row-wise sharding, whose fused optimizer updates the rows in `backward`.
    The gradients of all processes are added up and divided by the number of processes, as DistributedDataParallel does.
    All processes must call the table and `backward` in the same order, because each one waits for the others.

    Args:
        n_items, width: shape of the table.
        optimizer: "exact_adagrad" (an accumulator for each element), "exact_row_wise_adagrad" (one for each row) or
            "exact_sgd".
        lr: learning rate.
        seed: seed of the initial weights, which are uniform in +-sqrt(6 / (n_items + width)). They depend on the number
            of processes.
        options: other options of fbgemm's optimizer, such as eps.

    Attributes:
        weight: the rows of this process, [n, columns], where columns is the width rounded up to a multiple of 4.
            Writing to it changes the table.
        first: the item of the first of these rows.
        collection: torchrec's ShardedEmbeddingCollection; its `fused_optimizer` has the state of the optimizer.

    Raises:
        ValueError: there is no such optimizer; or, in a call, an item is not in the table.
    """

    def __init__(
        self,
        n_items: int,
        width: int,
        *,
        optimizer: str = "exact_adagrad",
        lr: float = 0.05,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        if optimizer not in _OPTIMIZERS:
            raise ValueError(f"optimizer={optimizer!r}: choose from {', '.join(_OPTIMIZERS)}")
        self.n_items, self.width = n_items, width
        columns = 4 * math.ceil(width / 4)  # fbgemm's kernels need a multiple of 4
        config = EmbeddingConfig(name=_NAME, feature_names=[_NAME], num_embeddings=n_items, embedding_dim=columns)
        whole = EmbeddingCollection(tables=[config], device=torch.device("meta"))  # needs no memory
        fused = {"optimizer": EmbOptimType(optimizer), "learning_rate": lr} | options
        sharder, n_ranks = EmbeddingCollectionSharder(fused_params=fused), dist.get_world_size()
        kinds = {_NAME: row_wise(compute_kernel="fused")}
        plan = construct_module_sharding_plan(whole, kinds, sharder, n_ranks, n_ranks, "cpu")
        environment = ShardingEnv.from_process_group(dist.group.WORLD)
        self.collection = sharder.shard(whole, plan, environment, torch.device("cpu"))
        (shard,) = self.collection.state_dict()[f"embeddings.{_NAME}.weight"].local_shards()
        self.weight, self.first = shard.tensor.detach(), int(shard.metadata.shard_offsets[0])
        bound = math.sqrt(6 / (n_items + width))
        generator = torch.Generator().manual_seed(seed * n_ranks + dist.get_rank())
        self.weight.uniform_(-bound, bound, generator=generator)

    def forward(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows [K, width] of the K distinct items, and the row index of each item, in the shape of `items`.

        Args:
            items: int64 of any shape; -1 is padding and gets the index -1. Each process may ask for other items.
        """
        distinct, index = items.unique(return_inverse=True)  # sorted
        if len(distinct) and distinct[0] == -1:
            distinct, index = distinct[1:], index - 1
        if len(distinct) and not 0 <= distinct[0] <= distinct[-1] < self.n_items:
            raise ValueError(
                f"items {int(distinct[0])} to {int(distinct[-1])}: the table has items 0 to {self.n_items - 1}"
            )
        features = KeyedJaggedTensor.from_lengths_sync([_NAME], distinct, torch.tensor([len(distinct)]))
        return self.collection(features)[_NAME].values()[:, : self.width], index
