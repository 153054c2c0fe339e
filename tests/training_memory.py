"""Small trainings whose memory is measured, each in a new process.

A test process has gaps in its heap, which earlier tests have left. New objects fill them, and the resident size does
not change. The functions that a new process runs are in this file, because it cannot import test files by name.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from markov import markov_store
from memory_growth import growth, quick_garbage_collections, resident_bytes
from small_trainer import make_trainer

from gru4rec_fast import GRU4Rec
from gru4rec_fast.training.progress import SilentProgress


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function of this file returns in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


class ResidentSize(SilentProgress):
    """Progress that records the resident size (memory of the process) after each epoch.

    It calls `after_block(n_events)` after each block.
    """

    def __init__(self, after_block: Callable[[int], object]) -> None:
        self.samples: list[int] = []
        self._after_block = after_block

    def advance(self, events: int, loss: float | None) -> None:
        self._after_block(events)

    def end_epoch(self, record: dict[str, Any]) -> None:
        self.samples.append(resident_bytes())


N_STEPS = {"fused": 100_000, "autograd": 6_000}  # fewer of the slower autograd steps


def growth_per_step(training_impl: str, after_block: Callable[[int], object] = lambda _: None) -> float:
    """Return by how many bytes each step of a small training increases the resident size."""
    n_epochs, lanes, steps = 40, 4, N_STEPS[training_impl]
    # A session has 4.5 targets on average. Counting 4 gives enough sessions for at least `steps` steps.
    store = markov_store(n_sessions=lanes * steps // n_epochs // 4, n_items=50)
    sizes = ResidentSize(after_block)
    trainer = make_trainer(
        store=store, layers=(8,), lanes=lanes, n_sample=8, dropout=0.1, momentum=0.1, n_epochs=n_epochs, progress=sizes,
        fused=training_impl == "fused",
    )  # fmt: skip
    assert (trainer.runner.why_not_fused is None) == (training_impl == "fused")
    with quick_garbage_collections():
        trainer.run()
    assert trainer.position.step >= steps and len(sizes.samples) == n_epochs
    return growth(sizes.samples) / (trainer.position.step / n_epochs)


class Leak:
    """Keeps a tensor of 64 bytes for each event, so that a step of several events leaks more."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []

    def __call__(self, n_events: int) -> None:
        self.tensors.append(torch.ones(16 * n_events))


def peak_of_a_training() -> tuple[int, int]:
    """Return the bytes of the recurrent weights, 48 MB, and the peak memory of a training."""
    model = GRU4Rec(layers=[2000], batch_size=4, n_sample=32, n_epochs=1, seed=0).fit(
        markov_store(n_sessions=4), progress=False
    )
    assert model.network is not None
    return model.network.gru.layers[0].weight_hh.nbytes, model.peak_memory_bytes
