"""Session-parallel mini-batches from a SessionStore."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from gru4rec_fast import ops

if TYPE_CHECKING:
    from gru4rec_fast.data.store import SessionStore

# Steps played by one call of the operator: enough to make the call free, few enough to stay small.
CHUNK_STEPS = 256


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

    Works in anybody's loop and inside torch.utils.data.DataLoader(loader, batch_size=None) with at most one worker.

    Args:
        store: the sessions.
        batch_size: B; with fewer playable sessions there are fewer lanes (`n_lanes`).
        steps: T, steps in a block; the epoch's last block may have fewer.
        device: where the blocks are made.
        shuffle: play the sessions in an order drawn anew each epoch from (seed, epoch), instead of by start time. Needs
            memory for one number per session.
        seed: of the shuffle.
        min_live: end the epoch at the first step with fewer live lanes (2 where only in-batch negatives are used).
        impl: "auto", "native" or "reference".

    Raises:
        ValueError: an argument out of range, or no session with two events.
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
        self.items = as_tensor(store.items).to(self.device)
        self.offsets = as_tensor(store.offsets).to(self.device)
        self.n_sessions = store.n_sessions
        self.n_lanes = min(batch_size, n_playable)
        self.n_targets = store.n_targets
        self.steps, self.shuffle, self.seed, self.min_live, self.impl = steps, shuffle, seed, min_live, impl
        self._epoch = 0
        self._resume: dict[str, Any] | None = None
        self._position: dict[str, Any] = {"blocks": 0, "lanes": None}

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration plays (matters with shuffle); it starts at its beginning."""
        self._epoch = epoch
        self._resume = None
        self._position = {"blocks": 0, "lanes": None}

    def state_dict(self) -> dict[str, Any]:
        """The place of the next block not yet yielded: plain numbers and lists, n_lanes long."""
        return {"epoch": self._epoch, **self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on at the place of `state`.

        Raises:
            ValueError: `state` was taken from a loader with another number of lanes.
        """
        if state["lanes"] is not None and len(state["lanes"][0]) != self.n_lanes:
            raise ValueError(f"the state has {len(state['lanes'][0])} lanes, this loader {self.n_lanes}")
        self._epoch = state["epoch"]
        self._position = {"blocks": state["blocks"], "lanes": state["lanes"]}
        self._resume = dict(self._position)

    def __iter__(self) -> Iterator[SessionBlock]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(f"num_workers={worker.num_workers}: the lanes of an epoch are one stream; use 0 or 1")
        place, self._resume = self._resume or {"blocks": 0, "lanes": None}, None
        order = self._order()
        lanes = ops.session_batch_state(self.n_lanes, self.device)
        if place["lanes"] is not None:
            for tensor, values in zip(lanes, place["lanes"], strict=True):
                tensor.copy_(torch.tensor(values))
        skip = place["blocks"]
        chunk = max(self.steps, CHUNK_STEPS // self.steps * self.steps)
        while True:
            at_start = [tensor.tolist() for tensor in lanes]
            inputs, targets, reset = ops.session_batch(self.items, self.offsets, order, *lanes, chunk, impl=self.impl)
            n_live = (inputs >= 0).sum(1).tolist()
            playable = next((t for t, n in enumerate(n_live) if n < self.min_live), chunk)
            for number, start in enumerate(range(0, playable, self.steps)):
                if number < skip:
                    continue
                stop = min(start + self.steps, playable)
                self._position = {"blocks": number + 1, "lanes": at_start}
                at = slice(start, stop)
                yield SessionBlock(inputs[at], targets[at], reset[at], n_live[at])
            skip = 0
            if playable < chunk:
                break
        self._epoch += 1
        self._position = {"blocks": 0, "lanes": None}

    def _order(self) -> Tensor | None:
        if not self.shuffle:
            return None
        generator = torch.Generator().manual_seed(
            int(np.random.SeedSequence([self.seed, self._epoch]).generate_state(1)[0])
        )
        return torch.randperm(self.n_sessions, generator=generator).to(self.device)


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor over the same memory, memory-mapped read-only arrays included: nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
        return torch.from_numpy(np.asarray(array))
