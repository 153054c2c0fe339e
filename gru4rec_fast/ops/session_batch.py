"""Session-parallel mini-batches. Specification: `gru4rec_fast.reference.session_batch`."""

from __future__ import annotations

import torch
from torch import Tensor

from gru4rec_fast._backend import resolve
from gru4rec_fast.ops._registry import on_load, operators
from gru4rec_fast.reference.session_batch import session_batch as reference_session_batch
from gru4rec_fast.reference.session_batch import session_batch_state

__all__ = ["session_batch", "session_batch_state"]


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
    """Play `steps` steps of B lanes, which play sessions one after another.

    A lane whose session has no next event takes the next session of `order` not yet started (lanes that run out at the
    same step in lane order; sessions of fewer than two events are passed over), and is dead where none is left. The
    state tensors carry on from call to call: one call for T steps gives what T calls for one step give.

    Args:
        items: int32 or int64 [n_events], the log.
        offsets: int64 [n_sessions + 1]; session s is items[offsets[s]:offsets[s + 1]].
        order: int64 [n_played], the sessions of this epoch in the order they are started; None: all, as they stand.
        lane_session: int64 [B], updated: which place of `order` the lane plays; -1 before its first step, n_played when
            it is dead.
        lane_position: int64 [B], updated: index in `items` of the lane's next input.
        cursor: int64 [1], updated: the next place of `order` to be started. `session_batch_state` makes all three.
        steps: how many steps to play.
        impl: "auto", "native", "reference" or "emulated".

    Returns:
        (inputs int64 [steps, B], targets int64 [steps, B], reset bool [steps, B]). A dead lane has input and target -1.
        reset is True where a lane begins a session, so that its hidden state must be zero before that step. Rows after
        the end of the epoch are all dead.

    Raises:
        ValueError: an argument that does not fit, named; an `order` or a state that does not fit the log. The state is
            then as it was.
    """
    _check(items, offsets, order, lane_session, lane_position, cursor, steps)
    chosen = resolve(impl, "session_batch", items.device.type)
    if chosen != "reference":
        return operators(chosen).session_batch(items, offsets, order, lane_session, lane_position, cursor, steps)
    return reference_session_batch(items, offsets, order, lane_session, lane_position, cursor, steps)


def _check(
    items: Tensor,
    offsets: Tensor,
    order: Tensor | None,
    lane_session: Tensor,
    lane_position: Tensor,
    cursor: Tensor,
    steps: int,
) -> None:
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


def _fake(
    items: Tensor,
    offsets: Tensor,
    order: Tensor | None,
    lane_session: Tensor,
    lane_position: Tensor,
    cursor: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (steps, lane_session.shape[0])
    return offsets.new_empty(shape), offsets.new_empty(shape), offsets.new_empty(shape, dtype=torch.bool)


@on_load
def _register(library: str) -> None:
    torch.library.register_fake(f"{library}::session_batch", _fake)
