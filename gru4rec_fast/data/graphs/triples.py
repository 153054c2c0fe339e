"""Sample (user, positive item, negative item) triples of an InteractionGraph, for the BPR loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gru4rec_fast import ops
from gru4rec_fast.data.graphs.graph import InteractionGraph
from gru4rec_fast.ops._seed import Seeded

SAMPLE_BY = ("users", "interactions")


class TripleSampler(Seeded):
    """Draws mini-batches of triples: a user, a positive item and a negative item.

    The positive is one of the user's items, the negative is any other item. Users who have no item, or every item, are
    never drawn. See `gru4rec_fast.ops.bpr_triples`.

    Args:
        graph: the training graph.
        batch_size: number of triples in a mini-batch.
        sample_by: "users" draws users uniformly, then one of their items; "interactions" draws interactions uniformly.
        seed: seed of the random draws, in [0, 2**63); None draws one from torch's CPU generator.
        device: device of the triples.
        impl: "auto", "native" or "reference".

    Attributes:
        n_batches: number of mini-batches in an epoch: n_edges / batch_size, rounded up.

    Raises:
        ValueError: an argument is out of range, or no user can be drawn.
    """

    def __init__(
        self,
        graph: InteractionGraph,
        batch_size: int,
        *,
        sample_by: str = "users",
        seed: int | None = None,
        device: torch.device | str = "cpu",
        impl: str = "auto",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if sample_by not in SAMPLE_BY:
            raise ValueError(f"sample_by={sample_by!r}: choose one of {', '.join(SAMPLE_BY)}")
        self.n_users, self.n_items = graph.n_users, graph.n_items
        self.set_seed(seed)
        self.batch_size, self.impl = batch_size, impl
        self.n_batches = -(-graph.n_edges // batch_size)
        offsets, neighbors = graph.structure()
        degrees = offsets[: graph.n_users + 1].diff()
        users = ((degrees > 0) & (degrees < graph.n_items)).nonzero()[:, 0]
        if len(users) == 0:
            raise ValueError("no triple can be drawn: every user of the graph has all items, or none")
        self._graph_tensors = offsets.to(device), neighbors.to(device), users.to(device)
        # For each of `users`, the number of interactions of the users before it; None: users are drawn uniformly.
        self._starts: Tensor | None = None
        if sample_by == "interactions":
            starts = torch.cat([degrees.new_zeros(1), degrees[users].cumsum(0)])
            if starts[-1] >= 1 << 31:
                raise ValueError(
                    f"{starts[-1]} interactions: sample_by='interactions' allows at most 2**31 - 1; use 'users'"
                )
            self._starts = starts.to(device)

    def draw(self, step: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the indices of users, positives and negatives of mini-batch `step`, int64 [batch_size] each.

        Mini-batches are numbered from the start of the training; see `gru4rec_fast.ops.bpr_triples`.
        """
        users, positives, negatives = ops.bpr_triples(
            *self._graph_tensors,
            self.batch_size,
            n_users=self.n_users,
            n_items=self.n_items,
            starts=self._starts,
            seed=self.seed,
            step=step,
            impl=self.impl,
        ).unbind()
        return users, positives, negatives

    def epoch(self, number: int) -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor]]]:
        """Yield (step, triples) of every mini-batch of epoch `number`, which counts from 0."""
        for step in range(number * self.n_batches, (number + 1) * self.n_batches):
            yield step, self.draw(step)
