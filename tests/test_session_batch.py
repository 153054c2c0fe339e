"""Session-parallel batches against a ten-line simulation, and against what must hold whatever the simulation says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import compiler, error_pattern, examples, implementations, native_and_emulated, operators_of
from torch import Tensor

from gru4rec_fast import _backend
from gru4rec_fast.ops import session_batch, session_batch_state

native = pytest.mark.skipif(
    _backend.resolve("auto", "session_batch", "cpu") != "native", reason="session_batch is not built natively"
)
impls = implementations("session_batch")
kernels = native_and_emulated("session_batch")

Block = tuple[Tensor, Tensor, Tensor]


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Draw sessions of 0 to 6 events, all of different items, and an order, which may omit sessions."""
    lengths = draw(st.lists(st.integers(0, 6), max_size=12))
    edges = np.cumsum([100, *lengths]).tolist()
    sessions = [list(range(a, b)) for a, b in pairwise(edges)]
    order = draw(st.permutations(range(len(lengths))))
    return sessions, order[: draw(st.integers(0, len(order)))]


def simulate(sessions: list[list[int]], order: list[int], n_lanes: int) -> list[list[tuple[int, int, bool]]]:
    """Return rows of (input, target, reset) until no lane is live."""
    waiting = [sessions[s] for s in order if len(sessions[s]) > 1]
    lanes: list[list[int]] = [[] for _ in range(n_lanes)]
    rows = []
    while waiting or any(len(lane) > 1 for lane in lanes):
        starts = [len(lane) < 2 for lane in lanes]
        for k in range(n_lanes):
            if starts[k]:
                lanes[k] = waiting.pop(0) if waiting else []
        rows.append([(*lane[:2], new) if lane else (-1, -1, False) for lane, new in zip(lanes, starts, strict=True)])
        lanes = [lane[1:] for lane in lanes]
    return rows


