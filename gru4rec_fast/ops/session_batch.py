"""Session-parallel mini-batches: lanes that play sessions one after another.

Hidasi, Karatzoglou, Baltrunas and Tikk, "Session-based recommendations with recurrent neural networks", ICLR 2016
(arXiv 1511.06939), section 3.1.1 and figure 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gru4rec_fast._backend import resolve
from gru4rec_fast.ops._registry import on_load, operators


def session_batch_state(n_lanes: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Return the state of an epoch that has not begun: (lane_session [n_lanes], lane_position [n_lanes], cursor [1]).

    All int64. lane_session: which place of `order` the lane plays; -1 before its first step, len(order) when it is
    dead. lane_position: index in `items` of the event that is its next input. cursor: the next place of `order` to be
    started.
    """
    if n_lanes < 1:
        raise ValueError(f"n_lanes={n_lanes}: must be at least 1")
    return (
        torch.full((n_lanes,), -1, dtype=torch.int64, device=device),
        torch.zeros(n_lanes, dtype=torch.int64, device=device),
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
    """Return the next `steps` steps of B lanes, each of which goes through sessions one after another.

    At each step a live lane has its current event as input and the next event of the same session as target. A lane
    whose session has no next event first takes the next session of `order` not yet started; lanes that run out at the
    same step are refilled in lane order. Sessions of fewer than two events are passed over. Where no session is left
    the lane is dead for the rest of the epoch. An epoch so has sum(max(length - 1, 0)) targets, whatever the number of
    lanes. The state tensors carry on from call to call: one call for T steps gives what T calls for one step give.

    Args:
        items: int32 or int64 [n_events], the log.
        offsets: int64 [n_sessions + 1]; session s is items[offsets[s]:offsets[s + 1]].
        order: int64 [n_played], the sessions of this epoch in the order they are started; None: all, as they stand.
        lane_session: int64 [B], updated: which place of `order` the lane plays; -1 before its first step, n_played when
            it is dead.
        lane_position: int64 [B], updated: index in `items` of the lane's next input.
        cursor: int64 [1], updated: the next place of `order` to be started. `session_batch_state` makes all three.
        steps: how many steps to play.
        impl: "auto", "native" or "reference".

    Returns:
        (inputs int64 [steps, B], targets int64 [steps, B], reset bool [steps, B]). A dead lane has input and target -1.
        reset is True where a lane begins a session, so that its hidden state must be zero before that step. Rows after
        the end of the epoch are all dead.

    Raises:
        ValueError: an argument that does not fit, named; an `order` or a state that does not fit the log. The state is
            then as it was.
    """
    if items.dim() != 1 or items.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"items must be int32 or int64 [n_events], not {items.dtype} {[*items.shape]}")
    indices = {
        "offsets": offsets,
        "order": order,
        "lane_session": lane_session,
        "lane_position": lane_position,
        "cursor": cursor,
    }
    for name, tensor in indices.items():
        if tensor is None:
            continue
        if tensor.dim() != 1 or tensor.dtype != torch.int64:
            raise ValueError(f"{name} must be a one-dimensional int64 tensor, not {tensor.dtype} {[*tensor.shape]}")
        if tensor.device != items.device:
            raise ValueError(f"{name} is on {tensor.device} but items is on {items.device}: use one device")
    if offsets.shape[0] < 1:
        raise ValueError("offsets must have n_sessions + 1 elements, not 0")
    if lane_session.shape[0] < 1 or lane_position.shape != lane_session.shape:
        raise ValueError(
            "lane_session and lane_position must have one element per lane and at least one lane, "
            f"not {lane_session.shape[0]} and {lane_position.shape[0]}"
        )
    if cursor.shape[0] != 1:
        raise ValueError(f"cursor must have one element, not {cursor.shape[0]}")
    if steps < 0:
        raise ValueError(f"steps={steps}: must not be negative")
    state = (lane_session, lane_position, cursor)
    chosen = resolve(impl, "session_batch", items.device.type)
    if chosen != "reference":
        return operators(chosen).session_batch(items, offsets, order, *state, steps)
    return session_batch_reference(items, offsets, order, state, steps)


def session_batch_reference(
    items: Tensor, offsets: Tensor, order: Tensor | None, state: tuple[Tensor, Tensor, Tensor], steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (inputs, targets, reset) of `steps` steps, and update `state`: lane_session, lane_position and cursor."""
    lane_session, lane_position, cursor = state
    n_events, n_sessions, n_lanes = len(items), len(offsets) - 1, len(lane_session)
    n_played = n_sessions if order is None else len(order)
    session, position, unstarted = lane_session.tolist(), lane_position.tolist(), int(cursor)
    if not 0 <= unstarted <= n_played:
        raise ValueError(f"cursor={unstarted}: must be in [0, {n_played}], the length of order")

    def bounds(place: int) -> tuple[int, int]:
        played = place if order is None else int(order[place])
        if not 0 <= played < n_sessions:
            raise ValueError(f"order[{place}]={played}: the log has sessions 0 to {n_sessions - 1}")
        begin, end = int(offsets[played]), int(offsets[played + 1])
        if not 0 <= begin <= end <= n_events:
            raise ValueError(f"offsets[{played}:{played + 2}]=[{begin}, {end}]: not a range of the {n_events} items")
        return begin, end

    ends = [0] * n_lanes  # one past the last event of each lane's session
    for lane, place in enumerate(session):
        if not -1 <= place <= n_played:
            raise ValueError(f"lane_session[{lane}]={place}: must be in [-1, {n_played}], the length of order")
        if 0 <= place < n_played:
            begin, ends[lane] = bounds(place)
            if not begin <= position[lane] < ends[lane]:
                raise ValueError(f"lane_position[{lane}]={position[lane]}: its session is items[{begin}:{ends[lane]}]")

    event = [[-1] * n_lanes for _ in range(steps)]  # index of the input event
    reset = [[False] * n_lanes for _ in range(steps)]
    for t in range(steps):
        for lane in range(n_lanes):
            if session[lane] == n_played:
                continue
            if session[lane] == -1 or position[lane] + 1 == ends[lane]:
                length = 0
                while length < 2 and unstarted < n_played:
                    session[lane], (position[lane], ends[lane]) = unstarted, bounds(unstarted)
                    length = ends[lane] - position[lane]
                    unstarted += 1
                if length < 2:
                    session[lane], position[lane] = n_played, 0
                    continue
                reset[t][lane] = True
            event[t][lane] = position[lane]
            position[lane] += 1

    inputs = torch.tensor(event, dtype=torch.int64).reshape(steps, n_lanes).to(items.device)
    live = inputs >= 0
    targets = inputs + live
    inputs[live] = items[inputs[live]].long()
    targets[live] = items[targets[live]].long()
    lane_session.copy_(torch.tensor(session))
    lane_position.copy_(torch.tensor(position))
    cursor.fill_(unstarted)
    return inputs, targets, torch.tensor(reset, dtype=torch.bool).reshape(steps, n_lanes).to(items.device)


def _fake(items: Tensor, offsets: Tensor, order: Tensor | None, lane_session: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    shape = (rest[-1], lane_session.shape[0])
    return offsets.new_empty(shape), offsets.new_empty(shape), offsets.new_empty(shape, dtype=torch.bool)


@on_load
def _register(library: str) -> None:
    torch.library.register_fake(f"{library}::session_batch", _fake)
