"""session_batch compared with a simulation with Python lists, and checked for properties that every epoch must have.

A lane is one of the B positions of a mini-batch. It processes one session after another, and is live until no session
is left for it.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import (
    assert_equal_bits,
    compile_backend,
    error_pattern,
    implementations,
    max_examples,
    native_and_emulated,
    operators_of,
)
from torch import Tensor

from gru4rec_fast import _backend
from gru4rec_fast.ops import session_batch, session_batch_state

needs_native = pytest.mark.skipif(
    _backend.resolve("auto", "session_batch", "cpu") != "native", reason="session_batch is not built natively"
)
impls = implementations("session_batch")
kernels = native_and_emulated("session_batch")

Block = tuple[Tensor, Tensor, Tensor]  # inputs, targets and reset, each [steps, lanes]


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Draw sessions of 0 to 6 events, whose items are all different, and an order, which may omit sessions."""
    lengths = draw(st.lists(st.integers(0, 6), max_size=12))
    first_items = np.cumsum([100, *lengths]).tolist()  # the additional last element is the end of the last session
    sessions = [list(range(start, end)) for start, end in pairwise(first_items)]
    order = draw(st.permutations(range(len(lengths))))
    return sessions, order[: draw(st.integers(0, len(order)))]


def simulate(sessions: list[list[int]], order: list[int], n_lanes: int) -> list[list[tuple[int, int, bool]]]:
    """Return the steps until no lane is live; a step has (input, target, reset) for each lane."""
    waiting = [sessions[s] for s in order if len(sessions[s]) > 1]
    lanes: list[list[int]] = [[] for _ in range(n_lanes)]
    steps = []
    while waiting or any(len(lane) > 1 for lane in lanes):
        starts = [len(lane) < 2 for lane in lanes]
        for i in range(n_lanes):
            if starts[i]:
                lanes[i] = waiting.pop(0) if waiting else []
        steps.append([(*lane[:2], new) if lane else (-1, -1, False) for lane, new in zip(lanes, starts, strict=True)])
        lanes = [lane[1:] for lane in lanes]
    return steps


