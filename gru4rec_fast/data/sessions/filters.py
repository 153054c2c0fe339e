"""Remove rare and unknown items, repeated events and short sessions from a log, counted in `EventLog.dropped`.

An item code is an item's number in the `EventLog`, before renumbering.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gru4rec_fast.data.array_folder import dropped_counts
from gru4rec_fast.data.sessions.assembly import ItemRenumbering
from gru4rec_fast.data.sessions.events import EventLog, Events


@dataclass(frozen=True)
class SessionRules:
    """Rules for sessions: at least `min_length` events and, with `collapse_repeats`, no item twice in a row."""

    min_length: int = 2
    collapse_repeats: bool = False

    def apply(self, log: EventLog, item_mask: np.ndarray, reason: str) -> None:
        """Remove the items for which `item_mask`, bool [n item codes], is False, then repeats, then short sessions.

        The removed events and sessions are counted in `log.dropped`. `reason` says why items are removed, such as
        "rare_item".
        """

        def filtered(events: Events) -> Events:
            mask = item_mask[events.items]
            log.dropped[f"{reason}_events"] += int((~mask).sum())
            events = events.select_events(mask)
            if self.collapse_repeats:
                repeats = events.repeat_mask()
                log.dropped["repeat_events"] += int(repeats.sum())
                events = events.select_events(~repeats)
            short = events.lengths < self.min_length
            log.dropped["short_sessions"] += int(short.sum())
            log.dropped["short_session_events"] += int(events.lengths[short].sum())
            return events.select_sessions(~short)

        log.update(filtered)


def drop_rare(log: EventLog, min_support: int, rules: SessionRules) -> None:
    """Drop items that occur fewer than `min_support` times and apply the rules, until nothing changes.

    More than one round may be needed: dropped items shorten sessions, and dropped sessions lower the support of items.
    """
    rare = _rare_items(log, min_support)
    while True:
        log.dropped["rare_items"] += int(rare.sum())
        rules.apply(log, ~rare, "rare_item")
        rare = _rare_items(log, min_support)
        if not rare.any():
            break


def _rare_items(log: EventLog, min_support: int) -> np.ndarray:
    """Return a mask, bool [n item codes], of the items that occur, but fewer than `min_support` times."""
    support = log.support()
    return (support > 0) & (support < min_support)


def drop_unseen(log: EventLog, renumbering: ItemRenumbering, rules: SessionRules) -> None:
    """Drop items that are not in the training data, that is, items without an index. Then apply the rules.

    Raises ValueError if all items would be dropped.
    """
    known = renumbering.has_index()
    support = log.support()
    log.dropped["unseen_items"] += int(((support > 0) & ~known).sum())
    if not support[known].any():
        examples = ", ".join(map(repr, log.item_ids[np.flatnonzero(support)[:3]].tolist()))
        raise ValueError(f"none of the items (such as {examples}) is in the training vocabulary; do the ids match?")
    rules.apply(log, known, "unseen_item")


def require_sessions(log: EventLog, name: str) -> None:
    """Raise ValueError if the log holds no event; the message lists what was dropped."""
    if not any(len(events.items) for events in log):
        raise ValueError(
            f"no session is left in {name}; dropped: {', '.join(dropped_counts(log.dropped)) or 'nothing'}"
        )
