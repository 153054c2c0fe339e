"""SessionParallelLoader: every event occurs once per epoch; blocks, resuming, shuffling, use in a DataLoader.

A lane is one of the sessions that are processed in parallel; it is live while it has a session. A block holds inputs,
targets and resets of several steps of all lanes.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import max_examples

from gru4rec_fast.data import SessionBlock, SessionParallelLoader, SessionStore

LENGTHS = [3, 2, 7, 4, 2, 2, 9, 5, 3]  # numbers of events of nine sessions, 37 in all


def store_with_lengths(lengths: list[int]) -> SessionStore:
    """Return a store of sessions with these lengths. The items are 0, 1, 2, ...: they identify the events."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return SessionStore.from_arrays(np.arange(offsets[-1]), offsets)


def concatenate(blocks: list[SessionBlock]) -> list[torch.Tensor]:
    """Return inputs, targets and reset of all blocks, [steps, lanes] each."""
    return [torch.cat([getattr(block, name) for block in blocks]) for name in ("inputs", "targets", "reset")]


def are_equal(blocks: list[SessionBlock], others: list[SessionBlock]) -> bool:
    """Return True if all tensors and all numbers of live lanes are equal."""
    return len(blocks) == len(others) and all(
        all(torch.equal(a, b) for a, b in zip(block[:3], other[:3], strict=True)) and block.n_live == other.n_live
        for block, other in zip(blocks, others, strict=True)
    )