def as_tensors(sessions: list[list[int]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the items of all sessions, and the offset of each session in them (int64 [n_sessions + 1])."""
    items = torch.tensor([event for session in sessions for event in session], dtype=dtype)
    return items, torch.tensor(np.cumsum([0, *map(len, sessions)]), dtype=torch.int64)


def run(
    sessions: list[list[int]], order: list[int], n_lanes: int, steps: int, call_size: int, impl: str, dtype: torch.dtype
) -> tuple[Block, tuple[Tensor, Tensor, Tensor]]:
    """Return a block of `steps` steps, computed by calls of `call_size` steps, and the final state."""
    log = (*as_tensors(sessions, dtype), torch.tensor(order, dtype=torch.int64))
    state = session_batch_state(n_lanes)
    steps_of_calls = [min(call_size, steps - t) for t in range(0, steps, call_size)] or [0]
    blocks = [session_batch(*log, *state, n, impl=impl) for n in steps_of_calls]
    inputs, targets, reset = (torch.cat(tensors) for tensors in zip(*blocks, strict=True))
    return (inputs, targets, reset), state


cases = given(log=logs(), n_lanes=st.integers(1, 5), call_size=st.integers(1, 9))


@impls
@settings(max_examples=max_examples(150), deadline=None)
@cases
def test_equals_simulation(impl: str, log: tuple[list[list[int]], list[int]], n_lanes: int, call_size: int) -> None:
    expected = simulate(*log, n_lanes)
    steps_after_the_end = [[(-1, -1, False)] * n_lanes] * 3
    (inputs, targets, reset), _ = run(*log, n_lanes, len(expected) + 3, call_size, impl, torch.int32)
    steps = torch.stack([inputs, targets, reset.long()], dim=2)
    assert torch.equal(steps, torch.tensor(expected + steps_after_the_end, dtype=torch.int64))


@impls
@settings(max_examples=max_examples(150), deadline=None)
@cases
def test_epoch_has_every_event_once(
    impl: str, log: tuple[list[list[int]], list[int]], n_lanes: int, call_size: int
) -> None:
    sessions, order = log
    used_sessions = [sessions[s] for s in order if len(sessions[s]) > 1]
    steps = sum(map(len, used_sessions)) + 1  # enough for an epoch with one lane
    (inputs, targets, reset), state = run(sessions, order, n_lanes, steps, call_size, impl, torch.int64)
    live = inputs >= 0
    assert torch.equal(live, targets >= 0)
    assert sorted(inputs[live].tolist()) == sorted(event for session in used_sessions for event in session[:-1])
    assert sorted(targets[live].tolist()) == sorted(event for session in used_sessions for event in session[1:])
    assert int(live.sum()) == sum(max(len(sessions[s]) - 1, 0) for s in order)
    assert inputs[reset].tolist() == [session[0] for session in used_sessions]  # sessions start in the given order
    assert not (live[1:] & ~live[:-1]).any()  # a lane that is not live does not become live again
    continues = live[1:] & ~reset[1:]
    assert torch.equal(inputs[1:][continues], targets[:-1][continues])
    assert [t.tolist() for t in state] == [[len(order)] * n_lanes, [0] * n_lanes, [len(order)]]


@impls
@settings(max_examples=max_examples(100), deadline=None)
@given(log=logs(), n_lanes=st.integers(1, 5), steps=st.integers(0, 20), call_size=st.integers(1, 9))
def test_several_calls_equal_one_call(
    impl: str, log: tuple[list[list[int]], list[int]], n_lanes: int, steps: int, call_size: int
) -> None:
    one_call, state_of_one_call = run(*log, n_lanes, steps, max(steps, 1), impl, torch.int32)
    several_calls, state_of_several_calls = run(*log, n_lanes, steps, call_size, impl, torch.int32)
    assert_equal_bits((*several_calls, *state_of_several_calls), (*one_call, *state_of_one_call))


@kernels
@settings(max_examples=max_examples(150), deadline=None)
@given(
    log=logs(), n_lanes=st.integers(1, 5), steps=st.integers(0, 20), dtype=st.sampled_from([torch.int32, torch.int64])
)
def test_kernels_equal_reference(
    impl: str, log: tuple[list[list[int]], list[int]], n_lanes: int, steps: int, dtype: torch.dtype
) -> None:
    ours, our_state = run(*log, n_lanes, steps, 4, impl, dtype)
    theirs, their_state = run(*log, n_lanes, steps, 4, "reference", dtype)
    for a, b in zip((*ours, *our_state), (*theirs, *their_state), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@impls
def test_order_none_is_the_order_of_the_log(impl: str) -> None:
    items, offsets = as_tensors([[1, 2, 3], [4, 5], [9], [], [6, 7, 8]], torch.int32)
    state, expected_state = (session_batch_state(2) for _ in range(2))
    block = session_batch(items, offsets, None, *state, 9, impl=impl)
    expected = session_batch(items, offsets, torch.arange(5), *expected_state, 9, impl=impl)
    assert_equal_bits((*block, *state), (*expected, *expected_state))


@impls
def test_strided_arguments_equal_contiguous_ones(impl: str) -> None:
    """Arguments may be strided. A strided state is updated in place; the memory between its elements is unchanged."""
    items, offsets = as_tensors([[1, 2, 3], [4, 5], [6, 7, 8]], torch.int32)
    order = torch.tensor([2, 0, 1])
    expected_state = session_batch_state(2)
    expected = session_batch(items, offsets, order, *expected_state, 3, impl=impl)
    pairs = [torch.stack([t, t + 50], dim=1) for t in (items, offsets, order, *session_batch_state(2))]
    assert_equal_bits(session_batch(*(pair[:, 0] for pair in pairs), 3, impl=impl), expected)
    for pair, updated, original in zip(pairs[3:], expected_state, session_batch_state(2), strict=True):
        assert torch.equal(pair[:, 0], updated) and torch.equal(pair[:, 1], original + 50)


@impls
def test_log_of_more_than_two_to_the_31_events(impl: str, tmp_path: Path) -> None:
    """The items are in a sparse file of 8 GiB, which uses a few pages on disk."""
    n_events = 2**31 + 8
    events = np.memmap(tmp_path / "items.bin", dtype=np.int32, mode="w+", shape=(n_events,))
    events[-4:] = [5, 6, 7, 8]
    offsets = torch.tensor([0, n_events - 4, n_events])
    state = session_batch_state(1)
    inputs, targets, _ = session_batch(torch.from_numpy(events), offsets, torch.tensor([1]), *state, 4, impl=impl)
    assert inputs.ravel().tolist() == [5, 6, 7, -1]
    assert targets.ravel().tolist() == [6, 7, 8, -1]


# Errors


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
            r"lane_position\[1\]=2: outside its session, items\[3:5\]",
        ),
    ],
)
def test_error_names_the_argument_and_changes_nothing(impl: str, changed: dict[str, Any], message: str) -> None:
    arguments = {**good_arguments(), **changed}
    state = [arguments[name] for name in ("lane_session", "lane_position", "cursor")]
    copies = [tensor.clone() for tensor in state]
    with pytest.raises(ValueError, match=error_pattern(message, impl)):
        session_batch(**arguments, impl=impl)
    assert_equal_bits(state, copies)


@impls
def test_position_of_a_lane_without_a_session_may_be_any_number(impl: str) -> None:
    """Nothing is computed from it, so it cannot overflow."""
    expected = session_batch(**good_arguments(), impl=impl)
    for position in (2**63 - 1, -(2**63)):
        arguments = {**good_arguments(), "lane_position": torch.full((2,), position)}
        assert_equal_bits(session_batch(**arguments, impl=impl), expected)
        ended = {**arguments, "lane_session": torch.full((2,), 2), "lane_position": torch.full((2,), position)}
        assert (session_batch(**ended, impl=impl)[0] == -1).all()
        assert (ended["lane_position"] == position).all()


def test_state_without_lanes_is_an_error() -> None:
    with pytest.raises(ValueError, match="lanes=0"):
        session_batch_state(0)


# torch.library.opcheck and torch.compile


@kernels
def test_opcheck(impl: str) -> None:
    torch.library.opcheck(operators_of(impl, "session_batch").session_batch, tuple(good_arguments().values()))


@kernels
def test_compiles_to_one_graph(impl: str) -> None:
    """The reference does not compile, because it reads values of tensors, which a graph cannot contain."""
    compiled = torch.compile(session_batch, fullgraph=True, backend=compile_backend(impl == "native"))
    ours, theirs = good_arguments(), good_arguments()
    for a, b in zip(compiled(**ours, impl=impl), session_batch(**theirs, impl=impl), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(ours[name], theirs[name]) for name in ("lane_session", "lane_position", "cursor"))
