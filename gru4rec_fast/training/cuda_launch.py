"""Some updates over memory that stays where it is: what `cuda_step.py` captures in one CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast import ops
from gru4rec_fast.ops.philox import STREAM_EMBEDDING_DROPOUT, STREAM_HIDDEN_DROPOUT
from gru4rec_fast.training.cuda_update import Plan, Trained, play_update


@dataclass(frozen=True)
class Extent:
    """How much a launch plays: `updates` of `blocks` (accumulated) of `steps` (backpropagated through) mini-batches.

    A mini-batch is played where it has at least `min_live` live lanes.
    """

    updates: int
    blocks: int
    steps: int
    lanes: int
    n_sample: int
    min_live: int

    @property
    def per_update(self) -> int:
        return self.blocks * self.steps

    @property
    def mini_batches(self) -> int:
        return self.updates * self.per_update


class Launch:
    """Plays updates: one operator after the other at first, captured and replayed from then on.

    Attributes: losses [K], 0 where a mini-batch was not played, and n_live int64 [K], of the K mini-batches.
    """

    def __init__(self, trained: Trained, extent: Extent) -> None:
        self.extent, self._trained = extent, trained
        network, device = trained.network, trained.device
        like = network.output.weight
        n, lanes, columns = extent.mini_batches, extent.lanes, extent.lanes + extent.n_sample

        def events(*shape: int) -> Tensor:
            return torch.full(shape, -1, dtype=torch.int64, device=device)

        def flags(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.bool, device=device)

        self.losses, self.n_live = like.new_zeros(n), events(n)
        self._inputs, self._items = events(n, lanes), events(n, columns)
        self._reset, self._live, self._played = flags(n, lanes), flags(n, lanes), flags(n)
        self._share = like.new_ones(n) if extent.per_update > 1 else None
        self._moves = flags(extent.updates, extent.blocks)
        touched = [columns, lanes] if trained.table is not network.output else [lanes + columns]
        self._sorted = [
            (events(extent.updates, extent.per_update * width), events(extent.updates, extent.per_update * width))
            for width in touched
        ]
        self._hidden = [like.new_zeros(lanes, size) for size in network.gru.sizes]
        self._masks: dict[int, Tensor] = {}  # by Philox stream
        self._graph: torch.cuda.CUDAGraph | None = None
        self._baked: tuple[Any, ...] = ()

    def fill(self, block: Sequence[Tensor], negatives: Tensor | None, first_step: int) -> None:
        """Take in the mini-batches from `first_step` on: inputs, targets [K, B], reset and negatives [K, N]."""
        inputs, targets, reset = block
        live = targets >= 0
        torch.sum(live, 1, out=self.n_live)
        torch.ge(self.n_live, self.extent.min_live, out=self._played)
        torch.logical_and(live, self._played.unsqueeze(1), out=self._live)
        self._reset.copy_(reset)
        # masked_fill takes -1 along with its kernel; torch.where would copy it from the host, and wait.
        lanes, dead = self.extent.lanes, ~self._live
        self._inputs.copy_(inputs.masked_fill(dead, -1))
        self._items[:, :lanes] = targets.masked_fill(dead, -1)
        if negatives is not None:
            self._items[:, lanes:] = negatives.masked_fill(~self._played.unsqueeze(1), -1)
        self._share_out()
        self._sort()
        self._draw_masks(first_step)

    def _share_out(self) -> None:
        """Losses are means over a block's steps, and over an update's blocks: over those that are played."""
        if self._share is None:
            return
        extent = self.extent
        steps = self._played.view(extent.updates, extent.blocks, extent.steps).sum(2)
        blocks = (steps > 0).sum(1, keepdim=True)
        share = (steps * blocks).clamp(min=1).to(self._share.dtype).reciprocal()
        self._share.copy_(share.unsqueeze(2).expand(-1, -1, extent.steps).reshape(-1))

    def _sort(self) -> None:
        """The rows that each update touches. Known beforehand, so that no update waits for a sort of its own."""
        inputs, items = (events.view(self.extent.updates, -1) for events in (self._inputs, self._items))
        touched = [items, inputs] if len(self._sorted) == 2 else [torch.cat([inputs, items], 1)]
        for rows, kept in zip(touched, self._sorted, strict=True):
            torch.sort(rows, dim=1, stable=True, out=kept)

    def _draw_masks(self, first_step: int) -> None:
        trained, extent = self._trained, self.extent
        network = trained.network
        wanted = {STREAM_HIDDEN_DROPOUT + i: (size, network.gru.dropout) for i, size in enumerate(network.gru.sizes)}
        if network.embedding_mode != "none":
            wanted[STREAM_EMBEDDING_DROPOUT] = (trained.table.weight.shape[1], network.dropout_p_embed)
        for stream, (units, p) in wanted.items():
            if not (network.training and p):
                self._masks.pop(stream, None)
                continue
            mask = ops.dropout_mask(
                extent.mini_batches, extent.lanes, units, p, seed=network.seed, stream=stream, step=first_step,
                dtype=self.losses.dtype, device=trained.device, impl=network.impl,
            )  # fmt: skip
            self._masks.setdefault(stream, mask).copy_(mask)

    def run(self, hidden: Sequence[Tensor]) -> None:
        """Play what was filled in; the states [B, H] of the layers are updated."""
        for kept, given in zip(self._hidden, hidden, strict=True):
            kept.copy_(given)
        self._run()
        for kept, given in zip(self._hidden, hidden, strict=True):
            given.copy_(kept)
        torch.autograd.graph.increment_version([*self._trained.network.parameters()])

    def _run(self) -> None:
        baked = self._look_again()
        if baked != self._baked or self._trained.device.type != "cuda":
            self._graph, self._baked = None, baked
            self._play()
            return
        if self._graph is None:  # the second time on the same memory: all that is made at first use is there by now
            self._graph = self._captured()
        self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        """By a stream of this device: torch's own is on the first one that ever captured."""
        device, graph = self._trained.device, torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
            self._play()
        return graph

    def _look_again(self) -> tuple[Any, ...]:
        """What a graph has taken hold of: where one of these is another, it is captured anew."""
        weights = [*self._trained.network.parameters()]
        kept = [tensor for weight in weights for tensor in (weight, *self._trained.moments(weight))]
        kept += [*self._masks.values(), self._trained.criterion.log_support]
        pointers = [tensor.data_ptr() for tensor in kept if tensor is not None]
        return tuple(pointers), self._trained.network.training, torch.get_float32_matmul_precision()

    def _play(self) -> None:
        for update in range(self.extent.updates):
            play_update(self._trained, self._plan(update))

    def _plan(self, update: int) -> Plan:
        at = slice(update * self.extent.per_update, (update + 1) * self.extent.per_update)
        return Plan(
            inputs=self._inputs[at],
            items=self._items[at],
            reset=self._reset[at],
            live=self._live[at],
            played=self._played[at],
            share=None if self._share is None else self._share[at],
            sorted=[(rows[update], places[update]) for rows, places in self._sorted],
            masks={stream: mask[at] for stream, mask in self._masks.items()},
            moves=self._moves[update],
            losses=self.losses[at],
            hidden=self._hidden,
        )