@settings(deadline=None, max_examples=max_examples(60))
@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=12).filter(lambda lengths: max(lengths) > 1),
    st.integers(1, 5),
    st.integers(1, 4),
    st.booleans(),
)
def test_every_event_occurs_once_per_epoch(lengths: list[int], batch_size: int, steps: int, shuffle: bool) -> None:
    store = store_with_lengths(lengths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = SessionParallelLoader(store, batch_size, steps, shuffle=shuffle)
    blocks = list(loader)
    inputs, targets, reset = concatenate(blocks)
    live = inputs >= 0
    # Inputs are all events except the last of each session.
    expected = [e for s, n in enumerate(lengths) for e in range(store.offsets[s], store.offsets[s + 1] - 1) if n > 1]
    assert sorted(inputs[live].tolist()) == expected
    assert torch.equal(targets[live], inputs[live] + 1)
    assert torch.equal(live, targets >= 0)
    starts = inputs[reset]
    assert sorted(starts.tolist()) == [store.offsets[s] for s, n in enumerate(lengths) if n > 1]
    assert [sum(block.n_live) for block in blocks] == [block.n_events for block in blocks]
    assert sum(block.n_events for block in blocks) == loader.n_targets == sum(lengths) - len(lengths)
    assert all(block.inputs.shape[0] == steps for block in blocks[:-1])
    assert loader.n_lanes == min(batch_size, sum(n > 1 for n in lengths))


@settings(deadline=None, max_examples=max_examples(60))
@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=12).filter(lambda lengths: max(lengths) > 1),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 6),
    st.booleans(),
)
def test_the_length_is_the_number_of_blocks(
    lengths: list[int], batch_size: int, steps: int, min_live: int, shuffle: bool
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = SessionParallelLoader(
            store_with_lengths(lengths), batch_size, steps, shuffle=shuffle, min_live=min_live
        )
    for _ in range(2):
        length = len(loader)
        assert length == len(torch.utils.data.DataLoader(loader, batch_size=None)) == sum(1 for _ in loader)


def test_a_lane_continues_with_the_next_session() -> None:
    inputs, _, reset = concatenate(list(SessionParallelLoader(store_with_lengths([3, 2, 2]), 2)))
    assert inputs.tolist() == [[0, 3], [1, 5]]  # session 1 ends first, so lane 1 continues with session 2
    assert reset.tolist() == [[True, True], [False, True]]


def test_long_blocks_equal_concatenated_short_blocks() -> None:
    short_blocks = concatenate(list(SessionParallelLoader(store_with_lengths(LENGTHS), 3)))
    for steps in (2, 5, 300):
        long_blocks = concatenate(list(SessionParallelLoader(store_with_lengths(LENGTHS), 3, steps)))
        assert all(torch.equal(a, b) for a, b in zip(short_blocks, long_blocks, strict=True))


def test_min_live_ends_the_epoch_early() -> None:
    """With min_live=2, an epoch ends before the first step with fewer than two live lanes."""
    blocks = list(SessionParallelLoader(store_with_lengths(LENGTHS), 3, min_live=2))
    all_blocks = list(SessionParallelLoader(store_with_lengths(LENGTHS), 3))
    assert all(block.n_live[0] >= 2 for block in blocks)
    assert all_blocks[len(blocks)].n_live[0] == 1
    assert are_equal(blocks, all_blocks[: len(blocks)])


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("n_blocks", [0, 1, 3])
def test_state_dict_resumes_at_the_next_block(shuffle: bool, n_blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gru4rec_fast.data.sessions.loader.CHUNK_STEPS", 4)  # two blocks are computed at once
    arguments = {"store": store_with_lengths(LENGTHS), "batch_size": 3, "steps": 2, "shuffle": shuffle, "seed": 5}
    loader = SessionParallelLoader(**arguments)
    epochs = [list(loader), list(loader), list(loader)]
    loader.set_epoch(1)
    iterator = iter(loader)
    for _ in range(n_blocks):
        next(iterator)
    resumed = SessionParallelLoader(**arguments)
    resumed.load_state_dict(loader.state_dict())
    assert are_equal(list(resumed), epochs[1][n_blocks:])
    assert are_equal(list(resumed), epochs[2])


class LightningFetcher:
    """Fetches blocks as Lightning 2 does: one ahead of the training, unless the loader has a length.

    With a length, it does not ask for a block after the last one of the epoch.
    """

    def __init__(self, loader: SessionParallelLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[SessionBlock]:
        blocks = iter(self.loader)
        if hasattr(self.loader, "__len__"):
            for _ in range(len(self.loader)):
                yield next(blocks)
            return
        block = next(blocks, None)
        while block is not None:
            following = next(blocks, None)
            yield block
            block = following


@pytest.mark.parametrize("wrap", [LightningFetcher, partial(torch.utils.data.DataLoader, batch_size=None)])
@pytest.mark.parametrize("n_blocks", [1, 2, 3, -1])
def test_a_trainer_that_fetches_ahead_resumes_at_the_next_block(
    wrap: Any, n_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gru4rec_fast.data.sessions.loader.CHUNK_STEPS", 4)
    arguments = {"store": store_with_lengths(LENGTHS), "batch_size": 3, "steps": 2, "shuffle": True, "seed": 5}
    loader = SessionParallelLoader(**arguments)
    epochs = [list(loader), list(loader)]
    n_blocks = n_blocks if n_blocks > 0 else len(epochs[0])
    loader = SessionParallelLoader(**arguments)
    fetched = iter(wrap(loader))
    assert are_equal([next(fetched) for _ in range(n_blocks)], epochs[0][:n_blocks])
    resumed = SessionParallelLoader(**arguments)
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    remaining = list(resumed) if n_blocks < len(epochs[0]) else []
    assert are_equal(remaining, epochs[0][n_blocks:])
    assert are_equal(list(resumed), epochs[1])


def test_every_epoch_of_a_trainer_that_counts_blocks_has_its_own_order() -> None:
    """The loader must go on to the next epoch when it yields the last block, not when it is asked for another."""
    arguments = {"store": store_with_lengths(LENGTHS), "batch_size": 3, "steps": 2, "shuffle": True, "seed": 5}
    loader, counted = (SessionParallelLoader(**arguments) for _ in range(2))
    for _ in range(3):
        assert are_equal(list(LightningFetcher(counted)), list(loader))


def test_torchs_generator_seeds_a_loader_and_a_resumed_one_takes_the_seed() -> None:
    def loader() -> SessionParallelLoader:
        return SessionParallelLoader(store_with_lengths(LENGTHS), 3, shuffle=True)

    torch.manual_seed(4)
    first, second = loader(), loader()
    torch.manual_seed(4)
    assert loader().seed == first.seed != second.seed
    blocks = iter(first)
    next(blocks)
    second.load_state_dict(first.state_dict())
    assert second.seed == first.seed
    assert are_equal(list(second), list(blocks))


@pytest.mark.parametrize("impl", ["reference", "native"], indirect=True)
@pytest.mark.parametrize("first_mode", [True, False])
def test_inference_mode_may_begin_and_end_between_two_blocks(
    monkeypatch: pytest.MonkeyPatch, impl: str, first_mode: bool
) -> None:
    monkeypatch.setattr("gru4rec_fast.data.sessions.loader.CHUNK_STEPS", 4)  # two blocks are computed at once
    arguments = {"store": store_with_lengths(LENGTHS), "batch_size": 3, "steps": 2, "shuffle": True, "seed": 5}
    expected = list(SessionParallelLoader(**arguments, impl=impl))
    modes = [first_mode, not first_mode, not first_mode, first_mode, first_mode]
    with torch.inference_mode(first_mode):
        loader = SessionParallelLoader(**arguments, impl=impl)
        iterator = iter(loader)
    blocks = []
    for i in range(len(expected)):
        with torch.inference_mode(modes[i % len(modes)]):
            blocks.append(next(iterator))
            state = loader.state_dict()
            assert torch.is_inference_mode_enabled() == modes[i % len(modes)]
        if i == 2:
            with torch.inference_mode(not first_mode):
                loader.load_state_dict(state)
                iterator = iter(loader)
    assert next(iterator, None) is None
    assert are_equal(blocks, expected)
    assert not any(tensor.is_inference() for block in blocks for tensor in block[:3])


def test_shuffle_depends_on_seed_and_epoch() -> None:
    def epochs(seed: int) -> list[list[SessionBlock]]:
        loader = SessionParallelLoader(store_with_lengths(LENGTHS), 3, shuffle=True, seed=seed)
        return [list(loader), list(loader)]

    assert all(are_equal(a, b) for a, b in zip(epochs(1), epochs(1), strict=True))
    assert not are_equal(*epochs(1))
    assert not are_equal(epochs(1)[0], epochs(2)[0])


def test_a_torch_dataloader_yields_the_same_blocks() -> None:
    def loader() -> SessionParallelLoader:
        return SessionParallelLoader(store_with_lengths(LENGTHS), 3, steps=2, shuffle=True, seed=0)

    direct, inner = loader(), loader()
    wrapped = torch.utils.data.DataLoader(inner, batch_size=None, num_workers=0)
    for epoch in range(2):
        assert inner.state_dict()["epoch"] == epoch
        assert are_equal(list(wrapped), list(direct))


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_are_an_error(workers: int) -> None:
    """A worker would advance its own copy of the epoch, so every epoch would have the order of the first."""
    wrapped = torch.utils.data.DataLoader(
        SessionParallelLoader(store_with_lengths(LENGTHS), 3, shuffle=True), batch_size=None, num_workers=workers
    )
    with pytest.raises(ValueError, match=rf"num_workers={workers}: .* must run in the main process.*use num_workers=0"):
        list(wrapped)


def test_fewer_sessions_than_lanes() -> None:
    loader = SessionParallelLoader(store_with_lengths([3, 4]), 10)
    assert loader.n_lanes == 2
    assert next(iter(loader)).inputs.shape == (1, 2)


def test_one_event_sessions_are_skipped_and_counted() -> None:
    with pytest.warns(UserWarning, match="2 of 4 sessions have fewer than two events"):
        loader = SessionParallelLoader(store_with_lengths([1, 3, 1, 2]), 2)
    assert loader.n_skipped == 2
    inputs, _, _ = concatenate(list(loader))
    assert inputs.tolist() == [[1, 5], [2, -1]]


def test_error_if_no_session_has_a_target() -> None:
    with pytest.raises(ValueError, match="none of the 2 sessions has two events"):
        SessionParallelLoader(store_with_lengths([1, 1]), 2)


@pytest.mark.parametrize("argument", ["batch_size", "steps", "min_live"])
def test_zero_is_an_error_that_names_the_argument(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument}=0"):
        SessionParallelLoader(**({"store": store_with_lengths([3, 3]), "batch_size": 2} | {argument: 0}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 2}, "n_lanes=3, not 2"),
        ({"steps": 4}, "steps=2, not 4"),
        ({"shuffle": False}, "shuffle=True, not False"),
        ({"seed": 6}, "seed=5, not 6"),
        ({"min_live": 2}, "min_live=1, not 2"),
        ({"store": store_with_lengths([*LENGTHS[:-1], 2, 2])}, "n_sessions=9, not 10"),
        ({"store": store_with_lengths([*LENGTHS[:-1], 4])}, "n_targets=28, not 29"),
        ({"steps": 1, "seed": 0}, "steps=2, not 1; seed=5, not 0"),
    ],
)
def test_state_of_another_loader_is_an_error(change: dict[str, Any], message: str) -> None:
    arguments = {"store": store_with_lengths(LENGTHS), "batch_size": 3, "steps": 2, "shuffle": True, "seed": 5}
    loader = SessionParallelLoader(**arguments)
    next(iter(loader))
    state = json.loads(json.dumps(loader.state_dict()))
    with pytest.raises(ValueError, match=f"taken from another loader: it had {message}$"):
        SessionParallelLoader(**arguments | change).load_state_dict(state)
    same = SessionParallelLoader(**arguments)
    same.load_state_dict(state)
    assert same.state_dict() == state


def test_log_is_not_copied_and_blocks_are_on_the_device(tmp_path: Path) -> None:
    """The meta device replaces a GPU: its tensors have no values, so reading values from blocks would fail."""
    store_with_lengths(LENGTHS).save(tmp_path / "store")
    store = SessionStore.open(tmp_path / "store")
    loader = SessionParallelLoader(store, 3, steps=2, device="meta", shuffle=True, seed=0)
    assert loader.items.data_ptr() == store.items.ctypes.data
    on_cpu = SessionParallelLoader(store, 3, steps=2, shuffle=True, seed=0)
    for block, cpu_block in zip(loader, on_cpu, strict=True):
        assert all(tensor.device.type == "meta" for tensor in block[:3])
        assert [tensor.shape for tensor in block[:3]] == [tensor.shape for tensor in cpu_block[:3]]
        assert block.n_live == cpu_block.n_live
        assert loader.state_dict() == on_cpu.state_dict()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_blocks_on_a_gpu_equal_blocks_on_the_cpu() -> None:
    arguments = {"store": store_with_lengths(LENGTHS), "batch_size": 3, "steps": 2, "shuffle": True, "seed": 0}
    blocks = list(SessionParallelLoader(**arguments, device="cuda"))
    assert all(tensor.is_cuda for block in blocks for tensor in block[:3])
    copied = [SessionBlock(*(tensor.cpu() for tensor in block[:3]), block.n_live) for block in blocks]
    assert are_equal(copied, list(SessionParallelLoader(**arguments)))


@pytest.mark.parametrize("item", [37, -1, -9])  # the store has items 0 to 36
@pytest.mark.parametrize("event", [0, 1, 36])
def test_error_for_an_item_out_of_range_names_the_store(tmp_path: Path, item: int, event: int) -> None:
    store_with_lengths(LENGTHS).save(tmp_path / "store")
    store = SessionStore.open(tmp_path / "store")  # checks the items; here the file changes afterwards
    items = np.load(tmp_path / "store" / "items.npy", mmap_mode="r+")
    items[event] = item
    items.flush()
    with pytest.raises(ValueError, match=rf"{tmp_path}/store is damaged: item indices are out of range .* 37 items"):
        list(SessionParallelLoader(store, 3))


def test_memory_mapped_store_causes_no_warning(tmp_path: Path) -> None:
    store_with_lengths(LENGTHS).save(tmp_path / "store")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = SessionParallelLoader(SessionStore.open(tmp_path / "store"), 3)
    assert are_equal(list(loader), list(SessionParallelLoader(store_with_lengths(LENGTHS), 3)))
