"""SessionParallelLoader: a data loader of session-parallel mini-batches from a SessionStore."""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from gru4rec_fast import ops
from gru4rec_fast.data.array_folder import as_tensor
from gru4rec_fast.data.sessions.store import SessionStore
from gru4rec_fast.ops._seed import Seeded

# One call of ops.session_batch computes a chunk of many blocks, so that the costs of the call and of the copy to the
# device are negligible. These are the limits of a chunk: steps, and steps x lanes. They keep the result small.
CHUNK_STEPS, CHUNK_EVENTS = 256, 1 << 14
LaneState = tuple[Tensor, Tensor, Tensor]  # lane_session, lane_position, cursor; see ops.session_batch_state
# A position in an epoch is the lane state at the start of a chunk (None: at the start of the epoch), and the number of
# blocks of this chunk that were yielded.
_EPOCH_START: dict[str, Any] = {"blocks": 0, "lanes": None}


class SessionBlock(NamedTuple):
    """A mini-batch of T steps in B lanes. A lane is one of the B sessions that are processed in parallel.

    inputs, targets: int64 [T, B], item indices, -1 in lanes that have no session left;
    reset: bool [T, B], True where a lane starts a session;
    n_live: number of lanes that have a session, for each step.
    """

    inputs: Tensor
    targets: Tensor
    reset: Tensor
    n_live: list[int]

    @property
    def n_events(self) -> int:
        """Number of targets in the block."""
        return sum(self.n_live)


