"""Runs a fixed number of updates on preallocated tensors as one CUDA graph; `captured_step.py` chooses the number.

A lane is one of the B sessions that are processed in parallel. It is dead once no session is left for it, else live. A
mini-batch is one step of all lanes, a block is T mini-batches, and an update of the weights has one block or several.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gru4rec_fast import ops
from gru4rec_fast.ops.philox import STREAM_EMBEDDING_DROPOUT, STREAM_HIDDEN_DROPOUT
from gru4rec_fast.training.captured_update import UpdateContext, UpdatePlan, run_update


@dataclass(frozen=True)
class UpdatesShape:
    """Sizes of a `CapturedUpdates` object; a CUDA graph is captured for fixed sizes.

    Attributes:
        updates: number of updates.
        blocks: blocks per update.
        steps: T, mini-batches per block.
        lanes: B.
        n_sample: N, negatives per mini-batch.
        min_live: a mini-batch with fewer live lanes is skipped.
    """

    updates: int
    blocks: int
    steps: int
    lanes: int
    n_sample: int
    min_live: int

    @property
    def mini_batches_per_update(self) -> int:
        """Number of mini-batches in an update."""
        return self.blocks * self.steps

    @property
    def mini_batches(self) -> int:
        """K, the number of mini-batches in all updates."""
        return self.updates * self.mini_batches_per_update


class GraphCapturer:
    """Captures CUDA graphs on one stream and in one memory pool of a device, until a capture fails.

    torch keeps a cuBLAS workspace for every stream that multiplied matrices, and a graph contains its address. With a
    new stream for every graph there would be many workspaces, and a graph could use one in the pool of another graph.
    Graphs may share a pool because no tensor in it is used after the replay that writes it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # A stream of this device: torch's default capture stream belongs to the device of the first capture.
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        # The last graph is kept, because torch cannot capture in a pool that all graphs have released. A graph whose
        # capture failed is kept, because torch's allocator still has a pointer to it.
        self._kept_graph: torch.cuda.CUDAGraph | None = None
        self._failed = False

    def capture(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """Return a graph of the operators that `run` runs; they are not executed.

        If the capture fails, warn and return None, now and in all later calls.
        """
        if self._failed:
            return None
        graph = torch.cuda.CUDAGraph()
        try:
            # torch.cuda.stream restores the current stream. torch.cuda.graph does not, if it cannot end the capture.
            # thread_local: CUDA calls of other threads, e.g. of a data loader, do not invalidate the capture.
            with (
                torch.cuda.device(self._device),
                torch.cuda.stream(self._stream),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                run()
        except RuntimeError as error:
            self._failed = True
            warnings.warn(
                f"the training step cannot be captured in a CUDA graph, so it runs without, more slowly: {error}",
                stacklevel=2,
            )
        self._kept_graph = graph
        return None if self._failed else graph


class CapturedUpdates:
    """Runs updates of one shape: operator by operator at first, later by replaying a CUDA graph.

    Without a `capturer` (on the CPU), or if the capture fails, all updates run operator by operator.

    Attributes:
        losses: [K], loss of each mini-batch; 0 if it was skipped.
        n_live: int64 [K], number of live lanes of each mini-batch.
    """

    def __init__(self, context: UpdateContext, shape: UpdatesShape, capturer: GraphCapturer | None) -> None:
        self.shape, self._context, self._capturer = shape, context, capturer
        network, device = context.network, context.device
        weight = network.output.weight
        n, lanes, n_scored = shape.mini_batches, shape.lanes, shape.lanes + shape.n_sample

        def new_items(*sizes: int) -> Tensor:
            return torch.full(sizes, -1, dtype=torch.int64, device=device)

        def new_mask(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.bool, device=device)

        # The tensors are described in `UpdatePlan`, which has the slices of one update.
        self.losses, self.n_live = weight.new_zeros(n), new_items(n)
        self._inputs, self._items = new_items(n, lanes), new_items(n, n_scored)
        self._reset, self._live, self._active = new_mask(n, lanes), new_mask(n, lanes), new_mask(n)
        self._loss_weight = weight.new_ones(n) if shape.mini_batches_per_update > 1 else None
        self._enabled = new_mask(shape.updates, shape.blocks)
        # Number of row gradients that a mini-batch has in the output table and in the input table, or in the one table
        # that is both.
        counts = [n_scored, lanes] if network.input_table is not network.output else [lanes + n_scored]
        sizes = [(shape.updates, shape.mini_batches_per_update * count) for count in counts]
        self._sorted_rows = [(new_items(*size), new_items(*size)) for size in sizes]
        self._hidden = [weight.new_zeros(lanes, size) for size in network.gru.sizes]
        self._masks: dict[int, Tensor] = {}  # dropout masks by Philox stream
        self._graph: torch.cuda.CUDAGraph | None = None
        self._graph_key: tuple[Any, ...] = ()

    def fill(self, block: Sequence[Tensor], negatives: Tensor | None, first_step: int) -> None:
        """Prepare the next K mini-batches: copy the item indices, sort table rows, draw dropout masks.

        Args:
            block: (inputs, targets, reset), each [K, B].
            negatives: [K, N], or None.
            first_step: number of mini-batches before these K since the training began.
        """
        inputs, targets, reset = block
        live = targets >= 0
        torch.sum(live, 1, out=self.n_live)
        torch.ge(self.n_live, self.shape.min_live, out=self._active)
        torch.logical_and(live, self._active.unsqueeze(1), out=self._live)
        self._reset.copy_(reset)
        # masked_fill passes -1 as a kernel argument; torch.where would copy -1 from the host, and synchronize.
        lanes, dead = self.shape.lanes, ~self._live
        self._inputs.copy_(inputs.masked_fill(dead, -1))
        self._items[:, :lanes] = targets.masked_fill(dead, -1)
        if negatives is not None:
            self._items[:, lanes:] = negatives.masked_fill(~self._active.unsqueeze(1), -1)
        self._compute_loss_weights()
        self._sort_rows()
        self._draw_masks(first_step)

    def _compute_loss_weights(self) -> None:
        """Compute the weight of each mini-batch in the loss of its update.

        The loss of a block is the mean over its mini-batches, and the loss of the update is the mean over its blocks.
        Skipped mini-batches do not count.
        """
        if self._loss_weight is None:
            return
        shape = self.shape
        steps = self._active.view(shape.updates, shape.blocks, shape.steps).sum(2)
        blocks = (steps > 0).sum(1, keepdim=True)
        weight = (steps * blocks).clamp(min=1).to(self._loss_weight.dtype).reciprocal()
        self._loss_weight.copy_(weight.unsqueeze(2).expand(-1, -1, shape.steps).reshape(-1))

    def _sort_rows(self) -> None:
        """Sort the row indices of each update for each table, in one launch for all updates."""
        inputs, items = (indices.view(self.shape.updates, -1) for indices in (self._inputs, self._items))
        rows_of_tables = [items, inputs] if len(self._sorted_rows) == 2 else [torch.cat([inputs, items], 1)]
        for rows, rows_and_permutation in zip(rows_of_tables, self._sorted_rows, strict=True):
            torch.sort(rows, dim=1, stable=True, out=rows_and_permutation)

    def _draw_masks(self, first_step: int) -> None:
        """Draw the dropout masks into `_masks`; remove the masks that are not used (evaluation mode, or p = 0)."""
        context, shape = self._context, self.shape
        network = context.network
        # (units, dropout probability) by Philox stream
        streams = {STREAM_HIDDEN_DROPOUT + i: (size, network.gru.dropout) for i, size in enumerate(network.gru.sizes)}
        if network.embedding_mode != "none":
            streams[STREAM_EMBEDDING_DROPOUT] = (network.input_table.weight.shape[1], network.dropout_p_embed)
        for stream, (units, p) in streams.items():
            if not (network.training and p):
                self._masks.pop(stream, None)
                continue
            mask = ops.dropout_mask(
                shape.mini_batches, shape.lanes, units, p, seed=network.seed, stream=stream, step=first_step,
                dtype=self.losses.dtype, device=context.device, impl=network.impl,
            )  # fmt: skip
            self._masks.setdefault(stream, mask).copy_(mask)  # into the tensor that a captured graph reads

    def run(self, hidden: Sequence[Tensor]) -> None:
        """Run the updates that `fill` prepared; the hidden states [B, H] of the layers are updated in place."""
        for buffer, state in zip(self._hidden, hidden, strict=True):
            buffer.copy_(state)
        self._run()
        for buffer, state in zip(self._hidden, hidden, strict=True):
            state.copy_(buffer)
        torch.autograd.graph.increment_version([*self._context.network.parameters()])

    def _run(self) -> None:
        """Run the operators, or replay the graph if nothing that it depends on has changed since the last run."""
        key = self._current_key()
        if key != self._graph_key:
            self._graph, self._graph_key = None, key
        elif self._graph is None and self._capturer is not None:
            # Captured in the second run: the first run creates what is created at first use, such as cuBLAS handles.
            n_begun = self._context.n_begun
            self._graph = self._capturer.capture(self._run_operators)
            self._context.n_begun = n_begun  # a capture executes nothing
        if self._graph is None:
            self._run_operators()
        else:
            self._context.n_begun += self.shape.updates
            self._graph.replay()

    def _current_key(self) -> tuple[Any, ...]:
        """Return all values that a captured graph depends on; if a value changes, the graph is captured again."""
        weights = [*self._context.network.parameters()]
        tensors = [tensor for weight in weights for tensor in (weight, *self._context.optimizer_state(weight))]
        tensors += [*self._masks.values(), self._context.criterion.log_support]
        pointers = tuple(tensor.data_ptr() for tensor in tensors if tensor is not None)
        shapes = tuple(tensor.shape for tensor in tensors if tensor is not None)  # a table may grow in place
        # Not torch.get_float32_matmul_precision(), which raises an error once fp32_precision has been set.
        return pointers, shapes, self._context.network.training, torch.backends.cuda.matmul.fp32_precision

    def _run_operators(self) -> None:
        for update in range(self.shape.updates):
            run_update(self._context, self._plan(update))

    def _plan(self, update: int) -> UpdatePlan:
        """Return the plan of one update: its slices of the preallocated tensors."""
        steps = slice(update * self.shape.mini_batches_per_update, (update + 1) * self.shape.mini_batches_per_update)
        return UpdatePlan(
            inputs=self._inputs[steps],
            items=self._items[steps],
            reset=self._reset[steps],
            live=self._live[steps],
            active=self._active[steps],
            loss_weight=None if self._loss_weight is None else self._loss_weight[steps],
            sorted_rows=[(rows[update], permutation[update]) for rows, permutation in self._sorted_rows],
            masks={stream: mask[steps] for stream, mask in self._masks.items()},
            enabled=self._enabled[update],
            losses=self.losses[steps],
            hidden=self._hidden,
        )
