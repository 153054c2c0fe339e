"""Train with too little memory, in a process of its own.

Tests call `run_without_memory`. The address space of the process is limited to a little more than it has. It is started
with `MALLOC`, so that an allocation of a page or more is new memory, which the limit includes, and not memory that was
freed earlier.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from markov import markov_store
from torch import Tensor

from gru4rec_fast import GRU4Rec, ops
from gru4rec_fast.data import SessionParallelLoader
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.profiling import OutOfMemoryWarning, is_out_of_memory, oom_guard
from gru4rec_fast.training.fused_step import FusedTrainingStep

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4096",
    "MALLOC_TRIM_THRESHOLD_": "4096",
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_ARENA_MAX": "1",
}
ALL = 10**6  # more updates than an epoch has
CASES: list[dict[str, Any]] = [
    {},
    {"embedding": "separate", "embedding_dim": 48, "dropout_p_embed": 0.2},
    {"steps": 2},
    {"accumulate": 2, "layers": [64, 64]},
    {"n_tiles": 3},
]


def run_without_memory(function: str) -> str:
    """Run a function of this file in a new process; return what it printed."""
    environment = {**os.environ, **MALLOC, "OMP_WAIT_POLICY": "passive"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *(path for path in sys.path if path)])
    command = [sys.executable, __file__, function]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@contextmanager
def memory_limit(n_bytes: int) -> Iterator[None]:
    """Let this process allocate at most `n_bytes` more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    fillers = [torch.empty(1 << 14, dtype=torch.uint8) for _ in range(64)]  # fill free memory between objects
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        del fillers


class Training:
    """A network, the fused step and an epoch."""

    def __init__(
        self,
        layers: tuple[int, ...] = (64,),
        lanes: int = 256,
        n_items: int = 512,
        n_sample: int = 8192,
        steps: int = 1,
        accumulate: int = 1,
        n_tiles: int = 1,
        **arguments: Any,
    ) -> None:
        store = markov_store(n_sessions=3 * lanes, n_items=n_items)
        self.network = SessionNetwork(store.n_items, list(layers), seed=0, sparse=True, **arguments)
        self.optimizer = SparseAdagrad(self.network.parameters(), 0.1, 0.2)
        self.step = FusedTrainingStep(
            self.network, SampledLoss(batch_size=lanes, sparse=True), self.optimizer, steps=steps, accumulate=accumulate
        )
        self.step.n_tiles = n_tiles
        self.loader = SessionParallelLoader(store, lanes, steps)
        sampler = ops.build_alias_table(torch.ones(store.n_items, dtype=torch.int64), 1.0)
        self.epoch = self.step.start_epoch(self.loader, sampler, n_sample, seed=0)
        self.hidden = self.network.initial_state(lanes)
        self.n_steps, self.finished = 0, False

    def run(self, updates: int) -> int:
        """Make at most `updates` updates. Returns the number of blocks."""
        blocks, self.finished = self.epoch.run(updates, self.hidden, step=self.n_steps)
        self.n_steps += sum(block.steps for block in blocks)
        return len(blocks)

    def tensors(self) -> list[Tensor]:
        """Return the tensors that an update changes."""
        state = [tensor for state in self.optimizer.state.values() for tensor in state.values()]
        tensors = [*self.network.parameters(), *state, *self.hidden, *self.epoch._lane_state]
        return [tensor.detach() for tensor in tensors if isinstance(tensor, Tensor)]


def assert_equal(tensors: list[Tensor], expected: list[Tensor]) -> None:
    assert [torch.equal(a, b) for a, b in zip(tensors, expected, strict=True)] == [True] * len(expected)


def failures_of_first_update(training: Training) -> list[str]:
    """Repeat the first update with more and more memory until it succeeds. Returns the errors before.

    The weights must not have changed. An update is not repeated if its error says that they have changed.
    """
    expected = [tensor.clone() for tensor in training.tensors()]
    errors: list[str] = []
    for n_bytes in range(0, 64 << 20, 16 << 10):
        try:
            with memory_limit(n_bytes):
                training.run(1)
            break
        except (RuntimeError, MemoryError) as error:
            errors.append(str(error))
        if "in the middle of an update" in errors[-1]:
            break
        assert_equal(training.tensors(), expected)
    return errors