def as_tensors(sessions: list[list[int]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    items = torch.tensor([event for session in sessions for event in session], dtype=dtype)
    return items, torch.tensor(np.cumsum([0, *map(len, sessions)]), dtype=torch.int64)


def play(
    sessions: list[list[int]], order: list[int], n_lanes: int, steps: int, chunk: int, impl: str, dtype: torch.dtype
) -> tuple[Block, tuple[Tensor, Tensor, Tensor]]:
    """Return `steps` steps, computed in calls of `chunk` steps, and the final state."""
    log = (*as_tensors(sessions, dtype), torch.tensor(order, dtype=torch.int64))
    state = session_batch_state(n_lanes)
    calls = [min(chunk, steps - t) for t in range(0, steps, chunk)] or [0]
    blocks = [session_batch(*log, *state, call, impl=impl) for call in calls]
    inputs, targets, reset = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return (inputs, targets, reset), state


cases = given(log=logs(), n_lanes=st.integers(1, 5), chunk=st.integers(1, 9))


@impls
@settings(max_examples=examples(150), deadline=None)
@cases
def test_equals_the_simulation(impl: str, log: tuple[list[list[int]], list[int]], n_lanes: int, chunk: int) -> None:
    expected = simulate(*log, n_lanes)
    dead = [[(-1, -1, False)] * n_lanes] * 3
    (inputs, targets, reset), _ = play(*log, n_lanes, len(expected) + 3, chunk, impl, torch.int32)
    rows = torch.stack([inputs, targets, reset.long()], dim=2)
    assert torch.equal(rows, torch.tensor(expected + dead, dtype=torch.int64))


@impls
@settings(max_examples=examples(150), deadline=None)
@cases
def test_every_event_once(impl: str, log: tuple[list[list[int]], list[int]], n_lanes: int, chunk: int) -> None:
    sessions, order = log
    played = [sessions[s] for s in order if len(sessions[s]) > 1]
    steps = sum(map(len, played)) + 1  # enough for one lane
    (inputs, targets, reset), state = play(sessions, order, n_lanes, steps, chunk, impl, torch.int64)
    live = inputs >= 0
    assert torch.equal(live, targets >= 0)
    assert sorted(inputs[live].tolist()) == sorted(event for session in played for event in session[:-1])
    assert sorted(targets[live].tolist()) == sorted(event for session in played for event in session[1:])
    assert int(live.sum()) == sum(max(len(sessions[s]) - 1, 0) for s in order)
    assert inputs[reset].tolist() == [session[0] for session in played]  # in the order played, lane by lane
    assert not (live[1:] & ~live[:-1]).any()  # a dead lane never revives
    carried = live[1:] & ~reset[1:]
    assert torch.equal(inputs[1:][carried], targets[:-1][carried])
    assert [t.tolist() for t in state] == [[len(order)] * n_lanes, [0] * n_lanes, [len(order)]]


@impls
@settings(max_examples=examples(100), deadline=None)
@given(log=logs(), n_lanes=st.integers(1, 5), steps=st.integers(0, 20), chunk=st.integers(1, 9))
def test_chunks_do_not_matter(
    impl: str, log: tuple[list[list[int]], list[int]], n_lanes: int, steps: int, chunk: int
) -> None:
    whole, whole_state = play(*log, n_lanes, steps, max(steps, 1), impl, torch.int32)
    parts, parts_state = play(*log, n_lanes, steps, chunk, impl, torch.int32)
    for a, b in zip((*whole, *whole_state), (*parts, *parts_state), strict=True):
        assert torch.equal(a, b)


@kernels
@settings(max_examples=examples(150), deadline=None)
@given(
    log=logs(), n_lanes=st.integers(1, 5), steps=st.integers(0, 20), dtype=st.sampled_from([torch.int32, torch.int64])
)
def test_kernels_equal_reference(
    impl: str, log: tuple[list[list[int]], list[int]], n_lanes: int, steps: int, dtype: torch.dtype
) -> None:
    ours, our_state = play(*log, n_lanes, steps, 4, impl, dtype)
    theirs, their_state = play(*log, n_lanes, steps, 4, "reference", dtype)
    for a, b in zip((*ours, *our_state), (*theirs, *their_state), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@impls
def test_no_order_is_the_logs_own(impl: str) -> None:
    items, offsets = as_tensors([[1, 2, 3], [4, 5], [9], [], [6, 7, 8]], torch.int32)
    given, none = (session_batch_state(2) for _ in range(2))
    ordered = session_batch(items, offsets, torch.arange(5), *given, 9, impl=impl)
    unordered = session_batch(items, offsets, None, *none, 9, impl=impl)
    for a, b in zip((*ordered, *given), (*unordered, *none), strict=True):
        assert torch.equal(a, b)


@impls
def test_strided_arguments(impl: str) -> None:
    """Inputs may be strided views; a state that is a strided view is updated in place, and nothing else changes."""
    items, offsets = as_tensors([[1, 2, 3], [4, 5], [6, 7, 8]], torch.int32)
    order = torch.tensor([2, 0, 1])
    plain = session_batch(items, offsets, order, *(state := session_batch_state(2)), 3, impl=impl)
    gaps = [torch.stack([t, t + 50], dim=1) for t in (items, offsets, order, *session_batch_state(2))]
    strided = session_batch(*(gap[:, 0] for gap in gaps), 3, impl=impl)
    assert all(torch.equal(a, b) for a, b in zip(plain, strided, strict=True))
    for gap, expected, fresh in zip(gaps[3:], state, session_batch_state(2), strict=True):
        assert torch.equal(gap[:, 0], expected) and torch.equal(gap[:, 1], fresh + 50)


@impls
def test_a_log_of_more_than_two_to_the_31_events(impl: str, tmp_path: Path) -> None:
    """Positions are 64-bit. The file of 8 GiB is sparse and uses a few pages on disk."""
    n_events = 2**31 + 8
    events = np.memmap(tmp_path / "items.bin", dtype=np.int32, mode="w+", shape=(n_events,))
    events[-4:] = [5, 6, 7, 8]
    offsets = torch.tensor([0, n_events - 4, n_events])
    state = session_batch_state(1)
    inputs, targets, _ = session_batch(torch.from_numpy(events), offsets, torch.tensor([1]), *state, 4, impl=impl)
    assert inputs.ravel().tolist() == [5, 6, 7, -1]
    assert targets.ravel().tolist() == [6, 7, 8, -1]


# Bad input


def good_arguments() -> dict[str, Any]:
    items, offsets = as_tensors([[1, 2, 3], [4, 5]], torch.int32)
    lane_session, lane_position, cursor = session_batch_state(2)
    return {
        "items": items,
        "offsets": offsets,
        "order": torch.tensor([0, 1]),
        "lane_session": lane_session,
        "lane_position": lane_position,
        "cursor": cursor,
        "steps": 4,
    }


@impls
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"items": torch.zeros(5)}, "items must be"),
        ({"items": torch.zeros(5, 1, dtype=torch.int32)}, "items must be"),
        ({"offsets": torch.zeros(3, dtype=torch.int32)}, "offsets must be"),
        ({"offsets": torch.zeros(0, dtype=torch.int64)}, "offsets must have"),
        ({"order": torch.zeros(1, 2, dtype=torch.int64)}, "order must be"),
        ({"lane_session": torch.zeros(0, dtype=torch.int64)}, "lane_session must have at least one lane"),
        ({"lane_position": torch.zeros(3, dtype=torch.int64)}, r"lane_position must be int64 \[2\]"),
        ({"cursor": torch.zeros(2, dtype=torch.int64)}, r"cursor must be int64 \[1\]"),
        ({"steps": -1}, "steps=-1"),
        ({"order": torch.tensor([0, 2])}, r"order\[1\]=2: the log has sessions 0 to 1"),
        ({"order": torch.tensor([0, -1])}, r"order\[1\]=-1"),
        ({"offsets": torch.tensor([0, 3, 6])}, r"offsets\[1:3\]=\[3, 6\]: not a range of the 5 items"),
        ({"offsets": torch.tensor([0, 3, 2])}, r"offsets\[1:3\]=\[3, 2\]"),
        ({"offsets": torch.tensor([-1, 3, 5])}, r"offsets\[0:2\]=\[-1, 3\]"),
        ({"cursor": torch.tensor([3])}, "cursor=3"),
        ({"cursor": torch.tensor([-1])}, "cursor=-1"),
        ({"lane_session": torch.tensor([0, 3])}, r"lane_session\[1\]=3"),
        ({"lane_session": torch.tensor([-2, 0])}, r"lane_session\[0\]=-2"),
        (
            {"lane_session": torch.tensor([0, 1]), "lane_position": torch.tensor([2, 2])},
            r"lane_position\[1\]=2: its session is items\[3:5\]",
        ),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(impl: str, changed: dict[str, Any], message: str) -> None:
    arguments = {**good_arguments(), **changed}
    before = [arguments[name].clone() for name in ("lane_session", "lane_position", "cursor")]
    with pytest.raises(ValueError, match=error_pattern(message, impl)):
        session_batch(**arguments, impl=impl)
    after = [arguments[name] for name in ("lane_session", "lane_position", "cursor")]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_no_lanes() -> None:
    with pytest.raises(ValueError, match="lanes=0"):
        session_batch_state(0)


# The operator under torch's own checks


@kernels
def test_opcheck(impl: str) -> None:
    torch.library.opcheck(operators_of(impl, "session_batch").session_batch, tuple(good_arguments().values()))


@kernels
def test_compiles_whole(impl: str) -> None:
    """Only the kernels compile: the reference reads values of tensors, which a graph cannot contain."""
    compiled = torch.compile(session_batch, fullgraph=True, backend=compiler(impl == "native"))
    ours, theirs = good_arguments(), good_arguments()
    for a, b in zip(compiled(**ours, impl=impl), session_batch(**theirs, impl=impl), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(ours[name], theirs[name]) for name in ("lane_session", "lane_position", "cursor"))
