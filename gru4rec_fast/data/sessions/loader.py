"""Session-parallel mini-batches from a SessionStore."""

from __future__ import annotations

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

# Steps played by one call of the operator, and events of all lanes in them: enough to make the call, and the copy to a
# device, free; few enough to stay small.
CHUNK_STEPS, CHUNK_EVENTS = 256, 1 << 14
LaneState = tuple[Tensor, Tensor, Tensor]  # as ops.session_batch_state makes it
_BEGINNING: dict[str, Any] = {"blocks": 0, "lanes": None}


class SessionBlock(NamedTuple):
    """T steps of B lanes.

    inputs, targets: int64 [T, B], items, -1 in dead lanes; reset: bool [T, B], True where a lane starts a session;
    n_live: live lanes of each step.
    """

    inputs: Tensor
    targets: Tensor
    reset: Tensor
    n_live: list[int]

    @property
    def n_events(self) -> int:
        """Targets in this block."""
        return sum(self.n_live)


class SessionParallelLoader(IterableDataset[SessionBlock]):
    """Plays the sessions of a store in parallel lanes: an iterator of T x B blocks, one epoch per iteration.

    Lane k starts with session k; a lane whose session ends takes the next session not yet started; when none is left
    the lane dies, and the epoch goes on to the last event of the last lane (Hidasi et al. 2016, section 3.1.1).
    Sessions of fewer than two events have no target and are skipped, counted in `n_skipped` and in a warning.

    The log stays where the store has it, memory-mapped, and is played on the CPU, some hundred steps ahead; only those
    steps are copied to `device`.

    Works in anybody's loop and inside torch.utils.data.DataLoader(loader, batch_size=None, num_workers=0). A worker
    process is refused at its first block: the place within the epoch would move in the worker's copy alone, so that
    `state_dict` would stand still and every shuffle repeat itself; nor is there a gain, as a block takes microseconds.

    Args:
        store: the sessions.
        batch_size: B; with fewer playable sessions there are fewer lanes (`n_lanes`).
        steps: T, steps in a block; the epoch's last block may have fewer.
        device: where the blocks are to be.
        shuffle: play the sessions in an order drawn anew each epoch from (seed, epoch), instead of by start time. Needs
            memory for one number per session.
        seed: of the shuffle.
        min_live: end the epoch at the first step with fewer live lanes (2 where only in-batch negatives are used).
        impl: "auto", "native" or "reference".

    Raises:
        ValueError: an argument out of range, or no session with two events; while iterating, in a worker process, or an
            item that is not in the store's catalogue.
    """

    def __init__(
        self,
        store: SessionStore,
        batch_size: int,
        steps: int = 1,
        device: torch.device | str = "cpu",
        shuffle: bool = False,
        seed: int = 0,
        min_live: int = 1,
        impl: str = "auto",
    ) -> None:
        for name, value in {"batch_size": batch_size, "steps": steps, "min_live": min_live}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.n_skipped = store.n_short_sessions
        n_playable = store.n_sessions - self.n_skipped
        if n_playable < 1:
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
        self.n_lanes = min(batch_size, n_playable)
        self.n_targets = store.n_targets
        self.steps, self.shuffle, self.seed, self.min_live, self.impl = steps, shuffle, seed, min_live, impl
        self._epoch = 0
        self._resume: dict[str, Any] | None = None
        self._position = _BEGINNING

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration plays (matters with shuffle); it starts at its beginning."""
        self._epoch = epoch
        self._resume = None
        self._position = _BEGINNING

    def state_dict(self) -> dict[str, Any]:
        """The place of the next block not yet yielded, and what it is a place in: plain values that JSON can hold."""
        return {"epoch": self._epoch, **self._position, "loader": self._identity()}

    def _identity(self) -> dict[str, int | bool]:
        """What decides which events a place in an epoch stands between."""
        names = ("n_sessions", "n_targets", "n_lanes", "steps", "shuffle", "seed", "min_live")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on at the place of `state`.

        Raises:
            ValueError: `state` was taken from a loader of other sessions or with other arguments; names what differs.
        """
        theirs = state.get("loader", {})
        pairs = {name: (theirs.get(name), ours) for name, ours in self._identity().items()}
        different = "; ".join(f"{name}={its}, not {ours}" for name, (its, ours) in pairs.items() if its != ours)
        if different:
            raise ValueError(f"the state was taken from another loader: it had {different}")
        self._epoch = state["epoch"]
        self._position = {"blocks": state["blocks"], "lanes": state["lanes"]}
        self._resume = self._position

    def __iter__(self) -> Iterator[SessionBlock]:
        worker = get_worker_info()
        if worker is not None:
            raise ValueError(
                f"num_workers={worker.num_workers}: a SessionParallelLoader must run in the main process, where its "
                "place and the epoch of its shuffle are kept; a block takes microseconds: use num_workers=0"
            )
        order, lanes = self.begin()
        chunk = max(self.steps, min(CHUNK_STEPS, CHUNK_EVENTS // self.n_lanes) // self.steps * self.steps)
        while True:
            at_start = [tensor.tolist() for tensor in lanes]
            inputs, targets, reset = ops.session_batch(self.items, self.offsets, order, *lanes, chunk, impl=self.impl)
            n_live = self._count_live(inputs.numpy(), targets.numpy(), reset.numpy())
            playable = next((t for t, n in enumerate(n_live) if n < self.min_live), chunk)
            inputs, targets, reset = (self._on_device(tensor) for tensor in (inputs, targets, reset))
            for number, start in enumerate(range(0, playable, self.steps)):
                stop = min(start + self.steps, playable)
                self._position = {"blocks": number + 1, "lanes": at_start}
                at = slice(start, stop)
                yield SessionBlock(inputs[at], targets[at], reset[at], n_live[at])
            if playable < chunk:
                break
        self._end_epoch()

    def begin(self) -> tuple[Tensor | None, LaneState]:
        """The order in which this epoch's sessions are played, and the lanes' state before the next block.

        Arguments of `ops.session_batch`, for who plays the sessions otherwise than by iterating, and tells `moved_to`.
        """
        place, self._resume = self._resume or _BEGINNING, None
        order, lanes = self._order(), ops.session_batch_state(self.n_lanes)
        if place["lanes"] is not None:
            for tensor, values in zip(lanes, place["lanes"], strict=True):
                tensor.copy_(torch.tensor(values))
        if place["blocks"]:
            past = place["blocks"] * self.steps
            ops.session_batch(self.items, self.offsets, order, *lanes, past, impl=self.impl)
        return order, lanes

    def moved_to(self, lanes: LaneState, finished: bool) -> None:
        """Take the state of the lanes that `begin` gave as the place of the next block, or the epoch as played."""
        if finished:
            self._end_epoch()
        else:
            self._position = {"blocks": 0, "lanes": [tensor.tolist() for tensor in lanes]}

    def _end_epoch(self) -> None:
        self._epoch += 1
        self._position = _BEGINNING

    def _order(self) -> Tensor | None:
        if not self.shuffle:
            return None
        generator = torch.Generator().manual_seed(
            int(np.random.SeedSequence([self.seed, self._epoch]).generate_state(1)[0])
        )
        return torch.randperm(self.n_sessions, generator=generator)

    def _count_live(self, inputs: np.ndarray, targets: np.ndarray, reset: np.ndarray) -> list[int]:
        """Live lanes of each step; a damaged store is told here, and not by an index out of range within a model."""
        live = inputs >= 0
        lowest, highest = min(inputs.min(), targets.min()), max(inputs.max(), targets.max())
        if not np.array_equal(live, targets >= 0) or np.any(reset > live) or highest >= self.n_items:
            raise self.damage(f"here {lowest} to {highest}")
        return live.sum(1).tolist()

    def damage(self, what: str) -> ValueError:
        """The error that says that the log is not what was prepared, and what was found."""
        return ValueError(
            f"{self._folder or 'the store'}: its items are no indices of its catalogue of {self.n_items} items "
            f"({what}); it is damaged, prepare it again"
        )

    def _on_device(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":  # from pinned memory, so that the copy waits for nothing that runs there
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)