def fail_at_each_allocation(**arguments: Any) -> None:
    """Let the first update fail at each allocation. Then let a later update fail."""
    reference = Training(**arguments)
    n_blocks = reference.run(ALL)  # also allocates the memory that this thread keeps for matrix products
    training = Training(**arguments)
    errors = failures_of_first_update(training)
    sizes = {re.sub(r".* tried to allocate (\d+) bytes.*", r"\1", error, flags=re.DOTALL) for error in errors}
    assert len(sizes) >= 4 and not any("in the middle" in error for error in errors), errors
    # All items are negatives in every step, so that the next updates need no more memory, until the first dead lane.
    with memory_limit(0):
        n_made_again = training.run(ALL)
    assert n_made_again > 0 and not training.finished, (n_made_again, training.finished)
    assert arguments.get("accumulate", 1) + n_made_again + training.run(ALL) == n_blocks
    assert_equal(training.tensors(), reference.tensors())
    print(f"{arguments}: {len(errors)} failures of allocations of {len(sizes)} sizes")


def fail_in_the_middle_of_an_update() -> None:
    """Let the first allocation for products with 1024 columns fail, which the thread keeps for later products."""
    *_, error = failures_of_first_update(Training(layers=(1024,), lanes=8, n_items=64, n_sample=64))
    assert error.startswith("out of memory in the middle of an update: the weights are partly updated"), error


def go_on_with_tiles() -> None:
    """Train with memory for the scores of a tile, but not for all scores, 32 MiB."""
    arguments: dict[str, Any] = {"layers": (32,), "lanes": 512, "n_items": 17_000, "n_sample": 16_384}
    reference = Training(**arguments)
    reference.run(3)
    training = Training(**arguments)
    expected = [tensor.clone() for tensor in training.tensors()]
    inputs = torch.arange(512).expand(1, -1)
    block = (inputs, inputs + 1, torch.ones(1, 512, dtype=torch.bool), torch.arange(16_384)[None], training.hidden)
    with memory_limit(24 << 20):
        for train in (lambda: training.step.train_block(*block, step=0), lambda: training.run(3)):
            try:
                train()
            except (RuntimeError, MemoryError) as error:
                message = str(error)
            assert "can't allocate memory" in message
            assert_equal(training.tensors(), expected)
        training.step.n_tiles = 8
        assert training.run(3) == 3
        for tensor, other in zip(training.tensors(), reference.tensors(), strict=True):
            torch.testing.assert_close(tensor, other, rtol=1e-5, atol=1e-5)
        training.step.train_block(*block, step=3)
    print("trained in tiles")


def fused_step() -> None:
    torch.set_num_threads(1)  # libgomp ends the process if it cannot allocate memory for a parallel region
    fail_in_the_middle_of_an_update()
    for case in CASES:
        fail_at_each_allocation(**case)
    torch.set_num_threads(2)
    go_on_with_tiles()


def fit(**parameters: Any) -> None:
    """Fit with a guard and less memory than a fit without a guard needs; the scores of a step have 16.5 MiB."""
    store = markov_store(n_sessions=2200, n_items=3000)

    def train() -> dict[str, Tensor]:
        model = GRU4Rec(layers=[16], batch_size=2048, n_sample=64, n_epochs=1, seed=0, **parameters)
        return model.fit(store, progress=False).network.state_dict()

    expected = train()
    with memory_limit(15 << 20):
        try:
            train()
        except RuntimeError as error:
            assert is_out_of_memory(error), error
        else:
            raise AssertionError("the memory was enough without a guard")
        with warnings.catch_warnings(record=True) as caught, oom_guard() as guard:
            warnings.simplefilter("always")
            found = train()
    messages = [str(warning.message) for warning in caught if warning.category is OutOfMemoryWarning]
    assert len(messages) == 1 and "were asked for" in messages[0], messages
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    print("trained in parts:", guard.n_parts["the update"])


def fit_fused() -> None:
    fit()


def fit_reference() -> None:
    fit(impl="reference")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