class SessionParallelLoader(Seeded, IterableDataset[SessionBlock]):
    """Iterates over the sessions of a store in blocks of T steps x B lanes. One iteration is one epoch.

    A lane is one of the B sessions that are processed in parallel. Lane k starts with session k. When its session ends,
    the lane continues with the next session that no lane has started; when there is none, the lane is dead. The epoch
    ends when all lanes are dead (Hidasi et al. 2016, section 3.1.1). Sessions of fewer than two events have no target:
    they are skipped, counted in `n_skipped`, and reported by a warning.

    The log stays memory-mapped. Blocks are computed on the CPU, up to 256 steps at a time, and copied to `device`.

    Use it in any training loop, or as torch.utils.data.DataLoader(loader, batch_size=None, num_workers=0). The
    length is the number of blocks in the epoch.

    `state_dict` counts every block that was yielded. This position is right for trainers that fetch a block when they
    need it: a plain loop, torch's DataLoader, torchdata's StatefulDataLoader, and Lightning with a loader that has a
    length. A trainer that always fetches one block ahead, such as Accelerate, would skip that block when it resumes
    within an epoch. With such a trainer, save checkpoints between epochs.

    In a worker process the loader raises an error: the position within the epoch would change in the worker's copy
    only, so `state_dict` would be wrong and every epoch would have the same order. Worker processes are not needed,
    because computing a block takes microseconds.

    Args:
        store: the sessions.
        batch_size: B. If fewer sessions have a target, there are fewer lanes (`n_lanes`).
        steps: T. The last block of an epoch may have fewer steps.
        device: device of the blocks.
        shuffle: process the sessions in a random order, which depends on (seed, epoch), instead of by start time. Needs
            memory for one integer per session.
        seed: seed of the shuffle; None draws one from torch's CPU generator.
        min_live: end the epoch at the first step with fewer live lanes (lanes that have a session). Use 2 if all
            negatives are in-batch negatives.
        rank, world_size: this process, and the number of processes, for a training by DDP: yield the lanes of this
            process only. Every process plays the whole schedule of `batch_size` lanes, so all get the same number of
            blocks. `n_live` counts the lanes of this process. The seed must be the same integer in all processes.
        impl: "auto", "native" or "reference".

    Raises:
        ValueError: an argument is out of range, or no session has two events. While iterating: the loader runs in a
            worker process, or an item index of the store is out of range.
    """

    def __init__(
        self,
        store: SessionStore,
        batch_size: int,
        steps: int = 1,
        device: torch.device | str = "cpu",
        shuffle: bool = False,
        seed: int | None = None,
        min_live: int = 1,
        rank: int = 0,
        world_size: int = 1,
        impl: str = "auto",
    ) -> None:
        for name, value in {"batch_size": batch_size, "steps": steps, "min_live": min_live}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.n_skipped = store.n_short_sessions
        n_usable = store.n_sessions - self.n_skipped
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}, world_size={world_size}: must be 0 <= rank < world_size")
        if world_size > 1 and shuffle and seed is None:
            raise ValueError("shuffle=True with world_size > 1 needs a seed, the same in all processes")
        if n_usable < 1:
            raise ValueError(f"none of the {store.n_sessions} sessions has two events: there is nothing to predict")
        if self.n_skipped:
            warnings.warn(
                f"{self.n_skipped} of {store.n_sessions} sessions have fewer than two events and are skipped",
                stacklevel=2,
            )
        self.device = torch.device(device)
        self.items, self.offsets = as_tensor(store.items), as_tensor(store.offsets)
        self.n_items, self._folder = store.n_items, store.folder
        self.n_sessions = store.n_sessions
        self.n_all_lanes = min(batch_size, n_usable)
        if self.n_all_lanes < world_size:
            raise ValueError(f"{self.n_all_lanes} lanes are too few for world_size={world_size}: increase batch_size")
        self._own = slice(*(self.n_all_lanes * r // world_size for r in (rank, rank + 1)))
        self.n_lanes = self._own.stop - self._own.start
        self.n_targets = store.n_targets
        self.set_seed(seed)
        self.steps, self.shuffle, self.min_live, self.impl = steps, shuffle, min_live, impl
        self._epoch = 0
        self._resume: dict[str, Any] | None = None  # where the next iteration starts; None: at the start of the epoch
        self._position = _EPOCH_START  # position of the next block, for `state_dict`
        self._length: tuple[int, int] | None = None  # the epoch whose length was computed, and that length

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration start at the beginning of `epoch`. With `shuffle`, the order depends on `epoch`."""
        self._epoch = epoch
        self._resume = None
        self._position = _EPOCH_START

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next block and the settings of the loader. All values can be stored as JSON."""
        lanes = self._position["lanes"]
        if lanes is not None:
            lanes = [torch.as_tensor(values).tolist() for values in lanes]
        return {"epoch": self._epoch, "blocks": self._position["blocks"], "lanes": lanes, "loader": self._settings()}

    def _settings(self) -> dict[str, int | bool]:
        """Return the settings on which the meaning of a position depends."""
        names = ("n_sessions", "n_targets", "n_lanes", "steps", "shuffle", "seed", "min_live")
        return {name: getattr(self, name) for name in names} | {"n_lanes": self.n_all_lanes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration resume at the position in `state`. A seed that was drawn becomes that of `state`.

        Raises:
            ValueError: `state` is from a loader with other sessions or settings; the message lists the differences.
        """
        saved = state.get("loader", {})
        settings = self._settings() | ({"seed": saved.get("seed")} if self.seed_was_drawn else {})
        pairs = [(name, saved.get(name), value) for name, value in settings.items()]
        different = "; ".join(f"{name}={old}, not {value}" for name, old, value in pairs if old != value)
        if different:
            raise ValueError(f"the state was taken from another loader: it had {different}")
        epoch, blocks, lanes = state["epoch"], state["blocks"], state["lanes"]
        max_steps = CHUNK_STEPS + self.steps  # more than a chunk has
        if type(epoch) is not int or type(blocks) is not int or not 0 <= blocks * self.steps <= max_steps:
            raise ValueError(f"the state is damaged: epoch={epoch!r}, blocks={blocks!r}")
        self.restore_seed(saved.get("seed"))
        self._epoch, self._length = epoch, None
        self._position = {"blocks": blocks, "lanes": lanes}
        self._resume = self._position

    def __len__(self) -> int:
        """Return the number of blocks of the whole epoch; with `shuffle` it can differ between epochs.

        The first call for an epoch computes it from the lengths of all sessions, about a second for two million.
        """
        epoch = self._epoch if self.shuffle else 0
        if self._length is None or self._length[0] != epoch:
            self._length = epoch, self._count_blocks()
        return self._length[1]

    def _count_blocks(self) -> int:
        order, lengths = self._order(), self.offsets.diff()
        targets = (lengths if order is None else lengths[order]) - 1
        # A heap of the steps at which the lanes become free. The next session starts in the lane that is free first.
        free_at = [0] * self.n_all_lanes
        for n_targets in targets[targets > 0].tolist():
            heapq.heapreplace(free_at, free_at[0] + n_targets)
        # All lanes are live until there is no session left. Then one after another becomes dead, until fewer than
        # `min_live` are live.
        n_steps = heapq.nlargest(self.min_live, free_at)[-1] if self.min_live <= self.n_all_lanes else 0
        return -(-n_steps // self.steps)

    def __iter__(self) -> Iterator[SessionBlock]:
        worker = get_worker_info()
        if worker is not None:
            raise ValueError(
                f"num_workers={worker.num_workers}: a SessionParallelLoader must run in the main process, which keeps "
                "its position and epoch; use num_workers=0 (computing a block takes microseconds)"
            )
        order, lane_state = self.start_epoch()
        # Number of steps in a chunk: a multiple of `steps` within the limits, or one block.
        chunk = max(self.steps, min(CHUNK_STEPS, CHUNK_EVENTS // self.n_all_lanes) // self.steps * self.steps)
        while True:
            chunk_start = [tensor.clone() for tensor in lane_state]
            (inputs, targets, reset), n_live = self._compute_chunk(order, lane_state, chunk)
            n_steps = next((t for t, n in enumerate(n_live) if n < self.min_live), chunk)
            is_last_chunk = n_steps < chunk or self._next_live(order, lane_state) < self.min_live
            for i, start in enumerate(range(0, n_steps, self.steps)):
                self._position = {"blocks": i + 1, "lanes": chunk_start}
                block = slice(start, min(start + self.steps, n_steps))
                if is_last_chunk and block.stop == n_steps:  # before `yield`, after which a trainer may stop
                    self._finish_epoch()
                yield self._own_block(inputs[block], targets[block], reset[block], n_live[block])
            if is_last_chunk:
                break
        if n_steps == 0:
            self._finish_epoch()

    def _own_block(self, inputs: Tensor, targets: Tensor, reset: Tensor, n_live: list[int]) -> SessionBlock:
        """Return the block of this process's lanes."""
        if self.n_lanes == self.n_all_lanes:
            return SessionBlock(inputs, targets, reset, n_live)
        inputs, targets, reset = (tensor[:, self._own].contiguous() for tensor in (inputs, targets, reset))
        return SessionBlock(inputs, targets, reset, (inputs >= 0).sum(1).tolist())

    # Inference mode may begin and end between two blocks. A tensor made in it could not be updated outside of it.
    @torch.inference_mode(False)
    def _compute_chunk(
        self, order: Tensor | None, lane_state: LaneState, steps: int
    ) -> tuple[tuple[Tensor, Tensor, Tensor], list[int]]:
        """Return (inputs, targets, reset) of the next steps on `device`, and the number of live lanes of each step."""
        inputs, targets, reset = ops.session_batch(self.items, self.offsets, order, *lane_state, steps, impl=self.impl)
        n_live = self._count_live(inputs.numpy(), targets.numpy(), reset.numpy())
        return (self._to_device(inputs), self._to_device(targets), self._to_device(reset)), n_live

    def _next_live(self, order: Tensor | None, lane_state: LaneState) -> int:
        """Return the number of live lanes of the next step."""
        lane_session, lane_position, cursor = (tensor.clone() for tensor in lane_state)
        ops.session_batch(self.items, self.offsets, order, lane_session, lane_position, cursor, steps=1, impl=self.impl)
        return int((lane_session < self.n_sessions).sum())

    @torch.inference_mode(False)
    def start_epoch(self) -> tuple[Tensor | None, LaneState]:
        """Return the session order of this epoch, and the lane state at the current position (see `load_state_dict`).

        Use them as arguments of `ops.session_batch` to compute blocks without iterating over the loader. In that case,
        report the position with `set_position` after each call.
        """
        position, self._resume = self._resume or _EPOCH_START, None
        order, lane_state = self._order(), ops.session_batch_state(self.n_all_lanes)
        if position["lanes"] is not None:
            for tensor, values in zip(lane_state, position["lanes"], strict=True):
                tensor.copy_(torch.as_tensor(values))
        if position["blocks"]:
            skipped_steps = position["blocks"] * self.steps
            # Advances `lane_state` in place.
            ops.session_batch(self.items, self.offsets, order, *lane_state, skipped_steps, impl=self.impl)
        return order, lane_state

    def set_position(self, lane_state: LaneState, finished: bool) -> None:
        """Set the position of the next block to a lane state. If `finished`, end the epoch instead."""
        if finished:
            self._finish_epoch()
        else:
            self._position = {"blocks": 0, "lanes": [tensor.clone() for tensor in lane_state]}

    def _finish_epoch(self) -> None:
        self._epoch += 1
        self._position = _EPOCH_START

    def _order(self) -> Tensor | None:
        """Return the shuffled order of the sessions in this epoch, int64 [n_sessions]; None for the order by time."""
        if not self.shuffle:
            return None
        generator = torch.Generator().manual_seed(
            int(np.random.SeedSequence([self.seed, self._epoch]).generate_state(1)[0])
        )
        return torch.randperm(self.n_sessions, generator=generator)

    def _count_live(self, inputs: np.ndarray, targets: np.ndarray, reset: np.ndarray) -> list[int]:
        """Return the number of live lanes of each step.

        Raises ValueError if item indices are out of range, because an index error within a model would be less clear.
        """
        live = inputs >= 0
        lowest, highest = min(inputs.min(), targets.min()), max(inputs.max(), targets.max())
        if not np.array_equal(live, targets >= 0) or np.any(reset > live) or highest >= self.n_items:
            raise self.damage_error(f"values from {lowest} to {highest}")
        return live.sum(1).tolist()

    def damage_error(self, values: str) -> ValueError:
        """Return the error for item indices that are out of range. `values` describes the indices, for the message."""
        return ValueError(
            f"{self._folder or 'the store'} is damaged: item indices are out of range for a catalogue of "
            f"{self.n_items} items ({values}); prepare the store again"
        )

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":  # a copy from pinned memory does not wait for the GPU
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)
