"""Triples of an InteractionGraph for BPR."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gru4rec_fast import ops
from gru4rec_fast.data.graphs.graph import InteractionGraph

UNITS = ("users", "interactions")


class TripleSampler:
    """Batches of (user, item it has, item it has not); see `gru4rec_fast.ops.bpr_triples`.

    Users without items, and users who have every item, are never drawn.

    Args:
        graph: the training graph.
        batch_size: triples of a batch.
        sample_by: "users" (a user uniformly, then one of its items) or "interactions" (an interaction uniformly).
        seed: of the draws, in [0, 2**63).
        device: of the triples.
        impl: "auto", "native" or "reference".

    Attributes:
        n_batches: batches of an epoch: as many as it takes to draw one triple per edge.

    Raises:
        ValueError: an argument out of range; no user can be drawn.
    """

    def __init__(
        self,
        graph: InteractionGraph,
        batch_size: int,
        *,
        sample_by: str = "users",
        seed: int = 0,
        device: torch.device | str = "cpu",
        impl: str = "auto",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if sample_by not in UNITS:
            raise ValueError(f"sample_by={sample_by!r}: choose one of {', '.join(UNITS)}")
        self.n_users, self.n_items = graph.n_users, graph.n_items
        self.batch_size, self.seed, self.impl = batch_size, seed, impl
        self.n_batches = -(-graph.n_edges // batch_size)
        offsets, neighbors = graph.structure()
        degrees = offsets[: graph.n_users + 1].diff()
        users = ((degrees > 0) & (degrees < graph.n_items)).nonzero()[:, 0]
        if len(users) == 0:
            raise ValueError("there is nothing to learn: every user of the graph has all items, or none")
        self._graph = offsets.to(device), neighbors.to(device), users.to(device)
        self._starts: Tensor | None = None
        if sample_by == "interactions":
            starts = torch.cat([degrees.new_zeros(1), degrees[users].cumsum(0)])
            if starts[-1] >= 1 << 31:
                raise ValueError(f"{int(starts[-1])} interactions are too many to draw sample_by='interactions': use 'users'")
            self._starts = starts.to(device)

    def draw(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Users, positives and negatives of batch number `step` of the whole training, int64 [batch_size] each."""
        users, positives, negatives = ops.bpr_triples(
            *self._graph,
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
        """(step, triples) of the batches of an epoch, counted from 0."""
        for step in range(number * self.n_batches, (number + 1) * self.n_batches):
            yield step, self.draw(step)
