"""Session-parallel mini-batches: lanes that play sessions one after another.

Hidasi, Karatzoglou, Baltrunas and Tikk, "Session-based recommendations with recurrent neural networks", ICLR 2016
(arXiv 1511.06939), section 3.1.1 and figure 2.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Play `steps` steps of B lanes; everything that is to be remembered between calls is in the state tensors.

    At each step a live lane feeds its current event as input and the next event of the same session as target. A lane
    whose session has no next event first takes the next session not yet started; lanes that run out at the same step
    are refilled in lane order. Sessions of fewer than two events are passed over. Where no session is left the lane is
    dead for the rest of the epoch. An epoch so has sum(max(length - 1, 0)) targets, whatever the number of lanes.

    items: int32 or int64 [n_events]. offsets: int64 [n_sessions + 1]; session s is items[offsets[s]:offsets[s + 1]].
    order: int64 [n_played], the sessions of this epoch in the order they are started; None: all, in the log's order.
    lane_session, lane_position int64 [B], cursor int64 [1]: see `session_batch_state`; updated in place.

    Returns (inputs, targets, reset): inputs and targets int64 [steps, B], -1 in dead lanes; reset bool [steps, B], True
    where a lane begins a session, so that its hidden state must be zero before this step. Rows after the end of the
    epoch are all dead.

    Raises ValueError where `order` or the state does not fit `offsets` and `items`.
    """
    n_events, n_sessions, n_lanes = len(items), len(offsets) - 1, len(lane_session)
    n_played = n_sessions if order is None else len(order)
    session, position, unstarted = lane_session.tolist(), lane_position.tolist(), int(cursor)
    if not 0 <= unstarted <= n_played:
        raise ValueError(f"cursor={unstarted}: must be in [0, {n_played}], the number of sessions to play")

    def bounds(place: int) -> tuple[int, int]:
        played = place if order is None else int(order[place])
        if not 0 <= played < n_sessions:
            raise ValueError(f"order[{place}]={played}: offsets hold {n_sessions} sessions")
        begin, end = int(offsets[played]), int(offsets[played + 1])
        if not 0 <= begin <= end <= n_events:
            raise ValueError(f"offsets[{played}:{played + 2}]=[{begin}, {end}]: no range of the {n_events} items")
        return begin, end

    ends = [0] * n_lanes  # one past the last event of each lane's session
    for lane, place in enumerate(session):
        if not -1 <= place <= n_played:
            raise ValueError(f"lane_session[{lane}]={place}: must be in [-1, {n_played}]")
        if 0 <= place < n_played:
            begin, ends[lane] = bounds(place)
            if not begin <= position[lane] < ends[lane]:
                raise ValueError(f"lane_position[{lane}]={position[lane]}: its session is [{begin}, {ends[lane]})")

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
