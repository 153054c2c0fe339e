"""Assembles session-parallel mini-batches.

A lane is a column of the mini-batch. It processes one session after another, so B lanes process B sessions in parallel.

Hidasi, Karatzoglou, Baltrunas and Tikk, "Session-based recommendations with recurrent neural networks", ICLR 2016
(arXiv 1511.06939), section 3.1.1 and figure 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gru4rec_fast._backend import resolve
from gru4rec_fast.ops._checks import check_memory, check_tensor
from gru4rec_fast.ops._registry import on_load, operators, register


def session_batch_state(lanes: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Return the state at the start of an epoch: (lane_session [lanes], lane_position [lanes], cursor [1]), int64.

    lane_session: index in `order` of the session of the lane; -1 before the first step. It is len(order) if no session
    is left for the lane; the lane is then no longer live.
    lane_position: index in `items` of the next input of the lane.
    cursor: index in `order` of the next session to start.
    """
    if lanes < 1:
        raise ValueError(f"lanes={lanes}: must be at least 1")
    return (
        torch.full((lanes,), -1, dtype=torch.int64, device=device),
        torch.zeros(lanes, dtype=torch.int64, device=device),
        torch.zeros(1, dtype=torch.int64, device=device),
    )


def session_batch(
    items: Tensor,
    offsets: Tensor,
    order: Tensor | None,
    lane_session: Tensor,
    lane_position: Tensor,
    cursor: Tensor,
    steps: int,
    *,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the next `steps` steps of B lanes, and advance the state of the lanes in place.

    The input of a live lane at a step is the current event of its session; the target is the next event of the same
    session. A lane whose session has no next event first takes the next session of `order` that no lane has started. If
    several lanes need a session at the same step, they take sessions in the order of the lanes. Sessions of fewer than
    two events are skipped. If no session is left, the lane is not live for the rest of the epoch. So an epoch has
    sum(max(length - 1, 0)) targets for any number of lanes. One call for T steps returns the steps of T calls for one
    step.

    Args:
        items: int32 or int64 [n_events], the events of all sessions.
        offsets: int64 [n_sessions + 1]; session s is items[offsets[s]:offsets[s + 1]].
        order: int64 [n_ordered], the sessions of this epoch in the order in which they are started; None: all sessions
            in the order of `offsets`.
        lane_session, lane_position, cursor: the state of the lanes, int64 [B], [B] and [1], from `session_batch_state`
            or the previous call; updated in place.
        steps: number of steps.
        impl: "auto", "native" or "reference".

    Returns:
        (inputs int64 [steps, B], targets int64 [steps, B], reset bool [steps, B]). Inputs and targets are -1 where a
        lane is not live. reset is True where a lane starts a session: the hidden state must be zero before that step.
        No lane is live in the steps after the end of the epoch.

    Raises:
        ValueError: an argument is out of range, or `order` or the state does not fit the sessions. The error leaves the
            state unchanged.
    """
    device = items.device
    check_tensor("items", items, (torch.int32, torch.int64), ("n_events",), device)
    check_tensor("offsets", offsets, torch.int64, ("n_sessions + 1",), device)
    if offsets.shape[0] < 1:
        raise ValueError("offsets must have n_sessions + 1 elements, not 0")
    check_tensor("order", order, torch.int64, ("n_ordered",), device)
    check_tensor("lane_session", lane_session, torch.int64, ("B",), device)
    if lane_session.shape[0] < 1:
        raise ValueError("lane_session must have at least one lane")
    check_tensor("lane_position", lane_position, torch.int64, (lane_session.shape[0],), device)
    check_tensor("cursor", cursor, torch.int64, (1,), device)
    if steps < 0:
        raise ValueError(f"steps={steps}: must not be negative")
    state = (lane_session, lane_position, cursor)
    chosen = resolve(impl, "session_batch", device.type)
    if chosen != "reference":
        return operators(chosen).session_batch(items, offsets, order, *state, steps)
    return session_batch_reference(items, offsets, order, state, steps)


def session_batch_reference(
    items: Tensor, offsets: Tensor, order: Tensor | None, state: tuple[Tensor, Tensor, Tensor], steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (inputs, targets, reset) and update `state` (lane_session, lane_position, cursor) in place."""
    lane_session, lane_position, cursor = state
    written = {"lane_session": lane_session, "lane_position": lane_position, "cursor": cursor}
    check_memory(written, {"items": items, "offsets": offsets, "order": order})
    n_events, n_sessions, n_lanes = len(items), len(offsets) - 1, len(lane_session)
    n_ordered = n_sessions if order is None else len(order)
    session, position, next_session = lane_session.tolist(), lane_position.tolist(), int(cursor)
    if not 0 <= next_session <= n_ordered:
        raise ValueError(f"cursor={next_session}: must be in [0, {n_ordered}], the length of order")

    def bounds(index: int) -> tuple[int, int]:
        """Return (start, end) of the session with this index in `order`; its events are items[start:end]."""
        s = index if order is None else int(order[index])
        if not 0 <= s < n_sessions:
            raise ValueError(f"order[{index}]={s}: the log has sessions 0 to {n_sessions - 1}")
        start, end = int(offsets[s]), int(offsets[s + 1])
        if not 0 <= start <= end <= n_events:
            raise ValueError(f"offsets[{s}:{s + 2}]=[{start}, {end}]: not a range of the {n_events} items")
        return start, end

    session_end = [0] * n_lanes
    for lane, index in enumerate(session):
        if not -1 <= index <= n_ordered:
            raise ValueError(f"lane_session[{lane}]={index}: must be in [-1, {n_ordered}], the length of order")
        if 0 <= index < n_ordered:
            start, session_end[lane] = bounds(index)
            if not start <= position[lane] < session_end[lane]:
                raise ValueError(
                    f"lane_position[{lane}]={position[lane]}: outside its session, items[{start}:{session_end[lane]}]"
                )

    event = [[-1] * n_lanes for _ in range(steps)]  # index in `items` of the input at [step][lane]; -1: not live
    reset = [[False] * n_lanes for _ in range(steps)]
    for t in range(steps):
        for lane in range(n_lanes):
            if session[lane] == n_ordered:
                continue
            if session[lane] == -1 or position[lane] + 1 == session_end[lane]:
                length = 0
                while length < 2 and next_session < n_ordered:
                    session[lane], (position[lane], session_end[lane]) = next_session, bounds(next_session)
                    length = session_end[lane] - position[lane]
                    next_session += 1
                if length < 2:
                    session[lane], position[lane] = n_ordered, 0
                    continue
                reset[t][lane] = True
            event[t][lane] = position[lane]
            position[lane] += 1

    input_events = torch.tensor(event, dtype=torch.int64).reshape(steps, n_lanes).to(items.device)
    live = input_events >= 0
    inputs, targets = torch.full_like(input_events, -1), torch.full_like(input_events, -1)
    inputs[live] = items[input_events[live]].long()
    targets[live] = items[input_events[live] + 1].long()
    lane_session.copy_(torch.tensor(session))
    lane_position.copy_(torch.tensor(position))
    cursor.fill_(next_session)
    return inputs, targets, torch.tensor(reset, dtype=torch.bool).reshape(steps, n_lanes).to(items.device)


def _fake(items: Tensor, offsets: Tensor, order: Tensor | None, lane_session: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    shape = (rest[-1], lane_session.shape[0])
    return offsets.new_empty(shape), offsets.new_empty(shape), offsets.new_empty(shape, dtype=torch.bool)


@on_load
def _register(library: str) -> None:
    register(library, "session_batch", None, _fake)
